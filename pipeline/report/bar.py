"""A bar on a terminal that is redrawn when it is told something: no thread runs beside a fork; and what is waited for."""

import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, ProgressColumn

from pipeline.report.tables import print_line
from pipeline.text import clean, format_duration

_FIRST_LINE_S, _LINE_EVERY_S = 2.0, 10.0


class Bar:
    """Shows how far one thing is, and is gone once it is closed."""

    def __init__(self, console: Console, *columns: ProgressColumn) -> None:
        self._console, self._columns = console, columns
        self._progress: Progress | None = None

    def show(self, name: str, **shown: Any) -> None:
        """Draw it, opened under this name where it is not open: `completed`, `total`, and what its columns show else."""
        if self._progress is None:
            self._progress = Progress(*self._columns, console=self._console, auto_refresh=False, transient=True)
            self._progress.start()
            fields: dict[str, Any] = {"total": None, **shown}
            self._progress.add_task(name, **fields)
        self._progress.update(self._progress.task_ids[0], **shown)
        self._progress.refresh()

    def close(self) -> None:
        """Take it away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class Waiting:
    """Shows what is waited for: on a terminal as it is told, elsewhere as a line, the first after two seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("") if console.is_terminal else None
        self._began_s = time.monotonic()
        self._line_at_s = self._began_s + _FIRST_LINE_S

    def __enter__(self) -> "Waiting":
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def doing(self, what: str) -> None:
        """Hear what is done now, again and again while it is."""
        now = time.monotonic()
        if self._status is not None:
            self._status.update(escape(clean(what)))
        elif now >= self._line_at_s:
            self._line_at_s = now + _LINE_EVERY_S
            print_line(self._console, f"{what}, {format_duration(now - self._began_s)} so far")
