"""Which parts run beside each other on one GPU, and the processes that they are."""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from typing import Any

PARTS = ("parity", "kernels", "models", "processes", "steps", "zero2", "zero3", "rollout", "demo")  # as the table has them
_TURNS = (  # of lanes beside each other, of parts one after the other
    (("steps",),),  # speed is measured
    (("rollout",),),
    # ZeRO's PPO at 1.2 B weights holds 67 GiB of an H100's 79, the demo 3: when it comes, the last lane is done or at its small models.
    (("demo",), ("parity", "kernels", "zero2", "zero3"), ("processes", "models")),
)
_GRACE_S = 5.0  # Ctrl-C in a terminal reaches the parts too: time to take away what they wrote


def arrange(parts: Iterable[str], *, pretend: bool) -> list[list[list[str]]]:
    """Say what runs when: turns, each of lanes beside each other, each of parts one after the other.

    Where the GPU is pretended, the CPU computes all, and nothing runs beside another. A vLLM server takes a share of all the
    memory, and what it leaves while it sleeps is measured: the part that starts one has the GPU to itself.
    """
    wanted = [name for name in PARTS if name in set(parts)]
    if pretend:
        return [[wanted]]
    alone = [name for name in wanted if name == "processes" and "RLHF_TEST_VLLM" in os.environ]
    turns = [[[name for name in lane if name in wanted and name not in alone] for lane in turn] for turn in _TURNS]
    return [lanes for turn in [*turns, [alone]] if (lanes := [lane for lane in turn if lane])]


def run_turns(turns: list[list[list[str]]], run_part: Callable[[str], None], processes: "Processes") -> None:
    """Run each lane in a thread; what ends one too early, Ctrl-C too, ends the processes of all."""

    def run_lane(lane: list[str]) -> None:
        for name in lane:
            run_part(name)

    for lanes in turns:
        with ThreadPoolExecutor(len(lanes)) as pool:
            try:  # from the first start on: Ctrl-C may come before the second one
                futures = [pool.submit(run_lane, lane) for lane in lanes]
                wait(futures, return_when=FIRST_EXCEPTION)
                for future in futures:
                    if future.done():
                        future.result()
            except BaseException:
                processes.stop()
                raise


class Processes:
    """Those that run; once they are stopped, none starts any more."""

    def __init__(self) -> None:
        self._lock, self._running, self._stopped = threading.Lock(), set[subprocess.Popen[bytes]](), False

    def run(self, command: list[str], limit_s: float, **options: Any) -> int:
        """Run one to its end, as `subprocess.run` does; returns its exit code."""
        with self._lock:
            if self._stopped:
                raise CancelledError
            process = subprocess.Popen(command, **options)
            self._running.add(process)
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            with self._lock:
                self._running.discard(process)
        if self._stopped:
            raise CancelledError
        return code

    def stop(self) -> None:
        """End all of them."""
        with self._lock:
            self._stopped, running = True, list(self._running)
        end = time.monotonic() + _GRACE_S
        for process in running:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
