"""How a stage ended -> one line that says why, the exit code, and the last lines of its log."""

import os
import re
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from data.secrets import names_secret, redact
from data.system.limits import find_memory
from pipeline.launch.events import Event
from pipeline.text import clean, format_bytes
from stages.spec import EXIT_FAILED, EXIT_SIGINT, EXIT_SIGTERM, EXIT_USAGE, STAGES

_LAST_LINES = 20
_TAIL_BYTES = 64_000
_KNOWN_EXITS = (EXIT_FAILED, 2, 3, 4, 5, EXIT_SIGINT, EXIT_SIGTERM)


class StageFailed(Exception):
    """A stage ended without a result.

    Args:
        message: One line: what went wrong.
        exit_code: The stage's own exit code (`stages.spec`).
        last_lines: Of its log, without terminal escapes.
        log_path: The whole log; None: nothing that stays.
        next_run: Of one that was interrupted, what is kept of it and what the same command will do.
    """

    def __init__(self, message: str, exit_code: int, last_lines: Sequence[str], log_path: Path | None, next_run: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.last_lines = list(last_lines)
        self.log_path = log_path
        self.next_run = next_run

    @property
    def interrupted(self) -> bool:
        """Whether it was stopped by a signal."""
        return self.exit_code in (EXIT_SIGINT, EXIT_SIGTERM)


class End(NamedTuple):
    """How a launcher of the stage ended."""

    node: str | None
    exit_code: int
    by_itself: bool  # not by us

    @property
    def signal(self) -> int | None:
        """The signal that killed it; `pipeline.launch.node` reports one like a shell."""
        if self.exit_code < 0 or (self.node is not None and self.exit_code > 128):
            return -self.exit_code if self.exit_code < 0 else self.exit_code - 128
        return None


def describe_failure(
    stage: str,
    ends: Sequence[End],
    received: int | None,
    error: Event | None,
    log_path: Path,
    attempt_at: int,
    *,
    out_of_memory: bool = False,
) -> StageFailed:
    """Find the message and the exit code that say most: our signal, else the stage's error event, else how the process ended.

    Args:
        stage: Which one.
        ends: Of its launchers.
        received: The signal that came from outside; None: none did.
        error: That the stage told.
        log_path: Of all attempts.
        attempt_at: Where the last one begins, in bytes.
        out_of_memory: The kernel has killed a process here meanwhile, for want of memory.
    """
    exit_code = next(end.exit_code for end in ends if end.exit_code != 0)
    lost = next((end for end in ends if end.node is not None and end.by_itself and end.signal == signal.SIGKILL), None)
    if received is None and error is None and -exit_code in (signal.SIGTERM, signal.SIGINT):
        received = -exit_code  # somebody signalled the stage itself
    if received is not None:
        message, code = f"stopped by {name_signal(received)}", 128 + received
    elif (killed := find_killed_rank(log_path, attempt_at, out_of_memory=out_of_memory)) is not None:
        message, code = killed, EXIT_FAILED
    elif lost is not None:  # what the others report is that they lost it
        message, code = f"node {lost.node}: its launcher was killed by SIGKILL, or the node is gone", EXIT_FAILED
    elif error is not None:
        # A launcher ends with 1 whatever its worker's exit code was; the event knows it.
        message, code = clean(str(error.get("message", ""))), error.get("exit_code")
    elif exit_code < 0:
        message, code = describe_kill(-exit_code, out_of_memory=out_of_memory), EXIT_FAILED
        if exit_code == -signal.SIGKILL:
            message += {str(name): f": lower {row.memory_keys}" for name, row in STAGES.items()}.get(stage, "; give it more")
    else:
        message, code = _find_said(log_path, attempt_at), exit_code
        if message is None and (blamed := blame_environment(_read_tail(log_path, attempt_at))):
            message, code = blamed, EXIT_USAGE
        message = message or f"ended with exit code {exit_code}"
    return StageFailed(f"{stage}: {message}", code if code in _KNOWN_EXITS else EXIT_FAILED, last_lines(log_path), log_path)


def _find_said(log_path: Path, attempt_at: int) -> str | None:
    """Find the error that a stage printed and could not tell as an event, as on a full disk; the log may hold other attempts' before it."""
    try:
        if log_path.stat().st_size <= attempt_at:
            return None
    except OSError:
        return None
    said = [line.removeprefix("error: ") for line in last_lines(log_path, 2) if line.startswith("error: ")]
    return said[-1] if said else None


def blame_environment(text: str) -> str | None:
    """Name the variable of this process's environment of which a traceback speaks; None: there is none.

    Torch, the hub's client and others read theirs while they are imported, and end there with a traceback: nothing of ours runs by then.
    What fails later names variables as advice: torch PYTORCH_ALLOC_CONF where a GPU's memory is full, CUDA_LAUNCH_BLOCKING.

    Args:
        text: What a program printed that ended without a word of ours.
    """
    _, begun, trace = text.rpartition("Traceback (most recent call last):")
    if not begun or trace.count(", in <module>\n") < 2:  # of the program, and of what it imports
        return None
    # A plain word may stand in any sentence.
    named = (name for name in re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", trace) if os.environ.get(name))
    name = next(named, None)
    if name is None:
        return None
    value = "a value" if names_secret(name) else redact(repr(os.environ[name])[:60])
    return f"{name}: found {value} in the environment, of which a library's own traceback speaks; needed what that library takes; unset it"


def _read_tail(log_path: Path, attempt_at: int) -> str:
    """Read the end of what an attempt printed."""
    with suppress(OSError), log_path.open("rb") as stream:
        stream.seek(max(attempt_at, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
        return stream.read().decode("utf-8", "replace")
    return ""


def find_killed_rank(log_path: Path, attempt_at: int, *, out_of_memory: bool = False) -> str | None:
    """Read from the closing reports of torchrun, one per node, which rank was killed; the others only lost their connection to it.

    Args:
        log_path: Of all attempts.
        attempt_at: Where the last one begins, in bytes.
        out_of_memory: As in `describe_failure`.
    """
    with log_path.open("rb") as stream:
        stream.seek(attempt_at)
        text = stream.read().decode("utf-8", "replace")[-_TAIL_BYTES:]
    for report in text.split("Root Cause (first observed failure):")[1:]:
        match = re.search(r"rank\s*: ([0-9]{1,9})\b.*?exitcode\s*: -([0-9]{1,9})\b", report, flags=re.DOTALL)
        if match is not None and (number := int(match[2])) != signal.SIGTERM:  # which is how torchrun ends the others
            return f"rank {match[1]} was {describe_kill(number, out_of_memory=out_of_memory)}"
    return None


def describe_kill(number: int, *, out_of_memory: bool = False) -> str:
    """Say by which signal a process was killed, and what that mostly means."""
    known = f", as the memory ran out, of which {format_bytes(int(find_memory()))} may be used here"
    hints: dict[int, str] = {
        signal.SIGKILL: known if out_of_memory else "; if you did not, the system ran out of memory",
        signal.SIGSEGV: "; if hardware.threads is above the number of cores, lower it",
    }
    return f"killed by {name_signal(number)}{hints.get(number, '')}"


def name_signal(number: int) -> str:
    """Name a signal; of real-time ones most have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_lines(log_path: Path, count: int = _LAST_LINES) -> list[str]:
    """Return the last lines of a log, without terminal escapes and empty lines."""
    try:
        with log_path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _TAIL_BYTES))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return []
    # What torchrun says of a failure comes after what the failed rank said itself.
    before = re.split(r"^.*torch[./]distributed[./]elastic.*$", text, maxsplit=1, flags=re.MULTILINE)[0]
    text = before if before.strip() else text
    # A carriage return redraws a line (progress bars): only its last state counts.
    lines = [clean(line.rstrip("\r").rpartition("\r")[2]) for line in text.split("\n")]
    return [line for line in lines if line.strip()][-count:]
