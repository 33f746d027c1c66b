"""One token in all rows as a CUDA graph: captured once for each of a few shapes, and replayed.

A GPU decodes as fast as its kernels are launched one by one; a graph launches all of a step at once. So the host decides nothing within a
step: tokens, positions and the column that is written lie in tensors which the step itself moves on, and rows attend over a window of
columns, of which a mask hides what is padding or not written yet (or over their own columns alone, where attention is ours and in
bfloat16). Rows beyond those that are asked for are decoded in vain.

Axes: M places for rows, B rows, S response tokens, C columns of the cache, W columns of the window.
"""

import functools
import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from data.schema import first_line
from stages.internals import is_partitioned
from stages.models.attention import CachedRows
from stages.responses.kv_cache import KVCache

# (tokens_B1, mask_B11W, positions_B1, uniforms_B1, what the mask says if it can be said) -> (next tokens_B1, logprobs_B1)
Forward = Callable[[Tensor, Tensor, Tensor, Tensor, CachedRows | None], tuple[Tensor, Tensor]]

STEPS_PER_CHECK = 8  # a replayed step takes about a millisecond, and reading tokens some tenths of one
_PAYS_FROM = 16  # steps: a capture takes as long as launching a few of them
_FEWEST_ROWS = 8  # so few take as long as one: a step reads all weights
_COLUMNS = 256  # a window of so many more reads keys and values in vain for less than a capture costs


def find_obstacle(model: Any) -> str | None:
    """Say in a few words why a model's steps cannot be captured, as far as its weights show; None: nothing is in the way."""
    weights = list(model.parameters())
    if any(map(is_partitioned, weights)):
        return "its weights are shared out over the processes"
    if not all(weight.is_floating_point() for weight in weights):
        return "weights in 4 bits have kernels of their own"
    if len({weight.device for weight in weights}) > 1:
        return "its weights lie on several devices"
    return None


def round_rows(num_rows: int, max_rows: int) -> int:
    """Round up to one of few numbers of rows: all places, half of them, a quarter, ..."""
    fewest = max(num_rows, _FEWEST_ROWS)
    rows = max_rows
    while rows > 1 and (half := (rows + 1) // 2) >= fewest:
        rows = half
    return rows


def round_columns(num_columns: int, max_columns: int) -> int:
    """Round up to one of few widths, of which two or three lie between one and its double."""
    multiple = max(_COLUMNS, 1 << num_columns.bit_length() >> 2)
    return min(-(-num_columns // multiple) * multiple, max_columns)


class StepGraphs:
    """Steps of rows whose keys and values lie in a cache that never grows. Call `lay_out` whenever rows or columns have moved."""

    def __init__(self, cache: KVCache, num_uniforms: int, device: torch.device) -> None:
        """Begin without a graph; `num_uniforms` are those of each row."""
        self.cache = cache
        self.obstacle: str | None = None  # why no step can be captured, once that is known
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}  # by (rows, columns)
        self._pool: Any = None  # memory that all graphs share: one runs after the other, and nothing but the tensors below outlives it
        self._tokens_M1, self._positions_M1, self._steps_M1 = torch.zeros(3, cache.max_rows, 1, dtype=torch.long, device=device)
        self._logprobs_M1 = torch.zeros(cache.max_rows, 1, device=device)
        self._uniforms_MS = torch.zeros(cache.max_rows, num_uniforms, dtype=torch.float64, device=device)
        self._column_1 = torch.zeros(1, dtype=torch.long, device=device)  # where the next step writes
        self._mask_M11C: Tensor | None = None  # in the precision of the keys
        self._numbers_M = torch.arange(cache.max_rows + 1, dtype=torch.int32, device=device)  # of the rows, and one more

    def lay_out(self, tokens_B1: Tensor, positions_B1: Tensor, steps_B1: Tensor, uniforms_BS: Tensor) -> None:
        """Tell where the rows stand: tokens not yet fed, how many are, and how many of them were sampled; of other rows nothing."""
        num_rows, end, num_columns = len(tokens_B1), self.cache.end_column, self.cache.num_allocated
        mask_M11C = self._mask_M11C
        if mask_M11C is None:
            device, dtype = self._column_1.device, self.cache.keys_dtype
            mask_M11C = self._mask_M11C = torch.zeros(self.cache.max_rows, 1, 1, num_columns, dtype=dtype, device=device)
        for place_M, given_B in (
            (self._tokens_M1, tokens_B1),
            (self._positions_M1, positions_B1),
            (self._steps_M1, steps_B1),
            (self._uniforms_MS, uniforms_BS),
        ):
            place_M.zero_()
            place_M[:num_rows] = given_B
        columns_C = torch.arange(num_columns, device=self._column_1.device)
        real_BC = (columns_C >= end - positions_B1) & (columns_C < end)
        mask_M11C.fill_(-torch.inf)
        mask_M11C[:num_rows, 0, 0].masked_fill_(real_BC, 0)
        self._column_1.fill_(end)

    def run(self, forward: Forward, num_rows: int, num_steps: int, most_steps: int) -> tuple[list[Tensor], list[Tensor]]:
        """Take some steps; `forward` is the same each time.

        Args:
            forward: runs the model over the cache, and samples.
            num_rows: rows that count.
            num_steps: for which the cache has room.
            most_steps: that may follow from here on, these included.

        Returns:
            (tokens_B1 of each step, logprobs_B1 of each step).
        """
        rows = round_rows(num_rows, self.cache.max_rows)
        needed = self.cache.end_column + max(num_steps, min(most_steps, _PAYS_FROM))
        shape = rows, round_columns(min(needed, self.cache.num_allocated), self.cache.num_allocated)
        if most_steps < _PAYS_FROM and shape not in self._graphs:
            wider = [other for other in self._graphs if other[0] >= num_rows and other[1] >= self.cache.end_column + num_steps]
            shape = min(wider, default=shape)
        tokens, logprobs = [], []
        for _ in range(num_steps):
            if (graph := self._graphs.get(shape)) is not None:
                graph.replay()
            elif most_steps < _PAYS_FROM or self.obstacle is not None:
                self._step(forward, *shape)
            else:
                self._step_and_capture(forward, *shape)
            self.cache.end_column += 1
            tokens.append(self._tokens_M1[:num_rows].clone())
            logprobs.append(self._logprobs_M1[:num_rows].clone())
        return tokens, logprobs

    def _step(self, forward: Forward, rows: int, columns: int) -> None:
        """Take a step of this shape. Until the model has been run nothing has moved on: a step that fails can be taken again."""
        assert self._mask_M11C is not None
        mask_B11W = self._mask_M11C[:rows, :, :, :columns]
        mask_B11W.index_fill_(3, self._column_1, 0)  # each row sees its own new column, those in vain too: none becomes NaN
        self.cache.open_window(rows, columns, self._column_1)
        uniforms_B1 = self._uniforms_MS[:rows].gather(1, self._steps_M1[:rows])
        seen = self._list_seen(rows, columns)
        tokens_B1, logprobs_B1 = forward(self._tokens_M1[:rows], mask_B11W, self._positions_M1[:rows], uniforms_B1, seen)
        self._tokens_M1[:rows].copy_(tokens_B1)
        self._logprobs_M1[:rows].copy_(logprobs_B1)
        for counted in (self._positions_M1[:rows], self._steps_M1[:rows], self._column_1):
            counted.add_(1)

    def _list_seen(self, rows: int, columns: int) -> CachedRows | None:
        places = self.cache.places_per_row
        if not 0 < places * rows < 2**31:
            return None
        positions_B = self._positions_M1[:rows, 0]
        key_starts = self._numbers_M[: rows + 1] * places
        key_starts[:rows] += self._column_1 - positions_B
        return CachedRows(self._numbers_M[: rows + 1], key_starts, (positions_B + 1).int(), columns)

    def _step_and_capture(self, forward: Forward, rows: int, columns: int) -> None:
        """Take a step by launching its kernels, which are loaded by that, and capture the next one, which executes nothing.

        By the step taken autocast's cache holds the weights that it casts, too, and for as long as the precision is entered: what the
        graph reads of them was not made within it.
        """
        try:
            with _refused_waits():  # a capture that fails leaves its memory behind: so it is not begun
                self._step(forward, rows, columns)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.obstacle = f"{type(error).__name__}: {first_line(error):.200}"
            self._step(forward, rows, columns)
            return
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            # A capture that fails does not leave its stream; other threads (NCCL's) go on asking the GPU.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
            ):
                self._step(forward, rows, columns)
        except RuntimeError as error:
            self.obstacle = f"{type(error).__name__}: {first_line(error):.200}"
        else:
            self._graphs[rows, columns] = graph


@functools.cache
def tell_once(obstacle: str) -> None:
    """Say in the log, once, why responses are decoded without a graph although a miniature of the model was captured."""
    print(f"note: responses are decoded without a CUDA graph, slower: {obstacle}", file=sys.stderr, flush=True)


@contextmanager
def _refused_waits() -> Generator[None]:
    """Inside, an operation for which the CPU would wait for the GPU raises a RuntimeError."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it does not know all such operations
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
