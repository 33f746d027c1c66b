"""Prompts -> sampled responses -> Rollout, and the log-probabilities and values of its tokens.

Axes: B responses, P prompt tokens (padded on the left), R response tokens (padded on the right), T = P + R, V vocabulary.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.generation import generate_responses
from stages.ppo.actor_critic import compute_response_logits
from stages.ppo.experience import Rollout, pack_rollout
from stages.ppo.losses import compute_entropies, compute_logprobs

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
    policy: Any, prompts: list[list[int]], sampling: Sampling, *, seed: int, batch_size: int, autocast: Autocast, greedy: bool = False
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
    )
    responses = [response.ids for response in sampled]
    finished = [ids[-1] == sampling.stop_token_id for ids in responses]
    device: torch.device = next(policy.parameters()).device
    return pack_rollout(prompts, responses, finished, sampling.pad_token_id, device)


@torch.no_grad()
def evaluate_tokens(
    actor_critic: nn.Module, rollout: Rollout, temperature: float, micro_batch_size: int, autocast: Autocast
) -> tuple[Tensor, Tensor, Tensor]:
    """Recompute what the policy and the critic say of each sampled token, by the forward that the update uses.

    Returns:
        (logprobs_BR, values_BR, entropies_BR) in float32, 0 outside the mask.
    """
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for part in rollout.split(micro_batch_size):
        with autocast:
            logits_bRV, values_bR = actor_critic(part.input_ids_BT, part.attention_mask_BT, part.response_ids_BR.shape[1])
        logprobs_bR = compute_logprobs(logits_bRV, part.response_ids_BR, temperature)
        rows.append((logprobs_bR, values_bR, compute_entropies(logits_bRV, temperature)))
    logprobs, values, entropies = zip(*rows, strict=True)
    return _stack(logprobs, rollout), _stack(values, rollout), _stack(entropies, rollout)


@torch.no_grad()
def compute_ref_logprobs(ref_policy: nn.Module, rollout: Rollout, temperature: float, micro_batch_size: int, autocast: Autocast) -> Tensor:
    """Compute ref_logprobs_BR: the reference's log-probability of each sampled token, 0 outside the mask."""
    rows: list[Tensor] = []
    for part in rollout.split(micro_batch_size):
        with autocast:
            logits_bRV = compute_response_logits(ref_policy, part.input_ids_BT, part.attention_mask_BT, part.response_ids_BR.shape[1])
        rows.append(compute_logprobs(logits_bRV, part.response_ids_BR, temperature))
    return _stack(rows, rollout)


def _stack(parts: list[Tensor] | tuple[Tensor, ...], rollout: Rollout) -> Tensor:
    """Put micro-batches, each as wide as its longest response, back into one tensor as wide as the rollout."""
    num_response_tokens = rollout.response_ids_BR.shape[1]
    stacked_BR = torch.cat([nn.functional.pad(part, (0, num_response_tokens - part.shape[1])) for part in parts])
    return torch.where(rollout.response_mask_BR, stacked_BR, 0.0)
