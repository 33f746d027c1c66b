"""Responses as `stages.responses.rows` decodes them: all prompts come in, and the last step, when the cache is widest."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from stages.models.adapters import find_backbone
from stages.models.precision import autocast
from stages.responses.kv_cache import KVCache
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


def make_rows(model: Any, count: int, prompt_tokens: int, response_tokens: int, *, additive: bool, on_gpu: bool) -> CountedRows:
    """Make the rows of as many responses, before any is decoded.

    Args:
        model: The policy.
        count: Responses that are decoded at once.
        prompt_tokens: Of each prompt.
        response_tokens: Of each response.
        additive: Whether by one mask for all layers, see `stages.responses.generation`.
        on_gpu: Whether the cache is one block from the first prefill on, as a GPU has it.
    """
    uniforms_NS = torch.rand(count, response_tokens, dtype=torch.float64)
    prompts = [[1] * prompt_tokens] * count
    rows = CountedRows(model, prompts, uniforms_NS, frozenset(), None, 1.0, False, count, None, additive)
    if on_gpu:
        rows.cache = KVCache(count, prompt_tokens + response_tokens)
    return rows


def decode(rows: CountedRows, *, steps: int, half: bool = False) -> Iterator[tuple[str, Any]]:
    """Decode the first token of each response, then a few more.

    Args:
        rows: None of which has a token.
        steps: Tokens of each response that are decoded, the last ones.
        half: Whether they are those in the middle of a response: what a step takes on average, not at most.
    """
    model, response_tokens = rows.model, rows.uniforms_NS.shape[1]

    def run(work: Any) -> None:
        model.eval()
        with torch.no_grad(), autocast(find_backbone(model), rows.device):
            work()

    yield "prefill", lambda: run(lambda: rows.admit(list(range(len(rows.prompts)))))
    steps = min(steps, response_tokens - 1)
    if steps:
        before = response_tokens - 1 - steps
        yield "widen", lambda: rows.widen(before // 2 if half else before)
        for _ in range(steps):
            yield "decode", lambda: run(rows.decode)
