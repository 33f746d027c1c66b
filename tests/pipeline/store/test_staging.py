"""Staging: locked while its owner lives, removed when it is dead."""

import errno
import fcntl
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.errors import ResourceError
from pipeline.store.directory import open_root
from pipeline.store.disk import is_locked, take_lock
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
    with store.staging("sft"):
        child = subprocess.Popen(["sleep", "60"])
    try:
        left = leave(store, "0" * 32)
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


def leave(store, digits, *, lock=True):
    """What a dead writer leaves: a directory and its lock file."""
    path = store.root / ".staging" / f"sft-{digits}"
    path.mkdir(parents=True)
    (path / "half.safetensors").write_text("x")
    if lock:
        path.with_name(f"{path.name}.lock").touch()
    return path


def test_a_lock_file_without_a_directory_is_reaped(store):
    left = leave(store, "0" * 32)
    left.with_name(f"sft-{'1' * 32}.lock").touch()
    assert store.reap() == [left.name, f"sft-{'1' * 32}"]
    assert list(left.parent.iterdir()) == []


@pytest.mark.parametrize("digits", ["mine", "0" * 31, "0" * 33, "G" * 32, "0" * 31 + "²"])
def test_the_reaper_takes_nothing_of_another_name(store, digits):
    kept = leave(store, digits)
    assert store.reap() == []
    assert (kept / "half.safetensors").exists() and kept.with_name(f"{kept.name}.lock").exists()


def test_the_reaper_takes_nothing_that_never_had_a_lock(store):
    kept = leave(store, "0" * 32, lock=False)
    assert store.reap() == []
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


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


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_is_told_with_what_to_do_and_nothing_there_counts_as_free(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    path = tmp_path / ".lock"
    path.touch()
    monkeypatch.setattr(fcntl, "flock", refuse)
    with open_root(tmp_path) as directory, pytest.raises(ResourceError) as caught:
        take_lock(".lock", wait=True, dir_fd=directory.fd)
    assert str(caught.value).startswith(f"{path}: {os.strerror(number)}; a file system with locks (flock) needed")
    assert is_locked(path)
