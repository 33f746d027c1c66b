"""Run a real stage process on a few records of the embedded demo."""

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from stages.blocks import HardwareSettings, LoRASettings, TokenSettings
from stages.evaluate_settings import EvaluateSettings
from stages.result import StageResult
from stages.sample_settings import SampleSettings
from stages.settings import PPOSettings, PretrainSettings, RMSettings, SFTSettings
from stages.spec import RESULT_FILE, StageSpec, data_inputs
from tests.conftest import shared_directory

SMALL = {
    "pretrain": PretrainSettings(
        epochs=2,
        sequence_length=128,
        batch_size=2,
        micro_batch_size=1,
        learning_rate=1e-3,
        warmup_steps=3,
        save_every=4,
        log_every=2,
        eval_samples=4,
    ),
    "sft": SFTSettings(
        epochs=2, batch_size=8, micro_batch_size=4, learning_rate=1e-3, warmup_steps=3, save_every=4, log_every=2, eval_samples=4
    ),
    "rm": RMSettings(epochs=2, batch_size=8, micro_batch_size=4, learning_rate=5e-4, warmup_steps=3, save_every=4, log_every=2),
    "ppo": PPOSettings(
        iterations=6,
        rollout_batch_size=8,
        minibatch_size=4,
        max_tokens_per_microbatch=512,
        ppo_epochs=2,
        learning_rate=1e-3,
        max_response_tokens=8,
        save_every=2,
        eval_every=3,
        eval_samples=4,
    ),
    "evaluate": EvaluateSettings(
        prompts=6, samples=4, policy_samples=2, comparisons=8, probe_prompts=8, max_response_tokens=8, temperature=1.0
    ),
    "sample": SampleSettings(answers=3, prompts=6, max_response_tokens=8, temperature=1.0),
}
HARDWARE = HardwareSettings(device="cpu", precision="float32", attention="eager", threads=1)


@dataclass
class StageProcess:
    """One stage with its directories; started as often as a test likes."""

    spec: StageSpec
    spec_path: Path
    environment: Callable[[], dict[str, str]]

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-P", "-m", f"stages.{self.spec.stage}", str(self.spec_path)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.environment())

    def run(self) -> str:
        process = self.start()
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-3000:]
        return output

    def events(self) -> list[dict]:
        path = self.spec.events_path
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def model_dir(self) -> Path:
        return self.spec.output_dir / "model"

    @property
    def result(self) -> StageResult:
        return StageResult.model_validate_json((self.spec.output_dir / RESULT_FILE).read_text())


@pytest.fixture
def make_stage(tmp_path, make_stage_in):
    """Factory: make_stage("sft", tag="straight", models={...}, rows=48, **settings)."""
    return functools.partial(make_stage_in, tmp_path)


def read_lines(demo_dir, kind, split):
    """Read the demo's records of a kind; of its demonstrations texts are made."""
    if kind != "texts":
        return (demo_dir / f"{kind}.{split}.jsonl").read_text().splitlines()
    rows = map(json.loads, read_lines(demo_dir, "demonstrations", split))
    return [json.dumps({"text": f"{row['prompt']}\n{row['completion']}"}) for row in rows]


@pytest.fixture(scope="session")
def make_stage_in(demo_dir, base_model_dir, warm_start, tmp_path_factory):
    """The same for a directory of one's own: make_stage_in(directory, "sft", ...).

    Token ids lie where all stages of a run share them, as those of a store do; with own_tokens=True beside the checkpoints.
    """
    shared = shared_directory(tmp_path_factory) / "tokens"

    def make(
        parent, stage, *, tag="run", models=None, rows=48, hardware=HARDWARE, judge="data.demo.rule:judge", own_tokens=False, **settings
    ) -> StageProcess:
        directory = parent / f"{stage}-{tag}"
        directory.mkdir()
        stage_settings = type(SMALL[stage]).model_validate(SMALL[stage].model_dump() | settings)
        data = {}
        for kind in data_inputs(stage, stage_settings):
            data[kind] = {}
            for split, count in (("train", rows), ("eval", 8)):
                lines = read_lines(demo_dir, kind, split)[:count]
                path = directory / f"{kind}.{split}.jsonl"
                path.write_text("\n".join(lines) + "\n")
                data[kind][split] = {"path": str(path)}
        spec = StageSpec.model_validate(
            {
                "stage": stage,
                "settings": stage_settings,
                "tokens": TokenSettings(max_prompt_tokens=96, max_response_tokens=64),
                "hardware": hardware,
                "models": {role: str(path) for role, path in (models or {"base": base_model_dir}).items()},
                "data": data,
                "judge": judge,
                "seed": 5,
                "output_dir": directory / "output",
                "checkpoint_dir": directory / "checkpoints",
                "events_path": directory / "events.jsonl",
                "tokens_dir": None if own_tokens else shared,
            }
        )
        spec_path = directory / "spec.json"
        spec_path.write_text(spec.model_dump_json())
        return StageProcess(spec, spec_path, warm_start)

    return make


@pytest.fixture(scope="session")
def plain_hardware():
    """One process on a CPU in float32."""
    return HARDWARE


@pytest.fixture(scope="session")
def fresh_reward_model(base_model_dir, tmp_path_factory):
    """A reward model with a fresh head on the demo's base model; to be left as it is."""
    from stages.models.calibration import Calibration
    from stages.models.reward_model import init_reward_model
    from stages.models.save import save_model
    from stages.models.tokenizer import align_special_tokens, load_tokenizer

    model = init_reward_model(str(base_model_dir), HARDWARE, seed=3)
    tokenizer = load_tokenizer(str(base_model_dir))
    align_special_tokens(model, tokenizer)
    model.calibration = Calibration(0.25, 2.0)
    directory = tmp_path_factory.mktemp("fresh_rm")
    save_model(model, tokenizer, directory)
    return directory / "model"


@pytest.fixture
def reward_model_dir(fresh_reward_model, tmp_path):
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(fresh_reward_model, tmp_path / "fresh_rm" / "model"))


@pytest.fixture
def reward_adapter_dir(base_model_dir, tmp_path):
    """A reward model that is an adapter, with random weights, on the demo's base model; `merged/` lies beside it."""
    from stages.models.adapters import apply_lora, find_model
    from stages.models.calibration import Calibration
    from stages.models.reward_model import init_reward_model
    from stages.models.save import save_model
    from stages.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(base_model_dir))
    model = apply_lora(init_reward_model(str(base_model_dir), HARDWARE, seed=3), LoRASettings(rank=4), "SEQ_CLS", HARDWARE)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    find_model(model).calibration = Calibration(0.25, 2.0)
    save_model(model, tokenizer, tmp_path / "rm", merge=True)
    return tmp_path / "rm" / "model"


@pytest.fixture
def tiny():
    """Builders of tiny models, learners and rollouts, and their token ids."""
    from tests.stages.tiny_models import list_builders

    return list_builders()


@pytest.fixture(scope="session")
def ranks():
    from accelerate import Accelerator

    from stages.process.ranks import Ranks

    return Ranks(Accelerator(cpu=True))


@pytest.fixture
def gpu():
    """A pretend GPU for as long as the test runs; see tests/pretend_gpu.py."""
    from tests.pretend_gpu import pretend_gpu

    with pretend_gpu() as found:
        yield found
