"""Prompts -> prefill -> one token per step in all rows -> responses, over a cache of ours.

A row is a prompt being answered; finished rows leave, and waiting prompts take their places.
Axes: N prompts, S response tokens, B rows, P prompt tokens (padded on the left), C columns of the cache.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from stages.models.adapters import find_model
from stages.models.attention import CachedRows
from stages.models.forward import is_packed, takes_positions
from stages.models.logprobs import get_num_tokens
from stages.process.context import Told
from stages.process.gpu import count_free_memory
from stages.responses.graphs import STEPS_PER_CHECK, StepGraphs, round_rows
from stages.responses.kv_cache import KVCache
from stages.responses.sampling import Response, sample_tokens

_COMPACT_SHARE = 0.95  # finished rows leave when no more than this share is alive: moving rows costs a little
_ADMIT_SHARE = 0.25  # waiting prompts come in when this share of the places is free: a prefill of few rows is slow per token
_PREFILL_ROWS = 16  # rows of similar length: little padding, and a bound on the prefill's memory
_MEMORY_SHARE = 0.8  # of a GPU's free memory, at most, for keys, values and the logits of a step; the rest is for activations
_LOGIT_BYTES = 32  # of a row's logits, while a token is drawn from them: in float32 twice, cumulative in float64, and what they are made of
_GPU_STEPS_PER_CHECK = 4  # reading tokens waits for the GPU; rows that have finished are decoded in vain until then


class Rows:
    """The prompts being answered, one per row. `tokens_B1` are sampled but not yet fed; all before them lies in the cache."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        uniforms_NS: Tensor,
        stop_token_ids: frozenset[int],
        stops: Callable[[Sequence[int]], bool] | None,
        temperature: float,
        greedy: bool,
        max_rows: int,
        told: Told | None,
        additive_mask: bool,
        *,
        graphed: bool = False,
    ) -> None:
        self.model = model
        self.num_tokens = get_num_tokens(model)
        self.graphed = graphed  # on a GPU, with an additive mask: steps are captured, see stages.responses.graphs
        self.additive_mask = additive_mask  # one of 4 axes, which transformers passes on as it is; else of two
        self.takes_positions = takes_positions(type(find_model(model)))
        self.is_packed = is_packed(find_model(model))  # its attention is ours, and told of the rows of a cache
        self.device: torch.device = next(model.parameters()).device
        self.prompts = prompts
        self.uniforms_NS = uniforms_NS.to(self.device)
        self.stop_token_ids = stop_token_ids
        self.stops = stops
        self.temperature = temperature
        self.greedy = greedy
        self.told = told
        self.responses = [Response([], []) for _ in prompts]
        longest_row, self.max_rows = None, max_rows
        if self.device.type == "cuda":
            longest_row = max(map(len, prompts)) + uniforms_NS.shape[1]
            self.max_rows = min(max_rows, self._count_fitting_rows(longest_row))
        self.cache = KVCache(min(self.max_rows, len(prompts)), longest_row)
        self.graphs = StepGraphs(self.cache, uniforms_NS.shape[1], self.device) if graphed else None
        self.obstacle: str | None = None  # why steps could not be captured after all
        self.indices: list[int] = []  # prompt of each row
        self.alive: list[bool] = []
        self.num_sampled: list[int] = []  # tokens of each row, those behind a stop token included
        self.tokens_B1 = torch.zeros(0, 1, dtype=torch.long, device=self.device)
        # Where the rows stand, see `_lay_out`.
        self.positions_B1 = self.steps_B1 = self.tokens_B1
        self.uniforms_BS = self.uniforms_NS[:0]
        self.mask = torch.zeros(0, 0, dtype=torch.bool, device=self.device)

    def answer(self) -> list[Response]:
        """Decode until every prompt has its response."""
        waiting = sorted(range(len(self.prompts)), key=lambda index: -len(self.prompts[index]))  # the longest need the widest cache
        while waiting or self.num_alive:
            free = self.max_rows - self.num_alive
            if waiting and free >= _ADMIT_SHARE * self.max_rows:
                self.drop_finished()
                self.admit(waiting[:free])
                del waiting[:free]
            elif self._pays_to_drop():
                self.drop_finished()
            if self.num_alive:
                self.decode()
            if self.told:
                self.told(len(self.prompts) - len(waiting) - self.num_alive, len(self.prompts))
        return self.responses

    def _count_fitting_rows(self, longest_row: int) -> int:
        """Count the rows that a GPU's free memory holds, by the cache of one token.

        Down to a power of two: a run that is gone on with may find some more memory free, or less, and other rows round otherwise.
        """
        self.cache = KVCache(1, 1)
        self.cache.open_rows(1, 1)
        one = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        logits_B1V = self._run(one, one == 0, one).logits
        columns = KVCache(1, longest_row).num_columns or longest_row
        logit_bytes = _LOGIT_BYTES * (2 if self.graphed else 1)  # a graph's memory is its own
        row_bytes = columns * self.cache.count_bytes_per_token() + logits_B1V.shape[-1] * logit_bytes
        fitting = max(int(_MEMORY_SHARE * count_free_memory(self.device)) // row_bytes, 1)
        return 1 << (fitting.bit_length() - 1)

    @property
    def num_alive(self) -> int:
        return sum(self.alive)

    def _pays_to_drop(self) -> bool:
        if self.graphs is None:
            return self.num_alive <= _COMPACT_SHARE * len(self.alive)
        places = self.cache.max_rows
        return self.num_alive == 0 or round_rows(self.num_alive, places) < round_rows(len(self.alive), places)

    def drop_finished(self) -> None:
        """Put rows from the end into the places of the finished ones, and forget columns that are padding in all that stay."""
        kept = [row for row, alive in enumerate(self.alive) if alive]
        if len(kept) == len(self.alive):
            return
        from_end = iter(reversed(kept))
        order = [row if self.alive[row] else next(from_end) for row in range(len(kept))]
        self.indices, self.num_sampled = [self.indices[row] for row in order], [self.num_sampled[row] for row in order]
        self.alive = [True] * len(order)
        self.tokens_B1 = self.tokens_B1[order]
        self.cache.drop_rows(order, max(self._fed_lengths(), default=0))
        self._lay_out()

    def admit(self, newcomers: list[int]) -> None:
        """Prefill these prompts, in groups of similar length, and sample the first token of each."""
        for start in range(0, len(newcomers), _PREFILL_ROWS):
            group = newcomers[start : start + _PREFILL_ROWS]
            width = max(len(self.prompts[index]) for index in group)
            padding = [width - len(self.prompts[index]) for index in group]
            # Padding may be any id: no real token attends to it.
            ids = [[0] * gap + list(self.prompts[index]) for gap, index in zip(padding, group, strict=True)]
            positions_BP = torch.arange(width, device=self.device) - torch.tensor(padding, device=self.device)[:, None]
            self.cache.open_rows(len(group), width)
            tokens_B1, logprobs_B1 = self._forward(
                torch.tensor(ids, device=self.device), positions_BP >= 0, positions_BP.clamp(min=0), self.uniforms_NS[group, :1]
            )
            self.indices += group
            self.alive += [True] * len(group)
            self.num_sampled += [0] * len(group)
            self.tokens_B1 = torch.cat([self.tokens_B1, tokens_B1])
            self._collect(len(self.indices) - len(group), [tokens_B1], [logprobs_B1])
        self._lay_out()

    def decode(self) -> None:
        """Feed the sampled tokens and sample the next ones, on a GPU a few times over."""
        if max(self.num_sampled) == self.uniforms_NS.shape[1]:
            self.drop_finished()  # a row that finished early and stayed has no step left
        per_check = 1 if self.device.type != "cuda" else STEPS_PER_CHECK if self.graphs else _GPU_STEPS_PER_CHECK
        num_steps = min(per_check, self.uniforms_NS.shape[1] - max(self.num_sampled))
        tokens, logprobs = self._replay(self.graphs, num_steps) if self.graphs else self._step(num_steps)
        self.tokens_B1 = tokens[-1]
        self._collect(0, tokens, logprobs)
        if self.graphs is not None and self.graphs.obstacle is not None:
            self.obstacle, self.graphs = self.graphs.obstacle, None
            self._lay_out()

    def _step(self, num_steps: int) -> tuple[list[Tensor], list[Tensor]]:
        tokens: list[Tensor] = []
        logprobs: list[Tensor] = []
        for _ in range(num_steps):
            self.cache.open_column()
            mask = self.mask[..., : self.cache.width]
            uniforms_B1 = self.uniforms_BS.gather(1, self.steps_B1)
            self.tokens_B1, logprobs_B1 = self._forward(self.tokens_B1, mask, self.positions_B1, uniforms_B1)
            self.positions_B1 += 1
            self.steps_B1 += 1
            tokens.append(self.tokens_B1)
            logprobs.append(logprobs_B1)
        return tokens, logprobs

    def _replay(self, graphs: StepGraphs, num_steps: int) -> tuple[list[Tensor], list[Tensor]]:
        if self.cache.make_room(num_steps):
            self._lay_out()
        fewest = min(sampled for sampled, alive in zip(self.num_sampled, self.alive, strict=True) if alive)
        # The graphs keep nothing of this object: keys and values are freed as soon as nobody refers to it.
        return graphs.run(self._forward, len(self.indices), num_steps, self.uniforms_NS.shape[1] - fewest)

    def _forward(
        self, input_ids_BP: Tensor, mask: Tensor, positions_BP: Tensor, uniforms_B1: Tensor, cached_rows: CachedRows | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the model and sample (tokens_B1, logprobs_B1) from the logits of the last column."""
        output = self._run(input_ids_BP, mask, positions_BP, cached_rows)
        return sample_tokens(output.logits[:, -1, : self.num_tokens], uniforms_B1, self.temperature, greedy=self.greedy)

    def _run(self, input_ids_BP: Tensor, mask: Tensor, positions_BP: Tensor, cached_rows: CachedRows | None = None) -> Any:
        return self.model(
            input_ids=input_ids_BP,
            attention_mask=mask,
            **({"position_ids": positions_BP} if self.takes_positions else {}),
            **({"cached_rows": cached_rows} if self.is_packed and cached_rows else {}),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )

    def _collect(self, first_row: int, tokens: list[Tensor], logprobs: list[Tensor]) -> None:
        """Read one or more steps of the rows from `first_row` on, and see which of them have finished."""
        # One transfer; a token id is exact in float64.
        steps = torch.stack([torch.cat(tokens, dim=1).double(), torch.cat(logprobs, dim=1).double()], dim=-1).tolist()
        for row, step in enumerate(steps, start=first_row):
            self.num_sampled[row] += len(step)
            response = self.responses[self.indices[row]]
            for token, logprob in step if self.alive[row] else []:
                if math.isnan(logprob):
                    raise ValueError(
                        f"the logits after prompt {self.indices[row]} and {len(response.ids)} tokens are NaN; needed: finite logits; "
                        "train with a lower learning rate"
                    )
                response.ids.append(int(token))
                response.logprobs.append(logprob)
                stopped = token in self.stop_token_ids or (self.stops is not None and self.stops(response.ids))
                self.alive[row] = not stopped and len(response.ids) < self.uniforms_NS.shape[1]
                if not self.alive[row]:
                    break

    def _fed_lengths(self) -> list[int]:
        return [len(self.prompts[index]) + sampled - 1 for index, sampled in zip(self.indices, self.num_sampled, strict=True)]

    def _lay_out(self) -> None:
        """Tell the device where the rows stand: positions, steps, uniforms, and a mask that covers all columns to come."""
        self.positions_B1 = torch.tensor(self._fed_lengths(), dtype=torch.long, device=self.device)[:, None]
        self.steps_B1 = torch.tensor(self.num_sampled, device=self.device)[:, None]
        self.uniforms_BS = self.uniforms_NS[self.indices]
        if self.graphs is not None:
            self.graphs.lay_out(self.tokens_B1, self.positions_B1, self.steps_B1, self.uniforms_BS)
            return
        real_BC = torch.arange(self.cache.width + self.uniforms_NS.shape[1], device=self.device) >= self.cache.width - self.positions_B1
        self.mask = _additive_mask(real_BC, self.cache) if self.additive_mask else real_BC


def _additive_mask(real_BC: Tensor, cache: KVCache) -> Tensor:
    """Return mask_B11C: 0 where a column is real and -inf elsewhere, in the precision of the keys."""
    mask_BC = torch.zeros(real_BC.shape, dtype=cache.keys_dtype, device=real_BC.device)
    return mask_BC.masked_fill_(~real_BC, -torch.inf)[:, None, None, :]
