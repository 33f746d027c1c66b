"""What TRL's trainers take as a dataset, read row by row from where the token ids lie; nothing of it is held."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
from datasets import Dataset, Features, List, Value
from numpy.typing import NDArray
from trl.data_utils import pack_dataset

Row = dict[str, Any]
_PROXY_ROWS = 5_000  # a multiple of the 1,000 among which TRL packs


def make_rows(count: int, read: Callable[[int], Row]) -> Dataset:
    """Make a dataset of `count` rows, each read when a trainer asks for it: what is stored is its number."""

    def read_all(numbers: dict[str, list[int]]) -> dict[str, list[Any]]:
        rows = [read(number) for number in numbers["row"]]
        return {name: [row[name] for row in rows] for name in rows[0]}

    return Dataset.from_dict({"row": np.arange(count, dtype=np.int32)}).with_transform(read_all)


def pack_rows(
    rows: Dataset, lengths: NDArray[np.int64], max_length: int, strategy: str, directory: Path
) -> tuple[Dataset, NDArray[np.int64]]:
    """Pack demonstrations by TRL's own packing into rows of at most `max_length` tokens.

    Args:
        rows: `input_ids` and `labels`, made by `make_rows`.
        lengths: Of each.
        max_length: Tokens of a packed row.
        strategy: One of TRL's.
        directory: For the ids, where demonstrations are cut and can no longer be read from where they lie.

    Returns:
        (a dataset with `seq_lengths` too, tokens of each of its rows).
    """
    if lengths.max() > max_length:
        packed: Any = pack_dataset(write_rows(rows, directory / "train.arrow"), max_length, strategy)
        return packed, np.array([sum(members) for members in packed["seq_lengths"]], dtype=np.int64)
    numbers, starts = _pack_lengths(lengths, max_length, strategy)

    def read(bin_number: int) -> Row:
        members = numbers[starts[bin_number] : starts[bin_number + 1]]
        whole = [rows[int(number)] for number in members]
        joined = {name: [token for row in whole for token in row[name]] for name in ("input_ids", "labels")}
        return joined | {"seq_lengths": lengths[members].tolist()}

    return make_rows(len(starts) - 1, read), np.add.reduceat(lengths[numbers], starts[:-1])


def _pack_lengths(lengths: NDArray[np.int64], max_length: int, strategy: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Have TRL pack stand-ins of the same lengths that hold their own number; returns (numbers of all bins, where each bin begins)."""
    numbers: list[NDArray[np.int32]] = []
    sizes: list[NDArray[np.int32]] = [np.zeros(1, np.int32)]
    for first in range(0, len(lengths), _PROXY_ROWS):
        own = lengths[first : first + _PROXY_ROWS]
        ids = np.repeat(np.arange(first, first + len(own), dtype=np.int32), own)
        offsets = np.cumsum([0, *own], dtype=np.int32)
        stand_ins = Dataset(arrow.table({"input_ids": arrow.ListArray.from_arrays(offsets, ids)}))
        packed: Any = pack_dataset(stand_ins, max_length, strategy).with_format("arrow")[:]
        members, tokens = (packed[name].combine_chunks() for name in ("seq_lengths", "input_ids"))
        ends = members.flatten().to_numpy().cumsum()  # of each demonstration, in all bins end to end
        numbers.append(tokens.flatten().to_numpy()[ends - 1])
        sizes.append(members.value_lengths().to_numpy())
    return np.concatenate(numbers), np.cumsum(np.concatenate(sizes), dtype=np.int64)


def write_rows(rows: Dataset, path: Path) -> Dataset:
    """Write demonstrations into a file that is mapped, for TRL's own preparation, which cannot read them from where they lie."""
    return rows.with_format(None).map(
        lambda numbers: rows[numbers["row"]],
        batched=True,
        remove_columns=["row"],
        features=Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))}),
        cache_file_name=str(path),
        load_from_cache_file=False,
        new_fingerprint=uuid.uuid4().hex,  # nothing is looked up by it
    )
