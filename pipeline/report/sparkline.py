"""metrics.jsonl -> a line of blocks for each figure: how it went, at a glance. Of a long file some rows are read, evenly spaced."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

from pipeline.store.disk import open_regular
from stages.lines import read_figures, read_line
from stages.spec import METRICS_FILE

BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-~=+*#"
_WHOLE_BYTES = 2_000_000
_ROWS_READ = 1000
_MAX_LINE_BYTES = 1_000_000


def read_series(directory: Path) -> dict[str, list[float]]:
    """Read figures by name, in the order of the file.

    Raises:
        OSError, ValueError: it cannot be read, or is no plain file.
    """
    series: dict[str, list[float]] = {}
    with open_regular(directory / METRICS_FILE, None) as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        for line in stream.read().splitlines() if size <= _WHOLE_BYTES else _pick_lines(stream, size):
            with suppress(ValueError):
                for name, value in read_figures(read_line(line)).items():
                    series.setdefault(name, []).append(value)
    return series


def _pick_lines(stream: BufferedReader, size: int) -> Iterator[bytes]:
    """Take lines at evenly spaced places of a file, each once, and its last one."""
    stream.seek(max(0, size - _MAX_LINE_BYTES))
    last = stream.read().rstrip(b"\n").rpartition(b"\n")[2]
    begun, line = -1, b""
    for place in range(_ROWS_READ):
        stream.seek(size * place // _ROWS_READ)
        if place:
            stream.readline(_MAX_LINE_BYTES)  # what is left of the line that the place lies in
        if (at := stream.tell()) > begun and at < size:
            begun, line = at, stream.readline(_MAX_LINE_BYTES)
            yield line
    if line.rstrip(b"\n") != last:
        yield last


def draw_sparkline(values: Sequence[float], width: int, blocks: str = BLOCKS) -> str:
    """Draw values as blocks from the lowest to the highest, each the mean of those in its place; `?` where they are no numbers.

    Example: 0, 1, 2, 3 give `▁▃▆█`.
    """
    columns = [values[len(values) * place // width : len(values) * (place + 1) // width] for place in range(width)]
    if len(values) < width:
        columns = [[value] for value in values]
    means = [
        math.fsum(value / len(column) for value in column) if all(map(math.isfinite, column)) else math.nan for column in columns if column
    ]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    if high == low:
        return "".join("?" if math.isnan(mean) else blocks[len(blocks) // 2 - 1] for mean in means)
    top = len(blocks) - 1
    return "".join("?" if math.isnan(mean) else blocks[round((mean / 2 - low / 2) / (high / 2 - low / 2) * top)] for mean in means)
