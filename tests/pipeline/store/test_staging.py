"""Staging: locked while its owner lives, removed when it is dead."""

import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.store.disk import take_lock
from pipeline.store.store import Store


@pytest.fixture
def holder(store):
    """A process that holds a staging directory until it is killed: its id and the directory."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with store.staging("sft") as staging:
            (staging.path / "weights").write_bytes(b"half")
            os.write(writer, os.fsencode(staging.path))
            signal.pause()
    os.close(writer)
    path = Path(os.fsdecode(os.read(reader, 4096)))
    os.close(reader)
    yield child, path
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_reaper_leaves_what_a_living_process_writes_and_takes_it_when_the_process_is_killed(store, holder):
    child, path = holder
    store.reap()
    assert (path / "weights").read_bytes() == b"half"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert path.exists()
    store.reap()
    assert list((store.root / ".staging").iterdir()) == []


def test_the_reaper_leaves_other_staging_of_its_own_process(store):
    with store.staging("sft") as staging:
        store.reap()
        assert staging.path.is_dir()


def test_a_lock_does_not_outlive_its_owner_in_a_child_program(store):
    with store.staging("sft") as staging:
        child = subprocess.Popen(["sleep", "60"])
    try:
        left = staging.path.with_name("sft-left")
        left.mkdir()
        store.reap()
        assert not left.exists()
    finally:
        child.kill()
        child.wait()


def test_staging_is_removed_when_the_block_ends_in_an_error(store):
    with pytest.raises(RuntimeError), store.staging("sft") as staging:
        (staging.path / "a").write_text("x")
        raise RuntimeError
    assert list((store.root / ".staging").iterdir()) == []


def test_leftovers_without_a_lock_file_and_without_a_directory_are_reaped(store):
    directory = store.root / ".staging"
    directory.mkdir(parents=True)
    (directory / "sft-1").mkdir()
    (directory / "sft-1" / "a").write_text("x")
    (directory / "sft-2.lock").touch()
    store.reap()
    assert list(directory.iterdir()) == []


def test_opening_a_store_to_read_creates_nothing(tmp_path):
    store = Store(tmp_path / "none")
    assert store.list() == [] and store.refs() == []
    assert not (tmp_path / "none").exists()


def test_a_lock_is_taken_anew_when_its_file_was_removed_while_waiting(tmp_path):
    path = tmp_path / "x.lock"
    first = take_lock(path, wait=True)
    assert take_lock(path, wait=False) is None
    taken = []
    waiter = threading.Thread(target=lambda: taken.append(take_lock(path, wait=True)))
    waiter.start()
    time.sleep(0.05)
    path.unlink()
    os.close(first)
    waiter.join()
    assert os.path.samestat(os.fstat(taken[0]), path.stat())
    os.close(taken[0])
