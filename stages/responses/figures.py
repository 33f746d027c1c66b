"""What the models say of each token of a rollout, by the forwards that the update uses.

Axes: B responses, R response tokens (padded on the right), K all real response tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.responses.rollout import Rollout


@torch.no_grad()
def evaluate_tokens(
    actor: Any, critic: Any, rollout: Rollout, temperature: float, micro_batches: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Recompute what the policy and the critic say of each sampled token, by the forward that the update uses.

    Returns:
        (logprobs_BR, values_BR, entropies_BR) in float32, 0 outside the mask.
    """
    figures_BR = [torch.zeros(rollout.response_mask_BR.shape, device=rollout.response_mask_BR.device) for _ in range(3)]
    for rows_b in micro_batches:
        part = rollout.select(rows_b)
        row, predictors_K = part.pack()
        logprobs_K, entropies_K = actor(row, predictors_K, temperature, True)
        values_K = critic(row, predictors_K)
        for figure_BR, figure_K in zip(figures_BR, (logprobs_K, values_K, entropies_K), strict=True):
            figure_BR[rows_b, : part.response_mask_BR.shape[1]] = part.unpack(figure_K)
    return figures_BR[0], figures_BR[1], figures_BR[2]


@torch.no_grad()
def compute_ref_logprobs(reference: Any, rollout: Rollout, temperature: float, micro_batches: list[Tensor]) -> Tensor:
    """Compute ref_logprobs_BR: the log-probability of each sampled token under the reference (an Actor), 0 outside the mask."""
    ref_logprobs_BR = torch.zeros(rollout.response_mask_BR.shape, device=rollout.response_mask_BR.device)
    for rows_b in micro_batches:
        part = rollout.select(rows_b)
        row, predictors_K = part.pack()
        ref_logprobs_K, _ = reference(row, predictors_K, temperature)
        ref_logprobs_BR[rows_b, : part.response_mask_BR.shape[1]] = part.unpack(ref_logprobs_K)
    return ref_logprobs_BR


@dataclass(frozen=True)
class TokenFigures:
    """What the models say of each sampled token, float32, 0 outside the mask."""

    logprobs_BR: Tensor
    ref_logprobs_BR: Tensor
    values_BR: Tensor
    entropies_BR: Tensor
