"""The figures of one iteration, under the keys that other PPO implementations use; all are over all ranks.

Axes: B responses of this rank, R response tokens.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from stages.ppo.advantages import SumOverRanks, compute_moments, explain_variance
from stages.ppo.experience import Experience
from stages.ppo.update import UpdateStats
from stages.responses.figures import TokenFigures
from stages.responses.kl import compute_log_ratios, estimate_kl_k1, estimate_kl_k3
from stages.responses.rollout import Rollout


def describe_rollout(
    raw_scores_B: Tensor, scores_B: Tensor, figures: TokenFigures, experience: Experience, kl_coef: float, sum_over_ranks: SumOverRanks
) -> dict[str, float]:
    """Describe what was said and what it was worth.

    `objective/scores` are the scores that PPO maximises, `objective/reward_model_scores` what the reward model said before they were
    scaled, clipped or replaced. KL and entropy are sums over a response (k1, and k3 beside it), averaged over responses.
    """
    mask_BR = experience.response_mask_BR
    kl_B = estimate_kl_k1(figures.logprobs_BR, figures.ref_logprobs_BR, mask_BR).sum(dim=1)
    per_response = {
        "objective/scores": scores_B,
        "objective/reward_model_scores": raw_scores_B,
        "objective/kl": kl_B,
        "objective/kl_k3": estimate_kl_k3(figures.logprobs_BR, figures.ref_logprobs_BR, mask_BR).sum(dim=1),
        "objective/rlhf_reward": scores_B - kl_coef * kl_B,
        "objective/entropy": -figures.logprobs_BR.sum(dim=1),
        "eos_rate": experience.finished_B.float(),
        "response_length": experience.response_lengths_B.float(),
    }
    means = sum_over_ranks(torch.stack([values_B.sum() for values_B in per_response.values()] + [mask_BR.any(dim=1).sum().float()]))
    others = {
        "objective/scores_std": compute_moments(scores_B, torch.ones_like(experience.finished_B), sum_over_ranks)[1].sqrt(),
        "policy/entropy_avg": compute_moments(figures.entropies_BR, mask_BR, sum_over_ranks)[0],
        "val/returns_avg": compute_moments(experience.returns_BR, mask_BR, sum_over_ranks)[0],
        "val/explained_variance": explain_variance(experience.old_values_BR, experience.returns_BR, mask_BR, sum_over_ranks),
        "tokens": sum_over_ranks(mask_BR.sum()).float(),
    }
    values = torch.cat([means[:-1] / means[-1], torch.stack(list(others.values()))]).tolist()  # one transfer to the CPU
    return dict(zip([*per_response, *others], values, strict=True))


def describe_engine(
    rollout: Rollout, figures: TokenFigures, importance_cap: float | None, sum_over_ranks: SumOverRanks
) -> dict[str, float]:
    """Describe how what the rollout's engine says of its tokens differs from what the trainer says.

    `rollout/logprob_gap` is the mean of |log π_old − log μ| over tokens, `rollout/importance_capped` the share of tokens whose weight
    is capped (only with a cap).
    """
    mask_BR = rollout.response_mask_BR
    log_weights_BR = compute_log_ratios(figures.logprobs_BR, rollout.engine_logprobs_BR, mask_BR)
    values = {"rollout/logprob_gap": log_weights_BR.abs()}
    if importance_cap is not None:
        values["rollout/importance_capped"] = (log_weights_BR > math.log(importance_cap)).float()
    return {name: float(compute_moments(values_BR, mask_BR, sum_over_ranks)[0]) for name, values_BR in values.items()}


@contextmanager
def timed(times_s: dict[str, float], phase: str) -> Iterator[None]:
    """Take the time of what is done inside, as `time/<phase>_s`."""
    start_s = time.perf_counter()
    yield
    times_s[f"time/{phase}_s"] = time.perf_counter() - start_s


def describe_update(stats: UpdateStats) -> dict[str, float]:
    """Describe the update: means over all tokens of all minibatches."""
    return {
        "loss/policy_avg": stats.policy_loss,
        "loss/value_avg": stats.value_loss,
        "policy/approxkl_avg": stats.approxkl,
        "policy/clipfrac_avg": stats.clipfrac,
        "policy/grad_norm": stats.policy_grad_norm,
        "val/clipfrac_avg": stats.value_clipfrac,
        "val/grad_norm": stats.critic_grad_norm,
        "val/ratio": stats.ratio,
        "val/ratio_var": stats.ratio_var,
        "val/ratio_start_deviation": stats.start_deviation,
        "optimizer_steps": float(stats.optimizer_steps),
        **({} if stats.ptx_loss is None else {"loss/ptx": stats.ptx_loss}),
    }
