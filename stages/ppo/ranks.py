"""What crosses the ranks: sums, the whole experience, and each rank's part of the work.

Axes: B responses of this rank.
"""

from dataclasses import fields
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from stages.ppo.experience import Experience
from stages.responses.rollout import Rollout

Batch = TypeVar("Batch", bound=Rollout)


def sum_over_ranks(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """Sum local sums over all ranks; every rank gets the result."""
    return cast(Tensor, accelerator.reduce(tensor, "sum"))


def max_over_ranks(accelerator: Accelerator, scalar: Tensor) -> Tensor:
    """Take the largest of the ranks' scalars; every rank gets the result."""
    return cast(Tensor, accelerator.gather(scalar.reshape(1))).max()


def gather_experience(experience: Experience, accelerator: Accelerator) -> Experience:
    """Give every rank the experience of all, in the order of the prompts as one rank alone would have drawn them.

    Rank r answered every n-th prompt from the r-th on; all ranks hold equally many.
    """
    world_size = accelerator.num_processes
    if world_size == 1:
        return experience
    gathered: dict[str, Tensor] = {}
    for field in fields(experience):
        tensor: Tensor = getattr(experience, field.name)
        dtype = tensor.dtype
        if tensor.ndim == 2:  # prompts are padded on the left
            tensor = cast(Tensor, accelerator.pad_across_processes(tensor.to(_sendable(dtype)), 1, pad_first=field.name.endswith("_BP")))
        everything = cast(Tensor, accelerator.gather(tensor.to(_sendable(dtype)).contiguous()))
        by_rank = everything.unflatten(0, (world_size, -1))
        gathered[field.name] = by_rank.transpose(0, 1).flatten(0, 1).to(dtype)
    return type(experience)(**gathered)


def deal(rows_b: Tensor, lengths_B: Tensor, rank: int, world_size: int) -> Tensor:
    """Deal responses to the ranks, equally many and about as many tokens to each, and return those of one rank.

    Args:
        rows_b: the responses to deal; their number is a multiple of the number of ranks.
        lengths_B: tokens of each response there is.
        rank: whose share is returned.
        world_size: number of ranks.
    """
    if world_size == 1:
        return rows_b
    by_length = rows_b[lengths_B[rows_b].argsort(stable=True)].unflatten(0, (-1, world_size))
    # To and fro: who gets the shortest of one round gets the longest of the next.
    by_length[1::2] = by_length[1::2].flip(1)
    return by_length[:, rank]


def split_alike(batch: Rollout, max_tokens: int, accelerator: Accelerator) -> list[Tensor]:
    """Split into micro-batches, on every rank into equally many: ranks may meet in each of them.

    All ranks must hold equally many responses.
    """
    micro_batches = batch.split(max_tokens)
    if accelerator.num_processes == 1:
        return micro_batches
    most = int(max_over_ranks(accelerator, torch.tensor(len(micro_batches), device=accelerator.device)))
    return batch.split(max_tokens, at_least=most)


def _sendable(dtype: torch.dtype) -> torch.dtype:
    return torch.uint8 if dtype == torch.bool else dtype


def gather_list(items: list[Any], accelerator: Accelerator) -> list[Any]:
    """Give every rank the items of all, in the order of `items[0]` of each rank, `items[1]` of each rank, and so on."""
    from accelerate.utils import gather_object

    if accelerator.num_processes == 1:
        return items
    everything = gather_object(items)
    count = len(items)
    return [everything[rank * count + index] for index in range(count) for rank in range(accelerator.num_processes)]
