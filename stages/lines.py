"""A row of figures, a sample or an event <-> a line of JSON. Torch-free.

What is written holds no secret and is JSON even where a figure is not a number; what is read may be anything.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, cast

from pydantic_core import from_json

from data.secrets import redact_values


def to_line(row: Mapping[str, Any], *, ascii_only: bool = True) -> str:
    """Write a row as one line of JSON, its end included: secrets are blotted out, NaN and infinity become texts, which JSON has."""
    row = redact_values(row)
    try:
        return json.dumps(row, ensure_ascii=ascii_only, allow_nan=False) + "\n"
    except ValueError:
        return json.dumps(name_numbers(row), ensure_ascii=ascii_only) + "\n"


def name_numbers(value: Any) -> Any:
    """Replace what is no finite number in nested dictionaries and lists by its name, as the manifest has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: name_numbers(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [name_numbers(item) for item in cast("list[Any]", value)]
    return value


def read_line(line: bytes) -> dict[str, Any]:
    """Read a line that should be such a row.

    Raises:
        ValueError: found; needed. The line is no JSON object, or not UTF-8.
    """
    row: object
    try:
        row = from_json(line)  # in a quarter of the time that json.loads takes
    except ValueError:
        row = None
    if isinstance(row, dict):
        return cast("dict[str, Any]", row)
    try:  # which says what is wrong, and reads what the other refuses
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"found the byte 0x{line[error.start]:02x}, which is not UTF-8; needed a JSON object") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"found no JSON ({str(error)[:80]}); needed a JSON object") from error
    if not isinstance(row, dict):
        raise ValueError(f"found {type(cast('object', row)).__name__.replace('NoneType', 'null')}; needed a JSON object")
    return cast("dict[str, Any]", row)


def read_figures(value: object) -> dict[str, float]:
    """Take the numbers out of what should be named figures; those that are none are left out."""
    figures: dict[str, float] = {}
    for name, found in cast("dict[str, object]", value).items() if isinstance(value, dict) else ():
        if (number := read_number(found)) is not None:
            figures[name] = number
    return figures


def read_number(value: object) -> float | None:
    """Take what should be a number for one; None where it is none."""
    if type(value) is float:  # by far most are: a report reads a million
        return value
    if isinstance(value, int | float) or value in ("NaN", "Infinity", "-Infinity"):
        try:
            return float(cast("float", value))
        except OverflowError:  # an integer beyond all floats
            return math.inf
    return None
