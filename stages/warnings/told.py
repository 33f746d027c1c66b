"""What a stage told while it ran: the notes and warnings of its events, of all attempts, each once."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from stages.lines import read_line
from stages.result import StageWarning


@dataclass(frozen=True)
class Notices:
    """Notes and warnings, in the order in which they were told."""

    notes: list[str] = field(default_factory=list[str])
    warnings: list[StageWarning] = field(default_factory=list[StageWarning])


def read_told(events_path: Path) -> Notices:
    """Read what a stage told so far; of a run that ended well the manifest has the same, with the last step of each warning.

    Args:
        events_path: `events.jsonl` of the run; nothing was told where there is none.
    """
    notes: dict[str, None] = {}
    warnings: dict[str, StageWarning] = {}
    with suppress(FileNotFoundError), events_path.open("rb") as stream:
        for line in stream:
            if b'"note"' not in line and b'"warning"' not in line:
                continue
            with suppress(ValueError, ValidationError):  # torn, or of another writer
                event = read_line(line)
                if event.get("event") == "note":
                    notes.setdefault(str(event.get("message")))
                elif event.get("event") == "warning":
                    warning = StageWarning.model_validate({name: event.get(name) for name in StageWarning.model_fields})
                    warnings.setdefault(warning.name, warning)
    return Notices(list(notes), list(warnings.values()))
