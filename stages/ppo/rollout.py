"""Prompts -> sampled responses -> Rollout, and the log-probabilities and values of its tokens.

Axes: B responses, R response tokens (padded on the right), K all real response tokens.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.generation import generate_responses
from stages.ppo.experience import Rollout, pack_rollout

Autocast = AbstractContextManager[Any]  # the precision of a forward; entered anew for each


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled: from the whole distribution, at a temperature."""

    max_new_tokens: int
    temperature: float
    pad_token_id: int
    eos_token_id: int
    stop_token_id: int  # a response is finished when it ends with this one; the end token by default


def roll_out(
    policy: Any,
    prompts: list[list[int]],
    sampling: Sampling,
    *,
    seed: int,
    batch_size: int,
    autocast: Autocast,
    greedy: bool = False,
    share: tuple[int, int] = (0, 1),
) -> Rollout:
    """Sample one response per prompt; it ends with the stop token or the end token, and is finished only with the stop token.

    Args:
        policy: a causal language model, not wrapped; left in evaluation mode.
        prompts: prompt ids.
        sampling: how to sample.
        seed: of the sampling noise; the global generators are left as they were.
        batch_size: responses decoded at once.
        autocast: precision of the forwards.
        greedy: take the likeliest tokens instead; for evaluation only.
        share: (rank, number of ranks); see `generate_responses`.
    """
    policy.eval()
    sampled = generate_responses(
        policy,
        prompts,
        max_new_tokens=sampling.max_new_tokens,
        stop_token_ids={sampling.stop_token_id, sampling.eos_token_id},
        temperature=sampling.temperature,
        greedy=greedy,
        seed=seed,
        max_rows=batch_size,
        autocast=autocast,
        share=share,
    )
    responses = [response.ids for response in sampled]
    finished = [ids[-1] == sampling.stop_token_id for ids in responses]
    device: torch.device = next(policy.parameters()).device
    return pack_rollout(prompts, responses, finished, sampling.pad_token_id, device)


@torch.no_grad()
def evaluate_tokens(
    actor: Any, critic: Any, rollout: Rollout, temperature: float, micro_batches: list[Tensor], autocast: Autocast
) -> tuple[Tensor, Tensor, Tensor]:
    """Recompute what the policy and the critic say of each sampled token, by the forward that the update uses.

    Returns:
        (logprobs_BR, values_BR, entropies_BR) in float32, 0 outside the mask.
    """
    figures_BR = [torch.zeros(rollout.response_mask_BR.shape, device=rollout.response_mask_BR.device) for _ in range(3)]
    for rows_b in micro_batches:
        part = rollout.select(rows_b)
        row, predictors_K = part.pack()
        with autocast:
            logprobs_K, entropies_K = actor(row, predictors_K, temperature, True)
            values_K = critic(row, predictors_K)
        for figure_BR, figure_K in zip(figures_BR, (logprobs_K, values_K, entropies_K), strict=True):
            figure_BR[rows_b, : part.response_mask_BR.shape[1]] = part.unpack(figure_K)
    return figures_BR[0], figures_BR[1], figures_BR[2]


@torch.no_grad()
def compute_ref_logprobs(reference: Any, rollout: Rollout, temperature: float, micro_batches: list[Tensor], autocast: Autocast) -> Tensor:
    """Compute ref_logprobs_BR: the log-probability of each sampled token under the reference (an Actor), 0 outside the mask."""
    ref_logprobs_BR = torch.zeros(rollout.response_mask_BR.shape, device=rollout.response_mask_BR.device)
    for rows_b in micro_batches:
        part = rollout.select(rows_b)
        row, predictors_K = part.pack()
        with autocast:
            ref_logprobs_K, _ = reference(row, predictors_K, temperature)
        ref_logprobs_BR[rows_b, : part.response_mask_BR.shape[1]] = part.unpack(ref_logprobs_K)
    return ref_logprobs_BR
