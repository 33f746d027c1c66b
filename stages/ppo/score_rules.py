"""Scores of the reward model -> the scores that PPO maximises: scale, clip, unfinished.

Axes: B responses.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.ppo.advantages import SumOverRanks

_ROUNDING = 1e-4  # of a score, which is a difference of logits: a thousand steps of float32 at 1


@dataclass
class RunningMoments:
    """Mean and variance of all scores seen so far, over all ranks (Chan et al. 1979); part of the checkpoint."""

    count: float = 0.0
    mean: float = 0.0
    sum_of_squares: float = 0.0

    @property
    def std(self) -> float:
        """Population standard deviation; 1 while scores differ by no more than rounding."""
        std = math.sqrt(self.sum_of_squares / self.count) if self.count else 0.0
        return std if std > _ROUNDING * max(1.0, abs(self.mean)) else 1.0

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
    scores_B: Tensor,
    finished_B: Tensor,
    sum_over_ranks: SumOverRanks,
    *,
    scale: float,
    score_clip: float | None,
    missing_eos_score: float | None,
) -> Tensor:
    """Turn reward model scores into the scores that PPO maximises.

    Args:
        scores_B: what the reward model said.
        finished_B: True where the response ended with the configured stop token.
        sum_over_ranks: over the rollout's responses on all ranks.
        scale: divides the scores.
        score_clip: then they are clipped to [−c, c].
        missing_eos_score: last, see `penalize_unfinished`; None leaves unfinished responses the reward model's score.
    """
    scores_B = scores_B / scale
    if score_clip is not None:
        scores_B = scores_B.clamp(-score_clip, score_clip)
    if missing_eos_score is not None:
        scores_B = penalize_unfinished(scores_B, finished_B, missing_eos_score, sum_over_ranks)
    return scores_B


def penalize_unfinished(scores_B: Tensor, finished_B: Tensor, missing_eos_score: float, sum_over_ranks: SumOverRanks) -> Tensor:
    """Give unfinished responses a score that makes ending pay.

        s ← min(s, m, mean of the finished responses' s + min(m, 0)),   m is `missing_eos_score`

    m alone (Ziegler et al. 2019; N+ details, 19) is a score below that of demonstrations, which is 0. Differs: 1. answers of a policy may
    score less than m, and then not to end would pay; so it counts from their mean as well, over all ranks; 2. an unfinished response
    that the reward model scores lower keeps its own score.
    """
    sums = sum_over_ranks(torch.stack([torch.where(finished_B, scores_B, 0.0).sum(), finished_B.sum()]).double())
    finished_mean = (sums[0] / sums[1]).float().nan_to_num(nan=torch.inf)  # where none has finished, there is nothing to compare with
    highest = (finished_mean + min(missing_eos_score, 0.0)).clamp(max=missing_eos_score)
    return torch.where(finished_B, scores_B, torch.minimum(scores_B, highest))
