"""What is known of a format: how its rows are recognised, and how one becomes rows in our own columns."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from data.fields import Columns
from data.schema import Problem, RecordKind

FormatName = Literal["trl", "sharegpt", "alpaca", "transcript", "oasst", "ultrafeedback", "shp", "text"]

Row = tuple[str, object]  # where, the decoded value


@dataclass(frozen=True)
class Format:
    """One form of rows.

    Args:
        name: What `format:` in a recipe says.
        looks: Its name and the columns by which it is known, for people.
        kinds: The kinds of records that it can give.
        columns: What it reads.
        matches: Whether a row (its columns that hold something, or a bare value) is of this form.
        convert: A row that matches, and the kind wanted -> rows in our own columns. Raises FieldError.
        rename: A field of such a row, and the row that was read -> the user's name of that field.
        count: A row that was read, and the kind wanted -> what of it is left out, for people, and how many.
        gather: Where a record is spread over rows: the rows -> rows that are whole; what is wrong with a row comes out as a Problem.
    """

    name: FormatName
    looks: str
    kinds: tuple[RecordKind, ...]
    columns: tuple[str, ...]
    matches: Callable[[object], bool]
    convert: Callable[[Columns, RecordKind], list[Columns]]
    rename: Callable[[str, Columns], str]
    count: Callable[[Columns, RecordKind], dict[str, int]] = lambda _columns, _kind: {}
    gather: Callable[[Iterator[Row | Problem]], Iterator[Row | Problem]] | None = None


def rename_root(field: str, names: dict[str, str]) -> str:
    """Rename the column that a field such as `messages[2].content` begins with."""
    root = field.split("[", 1)[0].split(".", 1)[0]
    return names.get(root, root) + field[len(root) :]
