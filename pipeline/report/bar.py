"""A bar on a terminal that is redrawn when it is told something: no thread runs beside a fork."""

from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn


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
