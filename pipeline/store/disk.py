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

FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # of some network file systems
_NO_DIRECTORY = (errno.ENOTDIR, errno.ELOOP)  # what `O_NOFOLLOW | O_DIRECTORY` says of a link


@contextmanager
def writing(path: Path, need_bytes: int = 0, elsewhere: str = "") -> Generator[None]:
    """Turn an OSError of a write under `path` into one line with the path, the need and the free bytes.

    Args:
        path: What is written.
        need_bytes: How much, where that is known.
        elsewhere: What else can be done than to choose another store, such as an option that names another place.

    Raises:
        ResourceError: the file system refused (exit 5).
    """
    try:
        yield
    except OSError as error:
        name = error.filename2 or error.filename  # of a copy or a rename that is written to
        place = name if isinstance(name, str) and name.startswith("/") else path
        if error.errno in _NO_DIRECTORY:
            raise refuse_link(Path(place)) from error
        if error.errno in FULL:
            need = f"{need_bytes:,} bytes" if need_bytes else "more"
            needed, todo = (
                f"{need} needed, {free_bytes(path):,} bytes free",
                f"free space, or {elsewhere or 'choose a store on another disk'}",
            )
        elif error.errno in _FORBIDDEN:
            needed, todo = "write permission needed", f"change its mode or owner, or {elsewhere or 'choose another store'}"
        elif error.errno == errno.EFBIG:
            needed, todo = "larger files needed than process and file system allow", "raise `ulimit -f`, or choose another store"
        elif error.errno == errno.EEXIST and Path(place).is_symlink() and not Path(place).exists():
            needed, todo = "a directory needed, found a link to nothing", f"make what it names, or {elsewhere or 'give another path'}"
        elif error.errno == errno.ENOENT:
            needed, todo = "a directory that is there needed", f"make it, or {elsewhere or 'give another path'}"
        elif error.errno == errno.EISDIR:
            needed, todo = "a file needed", elsewhere or "give another path"
        elif error.errno == errno.EXDEV:
            needed, todo = "one file system needed for the whole store", "move the store instead of linking parts of it elsewhere"
        else:
            needed, todo = (
                f"a writable file system needed, {free_bytes(path)} bytes free",
                f"check the disk, or {elsewhere or 'choose another store'}",
            )
        raise ResourceError(f"{place}: {error.strerror or error}; {needed}; {todo}") from error


@contextmanager
def reading(path: Path) -> Generator[None]:
    """Turn an OSError of looking at the store under `path` into one line; that something is not there is for the caller.

    Raises:
        ResourceError: the file system refused, or a link stands in the place of a directory (exit 5).
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        place = error.filename if isinstance(error.filename, str) and error.filename.startswith("/") else path
        if error.errno in _NO_DIRECTORY:
            raise refuse_link(Path(place)) from error
        raise ResourceError(f"{place}: {error.strerror}; read permission needed; change its mode or owner") from error


def advise(error: OSError, otherwise: str) -> str:
    """Say what is needed of something that cannot be read: a right where that is missing, as the bytes may be whole, else what is given."""
    return "read permission needed; change its mode or owner" if error.errno in (errno.EACCES, errno.EPERM) else otherwise


def is_full(error: ResourceError) -> bool:
    """Tell whether there was no room."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL


def refuse_link(place: Path) -> ResourceError:
    """Say that something is not the store's own."""
    link = os.path.islink(place)  # noqa: PTH114  (Path.is_symlink raises for a name that is too long)
    found = "a link, which is not followed" if link else "no directory"
    return ResourceError(f"{place}: {found}; the store's own is needed there; move the store as a whole instead of linking parts of it")


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
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def sync_descriptor(descriptor: int) -> None:
    """Make the names in an open directory durable."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems know no fsync of a directory; there is nothing more to do then.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def write_durably(name: str, content: bytes, *, dir_fd: int, mode: int = 0o666) -> None:
    """Write a whole new file in an open directory and fsync it, never through what stood in its place; the directory is the caller's."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=dir_fd)
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=dir_fd)
    with open(descriptor, "wb") as stream:  # noqa: PTH123
        stream.write(content)
        stream.flush()
        os.fsync(descriptor)


def replace_durably(name: str, content: bytes, *, dir_fd: int) -> None:
    """Give a file in an open directory new content in one step: readers see the old or the new. One writer at a time."""
    draft = f".{name}.tmp"
    write_durably(draft, content, dir_fd=dir_fd)
    os.replace(draft, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    sync_descriptor(dir_fd)


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of it, however much a call takes."""
    while content:
        content = content[os.write(descriptor, content) :]


def read_bounded(path: Path | str, max_bytes: int, *, dir_fd: int | None = None) -> bytes:
    """Read a regular file of at most `max_bytes`, never following a link or waiting on a pipe.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or too large.
    """
    with open_regular(path, dir_fd) as stream:
        size = os.fstat(stream.fileno()).st_size
        content = stream.read(min(size, max_bytes) + 1)  # no more is asked for than is there, as memory for all that could be is costly
        if size < len(content) <= max_bytes:  # it has grown
            content += stream.read(max_bytes + 1 - len(content))
    if len(content) > max_bytes:
        raise ValueError(f"more than {max_bytes} bytes")
    return content


def tell_state(root: Path, name: str) -> tuple[int, ...]:
    """Return what tells one state of a file from another: inode, size and time; nothing where there is none."""
    with suppress(OSError):
        status = (root / name).lstat()
        return status.st_ino, status.st_size, status.st_mtime_ns
    return ()


def hash_file(path: Path | str, *, dir_fd: int | None = None, publish_mode: int | None = None) -> tuple[int, str]:
    """Return size and sha256 of a regular file; with `publish_mode`, give it this mode and make it durable first.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file.
    """
    with open_regular(path, dir_fd) as stream:
        if publish_mode is not None:
            with suppress(OSError):  # a file system without modes: nothing relies on them
                os.chmod(stream.fileno(), publish_mode)  # noqa: PTH101
            os.fsync(stream.fileno())
        digest = hashlib.file_digest(stream, "sha256")
        return stream.tell(), digest.hexdigest()


def open_regular(path: Path | str, dir_fd: int | None) -> BufferedReader:
    """Open a regular file to read, never following a link or waiting on a pipe.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("not a regular file")
    return os.fdopen(descriptor, "rb")


def take_lock(path: Path | str, *, wait: bool, dir_fd: int | None = None, create: bool = True, shared: bool = False) -> int | None:
    """Lock a file for as long as the returned descriptor is open, also against a process that removes the file meanwhile.

    Args:
        path: The lock file; a link is not followed.
        wait: Wait for the present owner.
        dir_fd: Open directory that it lies in.
        create: Create it when missing.
        shared: Hold it with all others who want it so.

    Returns:
        The descriptor, or None when another holds the lock and `wait` is False.

    Raises:
        ResourceError: The file system knows no locks (exit 5).
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    while True:
        descriptor = os.open(path, flags, 0o666, dir_fd=dir_fd)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException as error:
            place = Path(f"/proc/self/fd/{descriptor}").resolve()
            os.close(descriptor)
            if not isinstance(error, OSError) or error.errno not in _NO_LOCKS:
                raise
            needed = "a file system with locks (flock) needed, by which processes keep out of each other's way"
            todo = "mount it with them (NFS: its lock service; Lustre: -o flock), or choose a store on another disk"
            raise ResourceError(f"{place}: {error.strerror}; {needed}; {todo}") from error
        # The last owner may have removed the file between our open and our lock: then the lock is on nothing that others see.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path, dir_fd=dir_fd, follow_symlinks=False)):
                return descriptor
        os.close(descriptor)


def is_locked(path: Path | str, *, dir_fd: int | None = None) -> bool:
    """Tell whether a process holds a lock; the file is not changed, and not made. One that we may not open or hold counts as held."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    except PermissionError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, *_NO_LOCKS):
            raise
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def locked(path: Path | str, *, dir_fd: int | None = None, shared: bool = False) -> Generator[int]:
    """Hold a lock file for the length of a block; yield its descriptor."""
    descriptor = take_lock(path, wait=True, dir_fd=dir_fd, shared=shared)
    assert descriptor is not None
    try:
        yield descriptor
    finally:
        os.close(descriptor)
