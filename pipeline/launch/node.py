"""One node of a stage that runs on several: `python -P -m pipeline.launch.node MARKER -- COMMAND`, started there by the remote shell.

Runs the command for as long as standard input stays open, which is a pipe to the orchestrator. Its first line is what goes along of the
environment, as JSON: that may hold a token, which a command line would show to everybody. A line `stop` passes a SIGTERM on; the end
of the pipe, whatever became of the orchestrator or the connection, kills all that the command started.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping

from data.system.death import die_with_parent
from pipeline.launch.processes import MARKER, sweep
from stages.process.places import clear_leftovers

STOP = b"stop\n"
# What other machines must know of the environment: how to reach each other, and the libraries' settings.
_FORWARDED = (
    "NCCL_",
    "GLOO_",
    "TORCH",
    "HF_",
    "OMP_",
    "MKL_",
    "CUDA_",
    "LD_LIBRARY_PATH",
    "PATH",
    "RLHF_",
    "PYTHON",
    "TOKENIZERS_",
    "VLLM_NO_USAGE_STATS",
)


def pack_environment(environment: Mapping[str, str]) -> bytes:
    """Make the first line of the pipe."""
    return json.dumps({name: value for name, value in environment.items() if name.startswith(_FORWARDED)}).encode() + b"\n"


def main() -> int:
    """Run the command to its end and return its exit code."""
    marker, command = sys.argv[1], sys.argv[3:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the pipe says when to stop
    environment = os.environ | json.loads(_read_line()) | {MARKER: marker}
    clear_leftovers(environment)  # of this node's own
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, start_new_session=True, preexec_fn=_start)
    threading.Thread(target=_listen, args=(process, marker), daemon=True).start()
    exit_code = process.wait()
    sweep(marker)
    return exit_code if exit_code >= 0 else 128 - exit_code


def _start() -> None:
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _read_line() -> bytes:
    # Not sys.stdin: it would read on, and the interpreter wants its lock when it ends.
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return line


def _listen(process: "subprocess.Popen[bytes]", marker: str) -> None:
    while received := _read_line():
        if received == STOP:
            process.terminate()
    process.kill()
    sweep(marker)


if __name__ == "__main__":
    sys.exit(main())
