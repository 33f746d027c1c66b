"""Responses -> reward model -> one score each.

The reward model sees prompt ids + response ids as they were sampled, cut after the stop token; nothing is tokenised again.
Axes: B responses.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stages.models.packing import PackedRow, list_documents, pack, split_by_tokens
from stages.models.reward_model import compute_scores
from stages.process.context import Told
from stages.responses.rollout import Rollout

_RANKING_BATCH, _RANKING_TOKENS = 32, 16_384  # of a forward: prompts with all their answers, and their tokens


class Scorer(nn.Module):
    """A score for each document of a row: a frozen reward model."""

    def __init__(self, reward_model: nn.Module) -> None:
        super().__init__()
        self.reward_model = reward_model

    def forward(self, row: PackedRow) -> Tensor:
        """Compute scores_B in float32, at each document's last token."""
        return compute_scores(self.reward_model, row)


@torch.no_grad()
def score_rollout(scorer: Any, rollout: Rollout, micro_batches: list[Tensor]) -> Tensor:
    """Score each response at its last real token.

    The position is counted, prompt and response together. It is not looked up by the first (or last) pad token, which a policy may
    sample and a prompt may contain.

    Returns:
        scores_B in float32.
    """
    scores_B = torch.zeros(len(rollout.finished_B), device=rollout.finished_B.device)
    for rows_b in micro_batches:
        row, _ = rollout.select(rows_b).pack()
        scores_B[rows_b] = scorer(row)
    return scores_B


@torch.no_grad()
def score_rankings(model: Any, rankings: Sequence[tuple[list[int], Sequence[list[int]]]], told: Told = lambda done, total: None) -> Tensor:
    """Score the responses of (prompt ids, responses) with the model's current calibration; float32 on the CPU, all in one axis."""
    model.eval()
    device = next(model.parameters()).device
    scores: list[Tensor] = []
    lengths = [len(prompt) + sum(map(len, responses)) for prompt, responses in rankings]
    for run in split_by_tokens(lengths, _RANKING_TOKENS, _RANKING_BATCH):
        row = pack(*list_documents(rankings[run]), device)
        scores.append(compute_scores(model, row)[row.parents_D >= 0].cpu())
        told(run.stop, len(rankings))
    return torch.cat(scores)
