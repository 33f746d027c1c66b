"""Answers -> what is known of each: log-probabilities and KL to the SFT model, the reward model's score."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from stages.evaluate.answers import Answers, Arrays, Item, together
from stages.models.packing import Rankings
from stages.process.context import Told
from stages.process.ranks import Ranks
from stages.responses.figures import compute_logprobs_of_answers
from stages.responses.scores import score_rankings
from stages.statistics.kl import sum_k1, sum_k3


def measure_logprobs(ranks: Ranks, policy: Any, rankings: Rankings, temperature: float, told: Told) -> Any:
    """Compute log-probabilities of the tokens of all answers, one answer after the other."""
    found = _share_work(ranks, rankings, lambda own: compute_logprobs_of_answers(policy, own, temperature, told))
    return torch.cat(found).numpy().astype(np.float32) if found else np.zeros(0, np.float32)


def sum_kl(answers: Answers, ref_logprobs: Any) -> Arrays:
    """Sum k1 and k3 over the tokens of each answer; `answers` has the logprobs of the model that said them."""
    assert answers.logprobs is not None
    ends_N = answers.lengths_N.cumsum()
    mask_NR = np.arange(int(answers.lengths_N.max())) < answers.lengths_N[:, None]
    log_ratios_NR = np.zeros(mask_NR.shape)
    log_ratios_NR[mask_NR] = answers.logprobs[: ends_N[-1]].astype(np.float64) - ref_logprobs
    return {"k1_N": sum_k1(log_ratios_NR, mask_NR), "k3_N": sum_k3(log_ratios_NR, mask_NR)}


def score_answers(ranks: Ranks, reward_model: Any, rankings: Rankings, told: Told) -> Any:
    """Ask the reward model for a score of each answer, in order."""
    found: list[float] = _share_work(ranks, rankings, lambda own: score_rankings(reward_model, own, told).tolist())
    return np.array(found, dtype=np.float64)


def _share_work(ranks: Ranks, rankings: Rankings, compute: Callable[[Rankings], list[Item]]) -> list[Item]:
    """Compute something of each answer, in order; each rank of the answers to every n-th prompt."""

    def work() -> list[list[Item]]:
        own = rankings[ranks.index :: ranks.count]
        found = iter(compute(own))
        return [[next(found) for _ in responses] for _, responses in own]

    return [item for of_prompt in together(ranks, work, len(rankings)) for item in of_prompt]
