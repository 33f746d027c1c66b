"""Work in child processes that may take only so much time and memory: a chat template or a tokenizer from anywhere may never end.

chunks of items -> a child for each core: work(chunk) -> results, in order

The kernel ends a child that has computed for too long, also one in native code, which no timer of Python's interrupts. What its chunk and
the others under way hold is then worked on item by item, each with its own limit: that finds the one that does not end.
"""

import gc
import multiprocessing
import os
import resource
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from math import ceil
from multiprocessing.connection import Connection
from pathlib import Path
from time import process_time
from typing import Any, TypeVar

from data.schema import first_line
from data.system.death import die_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")

ITEM_SECONDS = 10  # of computing, for an item of no length
CHARACTERS_PER_SECOND = 100_000  # a tenth of what the slowest tokenizers do
CHUNK_SECONDS = 30  # a chunk that takes longer is worked on item by item
MEMORY_BYTES = 2**31  # more than the process holds already
_STILL_SECONDS = 60  # on the clock, after which a child that has not computed at all in between hangs: others may use the machine
_CHUNK_WAIT_SECONDS = 1200
_NO_MEMORY = 77  # exit code of a child


class Unfinished(Exception):
    """Work on an item went over its limit; the message says over which."""

    def __init__(self, item: Any, why: str) -> None:
        super().__init__(item, why)
        self.item, self.why = item, why

    def __str__(self) -> str:
        return self.why


def work_in_children(
    chunks: Iterable[list[Item]], work: Callable[[list[Item]], Result], measure: Callable[[Item], int], *, workers: int
) -> Iterator[Result]:
    """Work on chunks by several processes; no more of them wait than keep the processes at work.

    Args:
        chunks: Lists of items.
        work: What is done with one; its results and errors are pickled.
        measure: Says how many characters an item has, by which it gets more time.
        workers: How many processes.

    Yields:
        The result of each chunk, in order; of a chunk that was worked on item by item one for each of them. All are where processes
        cannot share locks: by one child then, which is slower.

    Raises:
        Unfinished: An item goes over its limit.
    """
    chunks = iter(chunks)
    waiting: deque[list[Item]] = deque()
    if not has_semaphores():
        for chunk in chunks:
            yield from work_one_by_one(chunk, lambda item: work([item]), lambda item: _limit(measure(item)))
        return
    while True:
        try:
            with _open_pool(work, workers) as pool:
                yield from _flow(pool, chunks, waiting, workers)
                return
        except (BrokenProcessPool, MemoryError, TimeoutError):
            pass
        while waiting:
            yield from work_one_by_one(waiting[0], lambda item: work([item]), lambda item: _limit(measure(item)))
            waiting.popleft()


def has_semaphores() -> bool:
    """Whether processes can share locks: their semaphores lie in /dev/shm, which a container may lack, or have full or read-only."""
    try:
        multiprocessing.get_context("fork").Lock()
    except (OSError, ImportError):  # ImportError: a system that has none at all
        return False
    return True


def work_one_by_one(items: Sequence[Item], work: Callable[[Item], Result], seconds: Callable[[Item], float]) -> Iterator[Result]:
    """Work on items in a child process, each within a limit of its own.

    Args:
        items: What is worked on.
        work: What is done with one; its results and errors are pickled.
        seconds: Of computing that an item may take.

    Yields:
        The results, in order.

    Raises:
        Unfinished: An item goes over its limit.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work_through, args=(items, work, seconds, sender))
    process.start()
    sender.close()
    try:
        for item in items:
            limit = seconds(item)
            computed = -1
            while not receiver.poll(_STILL_SECONDS):
                if computed == (computed := _read_ticks(process.pid)):
                    raise Unfinished(item, f"did nothing for {_STILL_SECONDS} s")
            try:
                succeeded, result = receiver.recv()
            except EOFError:
                process.join()
                raise Unfinished(item, _explain(process.exitcode, limit)) from None
            if not succeeded:
                raise result
            yield result
    finally:
        process.kill()
        process.join()
        receiver.close()


def _explain(exit_code: int | None, limit: float) -> str:
    if exit_code == -signal.SIGXCPU:
        return f"took more than {limit:g} s"
    # Python raises, Rust aborts, and the system kills, where there is no memory left.
    if exit_code in (_NO_MEMORY, -signal.SIGABRT, -signal.SIGKILL):
        return f"took more than {MEMORY_BYTES / 2**30:g} GiB of memory"
    return f"ended its process (exit code {exit_code})"


def _read_ticks(pid: int | None) -> int:
    """Read how long a process has computed; 0 where that is not told."""
    with suppress(OSError):
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]))
    return 0


def _limit(characters: int) -> float:
    return ITEM_SECONDS + characters // CHARACTERS_PER_SECOND


def _flow(pool: ProcessPoolExecutor, chunks: Iterator[list[Item]], waiting: deque[list[Item]], workers: int) -> Iterator[Any]:
    """Yield results as chunks go through; `waiting` holds those without one."""
    futures: deque[Future[Any]] = deque()

    def take() -> Any:
        result = futures[0].result(_CHUNK_WAIT_SECONDS)
        futures.popleft()
        waiting.popleft()
        return result

    for chunk in chunks:
        waiting.append(chunk)
        futures.append(pool.submit(_work_on_chunk, chunk))
        if len(futures) > 2 * workers:
            yield take()
    while futures:
        yield take()


_work: Callable[[Any], Any]  # of a worker process, which inherits it: a tokenizer takes long to send


@contextmanager
def _open_pool(work: Callable[[Any], Any], workers: int) -> Generator[ProcessPoolExecutor]:
    global _work
    _work = work
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), initializer=_begin)
    try:
        yield pool
    except BaseException:
        for child in multiprocessing.active_children():
            if child not in others:
                child.kill()  # it may never end by itself
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _work_on_chunk(chunk: Any) -> Any:
    _allow(CHUNK_SECONDS)
    try:
        return _work(chunk)
    except Exception:
        raise
    except BaseException:  # a panic in Rust, which cannot be sent
        os._exit(1)


def _work_through(items: Sequence[Any], work: Callable[[Any], Any], seconds: Callable[[Any], float], sender: Connection) -> None:
    _begin()
    for item in items:
        _allow(seconds(item))
        try:
            told = (True, work(item))
        except MemoryError:
            os._exit(_NO_MEMORY)
        except Exception as error:
            told = (False, error)
        except BaseException as error:  # a panic in Rust, which cannot be sent
            told = (False, Unfinished(item, f"broke off ({first_line(error)})"))
        try:
            sender.send(told)
        except MemoryError:
            os._exit(_NO_MEMORY)


def _begin() -> None:
    """Begin a child: it ends with its parent, by signals, without a dump of its memory, and where it wants too much of that."""
    die_with_parent()
    gc.freeze()  # collecting garbage would write to, and so copy, every page that holds an object of the parent: 160 MB where torch is
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    _lower(resource.RLIMIT_CORE, 0)
    _limit_memory()


@contextmanager
def limited_memory() -> Generator[None]:
    """Inside, this process gets no more memory than a child: a template's constants are computed where it is compiled, whatever they take.

    What was tried in a child then goes here as it went there.
    """
    before = resource.getrlimit(resource.RLIMIT_DATA)
    _limit_memory()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _limit_memory() -> None:
    with suppress(OSError):  # not Linux
        found = next(line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith("VmData:"))
        _lower(resource.RLIMIT_DATA, int(found.split()[1]) * 1024 + MEMORY_BYTES)


def _allow(seconds: float) -> None:
    """Have the kernel end this process when it has computed for so long from now on."""
    _lower(resource.RLIMIT_CPU, ceil(process_time() + seconds))


def _lower(which: int, limit: int) -> None:
    """Set a limit, but not above that of who started us."""
    hard = resource.getrlimit(which)[1]
    resource.setrlimit(which, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
