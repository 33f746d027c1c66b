"""One node of a stage that runs on several: `python -P -m pipeline.node MARKER -- COMMAND`, started there by the remote shell.

Runs the command for as long as standard input stays open, which is a pipe to the orchestrator: a line `stop` on it passes a SIGTERM on,
and its end, whatever became of the orchestrator or the connection, kills all that the command started.
"""

import os
import signal
import subprocess
import sys
import threading

from pipeline.processes import die_with_parent, sweep

STOP = b"stop\n"


def main() -> int:
    """Run the command to its end and return its exit code."""
    marker, command = sys.argv[1], sys.argv[3:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the pipe says when to stop
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_start)
    threading.Thread(target=_listen, args=(process, marker), daemon=True).start()
    exit_code = process.wait()
    sweep(marker)
    return exit_code if exit_code >= 0 else 128 - exit_code


def _start() -> None:
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _listen(process: "subprocess.Popen[bytes]", marker: str) -> None:
    while received := os.read(0, 1024):  # not sys.stdin, whose lock the interpreter wants when it ends
        if STOP in received:
            process.terminate()
    process.kill()
    sweep(marker)


if __name__ == "__main__":
    sys.exit(main())
