"""Losses and diagnostics of PPO: one number per token, in float32, 0 outside the mask.

Axes: B responses, R response tokens. `response_mask_BR` is True at a real token.
A loss of a minibatch is `sum_tokens(losses_BR, mask_BR) / tokens of the global minibatch`, so neither micro-batches nor ranks
change it.
"""

import torch
from torch import Tensor

from stages.responses.kl import compute_log_ratios


def compute_policy_losses(
    logprobs_BR: Tensor, old_logprobs_BR: Tensor, advantages_BR: Tensor, response_mask_BR: Tensor, clip_range: float
) -> Tensor:
    """Compute the clipped surrogate loss of each token (Schulman et al. 2017, eq. 7).

        ρ_t = exp(log π(a_t) − log π_old(a_t)),   L_t = max(−A_t ρ_t, −A_t clip(ρ_t, 1 − ε, 1 + ε))

    Args:
        logprobs_BR: log-probabilities under the policy being trained; carries the gradient.
        old_logprobs_BR: the same tokens under the policy that sampled them.
        advantages_BR: whitened advantages.
        response_mask_BR: True at a real token.
        clip_range: ε.
    """
    ratio_BR = compute_log_ratios(logprobs_BR, old_logprobs_BR, response_mask_BR).exp()
    losses_BR = torch.max(-advantages_BR * ratio_BR, -advantages_BR * ratio_BR.clamp(1.0 - clip_range, 1.0 + clip_range))
    return torch.where(response_mask_BR, losses_BR, 0.0)


def compute_importance_weights(logprobs_BR: Tensor, engine_logprobs_BR: Tensor, response_mask_BR: Tensor, cap: float) -> Tensor:
    """Weigh each token by how much likelier the trainer's policy is to say it than the engine that sampled it was.

        w_t = min(π_old(a_t) / μ(a_t), c)

    Truncated importance sampling (Ionides 2008; for rollout engines Yao et al. 2025). Since the clipped surrogate loss is homogeneous in
    the advantage, w_t A_t in the place of A_t weighs the loss. 1 outside the mask.

    Args:
        logprobs_BR: log π_old, by the trainer's own forward.
        engine_logprobs_BR: log μ, as the engine computed it.
        response_mask_BR: True at a real token.
        cap: c, at least 1.
    """
    return compute_log_ratios(logprobs_BR, engine_logprobs_BR, response_mask_BR).exp().clamp(max=cap)


def compute_value_losses(
    values_BR: Tensor, old_values_BR: Tensor, returns_BR: Tensor, response_mask_BR: Tensor, value_clip_range: float
) -> Tensor:
    """Compute the clipped value loss of each token (as in the code of Ziegler et al. 2019).

        L_t = ½ max((V_t − R_t)², (V_old,t + clip(V_t − V_old,t, −ε, ε) − R_t)²)

    Args:
        values_BR: values under the critic being trained; carries the gradient.
        old_values_BR: values at rollout time.
        returns_BR: targets.
        response_mask_BR: True at a real token.
        value_clip_range: ε, in units of the score.
    """
    clipped_BR = old_values_BR + (values_BR - old_values_BR).clamp(-value_clip_range, value_clip_range)
    losses_BR = 0.5 * torch.max((values_BR - returns_BR) ** 2, (clipped_BR - returns_BR) ** 2)
    return torch.where(response_mask_BR, losses_BR, 0.0)


def sum_tokens(values_BR: Tensor, mask_BR: Tensor) -> Tensor:
    """Sum over the real tokens."""
    return torch.where(mask_BR, values_BR, 0.0).sum()


def find_clipped_ratios(ratio_BR: Tensor, advantages_BR: Tensor, clip_range: float) -> Tensor:
    """Mark (True) tokens whose clipped term is the larger loss: the ones that send no gradient."""
    return ((ratio_BR > 1.0 + clip_range) & (advantages_BR > 0)) | ((ratio_BR < 1.0 - clip_range) & (advantages_BR < 0))


def find_clipped_values(values_BR: Tensor, old_values_BR: Tensor, returns_BR: Tensor, value_clip_range: float) -> Tensor:
    """Mark (True) tokens whose clipped value has the larger squared error: the ones that send no gradient."""
    clipped_BR = old_values_BR + (values_BR - old_values_BR).clamp(-value_clip_range, value_clip_range)
    return (clipped_BR - returns_BR) ** 2 > (values_BR - returns_BR) ** 2
