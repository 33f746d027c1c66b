"""The store's directories, opened by descriptors: below the store's root no link is followed, whatever is put in a directory's place.

The root as a whole may be a link, or lie on another device.
"""

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.store.disk import make_directories, sync_descriptor

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True)
class Directory:
    """A directory that is open.

    Args:
        path: For messages, and for processes that know nothing of descriptors.
        fd: Its descriptor; what lies in it is reached by this.
    """

    path: Path
    fd: int

    @contextmanager
    def enter(self, below: str, *, create: bool = False) -> Generator["Directory"]:
        """Open a directory below this one.

        Args:
            below: Relative path; the empty one is this directory itself.
            create: Make what is missing of it, so that it survives a power cut.

        Raises:
            OSError: With the whole path; ENOTDIR where a link or a file stands in a directory's place.
        """
        fd, path = self.fd, self.path
        try:
            for name in filter(None, below.split("/")):
                path /= name
                try:
                    if create:
                        _make(name, fd)
                    inner = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                except OSError as error:
                    raise _name(error, path) from error
                if fd != self.fd:
                    os.close(fd)
                fd = inner
            yield Directory(path, fd)
        finally:
            if fd != self.fd:
                os.close(fd)

    def names(self) -> list[str]:
        """List what lies in it."""
        with naming(self.path):
            return os.listdir(self.fd)  # noqa: PTH208

    def directories(self) -> list[str]:
        """List the directories in it."""
        with naming(self.path), os.scandir(self.fd) as entries:
            return [entry.name for entry in entries if _is_directory(entry)]

    def links(self) -> list[str]:
        """List the links in it."""
        with naming(self.path), os.scandir(self.fd) as entries:
            return [entry.name for entry in entries if entry.is_symlink()]


@contextmanager
def open_root(root: Path, *, create: bool = False) -> Generator[Directory]:
    """Open a store's root; this one may be a link.

    Raises:
        OSError: With the whole path.
    """
    if create:
        make_directories(root)
    fd = os.open(root, _DIRECTORY)
    try:
        yield Directory(root, fd)
    finally:
        os.close(fd)


@contextmanager
def naming(path: Path) -> Generator[None]:
    """Give an OSError the whole path, where the call knew a name only."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str) and error.filename.startswith("/"):
            raise
        raise _name(error, path) from error


def _name(error: OSError, path: Path) -> OSError:
    return OSError(error.errno, error.strerror or str(error), str(path))


def list_tree(top: Directory) -> Iterator[tuple[str, bool]]:
    """Yield the relative path of all below a directory but plain directories, and whether it is a plain file."""
    for prefix in list_directories(top):
        with top.enter(prefix) as directory, os.scandir(directory.fd) as entries:
            found = [(f"{prefix}{entry.name}", entry.is_file(follow_symlinks=False)) for entry in entries if not _is_directory(entry)]
        yield from sorted(found)


def list_directories(top: Directory) -> Iterator[str]:
    """Yield the relative path of a directory, which is empty, and of each one below it, each after the one that it lies in."""
    pending = [""]
    while pending:
        prefix = pending.pop()
        yield prefix
        with top.enter(prefix) as directory, os.scandir(directory.fd) as entries:
            pending += sorted((f"{prefix}{entry.name}/" for entry in entries if _is_directory(entry)), reverse=True)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _make(name: str, parent_fd: int) -> None:
    try:
        os.mkdir(name, dir_fd=parent_fd)
    except FileExistsError:
        return
    sync_descriptor(parent_fd)
