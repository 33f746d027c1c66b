"""A store at file://: written whole or not at all, by descriptors; below its root no link is followed, whoever put it there."""

import os
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from pipeline.remotes.errors import CHUNK_BYTES
from pipeline.store.directory import Directory, open_root
from pipeline.store.disk import is_link_refusal, open_regular, refuse_link, sync_descriptor
from pipeline.store.staging import STAGING_DIR


@contextmanager
def _enter(root: Path, path: str, *, create: bool) -> Generator[tuple[Directory, Directory, str]]:
    """Open a store, and the directory of a file in it.

    Raises:
        ResourceError: a link stands in the place of a directory (exit 5).
        OSError: anything else.
    """
    below, _, name = path.removeprefix(str(root)).strip("/").rpartition("/")
    try:
        with open_root(root, create=create) as top, top.enter(below, create=create) as directory:
            yield top, directory, name
    except OSError as error:
        if is_link_refusal(error) and (place := Path(error.filename or root)).exists():
            raise refuse_link(place) from error
        raise


def open_file(root: Path, path: str) -> BufferedReader:
    """Open a file to read, never following a link or waiting on a pipe.

    Raises:
        ResourceError, OSError: As `_enter`.
        ValueError: it is no regular file.
    """
    with _enter(root, path, create=False) as (_, directory, name):
        return open_regular(name, directory.fd)


def create_file(root: Path, path: str, content: bytes) -> None:
    """Write a file that is not there yet.

    Raises:
        FileExistsError: its name is taken.
        ResourceError, OSError: As `_enter`.
    """
    with _enter(root, path, create=True) as (top, directory, name), _draft(top) as (drafts, draft, descriptor):
        _write(descriptor, content)
        os.fsync(descriptor)
        os.link(draft, name, src_dir_fd=drafts.fd, dst_dir_fd=directory.fd)
        sync_descriptor(directory.fd)


def copy_file(root: Path, source: Path, path: str, told: Callable[[int], None]) -> None:
    """Write a copy of a file, in place of one that is there.

    Raises:
        ResourceError, OSError: As `_enter`.
    """
    with _enter(root, path, create=True) as (top, directory, name), _draft(top) as (drafts, draft, descriptor):
        with source.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                _write(descriptor, chunk)
                told(len(chunk))
        os.fsync(descriptor)
        os.replace(draft, name, src_dir_fd=drafts.fd, dst_dir_fd=directory.fd)
        sync_descriptor(directory.fd)


@contextmanager
def _draft(top: Directory) -> Generator[tuple[Directory, str, int]]:
    with top.enter(STAGING_DIR, create=True) as drafts:
        name = f"{uuid.uuid4().hex}.part"
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=drafts.fd)
        try:
            yield drafts, name, descriptor
        finally:
            os.close(descriptor)
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=drafts.fd)


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
