"""The processes of a stage as one of them sees them: which one it is, and what they tell each other."""

from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from stages.process.context import StageContext, uses_gpu
from stages.process.distributed import require_world_size


class Ranks:
    """All processes of the stage, and this one among them; what is called, is called by all."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator  # wraps the models in training
        self.index: int = accelerator.process_index
        self.count: int = accelerator.num_processes
        self.device: torch.device = accelerator.device
        self.is_main = self.index == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum local sums; every rank gets the result."""
        return cast(Tensor, self.accelerator.reduce(tensor.to(self.device), "sum"))

    def max(self, scalar: Tensor) -> Tensor:
        """Take the largest of the ranks' scalars; every rank gets the result."""
        return cast(Tensor, self.accelerator.gather(scalar.reshape(1))).max()

    def gather(self, items: list[Any]) -> list[Any]:
        """Give every rank the items of all, in the order of `items[0]` of each rank, `items[1]` of each rank, and so on."""
        if self.count == 1:
            return items
        everything = gather_object(items)
        return [everything[rank * len(items) + index] for index in range(len(items)) for rank in range(self.count)]

    def wait(self) -> None:
        """Return when every rank has called it."""
        self.accelerator.wait_for_everyone()


def join_ranks(context: StageContext) -> Ranks:
    """Join the ranks.

    Raises:
        StageError: accelerate sees another number of processes than the launcher started.
    """
    accelerator = Accelerator(cpu=not uses_gpu(context))
    require_world_size(context, accelerator.num_processes)
    return Ranks(accelerator)
