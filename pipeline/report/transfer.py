"""A push or pull as it happens: a bar after two seconds on a terminal, plain lines elsewhere."""

import time
from contextlib import suppress
from threading import Lock

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from pipeline.report.bar import Bar
from pipeline.report.tables import print_line
from pipeline.terminal import ReaderGone
from pipeline.text import clean, format_bytes

_BAR_AFTER_S = 2.0
_LINE_EVERY_S = 10.0
_REDRAW_EVERY_S = 0.2


class TransferView:
    """Shows how far a transfer is; several threads tell it. What is quick leaves no trace."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = Lock()
        self._began_s = self._shown_s = time.monotonic()
        self._text, self._done, self._total = "", 0, 0
        columns = (TextColumn("{task.description}"), BarColumn(30), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._bar = Bar(console, *columns)

    def __enter__(self) -> "TransferView":
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._bar.close()

    def started(self, text: str, num_bytes: int) -> None:
        """Begin with one artifact."""
        with self._lock:
            self._bar.close()
            self._text, self._done, self._total = text, 0, num_bytes

    def moved(self, num_bytes: int) -> None:
        """Count bytes of its files."""
        with self._lock:
            self._done += num_bytes
            now = time.monotonic()
            if self._console.is_terminal and now - self._began_s >= _BAR_AFTER_S and now - self._shown_s >= _REDRAW_EVERY_S:
                self._shown_s = now
                self._bar.show(clean(self._text), completed=self._done, total=self._total or None)
            elif not self._console.is_terminal and now - self._shown_s >= _LINE_EVERY_S:
                self._shown_s = now
                with suppress(OSError, ReaderGone):  # nobody reads any more; the transfer goes on
                    line = f"{self._text}: {format_bytes(self._done)} of {format_bytes(self._total)}"
                    print_line(self._console, line)
