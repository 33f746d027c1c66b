"""Runs: all of them, one a line; and one that is watched: a line that changes on a terminal, elsewhere a line for each change."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.text import Text

from pipeline.launch.events import Event
from pipeline.pasted import complete
from pipeline.report.bar import Bar
from pipeline.report.headline import PROGRESS, headline
from pipeline.report.tables import print_line
from pipeline.runs.watching import Place
from pipeline.text import clean, format_duration, format_number
from stages.spec import STAGES


def print_runs(console: Console, rows: Sequence[dict[str, Any]], root: Path) -> None:
    """Print runs, one a line; on a terminal a line that is too long ends in `…`, in a pipe it stays whole."""
    if not rows:
        print_line(console, complete(f"no runs in {root}; `rlhf run` begins some"))
        return
    width = max(len(row["run"]) for row in rows)
    _print_line(console, f"{'run':<{width}}  {'began (UTC)':<16}  {'time':>7}  outcome", "bold")
    for row in rows:
        time = "" if row["duration_s"] is None else format_duration(row["duration_s"])
        _print_line(console, f"{row['run']:<{width}}  {row['start'][:16].replace('T', ' '):<16}  {time:>7}  {describe_outcome(row)}")


def describe_outcome(row: dict[str, Any]) -> str:
    """Say how a run ended, what it left, and why."""
    words = [row["outcome"]]
    if row["outcome"] == "published":
        words = [f"published {row['ref']}"]
    elif row["outcome"] == "running" and "process" in row:
        words = [f"running, process {row['process']} on {row['host']}"]
    elif row["checkpoint"] is not None:
        words.append(f"goes on from {row['checkpoint']}")
    reason = row.get("reason", "").removeprefix(f"{row['stage']}: ")
    return ", ".join(words) + (f": {reason}" if reason else "")


def _print_line(console: Console, line: str, style: str = "") -> None:
    text = Text(clean(line), style=style)
    if console.is_terminal:
        text.truncate(console.width, overflow="ellipsis")
    console.print(text, soft_wrap=True)


_SAID = {"note": "note", "warning": "warning", "error": "error"}


class WatchView:
    """Shows what `pipeline.runs.watching.follow` tells."""

    def __init__(self, console: Console, row: dict[str, Any]) -> None:
        self._console = console
        self._stage: str = row["stage"]
        self._shown = ""
        self._bar = Bar(console, TextColumn("{task.description}"), BarColumn(12), TextColumn("{task.fields[state]}"))
        process = f", process {row['process']} on {row['host']}" if "process" in row else ""
        began = f", began {row['start'][:16].replace('T', ' ')} UTC" if row["start"] else ""
        print_line(console, f"{row['run']}{process}{began}", "bold")

    def __enter__(self) -> "WatchView":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, events: Sequence[Event], place: Place, row: dict[str, Any]) -> None:
        """Show what was said, and where the run is; at the end how it ended."""
        for event in events:
            if event.get("event") in _SAID:
                print_line(self._console, f"{self._stage}: {_SAID[event['event']]}: {event.get('message', '')}", "yellow")
            elif event.get("event") == "start" and event.get("resumed_step"):
                print_line(self._console, f"{self._stage}: goes on from {event.get('unit', 'step')} {event['resumed_step']}")
        if row["outcome"] != "running":
            self._bar.close()
            time = "" if row["duration_s"] is None else f" after {format_duration(row['duration_s'])}"
            style = "green" if row["outcome"] == "published" else "red"
            print_line(self._console, f"{self._stage}: {describe_outcome(row)}{time}", style)
            return
        state = describe_place(self._stage, place)
        if self._console.is_terminal:
            text = Text(clean(state))
            text.truncate(max(10, self._console.width - len(self._stage) - 15), overflow="ellipsis")
            self._bar.show(self._stage, completed=place.step if place.total else 0, total=place.total or 1, state=text.plain)
        elif state != self._shown:
            print_line(self._console, f"{self._stage}: {state}")
        self._shown = state


def describe_place(stage: str, place: Place) -> str:
    """Say where a stage is: phase, step of how many, rate, time left, its figures."""
    count = f"{place.step}/{place.total}" if place.total else ""
    words = [" ".join(filter(None, ("" if place.phase == "train" else place.phase, count))), place.doing]
    if place.steps_per_s is not None and place.left_s is not None:
        rate = place.steps_per_s
        words.append(f"{format_number(rate)}/s" if rate >= 1 else f"{format_number(rate * 60)}/min")
        words.append(f"{format_duration(place.left_s)} left")
    labels = {str(name): shown for name, shown in PROGRESS.items() if name in STAGES}.get(stage, {})
    return ", ".join(filter(None, (*words, headline(labels, place.figures))))


def place_data(events: Sequence[Event], place: Place, row: dict[str, Any]) -> dict[str, Any]:
    """Return one change as plain data."""
    return {
        "run": row["run"],
        "outcome": row["outcome"],
        "phase": place.phase,
        "step": place.step,
        "total": place.total,
        "doing": place.doing,
        "steps_per_s": place.steps_per_s,
        "left_s": place.left_s,
        "figures": dict(place.figures),
        "messages": [str(event.get("message", "")) for event in events if event.get("event") in _SAID],
        "ref": row["ref"],
        "reason": row.get("reason", ""),
    }
