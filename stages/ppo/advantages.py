"""Scores -> rewards with a KL penalty -> advantages and returns, whitened over all real tokens of all ranks.

Axes: B responses (padded on the right), R response tokens. `response_mask_BR` is True at a real token. Position t of
`values_BR` is the critic's value of the state *before* token t, the state in which the policy chose token t.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Sums a tensor of local sums over all ranks; the identity where there is one.
SumOverRanks = Callable[[Tensor], Tensor]


def penalize_kl(scores_B: Tensor, logprobs_BR: Tensor, ref_logprobs_BR: Tensor, response_mask_BR: Tensor, kl_coef: float) -> Tensor:
    """Turn one score per response into one reward per token.

        r_t = −β · (log π(a_t|s_t) − log π_ref(a_t|s_t)) + [t is the last real token] · score

    β is `kl_coef` (Ziegler et al. 2019, eq. 2; the penalty is the k1 estimator, per token).

    Args:
        scores_B: score of each response.
        logprobs_BR: log-probabilities of the sampled tokens under the policy that sampled them.
        ref_logprobs_BR: the same tokens under the reference.
        response_mask_BR: True at a real token; every row has at least one.
        kl_coef: β, per token.

    Returns:
        rewards_BR in float32, 0 outside the mask.
    """
    log_ratio_BR = logprobs_BR.float() - ref_logprobs_BR.float()
    rewards_BR = torch.where(response_mask_BR, -kl_coef * log_ratio_BR, 0.0)
    last_B = response_mask_BR.sum(dim=1) - 1
    rows_B = torch.arange(len(scores_B), device=scores_B.device)
    rewards_BR[rows_B, last_B] += scores_B.float()
    return rewards_BR


def estimate_advantages(
    rewards_BR: Tensor, values_BR: Tensor, response_mask_BR: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Estimate advantages by GAE over the real tokens (Schulman et al. 2016, eq. 16), and the returns.

        δ_t = r_t + γ · V_{t+1} − V_t,   A_t = δ_t + γλ · A_{t+1},   R_t = A_t + V_t,   V and A are 0 after the last real token

    Args:
        rewards_BR: rewards, 0 outside the mask.
        values_BR: value of the state before each token.
        response_mask_BR: True at a real token; real tokens form a prefix of each row.
        gamma: γ.
        gae_lambda: λ.

    Returns:
        (advantages_BR, returns_BR) in float32, not whitened, 0 outside the mask.
    """
    rewards_BR = torch.where(response_mask_BR, rewards_BR.float(), 0.0)
    values_BR = torch.where(response_mask_BR, values_BR.float(), 0.0)
    advantages_BR = torch.zeros_like(rewards_BR)
    next_value_B = torch.zeros_like(rewards_BR[:, 0])
    next_advantage_B = torch.zeros_like(next_value_B)
    for t in reversed(range(rewards_BR.shape[1])):
        delta_B = rewards_BR[:, t] + gamma * next_value_B - values_BR[:, t]
        next_advantage_B = torch.where(response_mask_BR[:, t], delta_B + gamma * gae_lambda * next_advantage_B, 0.0)
        next_value_B = values_BR[:, t]
        advantages_BR[:, t] = next_advantage_B
    return advantages_BR, advantages_BR + values_BR


def whiten(values_BR: Tensor, mask_BR: Tensor, sum_over_ranks: SumOverRanks) -> Tensor:
    """Shift and scale to mean 0 and variance 1 over all real tokens of all ranks; 0 outside the mask.

        (x − mean) / √(var + 1e-8),   var the population variance

    The mean is not added back: an advantage says "better than the average token of this rollout".
    """
    mean, variance = compute_moments(values_BR, mask_BR, sum_over_ranks)
    return torch.where(mask_BR, (values_BR.float() - mean) * torch.rsqrt(variance + 1e-8), 0.0)


def scale_by_std(values_BR: Tensor, mask_BR: Tensor, sum_over_ranks: SumOverRanks) -> Tensor:
    """Divide by the standard deviation over all real tokens of all ranks, shifting nothing.

    Differs from Ziegler et al.'s code, which scales around the mean: that adds mean · (1 − 1/std) to every token, a
    reward for length. Here a reward of 0 stays 0 and no reward changes its sign.
    """
    _, variance = compute_moments(values_BR, mask_BR, sum_over_ranks)
    return torch.where(mask_BR, values_BR.float() * torch.rsqrt(variance + 1e-8), 0.0)


def compute_moments(values_BR: Tensor, mask_BR: Tensor, sum_over_ranks: SumOverRanks) -> tuple[Tensor, Tensor]:
    """Compute mean and population variance over all real tokens of all ranks, in two passes (float32 does not cancel)."""
    values_BR = values_BR.float()
    sums = sum_over_ranks(torch.stack([torch.where(mask_BR, values_BR, 0.0).sum(), mask_BR.sum().float()]))
    mean, count = sums[0] / sums[1], sums[1]
    squares = torch.where(mask_BR, (values_BR - mean) ** 2, 0.0).sum()
    return mean, sum_over_ranks(squares) / count


def explain_variance(values_BR: Tensor, returns_BR: Tensor, mask_BR: Tensor, sum_over_ranks: SumOverRanks) -> Tensor:
    """Compute 1 − Var(R − V) / Var(R) over all ranks: 1 is a perfect critic, 0 no better than a constant; 0 where all returns are equal."""
    _, residual_variance = compute_moments(returns_BR - values_BR, mask_BR, sum_over_ranks)
    _, return_variance = compute_moments(returns_BR, mask_BR, sum_over_ranks)
    return torch.where(return_variance > 0, 1.0 - residual_variance / return_variance, torch.zeros_like(return_variance))


def adapt_kl_coef(kl_coef: float, kl_per_response: float, kl_target: float, num_responses: int, kl_horizon: int) -> float:
    """Move kl_coef towards the target KL (Ziegler et al. 2019, section 2.2).

        e = clip(KL / target − 1, −0.2, 0.2),   β ← β · (1 + e · n / horizon)

    Args:
        kl_coef: β.
        kl_per_response: KL to the reference, summed over a response's tokens, averaged over the rollout.
        kl_target: target in the same unit. (A target per token is off by the response length.)
        num_responses: n, responses in the rollout, over all ranks.
        kl_horizon: responses over which β reacts.
    """
    error = min(max(kl_per_response / kl_target - 1.0, -0.2), 0.2)
    return kl_coef * (1.0 + error * num_responses / kl_horizon)
