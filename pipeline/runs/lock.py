"""Who runs a stage: its lock, and the wait for whoever has it.

The kernel drops the lock with the process that holds it, however that dies, and with the watchdog that sweeps what it started: whoever
waits then takes over, and nothing of the dead run writes into its checkpoints any more.
"""

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from pipeline.errors import ResourceError
from pipeline.launch.events import Event, EventReader
from pipeline.runs.record import Attempt, read_record
from pipeline.store.aliases import user_name
from pipeline.store.directory import Directory, naming
from pipeline.store.disk import read_bounded, take_lock

LOCK_FILE = "lock"
_POLL_S = 0.2
_MAX_HOLDER_BYTES = 1000

# (who has the lock, how long we have waited, what the stage said since the last call)
ToldOfWait = Callable[[str, float, list[Event]], None]


def take_run_lock(run_dir: Directory, told: ToldOfWait | None) -> tuple[int, Attempt | None]:
    """Lock a run's directory and write there who has it.

    Args:
        run_dir: The directory.
        told: Called again and again while another process has the lock; None: do not wait for it.

    Returns:
        The descriptor that holds the lock; and the attempt of whoever we waited for, where it failed.

    Raises:
        ResourceError: another process has it, and nobody waits (exit 5).
    """
    before, has_waited = None, False
    started_s, events = time.monotonic(), EventReader(run_dir.path / "events.jsonl")
    while (lock := _try_lock(run_dir)) is None:
        # Not at the first try: somebody may look at the lock just now, or have no time yet to say who it is.
        time.sleep(_POLL_S)
        if (lock := _try_lock(run_dir)) is not None:
            break
        holder = read_holder(run_dir)
        if told is None:
            needed = "one run at a time is needed; leave --no-wait away to wait for it and reuse what it makes"
            raise ResourceError(f"{run_dir.path}: {holder} runs this stage with the same inputs; {needed}")
        before, has_waited = before if has_waited else _read_attempt(run_dir), True
        told(holder, time.monotonic() - started_s, events.read())
    _write_holder(lock)
    after = _read_attempt(run_dir)
    has_failed = has_waited and after is not None and after.outcome == "failed" and after != before
    return lock, after if has_failed else None


def read_holder(run_dir: Directory) -> str:
    """Say who has a run's lock, or had it last."""
    with suppress(OSError, ValueError):
        line = read_bounded(LOCK_FILE, _MAX_HOLDER_BYTES, dir_fd=run_dir.fd).decode(errors="replace").partition("\n")[0].strip()
        if line:
            return line
    return "another process"


def _read_attempt(run_dir: Directory) -> Attempt | None:
    with suppress(OSError, ValueError):
        record = read_record(run_dir)
        return record.last if record else None
    return None


def _try_lock(run_dir: Directory) -> int | None:
    with naming(run_dir.path / LOCK_FILE):
        return take_lock(LOCK_FILE, wait=False, dir_fd=run_dir.fd)


def _write_holder(lock: int) -> None:
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    line = f"process {os.getpid()} of {user_name()} on {socket.gethostname()} (since {now})\n".encode(errors="backslashreplace")
    os.pwrite(lock, line, 0)  # never empty: whoever waits reads its first line at any time
    os.ftruncate(lock, len(line))
