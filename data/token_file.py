"""Token ids on the disk: an Arrow file that every process maps into its memory, and reads record by record.

records, encoded records -> batches -> TOKENS_FILE -> TokenFile -> TokenRows

One row a record, in the order of its source, whatever can be used of it: what is held out and what is counted is decided on reading.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from data.schema import Comparison, Message, Record, Text
from data.tokens import EncodedComparison, EncodedPair, EncodedPromptRecord, EncodedRecord

Item = TypeVar("Item")
RowNumbers = NDArray[np.int64]


def make_schema() -> Any:
    """Say what a row holds: `ids` are those of the prompt and of the responses, end to end, `lengths` tells them apart."""
    arrow: Any = import_module("pyarrow")
    return arrow.schema(
        [
            ("ids", arrow.list_(arrow.int32())),
            ("lengths", arrow.list_(arrow.int32())),
            ("ranks", arrow.list_(arrow.int32())),
            ("prompt", arrow.string()),  # its messages: what a judge reads, and what is held out by; of a text nothing
            ("source", arrow.string()),
            ("cut", arrow.bool_()),
            ("used", arrow.bool_()),
            ("answers", arrow.int32()),  # all that it has, used or not; a text that is not empty is one
            ("dropped", arrow.int32()),
            ("repeated", arrow.int32()),
            ("control", arrow.bool_()),
            ("grades", arrow.list_(arrow.float32())),
            ("altered", arrow.int32()),
        ]
    )


def make_batch(records: Sequence[Record], encoded: Sequence[EncodedRecord]) -> Any:
    """Lay records out as one batch of rows."""
    arrow: Any = import_module("pyarrow")
    columns = {
        "ids": _lay_lists([list(chain(item.prompt_ids, *item.responses)) for item in encoded]),
        "lengths": _lay_lists([[len(item.prompt_ids), *map(len, item.responses)] for item in encoded]),
        "ranks": _lay_lists([item.ranks for item in encoded]),
        "prompt": ["" if isinstance(record, Text) else _write_messages(record.prompt) for record in records],
        "source": [record.source if isinstance(record, Comparison) else "" for record in records],
        "cut": [item.cut for item in encoded],
        "used": [item.used for item in encoded],
        "answers": [int(record.text != "") if isinstance(record, Text) else len(record.answers) for record in records],
        "dropped": [item.dropped for item in encoded],
        "repeated": [item.repeated for item in encoded],
        "control": [item.control for item in encoded],
        "grades": _lay_lists([item.grades for item in encoded], np.float32),
        "altered": [item.altered for item in encoded],
    }
    return arrow.record_batch(columns, schema=make_schema())


def _lay_lists(lists: Sequence[Sequence[float]], dtype: type[np.int32 | np.float32] = np.int32) -> Any:
    """Lay lists out end to end; numpy takes a tenth of Arrow's time for it."""
    arrow: Any = import_module("pyarrow")
    offsets = np.cumsum([0, *map(len, lists)], dtype=np.int32)
    values = np.fromiter(chain.from_iterable(lists), dtype, count=int(offsets[-1]))
    return arrow.ListArray.from_arrays(offsets, values)


class TokenFile:
    """A mapped file; what is read of it lies in memory that all processes share."""

    def __init__(self, path: Path) -> None:
        arrow: Any = import_module("pyarrow")
        self._path = path
        reader: Any = arrow.ipc.open_file(arrow.memory_map(str(path)))
        self._batches: list[Any] = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self._table: Any = arrow.Table.from_batches(self._batches, schema=reader.schema)
        self.used: NDArray[np.bool_] = self._table["used"].to_numpy()
        self.cut: NDArray[np.bool_] = self._table["cut"].to_numpy()

    def __reduce__(self) -> tuple[type["TokenFile"], tuple[Path]]:
        return TokenFile, (self._path,)  # `datasets` pickles what a row is read by, to name a dataset: not the ids, please

    def __len__(self) -> int:
        return int(self._starts[-1])

    # Counts are read from the disk whenever they are asked for: a million records would hold 12 MB of them in every process.

    @property
    def answers(self) -> NDArray[np.int32]:
        """How many answers each record has, used or not."""
        return self._table["answers"].to_numpy()

    @property
    def dropped(self) -> NDArray[np.int32]:
        """How many of them are too long."""
        return self._table["dropped"].to_numpy()

    @property
    def repeated(self) -> NDArray[np.int32]:
        """How many of them begin with what the prompt ends with."""
        return self._table["repeated"].to_numpy()

    @property
    def altered(self) -> NDArray[np.int32]:
        """How many of them are others when they are written out; files of an earlier version do not say so."""
        return self._table["altered"].to_numpy() if "altered" in self._table.schema.names else np.zeros(len(self), np.int32)

    @property
    def control(self) -> NDArray[np.bool_]:
        """Whether each record holds the text of a control token."""
        return self._table["control"].to_numpy()

    def count_tokens(self) -> NDArray[np.int64]:
        """Count the tokens of each record, of prompt and responses together."""
        return np.concatenate([np.zeros(0, np.int64), *(np.diff(_view_lists(batch.column("ids"))[0]) for batch in self._batches)])

    def documents(self, row: int) -> list[list[int]]:
        """Return the ids of a record's prompt, and of each of its responses."""
        ids, lengths = self._read_list("ids", row), self._read_list("lengths", row)
        ends = np.cumsum(lengths)
        return [ids[end - length : end].tolist() for end, length in zip(ends, lengths, strict=True)]

    def ids(self, row: int) -> NDArray[np.int32]:
        """Return all ids of a record as they lie in the file: what is not looked at is not read."""
        return self._read_list("ids", row)

    def ranks(self, row: int) -> tuple[int, ...]:
        """Return the ranks of a record's responses."""
        return tuple(self._read_list("ranks", row).tolist())

    def grades(self, row: int) -> tuple[float, ...]:
        """Return the grades of a record's responses; none in files of an earlier version, which were made of records without."""
        return tuple(self._read_list("grades", row).tolist()) if "grades" in self._table.schema.names else ()

    def count_grades(self) -> NDArray[np.int64]:
        """Count the grades of each record."""
        if "grades" not in self._table.schema.names:
            return np.zeros(len(self), np.int64)
        return np.concatenate([np.zeros(0, np.int64), *(np.diff(_view_lists(batch.column("grades"))[0]) for batch in self._batches)])

    def prompt(self, row: int) -> tuple[Message, ...]:
        """Return the messages of a record's prompt."""
        return _read_messages(self._read_text("prompt", row))

    def source(self, row: int) -> str:
        """Return where a record comes from."""
        return self._read_text("source", row)

    def prompts(self) -> "Prompts":
        """Give all prompts, in order; read one after the other, as often as one likes."""
        return Prompts(self._batches)

    def source_codes(self) -> NDArray[np.int32]:
        """Return a number for each record: equal for those of one source."""
        compute: Any = import_module("pyarrow.compute")
        column = self._table["source"]
        return compute.index_in(column, compute.unique(column)).to_numpy()

    def _read_list(self, name: str, row: int) -> NDArray[np.int32]:
        batch = int(np.searchsorted(self._starts, row, side="right")) - 1
        offsets, values = _view_lists(self._batches[batch].column(name))
        place = row - self._starts[batch]
        return values[offsets[place] : offsets[place + 1]]

    def _read_text(self, name: str, row: int) -> str:
        batch = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._batches[batch].column(name)[row - int(self._starts[batch])].as_py()


class Prompts:
    """The prompts of a token file, each read from the disk when it is asked for."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[tuple[Message, ...]]:
        for batch in self._batches:
            for text in batch.column("prompt").to_pylist():
                yield _read_messages(text)


class TokenRows(Sequence[Item], Generic[Item]):
    """Some records of a token file, each made when it is asked for: nothing is held of them."""

    def __init__(self, file: TokenFile, rows: RowNumbers, read: Callable[[TokenFile, int], Item]) -> None:
        self._file, self._rows, self._read = file, rows, read

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> "TokenRows[Item]": ...
    def __getitem__(self, index: int | slice) -> "Item | TokenRows[Item]":
        if isinstance(index, slice):
            return TokenRows(self._file, self._rows[index], self._read)
        return self._read(self._file, int(self._rows[index]))

    def choose(self, places: Sequence[int]) -> "TokenRows[Item]":
        """Take those at some places, in that order; one may be taken twice."""
        return TokenRows(self._file, self._rows[np.array(places, dtype=np.int64)], self._read)

    def count_tokens(self) -> NDArray[np.int64]:
        """Count the tokens of each record, of prompt and responses together."""
        return self._file.count_tokens()[self._rows]


def read_pair(file: TokenFile, row: int) -> EncodedPair:
    """Read a demonstration that is used."""
    return EncodedPair(*file.documents(row))


def read_comparison(file: TokenFile, row: int) -> EncodedComparison:
    """Read a comparison that is used."""
    prompt_ids, *responses = file.documents(row)
    return EncodedComparison(prompt_ids, responses, file.ranks(row), file.source(row), file.grades(row))


def read_prompt(file: TokenFile, row: int) -> EncodedPromptRecord:
    """Read the prompt of a record of any kind."""
    return EncodedPromptRecord(file.documents(row)[0], file.prompt(row))


def read_prompt_ids(file: TokenFile, row: int) -> list[int]:
    """Read the ids of a record's prompt."""
    return file.documents(row)[0]


def _view_lists(column: Any) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return (where each list begins, and the last ends; the values of all), as they lie in the file."""
    return column.offsets.to_numpy(), column.values.to_numpy()


def _write_messages(prompt: Sequence[Message]) -> str:
    return json.dumps([[message.role, message.content] for message in prompt], ensure_ascii=False)


def _read_messages(text: str) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in json.loads(text))
