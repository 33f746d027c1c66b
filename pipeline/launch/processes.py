"""Process control of a stage: it dies with the orchestrator, and nothing it started outlives it.

A stage's processes carry a marker in their environment, because torchrun puts each worker into a session of its own, out of reach of the
launcher's process group. Three nets, each for what the one before cannot see: PR_SET_PDEATHSIG on the launcher, a sweep by the
orchestrator when the stage ends, and a watchdog process that sweeps when the orchestrator is killed.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

MARKER = "RLHF_STAGE_RUN"
_SWEEP_LIMIT_S = 5.0


def start_watchdog(marker: str, held: Collection[int] = ()) -> tuple[subprocess.Popen[bytes], int]:
    """Start the process that sweeps when we are killed.

    Args:
        marker: Of the processes that it kills.
        held: Descriptors that it keeps open until it has swept, for their locks.

    Returns:
        The watchdog, and the descriptor of the pipe that keeps it quiet: it sweeps when the pipe closes, and always then.
    """
    read_end, write_end = os.pipe()
    try:
        watchdog = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__)), marker],
            stdin=read_end,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=tuple(held),
        )
    finally:
        os.close(read_end)
    return watchdog, write_end


def sweep(marker: str) -> None:
    """Kill every process but this one whose environment holds the marker, until none is left: one may fork while we look."""
    deadline_s = time.monotonic() + _SWEEP_LIMIT_S
    while time.monotonic() < deadline_s:
        found = find_marked(marker)
        if not found:
            return
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def find_marked(marker: str) -> list[int]:
    """List the living processes whose environment holds the marker."""
    wanted = f"{MARKER}={marker}".encode()
    found: list[int] = []
    with suppress(OSError):
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with suppress(OSError):
                    # A zombie's environment reads as empty, so it is not found.
                    if wanted in Path(entry.path, "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
    return found


if __name__ == "__main__":
    while os.read(0, 1):
        pass
    sweep(sys.argv[1])
