"""Answers -> what is known of each: log-probabilities and KL to the SFT model, the reward model's score."""

from typing import Any

import numpy as np
import torch

from stages.evaluate.answers import Answers, Arrays, sum_answers, together
from stages.models.packing import Rankings
from stages.process.context import Told
from stages.process.ranks import Ranks
from stages.responses.figures import compute_logprobs_of_answers
from stages.responses.scores import score_rankings
from stages.statistics.kl import sum_k1, sum_k3


def measure_logprobs(ranks: Ranks, policy: Any, rankings: Rankings, temperature: float, told: Told) -> Any:
    """Compute log-probabilities of the tokens of all answers, in order, each rank those of every n-th prompt."""

    def work() -> list[list[torch.Tensor]]:
        own = rankings[ranks.index :: ranks.count]
        logprobs = iter(compute_logprobs_of_answers(policy, own, temperature, told))
        return [[next(logprobs) for _ in responses] for _, responses in own]

    return sum_answers([answer for of_prompt in together(ranks, work, len(rankings)) for answer in of_prompt])


def sum_kl(answers: Answers, ref_logprobs: Any) -> Arrays:
    """Sum k1 and k3 over the tokens of each answer; `answers` has the logprobs of the model that said them."""
    assert answers.logprobs is not None
    ends_N = answers.lengths_N.cumsum()
    mask_NR = np.arange(int(answers.lengths_N.max())) < answers.lengths_N[:, None]
    log_ratios_NR = np.zeros(mask_NR.shape)
    log_ratios_NR[mask_NR] = answers.logprobs[: ends_N[-1]].astype(np.float64) - ref_logprobs
    return {"k1_N": sum_k1(log_ratios_NR, mask_NR), "k3_N": sum_k3(log_ratios_NR, mask_NR)}


def score_answers(ranks: Ranks, reward_model: Any, rankings: Rankings, told: Told) -> Any:
    """Ask the reward model for a score of each answer, in order, each rank those of every n-th prompt."""

    def work() -> list[list[float]]:
        own = rankings[ranks.index :: ranks.count]
        scores = iter(score_rankings(reward_model, own, told).tolist())
        return [[next(scores) for _ in responses] for _, responses in own]

    found = together(ranks, work, len(rankings))
    return np.array([score for of_prompt in found for score in of_prompt], dtype=np.float64)
