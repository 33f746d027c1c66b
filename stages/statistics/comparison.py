"""Answers of A and B to the same prompts -> win rate and mean difference of B over A.

Axes: N pairs of answers (each sample, each order), C prompts.
"""

from dataclasses import dataclass

import numpy as np

from stages.statistics.bootstrap import DRAWS, Estimate, average_by_cluster, estimate_mean, estimate_share
from stages.statistics.intervals import Floats, Ints, smallest_difference

_COIN = 0.5  # standard deviation of wins and losses at even odds


@dataclass(frozen=True)
class WinRate:
    """How often B is better; ties count half."""

    estimate: Estimate
    smallest_difference: float  # from 0.5; what this many prompts show in 80 % of cases
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class MeanDifference:
    """By how much B is better, in the unit of the scores."""

    estimate: Estimate
    smallest_difference: float | None  # None for one prompt, which shows no spread


def compare_scores(scores_a_N: Floats, scores_b_N: Floats) -> Floats:
    """Tell for each pair whether B is better: 1, 0, or 0.5 for equal scores."""
    return (np.sign(scores_b_N - scores_a_N) + 1) / 2


def compute_win_rate(outcomes_N: Floats, prompts_N: Ints, *, draws: int = DRAWS) -> WinRate:
    """Compute the paired win rate of B over A: mean over prompts of the mean outcome of a prompt (Miller 2024, arXiv 2411.00640).

    Prompts weigh alike and are what is resampled: both orders and all samples of a prompt go together.

    Example: prompt 0 with outcomes 1 and 0.5, prompt 1 with 0: ((1 + 0.5) / 2 + 0) / 2 = 0.375.

    Args:
        outcomes_N: 1 where B is better, 0 where A is, 0.5 for a tie; in [0, 1].
        prompts_N: which prompt each belongs to.
    """
    outcomes_C = average_by_cluster(outcomes_N, prompts_N)
    estimate = estimate_share(outcomes_C, np.arange(len(outcomes_C)), draws=draws)
    # Where all prompts agree, which does not say that the next ones do: a coin's spread, the largest that there can be.
    std = (_spread(outcomes_C) or _COIN) if len(outcomes_C) > 1 else _COIN
    wins, losses = int((outcomes_N > 0.5).sum()), int((outcomes_N < 0.5).sum())
    return WinRate(estimate, smallest_difference(std, len(outcomes_C)), wins, len(outcomes_N) - wins - losses, losses)


def compare_means(scores_a_N: Floats, scores_b_N: Floats, prompts_N: Ints, *, draws: int = DRAWS) -> MeanDifference:
    """Compute the mean over prompts of the paired difference B − A, by prompt (Miller 2024, arXiv 2411.00640).

    Example: A 1, 2 and B 3, 3 on two prompts: differences 2 and 1, mean 1.5.
    """
    differences_C = average_by_cluster(scores_b_N - scores_a_N, prompts_N)
    estimate = estimate_mean(differences_C, np.arange(len(differences_C)), draws=draws)
    smallest = smallest_difference(_spread(differences_C), len(differences_C)) if len(differences_C) > 1 else None
    return MeanDifference(estimate, smallest)


def _spread(values_C: Floats) -> float:
    return float(values_C.std(ddof=1))
