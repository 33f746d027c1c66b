"""Values of a row -> text, numbers and lists, or what is wrong with them: `field: found; needed; do`."""

import ast
import json
import re
from typing import cast

Columns = dict[str, object]

_MESSAGES = re.compile(r"\s*\[\s*\{\s*['\"](role|content|from|value)['\"]\s*:")


class FieldError(Exception):
    """A row that cannot become a record: the field at fault and `found; needed; do`."""

    def __init__(self, field: str, message: str) -> None:
        self.field, self.message = field, message
        super().__init__(f"{field}: {message}")


def present_columns(row: object) -> Columns:
    """Return a row's columns that hold something: Parquet and datasets fill absent ones with None.

    Raises:
        FieldError: It has no named columns.
    """
    if not isinstance(row, dict):
        raise FieldError("", f"found {describe(row)}; needed a JSON object with named fields; wrap the values")
    columns = cast(Columns, row)
    return {name: value for name, value in columns.items() if value is not None} if None in columns.values() else columns


def as_list(value: object) -> list[object] | None:
    """Return a list, or None for anything else."""
    return cast(list[object], value) if isinstance(value, list) else None


def as_object(value: object) -> Columns | None:
    """Return an object with named fields, or None for anything else."""
    return cast(Columns, value) if isinstance(value, dict) else None


def is_false(value: object) -> bool:
    """Whether a value says no: false, which exports write as 0 or as text too."""
    return value == 0 or (isinstance(value, str) and value.strip().lower() in ("false", "0"))


def check_number(value: object, field: str) -> float:
    """Return a finite number.

    Raises:
        FieldError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
        raise FieldError(field, f"found {describe(value)}; needed a number; correct it")
    return float(value)


def check_text(value: object, field: str, needed: str = "text", may_be_empty: bool = False) -> str:
    """Return Unicode text.

    Raises:
        FieldError: It is none, or empty where it must not be.
    """
    if not isinstance(value, str):
        raise FieldError(field, f"found {describe(value)}; needed {needed}; correct it")
    if not may_be_empty and not value.strip():
        raise FieldError(field, f"found {'blanks only' if value else 'an empty text'}; needed {needed}; fill it or remove the line")
    if value[:1].isspace() or value[:1] == "[":
        _refuse_written_messages(value, field)
    if "\0" in value:
        raise FieldError(field, "found a NUL character; needed plain text; remove it")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            found = f"half a surrogate pair (\\u{ord(value[error.start]):04x})"
            raise FieldError(field, f"found {found}; needed Unicode text; repair the export") from error
    return value


def _refuse_written_messages(text: str, field: str) -> None:
    """Refuse a list of messages that stands as text: an export wrote it so (CSV, pandas), and a model would learn the brackets."""
    if _MESSAGES.match(text) is None or not text.rstrip().endswith("]"):
        return
    for read in (json.loads, ast.literal_eval):
        try:
            items: object = read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(items, list) and all(isinstance(item, dict) for item in cast(list[object], items)):
            raise FieldError(
                field, "found a list of messages that is written as text; needed the list itself; export it as JSON or Parquet"
            )


def describe(value: object) -> str:
    """Name a value's type as JSON does, with a short value where that helps."""
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return f"{str(value).lower()[:40]} (a {'truth value' if isinstance(value, bool) else 'number'})"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"
