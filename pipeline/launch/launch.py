"""A stage run -> a command, a process, its progress events, and a clean end whatever happens.

command -> process in its own session -> events as they come -> exit code, or StageFailed with the last lines
"""

import os
import shlex
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from data.secrets import redact
from data.system.death import die_with_parent
from data.system.limits import count_kills
from pipeline.launch.commands import Command
from pipeline.launch.environment import stage_environment
from pipeline.launch.events import Event, EventReader
from pipeline.launch.failure import End, describe_failure, name_signal
from pipeline.launch.node import STOP, pack_environment
from pipeline.launch.processes import start_watchdog, sweep
from pipeline.launch.signals import keep_signals
from pipeline.store.disk import writing
from pipeline.store.manifest import LOG_FILE
from stages.process.output import open_log

_POLL_S = 0.05
_AFTER_ERROR_S = 15.0  # within which a stage that reported an error must end, hung ranks and unreachable nodes included
_AFTER_LOSS_S = 45.0  # within which the other nodes must notice that one is gone


def launch(
    stage: str,
    make_commands: Callable[[str], Sequence[Command]],
    run_dir: Path,
    on_event: Callable[[Event], None],
    *,
    offline: bool = True,
    alone: bool = True,
    held: Collection[int] = (),
) -> int | None:
    """Run a stage to its end.

    The first SIGTERM or SIGINT is passed on, so that the stage saves and ends; the second kills it.

    Args:
        stage: Which one, or what else is run like one, for messages.
        make_commands: Builds the commands, one per process to start here; is given the marker that their environments carry.
        run_dir: Gets `log.txt`; `events.jsonl` is read there.
        on_event: Called with each new event.
        offline: Forbid the Hugging Face libraries to ask the network.
        alone: The stage computes as one process.
        held: Descriptors whose locks outlive this process, if it is killed, until all that it started is gone.

    Returns:
        The signal number that came while the stage ran to its end all the same, else None.

    Raises:
        StageFailed: It ended with another exit code than 0.
    """
    marker = uuid.uuid4().hex
    events = EventReader(run_dir / "events.jsonl")
    log_path = run_dir / LOG_FILE
    commands = make_commands(marker)
    attempt_at = _begin_log(log_path, commands)
    kills = count_kills()

    def note(message: str) -> None:
        on_event({"event": "note", "message": message})

    with open_log(log_path, note) as log:
        environment, left_out = stage_environment(marker, offline=offline, alone=alone)
        if left_out:
            note(f"ignored in the environment, which another launcher left there: {', '.join(left_out)}")
        watchdog, pipe = start_watchdog(marker, held)
        try:
            ends, received, error = _run_to_end(commands, environment, log, events, on_event)
        finally:
            sweep(marker)
            os.close(pipe)
            watchdog.wait()
    if any(end.exit_code != 0 for end in ends):
        raise describe_failure(stage, ends, received, error, log_path, attempt_at, out_of_memory=count_kills() > kills)
    return received


def _begin_log(path: Path, commands: Sequence[Command]) -> int:
    """Write into the log what is started; returns where that begins, in bytes."""
    with writing(path), path.open("ab") as log:
        begin = log.tell()
        lines = "".join(f"$ {shlex.join(command.argv)}\n" for command in commands)
        log.write(redact(lines).encode(errors="surrogateescape"))
    return begin


def _run_to_end(
    commands: Sequence[Command], environment: Mapping[str, str], log: int, events: EventReader, on_event: Callable[[Event], None]
) -> tuple[list[End], int | None, Event | None]:
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

    with keep_signals() as received:
        processes = [_Process(command, environment, log) for command in commands]
        try:
            num_passed = 0
            deadline_s: float | None = None
            while any(process.is_running for process in processes):
                follow()
                if len(received) > num_passed:
                    if num_passed == 0:
                        # Here nobody knows whether it trains yet, or makes token ids, or answers.
                        said = f"{name_signal(received[0])} was passed on: what trains saves at the end of its step, all else ends now"
                        on_event({"event": "note", "message": f"{said}; one more ends it at once"})
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
        End(command.node, process.exit_code, by_itself)
        for command, process, by_itself in zip(commands, processes, by_themselves, strict=True)
    ]
    return ends, received[0] if received else None, error


class _Process:
    """A launcher of the stage: in a session of its own on this machine, or one on another that is spoken to by a pipe."""

    def __init__(self, command: Command, environment: Mapping[str, str], log: int) -> None:
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
