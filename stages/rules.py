"""What a stage refuses of its settings and hardware, before anything is loaded. Torch-free.

The pipeline asks when it reads a recipe, and adds file and line; the stage asks when it starts, and knows by then which engine `auto` took.
"""

import importlib.util
import shutil
import socket
from collections.abc import Iterator
from typing import Literal, NamedTuple

from stages.blocks import HardwareSettings, RolloutSettings
from stages.sample_settings import CHOOSING, SampleSettings
from stages.settings import PPOSettings, SFTSettings, StageSettings, TrainingSettings
from stages.spec import StageName

_NO_CAP = RolloutSettings.model_validate({}).importance_cap  # the default, which stands in the recipe of every artifact


class Refusal(NamedTuple):
    """A rule that is broken: the key of a recipe, and found + needed + do."""

    key: str
    message: str


def find_refusals(
    stage: StageName,
    settings: StageSettings,
    hardware: HardwareSettings,
    *,
    engine: Literal["auto", "none", "ddp", "deepspeed"],
    num_processes: int,
    judge: str | None = None,
) -> Iterator[Refusal]:
    """Find what the stage cannot do.

    Args:
        stage: Which one.
        settings: Its settings.
        hardware: The hardware block.
        engine: What computes; `auto` where that is not known yet.
        num_processes: On all nodes.
        judge: Of held-out answers.
    """
    zero3 = engine == "deepspeed" and hardware.zero_stage == 3
    if hardware.engine == "none" and num_processes > 1:
        yield Refusal("hardware.engine", f"found none with {num_processes} processes, needed ddp or deepspeed; set it, or processes: 1")
    if isinstance(settings, SampleSettings) and settings.rollout.importance_cap != _NO_CAP:
        found = f"found {settings.rollout.importance_cap:g}, which weighs tokens in PPO's loss, and sampling has none"
        yield Refusal("sample.rollout.importance_cap", f"{found}; needed nothing there; leave it away")
    if isinstance(settings, SampleSettings) and settings.choose == "random":
        for name in (name for name in CHOOSING if getattr(settings, name) != SampleSettings.model_fields[name].default):
            found = f"found {getattr(settings, name)}, which nothing reads with sample.choose: random"
            yield Refusal(f"sample.{name}", f"{found}; needed deltaucb there; set it, or leave this away")
    if not isinstance(settings, TrainingSettings):
        return  # it trains nothing: each process answers its share, whatever that is
    names = ("minibatch_size", "ptx_batch_size") if isinstance(settings, PPOSettings) else ("batch_size",)
    for name in names:
        size: int | None = getattr(settings, name)
        if size and size % num_processes:
            needed = f"a multiple of the number of processes on all nodes = {num_processes}"
            yield Refusal(f"{stage}.{name}", f"found {size}, needed {needed}; choose sizes that divide")
    if settings.lora is not None and settings.lora.quantize is not None:
        yield from _find_quantization_refusals(f"{stage}.lora.quantize", settings.lora.quantize, settings, zero3=zero3)
    by_judge = isinstance(settings, SFTSettings | PPOSettings) and settings.publish == "best" and settings.publish_by == "judge"
    if by_judge and judge is None and not (isinstance(settings, SFTSettings) and settings.chooser):
        other = "score" if isinstance(settings, PPOSettings) else "loss"
        found = "found judge, needed a judge, and the recipe has none"
        yield Refusal(f"{stage}.publish_by", f"{found}; set judge: module:function, or publish_by: {other}")
    if isinstance(settings, SFTSettings) and settings.publish == "best" and zero3:
        needed = "whole weights to hold, which no process has at ZeRO stage 3"
        yield Refusal("sft.publish", f"found best, needed {needed}; set hardware.zero_stage: 2, or publish: last")
    if isinstance(settings, SFTSettings) and settings.judge and settings.judge.llm and settings.judge.llm.samples != 1:
        needed = "1, as SFT samples one answer to each prompt"
        yield Refusal("sft.judge.llm.samples", f"found {settings.judge.llm.samples}, needed {needed}; leave it away")
    if isinstance(settings, PPOSettings) and settings.ema_decay is not None and zero3:
        needed = "whole weights to average, which no process has at ZeRO stage 3"
        yield Refusal("ppo.ema_decay", f"found {settings.ema_decay}, needed {needed}; set hardware.zero_stage: 2, or ema_decay: null")


def find_missing_server(stage: StageName, rollout: RolloutSettings) -> str | None:
    """Say that the program which a stage would start as its vLLM server is not on this machine; None: it is, or none is started."""
    if rollout.engine != "vllm" or rollout.server is not None or shutil.which(rollout.command[0]) is not None:
        return None
    return (
        f"{stage}.rollout.command: {rollout.command[0]} is not a program on {socket.gethostname()}; vLLM in an environment of its own is "
        f"needed; install it (the README says how) and give the path of its `vllm`, or set {stage}.rollout.engine: torch"
    )


def _find_quantization_refusals(key: str, found: str, settings: TrainingSettings, *, zero3: bool) -> Iterator[Refusal]:
    if importlib.util.find_spec("bitsandbytes") is None:
        yield Refusal(key, f"found {found}, needed bitsandbytes, which is not installed; run `make setup` or install it, or set it to null")
    if isinstance(settings, PPOSettings) and settings.rollout.engine == "vllm":
        yield Refusal(key, f"found {found}, but vLLM would sample from a base that is not quantized; set ppo.rollout.engine: torch")
    if zero3:
        needed = "weights that are not shared out: ZeRO stage 3 knows nothing of the scales of 4-bit ones"
        yield Refusal(key, f"found {found} with hardware.zero_stage = 3, needed {needed}; set hardware.zero_stage: 2")
