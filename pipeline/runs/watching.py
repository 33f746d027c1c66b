"""A run that somebody else began, on this machine or another: which one, how far it is, and how it ends. Nothing is written.

runs/<stage>-<key>/events.jsonl -> how far it is;  lock and run.json -> whether it still runs, how it ended
"""

import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.errors import StoreError
from pipeline.launch.events import Event, EventReader, read_doing
from pipeline.runs.listing import describe_run, list_runs
from pipeline.store.parts import RUNS_DIR
from pipeline.store.store import Store
from stages.lines import read_figures
from stages.spec import EXIT_FAILED, EXIT_MISSING, EXIT_OK, EXIT_SIGTERM, EXIT_USAGE, STAGES

POLL_S = 0.5
# Where the file system does not tell of locks of other machines, a run there is taken for lost after so long a silence.
_LOST_AFTER_S = 600.0


@dataclass(frozen=True)
class Place:
    """How far a stage is.

    Args:
        phase: `train`, or in words what it does else.
        step: How much of it is done.
        total: How much there is; 0 where that is not known.
        figures: The last that were told.
        time: When that was told, Unix, s; None before the first event.
        first_time: When the phase was first told of, in this attempt.
        first_step: How far it was then.
        doing: What the next step of it does, where it takes long.
    """

    phase: str = "starting"
    step: int = 0
    total: int = 0
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    time: float | None = None
    first_time: float = 0.0
    first_step: int = 0
    doing: str = ""

    @property
    def steps_per_s(self) -> float | None:
        """Steps a second since the phase began; None until there are some."""
        elapsed_s = (self.time or 0.0) - self.first_time
        return (self.step - self.first_step) / elapsed_s if self.step > self.first_step and elapsed_s > 0 else None

    @property
    def left_s(self) -> float | None:
        """Seconds until the phase ends, at this rate."""
        rate = self.steps_per_s
        return (self.total - self.step) / rate if rate and self.total > self.step else None


def advance(place: Place, event: Event) -> Place:
    """Tell where a stage is after an event; one that is damaged or says nothing of it leaves it where it was."""
    now, step, total = event.get("time"), event.get("step"), event.get("total")
    if not isinstance(now, int | float):
        return place
    if event.get("event") in ("machine", "start"):  # another attempt, maybe
        return Place(time=float(now))
    if event.get("event") != "progress" or not isinstance(step, int) or not isinstance(total, int):
        return place
    phase, doing = str(event.get("phase", "")), read_doing(event)
    figures = read_figures(event.get("metrics"))
    turned_back = place.time is not None and now < place.time  # a clock that was set right: the rate is that from here on
    if phase != place.phase or step < place.step or turned_back:
        return Place(phase, step, total, figures, float(now), float(now), step, doing)
    if doing and step == place.step:  # the rate is that of whole steps
        return replace(place, doing=doing)
    return replace(place, step=step, total=total, figures=figures or place.figures, time=float(now), doing=doing)


def find_run(store: Store, wanted: str | None) -> dict[str, Any]:
    """Find the run to watch: of a stage the one that runs, else the newest; by its name or the beginning of it; without any, one that runs.

    Raises:
        StoreError: there is none (exit 4), or the beginning of a name is that of several (exit 2).
    """
    rows = list_runs(store)
    running = [row for row in rows if row["outcome"] == "running"]
    if wanted is None:
        if running:
            return running[0]
        newest = f"; the newest, {rows[0]['run']}, is over: {rows[0]['outcome']}" if rows else ""
        needed = "one that runs is needed; begin one with `rlhf run`, or name one that `rlhf runs` lists"
        raise StoreError(f"{store.root}: nothing runs{newest}; {needed}", EXIT_MISSING)
    if wanted in STAGES:
        found = [row for row in running if row["stage"] == wanted] or [row for row in rows if row["stage"] == wanted]
        found = found[:1]
    else:
        found = [row for row in rows if row["run"].startswith(wanted)]
    if not found:
        raise StoreError(f"{wanted!r:.60}: no such run in {store.root}; a stage or a run is needed; `rlhf runs` lists them", EXIT_MISSING)
    if len(found) > 1:
        raise StoreError(f"{wanted!r:.60} begins {len(found)} runs: {found[0]['run']}, {found[1]['run']}; give more of one", EXIT_USAGE)
    return found[0]


def follow(store: Store, name: str) -> Iterator[tuple[list[Event], Place, dict[str, Any]]]:
    """Follow a run to its end.

    Yields:
        What it said since the last time, where it is, and the row that `rlhf runs` has of it: at once, though it may not have said
        anything yet, and whenever there is something new; the last one says how it ended.
    """
    reader = EventReader(store.root / RUNS_DIR / name / "events.jsonl", from_start=True)
    place, heard_s, first = Place(), time.monotonic(), True
    while True:
        row = describe_run(store, name)  # before its events: what it said last is read all the same
        events = reader.read()
        for event in events:
            place = advance(place, event)
        heard_s = time.monotonic() if events else heard_s
        if (
            row["outcome"] == "killed"
            and row.get("host") not in (None, socket.gethostname())
            and time.monotonic() - heard_s < _LOST_AFTER_S
        ):
            row = row | {"outcome": "running"}
        if events or first or row["outcome"] != "running":
            yield events, place, row
            first = False
        if row["outcome"] != "running":
            return
        time.sleep(POLL_S)


def read_exit_code(row: Mapping[str, Any]) -> int:
    """Say with which exit code a watch ends: that of the run."""
    if row["outcome"] == "published":
        return EXIT_OK
    code = row.get("exit_code")
    return code if isinstance(code, int) and code else EXIT_SIGTERM if row["outcome"] == "stopped" else EXIT_FAILED
