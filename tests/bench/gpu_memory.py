"""What a plan says of the memory that `make gpu-check GPU=steps` measures at 1.2 B weights; of tensors alone, and without a GPU.

python -P -m tests.bench.gpu_memory [sft ...]     half a minute; pipeline/cost/README.md has what a GPU measured
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from pipeline.cost.traced import extrapolate
from stages.blocks import HardwareSettings, TokenSettings
from stages.spec import STAGES, StageName
from stages.tracing.__main__ import make_report
from stages.tracing.report import TraceSpec
from tests.bench.sizes import SIZES

# As in tests/gpu/steps.py; SFT's records there are 327 tokens of prompt and as many of answer on average.
WORK: dict[StageName, tuple[tuple[int, int], dict[str, Any]]] = {
    "sft": ((327, 327), {"batch_size": 32, "micro_batch_size": 16, "eval_samples": 0}),
    "rm": ((512, 256), {"batch_size": 8, "micro_batch_size": 4}),
    "ppo": (
        (256, 256),
        {"rollout_batch_size": 32, "minibatch_size": 32, "ppo_epochs": 1, "max_tokens_per_microbatch": 8192, "eval_samples": 0},
    ),
}
FORMS: dict[str, dict[str, Any]] = {"all weights": {}, "LoRA": {"lora": {"rank": 16}}}


def measure(directory: Path, stage: StageName, form: dict[str, Any]) -> float:
    """Trace a stage as on a GPU; returns the GiB of all tensors that live at once."""
    (prompt, response), settings = WORK[stage]
    spec = TraceSpec(
        base_model=str(directory),
        tokens=TokenSettings(max_prompt_tokens=prompt, max_response_tokens=response),
        hardware=HardwareSettings(precision="bfloat16"),
        stages={stage: STAGES[stage].settings.model_validate(settings | form).model_dump(mode="json")},
        on_gpu=True,
        answers=4,
        report_path=directory / "report.json",
    )
    need = extrapolate(make_report(spec).stages[stage])
    return max(phase.peak for name, phase in need.phases.items() if name != "save") / 2**30


def describe_1b() -> LlamaConfig:
    """Describe the model that `make gpu-check` calls 1b."""
    size = SIZES["1b"]
    return LlamaConfig(
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.intermediate,
        vocab_size=size.vocabulary,
        tie_word_embeddings=False,
    )


def main() -> None:
    """Print a line for each form."""
    stages = [stage for stage in WORK if stage in (sys.argv[1:] or WORK)]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        describe_1b().save_pretrained(directory)
        for form, given in FORMS.items():
            print(form, *(f"{stage} {measure(directory, stage, given):.1f} GiB" for stage in stages), sep="  ", flush=True)


if __name__ == "__main__":
    main()
