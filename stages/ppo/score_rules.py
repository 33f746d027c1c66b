"""Scores of the reward model -> the scores that PPO maximises: scale, clip, unfinished.

Axes: B responses.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.ppo.advantages import SumOverRanks


@dataclass
class RunningMoments:
    """Mean and variance of all scores seen so far, over all ranks (Chan et al. 1979); part of the checkpoint."""

    count: float = 0.0
    mean: float = 0.0
    sum_of_squares: float = 0.0

    @property
    def std(self) -> float:
        """Population standard deviation; 1 before two scores differ."""
        std = math.sqrt(self.sum_of_squares / self.count) if self.count else 0.0
        return std if std > 0 else 1.0

    def update(self, scores_B: Tensor, sum_over_ranks: SumOverRanks) -> None:
        """Take in the scores of one rollout."""
        scores_B = scores_B.double()
        count, total = sum_over_ranks(torch.stack([torch.ones_like(scores_B).sum(), scores_B.sum()])).tolist()
        mean = total / count
        sum_of_squares = float(sum_over_ranks(((scores_B - mean) ** 2).sum()))
        merged = self.count + count
        shift = mean - self.mean
        self.sum_of_squares += sum_of_squares + shift**2 * self.count * count / merged
        self.mean += shift * count / merged
        self.count = merged


def apply_score_rules(
    scores_B: Tensor, finished_B: Tensor, *, scale: float, score_clip: float | None, missing_eos_score: float | None
) -> Tensor:
    """Turn reward model scores into the scores that PPO maximises.

    Args:
        scores_B: what the reward model said.
        finished_B: True where the response ended with the configured stop token.
        scale: divides the scores.
        score_clip: then they are clipped to [−c, c].
        missing_eos_score: last, an unfinished response gets this score; None leaves it the reward model's.
    """
    scores_B = scores_B / scale
    if score_clip is not None:
        scores_B = scores_B.clamp(-score_clip, score_clip)
    if missing_eos_score is not None:
        scores_B = torch.where(finished_B, scores_B, missing_eos_score)
    return scores_B
