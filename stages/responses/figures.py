"""What the models say of each token of a rollout, by the forwards that the update uses.

Axes: B responses, R response tokens (padded on the right), K all real response tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.models.adapters import find_backbone
from stages.models.logprobs import compute_token_logprobs
from stages.models.packing import Rankings, pack_rankings
from stages.models.precision import autocast
from stages.process.context import Told
from stages.process.gpu import send
from stages.responses.rollout import Rollout


@dataclass(frozen=True)
class TokenFigures:
    """What the models say of each sampled token, float32, 0 outside the mask."""

    logprobs_BR: Tensor
    ref_logprobs_BR: Tensor
    values_BR: Tensor
    entropies_BR: Tensor


@torch.no_grad()
def evaluate_tokens(
    actor: Any, critic: Any, reference: Any, rollout: Rollout, temperature: float, micro_batches: list[Tensor]
) -> TokenFigures:
    """Compute what policy, reference (an Actor too) and critic say of each sampled token, by the forward that the update uses.

    Policy and reference compute the same micro-batches: then the KL of two equal models is 0 to the last bit.
    """
    figures_BR = [torch.zeros(rollout.response_mask_BR.shape, device=rollout.response_mask_BR.device) for _ in range(4)]
    for rows_b in micro_batches:
        part = rollout.select(rows_b)
        row, predictors_K = part.pack()
        logprobs_K, entropies_K = actor(row, predictors_K, temperature, True)
        values_K = critic(row, predictors_K)
        ref_logprobs_K, _ = reference(row, predictors_K, temperature)
        places_b = send(rows_b, rollout.response_mask_BR.device)
        for figure_BR, figure_K in zip(figures_BR, (logprobs_K, ref_logprobs_K, values_K, entropies_K), strict=True):
            figure_BR[places_b, : part.response_mask_BR.shape[1]] = part.unpack(figure_K)
    return TokenFigures(*figures_BR)


@torch.no_grad()
def compute_logprobs_of_answers(policy: Any, rankings: Rankings, temperature: float, told: Told = lambda done, total: None) -> list[Tensor]:
    """Compute what a policy says of each token of the responses of (prompt ids, responses), each prompt computed once.

    Returns:
        For each response, in order, its tokens' log-probabilities, float32 on the CPU.
    """
    policy.eval()
    device = next(policy.parameters()).device
    logprobs: list[Tensor] = []
    for row, done in pack_rankings(rankings, device):
        starts_D, lengths_D, parents_D = row.layout_3D
        lasts_D = starts_D + lengths_D - 1
        places = [torch.arange(start, start + length) for start, length in zip(starts_D.tolist(), lengths_D.tolist(), strict=True)]
        is_response_D = (parents_D >= 0).tolist()
        responses = [places_k for places_k, is_response in zip(places, is_response_D, strict=True) if is_response]
        parents = parents_D[parents_D >= 0].tolist()
        # The first token of a response follows the prompt's last, wherever in the row that is.
        predictors = [torch.cat([lasts_D[parent][None], places_k[:-1]]) for parent, places_k in zip(parents, responses, strict=True)]
        predictors_K, targets_K = torch.cat(predictors).to(device), row.ids_N[torch.cat(responses).to(device)]
        with autocast(find_backbone(policy), device):
            logprobs_K, _ = compute_token_logprobs(policy, row, predictors_K, temperature, targets_K=targets_K)
        logprobs += logprobs_K.cpu().split([len(places_k) for places_k in responses])
        told(done, len(rankings))
    return logprobs
