"""What a stage says while it runs (`stages.spec`), read line by line as it is appended."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from stages.lines import read_line

Event = dict[str, Any]


def read_doing(event: Event) -> str:
    """Return what a step of training is doing, where an event says so."""
    doing = event.get("doing", "")
    return doing if isinstance(doing, str) else ""


class EventReader:
    """Reads the events that are appended from now on, or all of them; a torn last line waits for its end."""

    def __init__(self, path: Path, *, from_start: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() and not from_start else 0

    def read(self) -> list[Event]:
        """Return the events since the last call."""
        try:
            with self._path.open("rb") as stream:
                if stream.seek(0, 2) < self._offset:  # another run of these inputs has begun a new file
                    self._offset = 0
                stream.seek(self._offset)
                whole, newline, _ = stream.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._offset += len(whole) + len(newline)
        events: list[Event] = []
        for line in whole.splitlines():
            with suppress(ValueError):  # of another writer: it stays in the file, and steers nothing
                events.append(read_line(line))
        return events
