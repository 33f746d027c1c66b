"""By which engine the processes of a stage compute together."""

from typing import Any, Literal

from stages.deepspeed_config import make_deepspeed_config
from stages.process.context import StageContext, uses_gpu

Engine = Literal["none", "ddp", "deepspeed"]


def choose_engine(context: StageContext) -> Engine:
    """Say by which engine the stage's processes compute together."""
    hardware, world_size = context.spec.hardware, context.world_size
    wants_zero = hardware.engine == "deepspeed" or (hardware.engine == "auto" and world_size > 1 and uses_gpu(context))
    if wants_zero and hardware.zero_stage > 0:
        return "deepspeed"
    return "ddp" if world_size > 1 else "none"


def choose_zero3(context: StageContext) -> dict[str, Any] | None:
    """Make DeepSpeed's configuration where weights are shared out over the processes (ZeRO stage 3); None where each has them whole."""
    hardware = context.spec.hardware
    if choose_engine(context) != "deepspeed" or hardware.zero_stage < 3:
        return None
    return make_deepspeed_config(hardware, max_grad_norm=context.spec.settings.max_grad_norm)
