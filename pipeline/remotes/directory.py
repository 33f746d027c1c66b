"""A store at file://: written whole or not at all, by descriptors; below its root no link is followed, whoever put it there."""

import errno
import os
import uuid
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from pipeline.remotes.errors import CHUNK_BYTES
from pipeline.store.directory import Directory, open_root
from pipeline.store.disk import open_regular, reading, sync_descriptor, write_all, writing
from pipeline.store.staging import STAGING_DIR

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)  # file systems without second names: FAT, some of networks


def open_file(root: Path, path: str) -> BufferedReader:
    """Open a file to read, never following a link or waiting on a pipe.

    Raises:
        FileNotFoundError: it is not there.
        ResourceError: it cannot be read, or a link stands in the place of a directory (exit 5).
        ValueError: it is no regular file.
    """
    with reading(Path(path)), _enter(root, path, create=False) as (_, directory, name):
        return open_regular(name, directory.fd)


def create_file(root: Path, path: str, content: bytes) -> None:
    """Write a file that is not there yet.

    Raises:
        ResourceError: its name is taken, a link stands in the place of a directory, or the file system refused (exit 5).
    """
    with writing(Path(path), len(content)), _enter(root, path, create=True) as (top, directory, name), _draft(top) as draft:
        write_all(draft.descriptor, content)
        os.fsync(draft.descriptor)
        try:
            os.link(draft.name, name, src_dir_fd=draft.directory.fd, dst_dir_fd=directory.fd)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # One writer alone can make the name; what it holds comes in one step then.
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=directory.fd))
            os.replace(draft.name, name, src_dir_fd=draft.directory.fd, dst_dir_fd=directory.fd)
        sync_descriptor(directory.fd)


def copy_file(root: Path, source: Path, path: str, told: Callable[[int], None]) -> None:
    """Write a copy of a file, in place of one that is there.

    Raises:
        ResourceError: As `create_file`.
    """
    with source.open("rb") as stream, writing(Path(path), os.fstat(stream.fileno()).st_size), ExitStack() as stack:
        top, directory, name = stack.enter_context(_enter(root, path, create=True))
        draft = stack.enter_context(_draft(top))
        while chunk := stream.read(CHUNK_BYTES):
            write_all(draft.descriptor, chunk)
            told(len(chunk))
        os.fsync(draft.descriptor)
        os.replace(draft.name, name, src_dir_fd=draft.directory.fd, dst_dir_fd=directory.fd)
        sync_descriptor(directory.fd)


@contextmanager
def _enter(root: Path, path: str, *, create: bool) -> Generator[tuple[Directory, Directory, str]]:
    """Open a store, and the directory of a file in it."""
    below, _, name = path.removeprefix(str(root)).strip("/").rpartition("/")
    with open_root(root, create=create) as top, top.enter(below, create=create) as directory:
        yield top, directory, name


@dataclass(frozen=True)
class _Draft:
    directory: Directory
    name: str
    descriptor: int


@contextmanager
def _draft(top: Directory) -> Generator[_Draft]:
    with top.enter(STAGING_DIR, create=True) as drafts:
        name = f"{uuid.uuid4().hex}.part"
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=drafts.fd)
        try:
            yield _Draft(drafts, name, descriptor)
        finally:
            os.close(descriptor)
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=drafts.fd)
