"""events.jsonl: what a stage process says while it runs; pipeline.launch.events hears it. Torch-free."""

import time
from pathlib import Path
from typing import Any, Literal

from stages.lines import to_line

EventName = Literal["machine", "start", "progress", "checkpoint", "note", "warning", "error", "end"]


def append_event(path: Path, event: EventName, **fields: Any) -> None:
    """Append one event line; a line is written whole, so a reader never sees a torn one that ends in a newline.

    Args:
        path: `events_path`.
        event: One of

            start       stage, unit, resumed_step; PPO: total  once more after a restart by the launcher
            progress    phase, step, total, metrics            within a step that takes long: doing, in words
            checkpoint  step
            note        message                                what the user should know
            warning     those of `StageWarning`                what figures mean; each once, see stages/warnings
            error       message, exit_code                     of any process, not the main one alone
            end         metrics

        fields: Those of the event; `event` and `time` (Unix, s) come with each.
    """
    line = to_line({"event": event, "time": time.time(), **fields})
    with path.open("a", encoding="utf-8") as stream:
        stream.write(line)
