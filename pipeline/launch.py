"""A stage run -> a command, a process, its progress events, and a clean end whatever happens.

command -> process in its own session -> events as they come -> exit code, or StageFailed with the last lines
"""

import json
import os
import re
import shlex
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, NamedTuple, cast

from pipeline.commands import Command
from pipeline.node import STOP, pack_environment
from pipeline.processes import MARKER, start_watchdog, sweep
from pipeline.text import clean
from stages.process.death import die_with_parent
from stages.spec import EXIT_FAILED, EXIT_SIGINT, EXIT_SIGTERM, SAME_WISH_S, STEP_SIZES

Event = dict[str, Any]

_POLL_S = 0.05
_LAST_LINES = 20
_TAIL_BYTES = 64_000
_AFTER_ERROR_S = 15.0  # within which a stage that reported an error must end, hung ranks and unreachable nodes included
_AFTER_LOSS_S = 45.0  # within which the other nodes must notice that one is gone
_GPUS = ("/dev/nvidiactl", "/dev/kfd")  # what the drivers of NVIDIA and AMD leave
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


def allocator_settings() -> dict[str, str]:
    """Have a stage on a CPU keep the memory of freed tensors, in huge pages.

    glibc hands it back to the system above 32 MiB and at the heap's end, which then has to zero it anew, page by page of 4 KiB: of a PPO
    update 6 to 10 %. Nothing where the user set the allocator, where stages compute on a GPU (their processes would hold on to what
    they loaded), and below glibc 2.35, which takes one of the thresholds and refuses the other.
    """
    try:
        version = tuple(map(int, (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ").split(".")))
    except (ValueError, OSError):  # another C library
        return {}
    is_set = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if version < (2, 35) or is_set or any(Path(device).exists() for device in _GPUS):
        return {}
    return {"GLIBC_TUNABLES": f"glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold={2**30}:glibc.malloc.trim_threshold={2**30}"}


def stage_environment(marker: str, *, offline: bool) -> dict[str, str]:
    """Build the environment of a stage process."""
    fixed = {
        MARKER: marker,
        "PYTHONSAFEPATH": "1",  # torchrun's workers do not inherit -P
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {**allocator_settings(), **os.environ, **fixed, **({"HF_HUB_OFFLINE": "1"} if offline else {})}


def launch(
    name: str, make_commands: Callable[[str], Sequence[Command]], run_dir: Path, on_event: Callable[[Event], None], *, offline: bool = True
) -> int | None:
    """Run a stage to its end.

    The first SIGTERM or SIGINT is passed on, so that the stage saves and ends; the second kills it.

    Args:
        name: The stage, for messages.
        make_commands: Builds the commands, one per process to start here; is given the marker that their environments carry.
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
    commands = make_commands(marker)
    with log_path.open("ab") as log:
        attempt_at = log.tell()
        for command in commands:
            log.write(f"$ {shlex.join(command.argv)}\n".encode(errors="surrogateescape"))
        log.flush()
        watchdog, pipe = start_watchdog(marker)
        try:
            ends, received, error = _run_to_end(commands, stage_environment(marker, offline=offline), log, events, on_event)
        finally:
            sweep(marker)
            os.close(pipe)
            watchdog.wait()
    if any(end.exit_code != 0 for end in ends):
        raise _describe_failure(name, ends, received, error, log_path, attempt_at)
    return received


def _run_to_end(
    commands: Sequence[Command], environment: Mapping[str, str], log: BinaryIO, events: "EventReader", on_event: Callable[[Event], None]
) -> tuple[list["_End"], int | None, Event | None]:
    """Start, follow and reap the processes; returns (how each ended, signal passed on, first error event since the last start)."""
    error: Event | None = None

    def follow() -> None:
        nonlocal error
        for event in events.read():
            if event.get("event") == "start":  # after a restart by the launcher, what went wrong before it is over
                error = None
            if event.get("event") == "error" and error is None:  # later ones are of ranks that lost the first
                error = event
            on_event(event)

    with _held_signals() as received:
        processes = [_Process(command, environment, log) for command in commands]
        try:
            num_passed = 0
            deadline_s: float | None = None
            while any(process.is_running for process in processes):
                follow()
                if len(received) > num_passed:
                    num_passed = len(received)
                    for process in processes:
                        # To the launcher alone: torchrun passes it on, and a worker takes a second signal as "leave at once".
                        process.stop(received[-1] if num_passed == 1 else signal.SIGKILL)
                if any(process.has_failed for process in processes):
                    deadline_s = deadline_s or time.monotonic() + _AFTER_LOSS_S
                elif error is not None and not any(command.restarts for command in commands):
                    deadline_s = deadline_s or time.monotonic() + _AFTER_ERROR_S
                if deadline_s is not None and time.monotonic() > deadline_s:
                    break
                time.sleep(_POLL_S)
        finally:
            by_themselves = [not process.is_running for process in processes]
            for process in processes:
                process.kill()
        follow()
    ends = [
        _End(command.node, process.exit_code, by_itself)
        for command, process, by_itself in zip(commands, processes, by_themselves, strict=True)
    ]
    return ends, received[0] if received else None, error


class _End(NamedTuple):
    """How a launcher of the stage ended."""

    node: str | None
    exit_code: int
    by_itself: bool  # not by us

    @property
    def signal(self) -> int | None:
        """The signal that killed it; `pipeline.node` reports one like a shell."""
        if self.exit_code < 0 or (self.node is not None and self.exit_code > 128):
            return -self.exit_code if self.exit_code < 0 else self.exit_code - 128
        return None


class _Process:
    """A launcher of the stage: in a session of its own on this machine, or one on another that is spoken to by a pipe."""

    def __init__(self, command: Command, environment: Mapping[str, str], log: BinaryIO) -> None:
        self._remote = command.node is not None
        self._process = subprocess.Popen(
            command.argv,
            stdin=subprocess.PIPE if self._remote else subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        if self._remote:
            self._tell(pack_environment(environment))

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def has_failed(self) -> bool:
        return self._process.returncode not in (None, 0)

    @property
    def exit_code(self) -> int:
        return self._process.returncode

    def stop(self, number: int) -> None:
        """Pass a signal on."""
        if not self.is_running:
            return
        if not self._remote:
            self._process.send_signal(number)
        elif number == signal.SIGKILL:
            self._close()
        else:
            self._tell(STOP)

    def kill(self) -> None:
        """End it, whatever it does."""
        if self._remote and self.is_running:
            self._close()
            with suppress(subprocess.TimeoutExpired):  # the agent there kills first what it started
                self._process.wait(timeout=_AFTER_ERROR_S)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _tell(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _close(self) -> None:
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()


@contextmanager
def _held_signals() -> Generator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying of them; a closed terminal counts as SIGTERM. Only the main thread can."""
    received: list[int] = []
    first_s = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def hold(number: int, _frame: FrameType | None) -> None:
        nonlocal first_s
        if number == signal.SIGTERM and received and time.monotonic() - first_s < SAME_WISH_S:
            return
        first_s = time.monotonic()
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


def _describe_failure(
    name: str, ends: Sequence[_End], received: int | None, error: Event | None, log_path: Path, attempt_at: int
) -> StageFailed:
    """Find the message and the exit code that say most: our signal, else the stage's error event, else how the process ended."""
    exit_code = next(end.exit_code for end in ends if end.exit_code != 0)
    lost = next((end for end in ends if end.node is not None and end.by_itself and end.signal == signal.SIGKILL), None)
    if received is None and error is None and -exit_code in (signal.SIGTERM, signal.SIGINT):
        received = -exit_code  # somebody signalled the stage itself
    if received is not None:
        message, code = f"stopped by {signal.Signals(received).name}", 128 + received
    elif (killed := find_killed_rank(log_path, attempt_at)) is not None:
        message, code = killed, EXIT_FAILED
    elif lost is not None:  # what the others report is that they lost it
        message, code = f"node {lost.node}: its launcher was killed by SIGKILL, or the node is gone", EXIT_FAILED
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


def find_killed_rank(log_path: Path, attempt_at: int) -> str | None:
    """Read from the closing reports of torchrun, one per node, which rank was killed; the others only lost their connection to it.

    Args:
        log_path: Of all attempts.
        attempt_at: Where the last one begins, in bytes.
    """
    with log_path.open("rb") as stream:
        stream.seek(attempt_at)
        text = stream.read().decode("utf-8", "replace")[-_TAIL_BYTES:]
    for report in text.split("Root Cause (first observed failure):")[1:]:
        match = re.search(r"rank\s*: (\d+).*?exitcode\s*: -(\d+)", report, flags=re.DOTALL)
        if match is not None and int(match[2]) != signal.SIGTERM:  # which is how torchrun ends the others
            message = f"rank {match[1]} was killed by {signal.Signals(int(match[2])).name}"
            return message + ("; if you did not, the system ran out of memory" if int(match[2]) == signal.SIGKILL else "")
    return None


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
    # What torchrun says of a failure comes after what the failed rank said itself.
    before = re.split(r"^.*torch[./]distributed[./]elastic.*$", text, maxsplit=1, flags=re.MULTILINE)[0]
    text = before if before.strip() else text
    # A carriage return redraws a line (progress bars): only its last state counts.
    lines = [clean(line.rstrip("\r").rpartition("\r")[2]) for line in text.split("\n")]
    return [line for line in lines if line.strip()][-count:]
