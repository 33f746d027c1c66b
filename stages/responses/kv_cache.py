"""The keys and values of rows that are decoded together: all rows end at the same column, rows leave and join in place.

Axes: B rows, H heads, Q new columns, W columns seen, C columns allocated, D numbers per head. A row that is shorter than the widest
has padding in its first columns, which the attention mask must hide; it is finite, since attention multiplies it by 0.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

_BLOCK = 32  # columns allocated at once: the cache is copied once in so many steps instead of in each
_SPARE = 128  # columns beyond the longest row in a cache that never grows: its rows are moved to its beginning once in so many steps


class KVCache(Cache):
    """A transformers cache with one write position for all rows: a step writes one column and copies nothing.

    Call `open_rows` before each prefill and `open_column` before each step (or `open_window`: stages.responses.graphs).
    """

    def __init__(self, max_rows: int, longest_row: int | None = None) -> None:
        """Begin empty.

        Args:
            max_rows: at once.
            longest_row: tokens of the longest row there will be. The cache then has room for it from the first prefill on: on a GPU
                every larger block would leave one behind that nothing fits into. None: it grows, and stays as small as its rows are.
        """
        super().__init__(layers=[])
        self.max_rows = max_rows
        self.num_columns = None if longest_row is None else _round_up(longest_row + _SPARE)
        self.buffers: list[tuple[Tensor, Tensor]] = []  # keys_BHCD and values_BHCD per layer
        self.num_rows = 0
        self.first_column = 0  # columns from here to `end_column` are in use
        self.end_column = 0
        self._rows = slice(0)  # what the next forward reads and writes: these rows,
        self._seen_from = 0  # all columns from here on,
        self._write_from = 0  # the new ones from here on,
        self._window: tuple[int, Tensor] | None = None  # or so many columns from the first one on, a new one where the tensor says

    @property
    def width(self) -> int:
        """Columns in use: the length of the longest row."""
        return self.end_column - self.first_column

    def count_bytes_per_token(self) -> int:
        """Count the bytes that one token of one row takes; of a cache that something has been written into."""
        return sum(buffer.element_size() * buffer.shape[1] * buffer.shape[3] for layer in self.buffers for buffer in layer)

    @property
    def num_allocated(self) -> int:
        """Columns that are allocated; of a cache that something has been written into."""
        return self.buffers[0][0].shape[2]

    @property
    def places_per_row(self) -> int:
        """Columns of a row over all its heads, as stages.models.attention.CachedRows counts them; 0: layers differ."""
        counts = {buffer.shape[1] * buffer.shape[2] for layer in self.buffers for buffer in layer}
        return counts.pop() if len(counts) == 1 else 0

    @property
    def keys_dtype(self) -> torch.dtype:
        """Precision of the keys, in which attention is computed."""
        return self.buffers[0][0].dtype

    def open_rows(self, num_rows: int, num_columns: int) -> None:
        """Make room below for a prefill of this shape, which ends at the same column as the rows above."""
        if num_columns > self.end_column:
            self._reallocate(num_columns - self.width)
        self.first_column = min(self.first_column, self.end_column - num_columns)
        self._rows = slice(self.num_rows, self.num_rows + num_rows)
        self._seen_from = self._write_from = self.end_column - num_columns
        self._window = None
        self.num_rows += num_rows

    def open_column(self) -> None:
        """Make room for one more token in every row."""
        self.make_room(1)
        self._rows, self._seen_from, self._write_from = slice(self.num_rows), self.first_column, self.end_column
        self._window = None
        self.end_column += 1

    def make_room(self, num_columns: int) -> bool:
        """Have so many columns behind those in use; says whether these were moved for it."""
        if self.end_column + num_columns <= self.num_allocated:
            return False
        self._reallocate(0)
        return True

    def open_window(self, num_rows: int, num_columns: int, column_1: Tensor) -> None:
        """Have the next forward write the column that a tensor of the device names, and see the first `num_columns`, whatever they hold.

        Neither depends on what is in use; it is the caller who makes room and counts the column.
        """
        self._rows, self._seen_from, self._write_from = slice(num_rows), 0, num_columns - 1
        self._window = num_columns, column_1

    def drop_rows(self, order: list[int], num_columns: int) -> None:
        """Keep as many rows as `order` has, row b being what was row order[b], and of them the last `num_columns` columns."""
        self.num_rows = len(order)
        self.first_column = self.end_column - num_columns
        moved = [row for row, source in enumerate(order) if row != source]
        if not moved:
            return
        device = self.buffers[0][0].device
        rows_B, sources_B = torch.tensor([moved, [order[row] for row in moved]], device=device)
        for layer in self.buffers:
            for buffer_BHCD in layer:
                used_BHWD = buffer_BHCD[:, :, self.first_column : self.end_column]
                used_BHWD.index_copy_(0, rows_B, used_BHWD.index_select(0, sources_B))

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write keys_BHQD and values_BHQD where the rows end; return views of keys_BHWD and values_BHWD."""
        if layer_idx == len(self.buffers):
            self.buffers.append((self._allocate(key_states), self._allocate(value_states)))
        keys_BHCD, values_BHCD = self.buffers[layer_idx]
        if self._window is not None:
            seen, column_1 = self._window
            for buffer_BHCD, states_BHQD in ((keys_BHCD, key_states), (values_BHCD, value_states)):
                buffer_BHCD[self._rows].index_copy_(2, column_1, states_BHQD.to(buffer_BHCD.dtype))
            return keys_BHCD[self._rows, :, :seen], values_BHCD[self._rows, :, :seen]
        write_to = self._write_from + key_states.shape[2]
        keys_BHCD[self._rows, :, self._write_from : write_to] = key_states
        values_BHCD[self._rows, :, self._write_from : write_to] = value_states
        return keys_BHCD[self._rows, :, self._seen_from : write_to], values_BHCD[self._rows, :, self._seen_from : write_to]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns that the next forward sees before its own."""
        return self._write_from - self._seen_from

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """(columns seen, offset of the first)."""
        return self.get_seq_length() + query_length, 0

    def _allocate(self, states_BHQD: Tensor) -> Tensor:
        _, heads, _, size = states_BHQD.shape
        device_type = states_BHQD.device.type
        # Rotary embeddings leave keys in float32 under autocast, and attention would cast all of them anew in every step.
        dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else states_BHQD.dtype
        return states_BHQD.new_zeros(self.max_rows, heads, self.num_columns or _round_up(self.end_column), size, dtype=dtype)

    def _reallocate(self, gap: int) -> None:
        """Move the columns in use to where they start at column `gap`, into new buffers with room for more, unless these have it."""
        used, self.first_column, self.end_column = slice(self.first_column, self.end_column), gap, gap + self.width
        if self.num_columns is not None:
            for buffer_BHCD in (buffer for layer in self.buffers for buffer in layer):
                buffer_BHCD[: self.num_rows, :, gap : self.end_column] = buffer_BHCD[: self.num_rows, :, used].clone()
            return
        for index, layer in enumerate(self.buffers):
            keys_BHCD, values_BHCD = (buffer.new_zeros(*buffer.shape[:2], _round_up(self.end_column), buffer.shape[3]) for buffer in layer)
            for new_BHCD, old_BHCD in zip((keys_BHCD, values_BHCD), layer, strict=True):
                new_BHCD[: self.num_rows, :, gap : self.end_column] = old_BHCD[: self.num_rows, :, used]
            self.buffers[index] = keys_BHCD, values_BHCD


def _round_up(num_columns: int) -> int:
    return (num_columns // _BLOCK + 1) * _BLOCK
