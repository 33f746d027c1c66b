"""What a stage uses of the process around it: its spec, its voice (events, metrics), the wish to stop, and its device."""

import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from stages.events import EventName, append_event
from stages.lines import read_figures, to_line
from stages.process.errors import Interrupted
from stages.process.gpu import finds_gpu
from stages.result import StageWarning
from stages.settings import PPOSettings
from stages.spec import METRICS_FILE, SAME_WISH_S, StageSpec
from stages.warnings.ppo import make_rules
from stages.warnings.told import read_told
from stages.warnings.watch import Watch

# Hears how much is done, and of how much.
Told = Callable[[int, int], None]

_EVENTS_PER_S = 4
_WITHIN_STEP_S = 1.0  # after the last report: quick steps are not told of in parts


class StageContext:
    """What a stage uses of the process around it: its spec, its voice (events, metrics) and the wish to stop."""

    def __init__(self, spec: StageSpec) -> None:
        self.spec = spec
        self.rank = int(os.environ.get("RANK", "0"))
        self.is_main = self.rank == 0
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.planned_bytes: dict[Path, int] = {}  # of a checkpoint, of the output: where they lie -> how much; see stages.process.room
        self._stop_signal: int | None = None
        self._heard_signal = 0  # that came to another process; 0: none
        self._stop_s = 0.0
        self._stopping_at_step_end = False
        self._phase, self._progress_s, self._within_s = "", 0.0, 0.0  # of the last progress that was told
        self._metrics_path = spec.checkpoint_dir / METRICS_FILE
        self._watch: Watch | None = None
        self._warnings: list[StageWarning] = []  # those that rows of figures do not show

    @property
    def own_directory(self) -> Path:
        """Where this process may keep files for as long as the stage runs."""
        path = self.spec.checkpoint_dir / f"rank-{self.rank}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def event(self, name: EventName, /, **fields: Any) -> None:
        """Append one event; only the main process speaks, but for an error, which may be of one rank alone."""
        if self.is_main or name == "error":
            append_event(self.spec.events_path, name, **fields)

    def note(self, message: str) -> None:
        """Say something that the user should see: in the log, on the terminal and in the events."""
        if self.is_main:
            print(f"note: {message}", file=sys.stderr, flush=True)
        self.event("note", message=message)

    def warn(self, name: str, message: str | None) -> None:
        """Keep a warning about the stage as a whole for its result, and tell it unless an earlier attempt did; None: there is none."""
        if message is not None and self.is_main:
            self._warnings.append(StageWarning(name=name, message=message))
            self._tell(self._warnings[-1])

    @property
    def warnings(self) -> list[StageWarning]:
        """All that was warned of."""
        return self._warnings + (self._watch.found if self._watch else [])

    @functools.cached_property
    def _told(self) -> set[str]:
        """Names of the warnings that were told, by an earlier attempt too."""
        return {warning.name for warning in read_told(self.spec.events_path).warnings}

    def _tell(self, warning: StageWarning) -> None:
        if warning.name not in self._told:
            self._told.add(warning.name)
            print(f"warning: {warning.message}", file=sys.stderr, flush=True)
            self.event("warning", **warning.model_dump())

    def write_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Append one row to metrics.jsonl, kept beside the checkpoints, so that rows survive a resume; and tell what it warns of."""
        if self.is_main:
            row = {"step": step, **metrics}
            with self._metrics_path.open("a", encoding="utf-8") as stream:
                stream.write(to_line(row))
            self._watch = self._watch or self._make_watch()
            for warning in self._watch.take(row):
                self._tell(warning)

    def _make_watch(self) -> Watch:
        settings = self.spec.settings
        if not isinstance(settings, PPOSettings):  # of the other stages no row means anything by itself
            return Watch({})
        return Watch(make_rules(settings, computes_in_bfloat16=self.spec.hardware.computes_in_bfloat16))

    def progress(self, phase: str, step: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """Report how far a phase of the stage is, with the figures of the moment: its first and last step, and a few a second between.

        Args:
            phase: `train`, or in a few words what the stage is doing else.
            step: how much of it is done.
            total: how much there is.
            metrics: to show beside it.
        """
        now = time.monotonic()
        if phase != self._phase or step >= total or now - self._progress_s >= 1 / _EVENTS_PER_S:
            self._phase, self._progress_s = phase, now
            self.event("progress", phase=phase, step=step, total=total, metrics=dict(metrics or {}))

    def progress_within(self, step: int, total: int, doing: str, metrics: Mapping[str, float]) -> None:
        """Report what the next step of training is doing, where it takes long.

        Args:
            step: how many are done.
            total: how many there are.
            doing: in a few words, with how much of it is done.
            metrics: the last that were reported.
        """
        now = time.monotonic()
        if now - max(self._progress_s, self._within_s) >= _WITHIN_STEP_S:
            self._within_s = now
            self.event("progress", phase="train", step=step, total=total, metrics=dict(metrics), doing=doing)

    def tells(self, phase: str) -> Told:
        """Return what reports how far a phase is: of (done, total)."""
        return functools.partial(self.progress, phase)

    def rewind_metrics(self, step: int) -> None:
        """Drop the metric rows after `step`: the resumed run writes them again."""
        if not self.is_main or not self._metrics_path.exists():
            return
        kept: list[bytes] = []
        num_damaged = 0
        self._watch = self._make_watch()
        whole, _, _torn = self._metrics_path.read_bytes().rpartition(b"\n")  # of a killed process the last line may be torn
        for line in whole.split(b"\n") if whole else []:
            try:
                row = json.loads(line)
                if row["step"] <= step:
                    kept.append(line)
                    self._watch.take(read_figures(row))
            except (ValueError, TypeError, KeyError, RecursionError):
                num_damaged += 1
        if num_damaged:
            self.note(f"{self._metrics_path}: {num_damaged} damaged lines are left out; the others are kept")
        temporary = self._metrics_path.with_suffix(".tmp")
        temporary.write_bytes(b"".join(line + b"\n" for line in kept))
        temporary.replace(self._metrics_path)

    @property
    def stop_requested(self) -> bool:
        """True once SIGTERM or SIGINT came: save at the end of this step and raise `Interrupted`."""
        return self.stop_signal != 0

    @property
    def stop_signal(self) -> int:
        """Number of the stop signal that came, to this process or another one; 0: none did."""
        return self._stop_signal or self._heard_signal

    def hear_of_signal(self, number: int) -> None:
        """Take in that a stop signal came to any process; one that comes here after that is still the first; 0: none did."""
        self._heard_signal = number

    @contextmanager
    def stops_at_step_end(self) -> Iterator[None]:
        """Inside, a stop signal only sets `stop_requested`; outside, it ends the process at once."""
        self._stopping_at_step_end = True
        try:
            yield
        finally:
            self._stopping_at_step_end = False
        if self.stop_requested:
            raise Interrupted

    def install_signal_handlers(self) -> None:
        """First SIGTERM / SIGINT: graceful; second: leave at once."""

        def handle(number: int, _frame: FrameType | None) -> None:
            if self._stop_signal is not None:
                if number == signal.SIGTERM and time.monotonic() - self._stop_s < SAME_WISH_S:
                    return
                os._exit(128 + number)
            self._stop_signal, self._stop_s = number, time.monotonic()
            if not self._stopping_at_step_end:
                raise Interrupted

        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)

    @contextmanager
    def dies_of_signals(self) -> Iterator[None]:
        """Inside, a stop signal ends the process even where it waits in native code, in which no handler of ours is called."""
        before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def interrupted_exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM."""
        return 128 + (self.stop_signal or signal.SIGTERM)


def uses_gpu(context: StageContext) -> bool:
    """Whether this stage computes on a GPU."""
    return finds_gpu(context.spec.hardware)


def describe_machine(context: StageContext) -> dict[str, Any]:
    """Say of a result on what and in which precision it was computed."""
    return {"world_size": context.world_size, "device": device_name(context), "precision": context.spec.hardware.precision}


def device_name(context: StageContext) -> str:
    """Name the device for people: the GPU's model or `cpu`."""
    threads = torch.get_num_threads()
    return torch.cuda.get_device_name() if uses_gpu(context) else f"cpu ({threads} thread{'s' * (threads != 1)})"
