"""A run as it happens: one bar per stage on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TextColumn

from data.schema import RecordKind
from pipeline.inputs.prepare import Inputs
from pipeline.launch.events import Event, read_doing
from pipeline.pasted import complete
from pipeline.plan import Decision
from pipeline.report.bar import Bar
from pipeline.report.headline import PROGRESS, RESULT, headline
from pipeline.report.tables import print_line
from pipeline.run import Outcome
from pipeline.terminal import ReaderGone
from pipeline.text import format_duration
from stages.lines import read_figures
from stages.spec import StageName

_LINE_EVERY_S = 10.0
_WAITING_LINE_EVERY_S = 60.0


class ProgressView:
    """Shows what `pipeline.run` tells it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage: StageName = "sft"
        self._bar = Bar(console, TextColumn("{task.description:>4}"), BarColumn(30), TextColumn("{task.fields[state]}"))
        self._phase: str = ""
        self._first: tuple[float, int] | None = None  # when the phase was first told of, and how far it was
        self._latest: tuple[float, int] | None = None  # the last step of training that was told of, and when
        self._last_line_s = 0.0
        self._waits_for = ""
        self._place = ""

    def note(self, message: str) -> None:
        """Show what the user should know before anything runs."""
        self._bar.close()
        self._say(message, "yellow")

    def reading(self, kind: str, count: int) -> None:
        """Show that records are being read, where that takes long."""
        self._show_count(f"{kind}: {count:,} records read")

    def tokens_event(self, event: Event) -> None:
        """Show how far the token ids are."""
        if event.get("event") == "progress" and (counts := _read_counts(event)):
            self._show_count(f"data: {counts[0]:,} of {counts[1]:,} records are token ids")

    def tokens_made(self, warnings: dict[RecordKind, list[str]]) -> None:
        """Show of which record sets much is lost, and what to do."""
        self._bar.close()
        for kind, texts in warnings.items():
            for text in texts:
                self._say(f"{kind}: {text}", "yellow")

    def inputs_read(self, inputs: Inputs) -> None:
        """Show, once, how data was read that is not in our own columns, and the warnings about it."""
        self._bar.close()
        for kind, read in inputs.readings.items():
            for line in read.notable:
                self._say(f"{kind}: {line}")
            for warning in read.findings.warnings:
                self._say(f"{kind}: {warning}", "yellow")

    def stage_reused(self, decision: Decision) -> None:
        """Show that nothing has to be done."""
        assert decision.artifact is not None
        self._bar.close()
        self._say("; ".join([f"{decision.stage}: reused {decision.artifact.ref}, nothing it depends on changed", *decision.idle]), "green")

    def stage_waits(self, stage: StageName, holder: str, waited_s: float, events: Sequence[Event]) -> None:
        """Show, once, for whom a stage waits, and then that it still does and how far that one is."""
        for event in events:
            if event.get("event") == "progress" and (counts := _read_counts(event)):
                self._place = f"it is at {counts[0]}/{counts[1]}"
        if holder != self._waits_for:
            self._bar.close()
            self._say(f"{stage}: waits for {holder}, which runs it with the same inputs", "bold")
            self._waits_for, self._place, self._last_line_s = holder, "", time.monotonic()
        state = ", ".join(filter(None, (f"has waited {format_duration(waited_s)}", self._place)))
        if self._console.is_terminal:
            self._bar.show(stage, state=state)
        elif time.monotonic() - self._last_line_s >= _WAITING_LINE_EVERY_S:
            self._last_line_s = time.monotonic()
            self._say(f"{stage}: {state}")

    def stage_started(self, decision: Decision, run_dir: Path) -> None:
        """Show why a stage runs, and begin its bar."""
        self._bar.close()
        self._waits_for = ""
        self._stage, self._phase, self._first, self._last_line_s = decision.stage, "", None, time.monotonic()
        self._say(f"{decision.stage}: runs, because {decision.why}", "bold")
        if self._console.is_terminal:
            self._bar.show(self._stage, state="starting")
        else:
            self._say(f"{decision.stage}: log {run_dir / 'log.txt'}")

    def stage_event(self, event: Event) -> None:
        """Show one event of the stage."""
        kind = event.get("event")
        if kind == "note":
            self._say(f"{self._stage}: note: {event.get('message', '')}", "yellow")
        elif kind == "warning":
            self._say(f"{self._stage}: warning: {event.get('message', '')}", "bold yellow")
        elif kind == "machine":
            self._say(f"{self._stage}: on {event.get('device')} in {event.get('precision')}")
        elif kind == "start" and event.get("resumed_step"):
            self._say(f"{self._stage}: goes on from {event.get('unit', 'step')} {event['resumed_step']}")
        elif kind == "progress" and (counts := _read_counts(event)):
            self._show_progress(str(event.get("phase", "")), *counts, read_figures(event.get("metrics")), read_doing(event))

    def stage_published(self, outcome: Outcome) -> None:
        """Close the bar with what was made."""
        self._bar.close()
        figures = headline(RESULT[outcome.stage], outcome.artifact.manifest.metrics, outcome.artifact.manifest.intervals)
        published = f"{outcome.stage}: published {outcome.artifact.ref} after {format_duration(outcome.duration_s)}"
        self._say(", ".join(filter(None, (published, figures))), "green")

    def stage_failed(self, stage: StageName) -> None:
        """Close the bar; the error is told by whoever catches it."""
        self._bar.close()

    def _show_progress(self, phase: str, step: int, total: int, metrics: dict[str, float], doing: str) -> None:
        now = time.monotonic()
        if self._first is None or phase != self._phase:
            self._phase, self._first, self._latest = phase, (now, step), None
        if not doing or self._latest is None or self._latest[1] != step:
            self._latest = now, step
        (started_s, first_step), (latest_s, _) = self._first, self._latest
        left = ""
        if first_step < step < total:  # by the rate of whole steps
            left_s = (latest_s - started_s) / (step - first_step) * (total - step) - (now - latest_s)
            left = format_duration(max(left_s, 0.0)) + " left"
        what = "" if phase == "train" else f"{phase} "
        count = f"{step}/{total}" if total else ""
        state = ", ".join(filter(None, (f"{what}{count}".strip(), doing, headline(PROGRESS[self._stage], metrics), left)))
        if self._console.is_terminal:
            self._bar.show(self._stage, completed=step if total else 1, total=total or 1, state=state)
        elif now - self._last_line_s >= _LINE_EVERY_S:
            self._last_line_s = now
            self._say(f"{self._stage}: {state}")

    def _show_count(self, state: str) -> None:
        now = time.monotonic()
        self._last_line_s = self._last_line_s or now
        if self._console.is_terminal:
            self._bar.show("data", state=state)
        elif now - self._last_line_s >= _LINE_EVERY_S:
            self._last_line_s = now
            self._say(state)

    def _say(self, line: str, style: str = "") -> None:
        # A reader that went away (`rlhf run | head`) must not end hours of training; rich is quiet from then on.
        with suppress(OSError, ReaderGone):
            print_line(self._console, complete(line), style)


class CountView:
    """Shows how much of something is done: a bar on a terminal, a line now and then elsewhere; what is quick leaves no trace."""

    def __init__(self, console: Console, name: str) -> None:
        self._console, self._name = console, name
        self._bar = Bar(console, TextColumn("{task.description}"), BarColumn(30), TextColumn("{task.completed}/{task.total}"))
        self._last_line_s = time.monotonic()

    def __enter__(self) -> "CountView":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def told(self, done: int, total: int) -> None:
        """Show that so much of it is done."""
        if self._console.is_terminal:
            self._bar.show(self._name, completed=done, total=total)
        elif time.monotonic() - self._last_line_s >= _LINE_EVERY_S:
            self._last_line_s = time.monotonic()
            print_line(self._console, f"{self._name}: {done:,} of {total:,}")


def _read_counts(event: Event) -> tuple[int, int] | None:
    """Return how far something is, and of how much; None where the event does not say."""
    step, total = event.get("step"), event.get("total")
    return (step, total) if isinstance(step, int) and isinstance(total, int) else None
