"""Processes that measure at once, as many as a machine will run: they share its caches, its memory and the two threads of a core."""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from threading import BrokenBarrierError, Thread
from typing import Any, TypeVar

from torch import distributed

from data.system.death import die_with_parent
from data.system.watched import has_semaphores
from stages.process.errors import StageError
from stages.spec import EXIT_RESOURCE

_WAIT_S = 300.0  # of one process for the others, which do the same; one that has ended is told at once
_ENDING_S = 5.0  # between what a process held being closed and its exit code being noted
_FORK = multiprocessing.get_context("fork")  # libraries are imported once, for all
_LOST = "a process that measured beside this one has ended, or hangs; is there memory for all? Lower hardware.processes"
_NO_LOCKS = "/dev/shm: found missing, full or read-only, needed by processes that measure at once; mount it (docker --shm-size)"

Result = TypeVar("Result")


@dataclass(frozen=True)
class Peers:
    """What a process knows of those that measure beside it."""

    rank: int
    _barrier: Any
    _figures: Any  # one number of each
    _meeting: str  # a file, by which they find one another

    def join(self) -> None:
        """Be one rank among them, as those are that a launcher starts: what computes then averages its gradients over them."""
        count = str(len(self._figures))
        os.environ |= {"RANK": str(self.rank), "LOCAL_RANK": str(self.rank), "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        distributed.init_process_group("gloo", init_method=f"file://{self._meeting}", rank=self.rank, world_size=len(self._figures))

    def wait(self) -> None:
        """Go on when all have come here.

        Raises:
            StageError: One of them has ended.
        """
        try:
            self._barrier.wait(_WAIT_S)
        except BrokenBarrierError:
            raise StageError(_LOST, EXIT_RESOURCE) from None

    def average(self, figure: float) -> float:
        """Return the mean of what each of them gives here."""
        self._figures[self.rank] = figure
        self.wait()
        mean = sum(self._figures) / len(self._figures)
        self.wait()  # nobody gives the next figure before all have read this one
        return mean


def run_together(count: int, work: Callable[[Peers], Result]) -> Result:
    """Do the same work in so many processes at once, this one and copies of it; to be called before anything computes in threads.

    Args:
        count: Of processes.
        work: Is told of its peers.

    Returns:
        What this process's own work returns; that of the others ends with it.

    Raises:
        StageError: Processes cannot share locks here, or one of them ended before its work.
    """
    if not has_semaphores():
        raise StageError(_NO_LOCKS, EXIT_RESOURCE)
    barrier, figures = _FORK.Barrier(count), _FORK.Array("d", count, lock=False)
    with tempfile.TemporaryDirectory(prefix="rlhf-peers-") as directory:
        peers = [Peers(rank, barrier, figures, f"{directory}/meeting") for rank in range(count)]
        others = [_FORK.Process(target=_accompany, args=(work, each)) for each in peers[1:]]
        for other in others:
            other.start()
        Thread(target=_watch, args=(others, barrier), daemon=True).start()
        try:
            return work(peers[0])
        except RuntimeError as error:  # what gloo raises where the other end is gone
            if _is_given_up(barrier):
                raise StageError(_LOST, EXIT_RESOURCE) from error
            raise
        finally:
            for other in others:
                other.kill()
                other.join()


def _accompany(work: Callable[[Peers], Any], peers: Peers) -> None:
    die_with_parent()
    work(peers)


def _is_given_up(barrier: Any) -> bool:
    """Whether `_watch` has seen one end too early. It alone asks how they ended: the system tells that once, to whoever asks first."""
    end_s = time.monotonic() + _ENDING_S
    while not barrier.broken and time.monotonic() < end_s:
        time.sleep(0.01)
    return barrier.broken


def _watch(others: list[Any], barrier: Any) -> None:
    """Let nobody wait for a process that has ended before its work, as one that the system has killed for memory."""
    running = {other.sentinel: other for other in others}
    while running:
        ended = [running.pop(sentinel) for sentinel in wait(list(running))]
        for other in ended:
            other.join()  # what it held is closed a little before it has an exit code
        if any(other.exitcode for other in ended):
            barrier.abort()
