"""Work under limits: what never ends, floods memory or kills its process is found and named, the rest goes on (faults.md S3)."""

import errno
import os
import re
import signal
import time
from multiprocessing import synchronize

import pytest

from data.system import watched
from data.system.watched import Unfinished, work_in_children, work_one_by_one


@pytest.fixture(autouse=True)
def short_limits(monkeypatch):
    monkeypatch.setattr(watched, "ITEM_SECONDS", 0.5)
    monkeypatch.setattr(watched, "CHUNK_SECONDS", 0.5)
    monkeypatch.setattr(watched, "MEMORY_BYTES", 2**28)


def work(item):
    if item == "loop":
        while True:
            pass
    if item == "native":
        return re.fullmatch("(a|aa)+$", "a" * 200 + "b")  # backtracks for longer than the universe, and lets no other thread run
    if item == "flood":
        return "a" * 2**30
    if item == "crash":
        os._exit(3)
    return item.upper()


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        pytest.param("loop", "took more than 0.5 s", marks=pytest.mark.slow),  # two CPU seconds: the kernel counts whole ones
        pytest.param("native", "took more than 0.5 s", marks=pytest.mark.slow),
        ("flood", "took more than 0.25 GiB of memory"),
        ("crash", "ended its process (exit code 3)"),
    ],
)
def test_the_item_that_goes_over_its_limit_is_named(bad, why):
    chunks = [["a", "b"], ["c", bad, "d"], ["e"]]
    found = []
    with pytest.raises(Unfinished) as caught:
        for results in work_in_children(chunks, lambda chunk: [work(item) for item in chunk], len, workers=2):
            found += results
    assert caught.value.item == bad and str(caught.value) == why
    assert found == ["A", "B", "C"]


@pytest.mark.slow
def test_a_chunk_that_takes_long_is_no_fault_of_its_items():
    def spin(chunk):
        until = time.process_time() + 0.3 * len(chunk)
        while time.process_time() < until:
            pass
        return chunk

    chunks = [["a"], [str(number) for number in range(6)], ["b"]]
    found = list(work_in_children(chunks, spin, lambda item: 0, workers=1))
    assert [item for chunk in found for item in chunk] == [item for chunk in chunks for item in chunk]


def test_longer_items_have_more_time(monkeypatch):
    monkeypatch.setattr(watched, "CHARACTERS_PER_SECOND", 10)
    assert watched._limit(25) == 2.5


def test_errors_come_back_and_later_items_are_not_begun():
    def refuse(item):
        if item == "b":
            raise ValueError("not b")
        return item

    results = work_one_by_one(["a", "b", "c"], refuse, lambda _: 5)
    assert next(results) == "a"
    with pytest.raises(ValueError, match="not b"):
        next(results)


def test_a_child_has_no_handlers_of_its_parents(monkeypatch):
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        (handler,) = work_one_by_one([0], lambda _: signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, lambda _: 5)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert handler


def test_where_processes_cannot_share_locks_one_child_does_it_all(monkeypatch):
    def refuse(*_arguments):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))  # names no file: it was taken for the store's

    monkeypatch.setattr(synchronize._multiprocessing, "SemLock", type("SemLock", (), {"__new__": refuse}))
    chunks = [["a", "b"], ["c"], ["crash", "d"]]
    found = work_in_children(chunks, lambda chunk: [work(item) for item in chunk], len, workers=2)
    assert [next(found) for _ in range(3)] == [["A"], ["B"], ["C"]]
    with pytest.raises(Unfinished, match=r"ended its process \(exit code 3\)"):
        next(found)
