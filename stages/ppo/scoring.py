"""Rollout -> reward model -> one score per response, then the rules: scale, clip, unfinished.

The reward model sees prompt ids + response ids as they were sampled, cut after the stop token; nothing is tokenised again.
Axes: B responses.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.models.packing import PackedRow
from stages.models.reward_model import compute_scores
from stages.ppo.advantages import SumOverRanks
from stages.ppo.experience import Rollout
from stages.ppo.rollout import Autocast


class Scorer(nn.Module):
    """A score for each document of a row: a frozen reward model."""

    def __init__(self, reward_model: nn.Module) -> None:
        super().__init__()
        self.reward_model = reward_model

    def forward(self, row: PackedRow) -> Tensor:
        """Compute scores_B in float32, at each document's last token."""
        return compute_scores(self.reward_model, row)


@torch.no_grad()
def score_responses(scorer: Any, rollout: Rollout, micro_batches: list[Tensor], autocast: Autocast) -> Tensor:
    """Score each response at its last real token.

    The position is counted, prompt and response together. It is not looked up by the first (or last) pad token, which a policy may
    sample and a prompt may contain.

    Returns:
        scores_B in float32.
    """
    scores_B = torch.zeros(len(rollout.finished_B), device=rollout.finished_B.device)
    for rows_b in micro_batches:
        row, _ = rollout.select(rows_b).pack()
        with autocast:
            scores_B[rows_b] = scorer(row)
    return scores_B


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
