"""By which engine the processes of a stage compute together."""

from dataclasses import dataclass
from typing import Any, Literal

from stages.blocks import HardwareSettings
from stages.deepspeed_config import make_deepspeed_config
from stages.process.context import StageContext, uses_gpu
from stages.settings import TrainingSettings


@dataclass(frozen=True)
class Engine:
    """One process, several that average their gradients (DDP), or DeepSpeed, and what that shares out over them."""

    name: Literal["none", "ddp", "deepspeed"]
    hardware: HardwareSettings
    max_grad_norm: float

    @property
    def shares_weights(self) -> bool:
        """Whether each process holds a piece of each weight (ZeRO stage 3)."""
        return self.name == "deepspeed" and self.hardware.zero_stage == 3

    def configure_deepspeed(self, *, micro_batch_size: int = 1, accumulation_steps: int = 1) -> dict[str, Any]:
        """Make DeepSpeed's configuration; see `make_deepspeed_config`."""
        return make_deepspeed_config(
            self.hardware, max_grad_norm=self.max_grad_norm, micro_batch_size=micro_batch_size, accumulation_steps=accumulation_steps
        )


def choose_engine(context: StageContext) -> Engine:
    """Say by which engine the stage's processes compute together."""
    hardware, several = context.spec.hardware, context.world_size > 1
    wants_zero = hardware.engine == "deepspeed" or (hardware.engine == "auto" and several and uses_gpu(context))
    name = "deepspeed" if wants_zero and hardware.zero_stage > 0 else "ddp" if several else "none"
    settings = context.spec.settings
    return Engine(name, hardware, settings.max_grad_norm if isinstance(settings, TrainingSettings) else 1.0)
