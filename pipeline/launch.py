"""A stage run -> a command, a process, its progress events, and a clean end whatever happens.

command -> process in its own session -> events as they come -> exit code, or StageFailed with the last lines
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, cast

from pipeline.processes import MARKER, die_with_parent, start_watchdog, sweep
from pipeline.text import clean
from stages.settings import HardwareSettings
from stages.spec import EXIT_FAILED, EXIT_SIGINT, EXIT_SIGTERM, STEP_SIZES, StageName

Event = dict[str, Any]

_POLL_S = 0.05
_LAST_LINES = 20
_TAIL_BYTES = 64_000
_KNOWN_EXITS = (EXIT_FAILED, 2, 3, 4, 5, EXIT_SIGINT, EXIT_SIGTERM)


class StageFailed(Exception):
    """A stage ended without a result.

    Args:
        message: One line: what went wrong.
        exit_code: The stage's own exit code (`stages.spec`).
        last_lines: Of its log, without terminal escapes.
        log_path: The whole log.
    """

    def __init__(self, message: str, exit_code: int, last_lines: Sequence[str], log_path: Path) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.last_lines = list(last_lines)
        self.log_path = log_path

    @property
    def interrupted(self) -> bool:
        """Whether it was stopped by a signal, and goes on when started again."""
        return self.exit_code in (EXIT_SIGINT, EXIT_SIGTERM)


def stage_command(stage: StageName, spec_path: Path, hardware: HardwareSettings) -> list[str]:
    """Build the command of a stage: plain Python, or torchrun for several processes or DeepSpeed."""
    if hardware.processes == 1 and hardware.deepspeed is None:
        return [sys.executable, "-P", "-m", f"stages.{stage}", str(spec_path)]
    torchrun = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={hardware.processes}"]
    return [*torchrun, "-m", f"stages.{stage}", str(spec_path)]


def stage_environment(marker: str, *, offline: bool) -> dict[str, str]:
    """Build the environment of a stage process."""
    fixed = {
        MARKER: marker,
        "PYTHONSAFEPATH": "1",  # torchrun's workers do not inherit -P
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {**os.environ, **fixed, **({"HF_HUB_OFFLINE": "1"} if offline else {})}


def launch(name: str, command: Sequence[str], run_dir: Path, on_event: Callable[[Event], None], *, offline: bool = True) -> int | None:
    """Run a stage to its end.

    The first SIGTERM or SIGINT is passed on, so that the stage saves and ends; the second kills it.

    Args:
        name: The stage, for messages.
        command: As `stage_command` builds it.
        run_dir: Gets `log.txt`; `events.jsonl` is read there.
        on_event: Called with each new event.
        offline: Forbid the Hugging Face libraries to ask the network.

    Returns:
        The signal number that came while the stage ran to its end all the same, else None.

    Raises:
        StageFailed: It ended with another exit code than 0.
    """
    marker = uuid.uuid4().hex
    events = EventReader(run_dir / "events.jsonl")
    log_path = run_dir / "log.txt"
    with log_path.open("ab") as log:
        log.write(f"$ {shlex.join(command)}\n".encode(errors="surrogateescape"))
        log.flush()
        watchdog, pipe = start_watchdog(marker)
        try:
            exit_code, received, error = _run_to_end(command, stage_environment(marker, offline=offline), log, events, on_event)
        finally:
            sweep(marker)
            os.close(pipe)
            watchdog.wait()
    if exit_code != 0:
        raise _describe_failure(name, exit_code, received, error, log_path)
    return received


def _run_to_end(
    command: Sequence[str], environment: Mapping[str, str], log: BinaryIO, events: "EventReader", on_event: Callable[[Event], None]
) -> tuple[int, int | None, Event | None]:
    """Start, follow and reap the process; returns (exit code, signal passed on, last error event)."""
    error: Event | None = None

    def follow() -> None:
        nonlocal error
        for event in events.read():
            if event.get("event") == "error":
                error = event
            on_event(event)

    with _held_signals() as received:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        try:
            num_passed = 0
            while process.poll() is None:
                follow()
                if len(received) > num_passed:
                    num_passed = len(received)
                    # To the launcher alone: torchrun passes it on, and a worker takes a second signal as "leave at once".
                    process.send_signal(received[-1] if num_passed == 1 else signal.SIGKILL)
                time.sleep(_POLL_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        follow()
    return process.returncode, received[0] if received else None, error


@contextmanager
def _held_signals() -> Generator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying of them; a closed terminal counts as SIGTERM. Only the main thread can."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def hold(number: int, _frame: FrameType | None) -> None:
        received.append(signal.SIGTERM if number == signal.SIGHUP else number)

    held = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup stays nohup
        held.append(signal.SIGHUP)
    before = {number: signal.signal(number, hold) for number in held}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _describe_failure(name: str, exit_code: int, received: int | None, error: Event | None, log_path: Path) -> StageFailed:
    """Find the message and the exit code that say most: our signal, else the stage's error event, else how the process ended."""
    if received is None and error is None and -exit_code in (signal.SIGTERM, signal.SIGINT):
        received = -exit_code  # somebody signalled the stage itself
    if received is not None:
        message, code = f"stopped by {signal.Signals(received).name}", 128 + received
    elif error is not None:
        # A launcher ends with 1 whatever its worker's exit code was; the event knows it.
        message, code = clean(str(error.get("message", ""))), error.get("exit_code")
    elif exit_code < 0:
        message, code = f"killed by {signal.Signals(-exit_code).name}", EXIT_FAILED
        if exit_code == -signal.SIGKILL:
            message += "; if you did not, the system ran out of memory: lower " + STEP_SIZES.get(name, "the sizes of its micro-batches")
    else:
        message, code = f"ended with exit code {exit_code}", exit_code
    return StageFailed(f"{name}: {message}", code if code in _KNOWN_EXITS else EXIT_FAILED, last_lines(log_path), log_path)


class EventReader:
    """Reads the events that are appended from now on; a torn last line waits for its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def read(self) -> list[Event]:
        """Return the events since the last call."""
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._offset)
                whole, newline, _ = stream.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._offset += len(whole) + len(newline)
        events: list[Event] = []
        for line in whole.splitlines():
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    events.append(cast("Event", event))
        return events


def last_lines(log_path: Path, count: int = _LAST_LINES) -> list[str]:
    """Return the last lines of a log, without terminal escapes and empty lines."""
    try:
        with log_path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _TAIL_BYTES))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return []
    # A carriage return redraws a line (progress bars): only its last state counts.
    lines = [clean(line.rstrip("\r").rpartition("\r")[2]) for line in text.split("\n")]
    return [line for line in lines if line.strip()][-count:]
