"""What could be changed where a stage does not fit: cheap changes first, then those that cost time, machines or accuracy."""

from collections.abc import Iterator

from pipeline.cost.setup import Setup
from stages.settings import PPOSettings, PretrainSettings, RMSettings, SFTSettings, StageSettings

Change = dict[str, str]  # key of a recipe -> its value, as `--set` takes them
_MACHINE = 8  # GPUs of a usual one
_SERVED: Change = {  # weights are shared out in training and in decoding, as in the recipe of 70 B
    "hardware.processes": str(_MACHINE),
    "hardware.zero_stage": "3",
    "ppo.rollout.engine": "vllm",
    "ppo.rollout.options": f'[--tensor-parallel-size, "{_MACHINE}", --gpu-memory-utilization, "0.45"]',
}


def list_changes(stage: str, settings: StageSettings, setup: Setup, longest: int) -> Iterator[Change]:
    """List changes, each of which goes on from the one before, and then others.

    Args:
        stage: Which one.
        settings: Of it.
        setup: On what it runs.
        longest: Tokens of a record, at most.
    """
    small: Change = {}
    if isinstance(settings, PPOSettings):
        if settings.rollout.engine == "torch" and settings.rollout_micro_batch_size > 8:
            small["ppo.rollout_micro_batch_size"] = str(max(settings.rollout_micro_batch_size // 4, 8))
        if settings.max_tokens_per_microbatch > longest:
            small["ppo.max_tokens_per_microbatch"] = str(max(settings.max_tokens_per_microbatch // 4, longest))
    elif isinstance(settings, PretrainSettings | SFTSettings | RMSettings) and settings.micro_batch_size > 1:
        small[f"{stage}.micro_batch_size"] = "1"
    elif not isinstance(settings, PretrainSettings | SFTSettings | RMSettings) and settings.batch_size > 8:
        small[f"{stage}.batch_size"] = str(max(settings.batch_size // 4, 8))
    if small:
        yield small
    if not isinstance(settings, PretrainSettings | SFTSettings | RMSettings | PPOSettings):
        return
    lean = small if settings.gradient_checkpointing else small | {f"{stage}.gradient_checkpointing": "true"}
    if not settings.gradient_checkpointing:
        yield lean
    if setup.engine == "deepspeed" and setup.zero_stage < 3:
        yield lean | {"hardware.zero_stage": "3"}
    if setup.engine == "deepspeed" and not setup.offload_optimizer:
        yield lean | {"hardware.zero_stage": "3", "hardware.offload_optimizer": "true"}
    if setup.on_gpu and setup.processes < _MACHINE:
        yield lean | {"hardware.processes": str(_MACHINE), "hardware.zero_stage": "3"}
        yield lean | {"hardware.processes": str(_MACHINE), "hardware.zero_stage": "3", "hardware.offload_optimizer": "true"}
    if setup.on_gpu and isinstance(settings, SFTSettings) and settings.eval_samples and setup.engine == "deepspeed":
        yield lean | {"hardware.zero_stage": "3", "sft.eval_samples": "0"}  # to answer, each GPU would gather all weights
    if setup.on_gpu and isinstance(settings, PPOSettings) and settings.rollout.engine == "torch":
        yield {key: value for key, value in lean.items() if key != "ppo.rollout_micro_batch_size"} | _SERVED
    if settings.lora is None:
        yield lean | {f"{stage}.lora": "{}"}
    if (settings.lora is None or settings.lora.quantize is None) and not (setup.engine == "deepspeed" and setup.zero_stage == 3):
        yield lean | ({f"{stage}.lora": "{quantize: nf4}"} if settings.lora is None else {f"{stage}.lora.quantize": "nf4"})
