"""A directory that is there as a whole or not at all: filled as a draft beside its place, then renamed.

A draft `.draft-<digits>/` is locked for as long as its maker lives; what dead makers left is removed by the next one.
"""

import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAME = re.compile(r"\.draft-[0-9a-z_]{8}")


@contextmanager
def make_draft(directory: Path, *, stale_s: float) -> Generator[Path]:
    """Make an empty directory beside the one that is to be made; what is still there at the end of the block is removed.

    Args:
        directory: What the draft will be renamed to by the caller; what lies beside it must exist.
        stale_s: How long a draft that nobody locks is left alone, for file systems that do not know of a lock elsewhere.
    """
    _remove_stale(directory.parent, stale_s)
    draft = directory.parent / f".draft-{secrets.token_hex(4)}"
    draft.mkdir()
    descriptor = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system that locks no directories; nobody will take it for stale there
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(descriptor)


def _remove_stale(parent: Path, stale_s: float) -> None:
    for path in [path for path in parent.iterdir() if _NAME.fullmatch(path.name)]:
        with suppress(OSError):  # no directory, somebody's who is alive, or gone meanwhile
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                youngest_s = max(place.lstat().st_mtime for place in (path, *path.iterdir()))
                if time.time() - youngest_s > stale_s:
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)
