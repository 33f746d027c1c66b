"""Staging: where an artifact is written before it is published, and the reaper of what dead writers left behind.

`.staging/<kind>-<uuid>/` is being written; `.staging/<kind>-<uuid>.lock` is locked for as long as its owner lives, as the kernel
drops the lock with the process, however it dies. The lock file is made first and removed last, so no directory is ever without one:
what has none, or another name, is not ours to remove.
"""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.store.directory import Directory, naming, open_root
from pipeline.store.disk import reading, take_lock, writing

ARTIFACTS_DIR = "artifacts"
STAGING_DIR = ".staging"
LOCK_SUFFIX = ".lock"
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}-[0-9a-f]{32}")


@dataclass(frozen=True)
class Staging:
    """A directory that one living process writes; it becomes an artifact by `Store.publish`, or is discarded."""

    kind: str
    path: Path


@contextmanager
def open_staging(root: Path, kind: str, key: str | None = None) -> Generator[Staging]:
    """Create a locked staging directory, from which its kind's place can be reached; what is there at the end of the block is removed.

    Args:
        root: Of the store.
        kind: Of what will be written.
        key: 32 hexadecimal digits that name what will be written: it begins with what an earlier block with this key left that failed
            or was killed, and nobody has reaped. Others with this key wait.

    Raises:
        ResourceError: it cannot be created, or nothing could be published from it (exit 5).
    """
    name = f"{kind}-{key or uuid.uuid4().hex}"
    path = root / STAGING_DIR / name
    with ExitStack() as stack:
        with writing(path):
            store = stack.enter_context(open_root(root, create=True))
            place = stack.enter_context(store.enter(STAGING_DIR, create=True))
            with store.enter(f"{ARTIFACTS_DIR}/{kind}", create=True) as kind_directory:
                require_renames(place, kind_directory)
            with naming(path):
                lock = take_lock(name + LOCK_SUFFIX, wait=True, dir_fd=place.fd)
                assert lock is not None
                stack.push(partial(_leave, place, name, lock, key is not None))
                with suppress(*[FileExistsError] if key else []):
                    os.mkdir(name, dir_fd=place.fd)
        yield Staging(kind, path)


def require_renames(source: Directory, target: Directory) -> None:
    """Find out whether directories can be renamed from one place to another, and touch neither.

    Raises:
        OSError: they lie on different file systems, or mounts of one (EXDEV), or the target cannot be written.
    """
    name = uuid.uuid4().hex  # names nothing: the kernel compares the mounts before it looks for it
    with naming(target.path), suppress(FileNotFoundError):
        os.replace(name, name, src_dir_fd=source.fd, dst_dir_fd=target.fd)
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=target.fd, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target.path))


def is_staging(name: str) -> bool:
    """Tell whether a name in `.staging/` is that of an artifact that is being written."""
    return bool(_NAME.fullmatch(name))


def reap_staging(root: Path, only: str | None = None) -> list[str]:
    """Remove the staging directories whose owners are dead, or `only` that of this name; return their names.

    A store that is read-only stays as it is.

    Raises:
        ResourceError: `.staging` is a link, or cannot be read (exit 5).
    """
    reaped: list[str] = []
    with suppress(FileNotFoundError), reading(root), open_root(root) as store, store.enter(STAGING_DIR) as place:
        names = {name.removesuffix(LOCK_SUFFIX) for name in place.names()}
        for name in sorted(filter(is_staging, names)):
            if only not in (None, name):
                continue
            with suppress(OSError):  # without a lock file, it is not ours; or we may not write here
                lock = take_lock(name + LOCK_SUFFIX, wait=False, dir_fd=place.fd, create=False)
                if lock is not None:
                    _discard(place, name, lock)
                    reaped.append(name)
    return reaped


def _leave(place: Directory, name: str, lock: int, keep_failed: bool, error_type: type[BaseException] | None, *_: object) -> None:
    if keep_failed and error_type is not None:
        os.close(lock)
    else:
        _discard(place, name, lock)


def _discard(place: Directory, name: str, lock: int) -> None:
    """Remove a staging directory, then its lock file; what cannot be removed is left to the next reaper."""
    try:
        shutil.rmtree(name, ignore_errors=True, dir_fd=place.fd)  # refuses a link, and follows none
        try:
            os.stat(name, dir_fd=place.fd, follow_symlinks=False)
        except FileNotFoundError:
            with suppress(OSError):
                os.unlink(name + LOCK_SUFFIX, dir_fd=place.fd)
    finally:
        os.close(lock)
