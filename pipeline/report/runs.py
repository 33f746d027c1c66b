"""Runs -> one line each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from pipeline.pasted import complete
from pipeline.report.tables import print_line
from pipeline.text import clean, format_duration


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
