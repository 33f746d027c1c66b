"""Figures over all ranks, typed: accelerate's own functions take and give anything."""

from typing import cast

from accelerate import Accelerator
from torch import Tensor, nn

from stages.ppo.actor_critic import ActorCritic


def sum_over_ranks(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """Sum local sums over all ranks; every rank gets the result."""
    return cast(Tensor, accelerator.reduce(tensor, "sum"))


def max_over_ranks(accelerator: Accelerator, scalar: Tensor) -> Tensor:
    """Take the largest of the ranks' scalars; every rank gets the result."""
    return cast(Tensor, accelerator.gather(scalar.reshape(1))).max()


def unwrap(accelerator: Accelerator, model: nn.Module) -> ActorCritic:
    """Get policy and critic without what wraps them."""
    return cast(ActorCritic, accelerator.unwrap_model(model))
