"""samples.jsonl or metrics.jsonl of an artifact -> its rows, as a stream; lines that are none are told. The one reader of both."""

from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from pipeline.store.disk import open_regular
from pipeline.text import count
from stages.lines import read_line

MAX_LINE_BYTES = 8_000_000


def read_rows(path: Path, bad: dict[int, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read rows one after the other, each with the number of its line.

    Args:
        path: The file.
        bad: Gets the number of each line that is no row -> what was found there, and needed.

    Raises:
        ValueError: why it cannot be read; at once, not with the first row.
    """
    try:
        stream = open_regular(path, None)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    return _read(stream, bad)


def _read(stream: BufferedReader, bad: dict[int, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    with stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES):
            number += 1
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n") and stream.readline(1):
                bad[number] = f"found more than {MAX_LINE_BYTES:,} bytes; needed a shorter line"
                while (line := stream.readline(MAX_LINE_BYTES)) and not line.endswith(b"\n"):
                    pass
                continue
            try:
                row = read_line(line)
            except ValueError as error:
                bad[number] = str(error)
                continue
            yield number, row


def tell_left_out(name: str, bad: Mapping[int, str], what: str) -> list[str]:
    """Tell how many lines of a file are left out, and the first: `samples.jsonl: 2 lines left out, no samples: line 3, 7`."""
    first = ", ".join(map(str, list(bad)[:3])) + (" and others" if len(bad) > 3 else "")
    return [f"{name}: {count(len(bad), 'line')} left out, {what}: line {first}"] if bad else []
