"""Responses -> reward model -> one score each.

The reward model sees prompt ids + response ids as they were sampled, cut after the stop token; nothing is tokenised again, but for answers
that come as text.
Axes: B responses.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from data.chat import encode_prompts
from data.schema import DataError, Message
from data.tokens import encode_response
from stages.models.packing import PackedRow, Rankings, pack_rankings
from stages.models.reward_model import compute_scores
from stages.process.context import Told
from stages.process.gpu import send
from stages.responses.rollout import Rollout


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
        scores_B[send(rows_b, scores_B.device)] = scorer(row)
    return scores_B


@torch.no_grad()
def score_rankings(model: Any, rankings: Rankings, told: Told = lambda done, total: None) -> Tensor:
    """Score the responses of (prompt ids, responses) with the model's current calibration; float32 on the CPU, all in one axis."""
    model.eval()
    device = next(model.parameters()).device
    scores: list[Tensor] = []
    for row, done in pack_rankings(rankings, device):
        scores.append(compute_scores(model, row)[row.parents_D >= 0].cpu())
        told(done, len(rankings))
    return torch.cat(scores) if scores else torch.zeros(0)


def score_texts(tokenizer: Any, model: Any, rows: Sequence[dict[str, Any]]) -> list[float | str]:
    """Score answers that are text.

    Args:
        tokenizer: That of the reward model.
        model: The reward model.
        rows: `prompt` (messages), `response` and `finished`, as `rlhf score` asks.

    Returns:
        The score of each, or in words why there is none.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    scores: list[float | str] = []
    encoded: list[tuple[list[int], list[int]]] = []
    for row in rows:
        try:
            prompt_ids = encode_prompts(tokenizer, [[Message(**message) for message in row["prompt"]]])[0]
            response_ids = encode_response(tokenizer, row["response"])
        except DataError as error:
            scores.append("; ".join(f"{problem.field}: {problem.message}" for problem in error.problems))
            continue
        # What was cut off in PPO was scored as it was, without the end token.
        response_ids = response_ids if row["finished"] else response_ids[:-1]
        length = len(prompt_ids) + len(response_ids)
        if not response_ids or (limit is not None and length > limit):
            scores.append(f"found {length} tokens; needed at most {limit}" if response_ids else "found no token of an answer; needed one")
            continue
        scores.append(0.0)
        encoded.append((prompt_ids, response_ids))
    found = iter(score_rankings(model, [(prompt, [response]) for prompt, response in encoded]).tolist())
    return [score if isinstance(score, str) else next(found) for score in scores]
