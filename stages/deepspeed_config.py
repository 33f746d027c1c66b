"""The hardware block -> DeepSpeed's configuration. Torch-free."""

import importlib.util
import json
from pathlib import Path
from typing import Any, cast

from stages.blocks import HardwareSettings

# The recipe decides on these; in a JSON of the user they would contradict it.
OWNED_KEYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "fp16",
    "bf16",
    "torch_autocast",
)
# Where DeepSpeed sends figures, and the package without which it ends the stage.
_TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml"}


def make_deepspeed_config(
    hardware: HardwareSettings, *, max_grad_norm: float, micro_batch_size: int = 1, accumulation_steps: int = 1
) -> dict[str, Any]:
    """Make DeepSpeed's configuration of a stage.

    Precision is ours (stages.models.precision): float32 weights, products in bfloat16 by autocast; DeepSpeed's own bf16 mode would cast
    everything, scalar heads included.

    Args:
        hardware: ZeRO stage, offloading, precision, and the JSON that is laid over what is made of them.
        max_grad_norm: gradients are clipped to it.
        micro_batch_size: of a process.
        accumulation_steps: micro-batches per optimizer step.
    """
    offload = {"device": "cpu", "pin_memory": hardware.device != "cpu"}
    zero: dict[str, Any] = {"stage": hardware.zero_stage}
    if hardware.offload_optimizer:
        zero["offload_optimizer"] = offload
    if hardware.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
        if hardware.offload_parameters:
            zero["offload_param"] = offload
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        # torch's fused AdamW, on whichever device the optimizer's state lies.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if hardware.computes_in_bfloat16:
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    if hardware.deepspeed_config:
        _lay_over(config, read_deepspeed_json(Path(hardware.deepspeed_config)))
    return config


def read_deepspeed_json(path: Path) -> dict[str, Any]:
    """Read a user's JSON.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON object, or says what the recipe decides on.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    given = cast("dict[str, Any]", content)
    # "auto" is how Hugging Face's examples say "as the trainer has it", which is what leaving it out says here.
    owned = [key for key in OWNED_KEYS if given.get(key, "auto") != "auto" and not _is_auto(given[key])]
    if owned:
        raise ValueError(f"{', '.join(owned)}: the recipe decides on that; take it out")
    for name, package in _TRACKERS.items():
        block = given.get(name)
        if isinstance(block, dict) and cast("dict[str, Any]", block).get("enabled") and importlib.util.find_spec(package) is None:
            raise ValueError(f"{name}.enabled: it needs {package}, which is not installed; install it, or take {name} out")
    zero = given.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ValueError(f"zero_optimization = {zero!r:.40}: needed a JSON object; take it out")
    stage = cast("dict[str, Any]", zero).get("stage", "auto")
    if stage != "auto":
        raise ValueError(f"zero_optimization.stage = {stage}: say hardware.zero_stage: {stage} in the recipe, and take it out here")
    return {key: value for key, value in given.items() if key not in OWNED_KEYS}


def _is_auto(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_auto(inner) or inner == "auto" for inner in cast("dict[str, Any]", value).values())


def _lay_over(config: dict[str, Any], given: dict[str, Any]) -> None:
    for key, value in given.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            _lay_over(config[key], cast("dict[str, Any]", value))
        elif value != "auto":
            config[key] = value
