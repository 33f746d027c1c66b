"""Durable, exclusive and checked file operations: what the store asks of a file system, and one-line errors when it refuses."""

import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from pipeline.errors import ResourceError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def writing(path: Path, need_bytes: int = 0) -> Generator[None]:
    """Turn an OSError of a write under `path` into one line with the path, the need and the free bytes.

    Raises:
        ResourceError: the file system refused (exit 5).
    """
    try:
        yield
    except OSError as error:
        place = error.filename if isinstance(error.filename, str) else path
        if error.errno in _FULL:
            need = f"{need_bytes:,} bytes" if need_bytes else "more"
            needed, todo = f"{need} needed, {free_bytes(path):,} bytes free", "free space, or choose a store on another disk"
        elif error.errno in _FORBIDDEN:
            needed, todo = "write permission needed", "change its mode or owner, or choose another store"
        elif error.errno == errno.EXDEV:
            needed, todo = "one file system needed for the whole store", "move the store instead of linking parts of it elsewhere"
        else:
            needed, todo = f"a writable file system needed, {free_bytes(path)} bytes free", "check the disk, or choose another store"
        raise ResourceError(f"{place}: {error.strerror or error}; {needed}; {todo}") from error


def expand_home(path: str | Path) -> Path:
    """Fill in `~` and `~name`; a name that nobody has stays as it is, where pathlib raises."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def is_utf8(path: str | Path) -> bool:
    """Whether a path is text: Python holds any other byte of a name as half of a surrogate pair."""
    return not any("\ud800" <= char <= "\udfff" for char in str(path))


def free_bytes(path: Path) -> int:
    """Bytes that an unprivileged process can still write at `path`, or at its nearest ancestor that exists."""
    for place in (path, *path.parents):
        with suppress(OSError):
            return shutil.disk_usage(place).free
    return 0


def make_directories(path: Path) -> None:
    """Create a directory and its parents so that they survive a power cut."""
    if path.is_dir():
        return
    make_directories(path.parent)
    path.mkdir(exist_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems know no fsync of a directory; there is nothing more to do then.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """Write a whole file and fsync it; the directory is the caller's."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def replace_durably(path: Path, content: bytes) -> None:
    """Give a file new content in one step: readers see the old or the new. One writer at a time."""
    draft = path.with_name(f".{path.name}.tmp")
    write_durably(draft, content)
    draft.replace(path)
    sync_directory(path.parent)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Read a regular file of at most `max_bytes`, never following a link or waiting on a pipe.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or too large.
    """
    with _open_regular(path) as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"more than {max_bytes} bytes")
    return content


def hash_file(path: Path, *, sync: bool = False) -> tuple[int, str]:
    """Return size and sha256 of a regular file; with `sync`, make it durable first.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file.
    """
    with _open_regular(path) as stream:
        if sync:
            os.fsync(stream.fileno())
        digest = hashlib.file_digest(stream, "sha256")
        return stream.tell(), digest.hexdigest()


def _open_regular(path: Path) -> BufferedReader:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("not a regular file")
    return os.fdopen(descriptor, "rb")


def take_lock(path: Path, *, wait: bool) -> int | None:
    """Lock a file for as long as the returned descriptor is open, also against a process that removes the file meanwhile.

    Args:
        path: The lock file; created when missing.
        wait: Wait for the present owner.

    Returns:
        The descriptor, or None when another holds the lock and `wait` is False.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        # The last owner may have removed the file between our open and our lock: then the lock is on nothing that others see.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold a lock file for the length of a block."""
    descriptor = take_lock(path, wait=True)
    assert descriptor is not None
    try:
        yield
    finally:
        os.close(descriptor)
