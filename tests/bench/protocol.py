"""How the bench and its workers talk: lines of JSON over stdin and stdout. One "go" -> one measured step -> one line of figures.

A measured side is a process of its own, so that its peak memory is its own and two sides can take turns: while one works, the others
wait for a line and use no CPU. Torch-free: the bench itself stays small, for a child's peak memory begins at its parent's.
"""

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pipeline.launch.environment import torch_settings

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / "build" / "bench" / "logs"
Figures = dict[str, Any]


class Worker:
    """The bench's end: one started worker.

    Args:
        module: which worker, such as `ppo_worker`.
        work: what it is to do; anything that JSON can carry.
        threads: CPU threads of its torch.
        python: the interpreter of its environment; one of this project's finds what a stage's process does.

    Raises:
        RuntimeError: the worker ended; the message holds the end of what it printed.
    """

    def __init__(self, module: str, work: Figures, threads: int, python: Path | str = sys.executable) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        self._log = LOGS / f"{module}-{os.getpid()}-{time.monotonic_ns()}.log"
        own = torch_settings() if python == sys.executable else {}
        settings = {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TRL_EXPERIMENTAL_SILENCE": "1",
        }
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [str(python), "-m", f"tests.bench.{module}", json.dumps(work)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env=own | os.environ | settings,
            )
        self.facts = self._read()

    def go(self) -> Figures:
        """Have one step measured."""
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Let the worker end; its log goes unless it failed."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        if self._process.wait(timeout=60) == 0:
            self._log.unlink()

    def _read(self) -> Figures:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise RuntimeError(f"{self._log.name}: the worker ended with exit code {code}:\n{self._log.read_text()[-3000:]}")
        return json.loads(line)


class Bench:
    """A worker's end; make it after the imports and before the models: net memory counts from here.

    Standard output is kept for the lines; what libraries print goes to standard error.
    """

    def __init__(self) -> None:
        _keep_pages_resident()
        self._lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._imported_mb = read_peak_mb()

    def serve(self, step: Callable[[], Figures], **facts: Any) -> NoReturn:
        """Answer each "go" with the figures of one step."""
        self.say_ready(**facts)
        while True:
            self.wait_for_go()
            self.reply(**step())

    def say_ready(self, **facts: Any) -> None:
        """Say that models and data stand."""
        import torch
        import transformers

        versions = {"torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads()}
        self._write(versions | facts)

    def wait_for_go(self) -> None:
        """Wait for the next "go"; end the process when the bench has closed the line."""
        if not sys.stdin.readline():
            sys.exit(0)

    def reply(self, **figures: Any) -> None:
        """Answer one "go"; the peak memory so far goes with it."""
        peak_mb = read_peak_mb()
        self._write(figures | {"peak_mb": peak_mb, "net_mb": peak_mb - self._imported_mb})

    def _write(self, figures: Figures) -> None:
        self._lines.write(json.dumps(figures) + "\n")
        self._lines.flush()


@dataclass(frozen=True)
class Instant:
    """A point in time, in seconds of the wall clock and of CPU time over all threads of the process."""

    wall_s: float
    cpu_s: float

    @classmethod
    def now(cls) -> "Instant":
        """Read both clocks."""
        return cls(time.perf_counter(), time.process_time())

    def until(self, later: "Instant") -> dict[str, float]:
        """Tell the seconds from here to `later`."""
        return {"wall_s": later.wall_s - self.wall_s, "cpu_s": later.cpu_s - self.cpu_s}


def take_turns(workers: dict[str, Worker], repeats: int) -> dict[str, list[Figures]]:
    """Measure all workers in turns, A B A B, after one turn each that warms up and does not count."""
    figures: dict[str, list[Figures]] = {name: [] for name in workers}
    for turn in range(repeats + 1):
        for name, worker in workers.items():
            reply = worker.go()
            if turn:
                figures[name].append(reply)
    return figures


def read_peak_mb() -> float:
    """Read this process's peak of resident memory so far, in MiB (the kernel's VmHWM, ru_maxrss without what a parent had)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _keep_pages_resident() -> None:
    """Ask that pages, once touched, stay in memory: some machines reclaim those of a process that waits, and its next turn pays for it."""
    mcl_current, mcl_future, mcl_onfault = 1, 2, 4
    ctypes.CDLL(None).mlockall(mcl_current | mcl_future | mcl_onfault)  # refused without the privilege: then it is as it was
