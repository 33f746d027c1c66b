"""A rollout with all that the update needs: what was said, what to learn from it, and each rank's share of it.

Axes: B responses (of this rank, until all are gathered), R response tokens (padded on the right); b those of one share.
"""

from dataclasses import dataclass, fields
from typing import cast

import torch
from torch import Tensor

from stages.process.ranks import Ranks
from stages.responses.rollout import Rollout


@dataclass(frozen=True)
class Experience(Rollout):
    """A rollout with all that the update needs."""

    old_logprobs_BR: Tensor  # under the policy that sampled, by the trainer's own forward
    old_values_BR: Tensor  # value of the state before each token, at rollout time
    advantages_BR: Tensor  # whitened; times the tokens' importance weights where another engine sampled them
    returns_BR: Tensor  # from advantages before whitening

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("old_logprobs_BR", "old_values_BR", "advantages_BR", "returns_BR"):
            tensor: Tensor = getattr(self, name)
            if tensor.shape != self.response_ids_BR.shape or tensor.dtype != torch.float32 or tensor.requires_grad:
                raise ValueError(
                    f"{name} is {tuple(tensor.shape)} {tensor.dtype}; needed: {tuple(self.response_ids_BR.shape)} float32, no gradient"
                )


def gather_experience(ranks: Ranks, experience: Experience) -> Experience:
    """Give every rank the experience of all, in the order of the prompts as one rank alone would have drawn them.

    Rank r answered every n-th prompt from the r-th on; all ranks hold equally many.
    """
    if ranks.count == 1:
        return experience
    accelerator = ranks.accelerator
    gathered: dict[str, Tensor] = {}
    for field in fields(experience):
        if field.name == "lengths_2B":  # found anew
            continue
        tensor: Tensor = getattr(experience, field.name)
        dtype = tensor.dtype
        if tensor.ndim == 2:  # prompts are padded on the left
            tensor = cast(Tensor, accelerator.pad_across_processes(tensor.to(_sendable(dtype)), 1, pad_first=field.name.endswith("_BP")))
        everything = cast(Tensor, accelerator.gather(tensor.to(_sendable(dtype)).contiguous()))
        by_rank = everything.unflatten(0, (ranks.count, -1))
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


def split_alike(ranks: Ranks, batch: Rollout, max_tokens: int) -> list[Tensor]:
    """Split into micro-batches, on every rank into equally many: ranks may meet in each of them.

    All ranks must hold equally many responses.
    """
    micro_batches = batch.split(max_tokens)
    if ranks.count == 1:
        return micro_batches
    most = int(ranks.max(torch.tensor(len(micro_batches), device=ranks.device)))
    return batch.split(max_tokens, at_least=most)


def _sendable(dtype: torch.dtype) -> torch.dtype:
    return torch.uint8 if dtype == torch.bool else dtype
