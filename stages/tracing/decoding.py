"""Responses as `stages.responses.rows` decodes them: all prompts come in, and the last step, when the cache is widest."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from stages.models.adapters import find_backbone
from stages.models.precision import autocast
from stages.responses.rows import Rows


class CountedRows(Rows):
    """Rows whose tokens nobody reads: those of fake tensors have no content."""

    def _collect(self, first_row: int, tokens: list[Tensor], logprobs: list[Tensor]) -> None:
        for row in range(first_row, first_row + len(tokens[0])):
            self.num_sampled[row] += len(tokens)

    def widen(self, columns: int) -> None:
        """Have the cache as wide as after so many steps."""
        for _ in range(columns):
            self.cache.open_column()
        self.num_sampled = [sampled + columns for sampled in self.num_sampled]
        self._lay_out()


def decode(model: Any, count: int, prompt_tokens: int, response_tokens: int, *, steps: int, additive: bool) -> Iterator[tuple[str, Any]]:
    """Decode the first token of each response, then the last ones.

    Args:
        model: The policy.
        count: Responses that are decoded at once.
        prompt_tokens: Of each prompt.
        response_tokens: Of each response.
        steps: Tokens of each response that are decoded, the last ones.
        additive: Whether by one mask for all layers, see `stages.responses.generation`.
    """
    uniforms_NS = torch.rand(count, response_tokens, dtype=torch.float64)
    prompts = [[1] * prompt_tokens] * count
    rows = CountedRows(model, prompts, uniforms_NS, frozenset(), None, 1.0, False, count, None, additive)
    device = next(model.parameters()).device

    def run(work: Any) -> None:
        model.eval()
        with torch.no_grad(), autocast(find_backbone(model), device):
            work()

    yield "prefill", lambda: run(lambda: rows.admit(list(range(count))))
    steps = min(steps, response_tokens - 1)
    if steps:
        yield "widen", lambda: rows.widen(response_tokens - 1 - steps)
        for _ in range(steps):
            yield "decode", lambda: run(rows.decode)
