"""Staging: where an artifact is written before it is published, and the reaper of what dead writers left behind.

`.staging/<kind>-<uuid>/` is being written; `.staging/<kind>-<uuid>.lock` is locked for as long as its owner lives, as the kernel
drops the lock with the process, however it dies. The lock file is made first and removed last, so no directory is ever without one.
"""

import os
import shutil
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.store.disk import make_directories, take_lock, writing

STAGING_DIR = ".staging"
_LOCK_SUFFIX = ".lock"


@dataclass(frozen=True)
class Staging:
    """A directory that one living process writes; it becomes an artifact by `Store.publish`, or is discarded."""

    kind: str
    path: Path


@contextmanager
def open_staging(root: Path, kind: str) -> Generator[Staging]:
    """Create a locked staging directory; what is still there at the end of the block is removed.

    Raises:
        ResourceError: it cannot be created (exit 5).
    """
    path = root / STAGING_DIR / f"{kind}-{uuid.uuid4().hex}"
    lock_path = path.with_name(path.name + _LOCK_SUFFIX)
    with writing(path):
        make_directories(path.parent)
        lock = take_lock(lock_path, wait=True)
        assert lock is not None
        try:
            path.mkdir()
        except BaseException:
            os.close(lock)
            raise
    try:
        yield Staging(kind, path)
    finally:
        _discard(path, lock_path, lock)


def reap_staging(root: Path) -> list[str]:
    """Remove the staging directories whose owners are dead; return their names. A store that is read-only stays as it is."""
    staging_root = root / STAGING_DIR
    try:
        names = {entry.name.removesuffix(_LOCK_SUFFIX) for entry in staging_root.iterdir()}
    except OSError:
        return []
    reaped: list[str] = []
    for name in sorted(names):
        path = staging_root / name
        lock_path = path.with_name(name + _LOCK_SUFFIX)
        with suppress(OSError):
            lock = take_lock(lock_path, wait=False)
            if lock is not None:
                _discard(path, lock_path, lock)
                reaped.append(name)
    return reaped


def _discard(path: Path, lock_path: Path, lock: int) -> None:
    """Remove a staging directory, then its lock file; what cannot be removed is left to the next reaper."""
    try:
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            with suppress(OSError):
                lock_path.unlink()
    finally:
        os.close(lock)
