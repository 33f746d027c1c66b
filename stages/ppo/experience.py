"""A rollout with all that the update needs: what was said, and what to learn from it.

Axes: B responses of this rank, R response tokens (padded on the right).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

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
