"""The mark `artifacts/.ledger.json`: since when a store has a ledger, and how that begins. A ledger that was removed is known by it.

It is written once, after the ledger's first line; so a store with a mark has a ledger, or somebody took it away.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress

from pydantic import BaseModel, ValidationError

from pipeline.store.directory import Directory, naming
from pipeline.store.disk import read_bounded, replace_durably, sync_descriptor
from pipeline.store.staging import ARTIFACTS_DIR

_NAME = ".ledger.json"
MARK_FILE = f"{ARTIFACTS_DIR}/{_NAME}"
_MAX_BYTES = 10_000


class _Mark(BaseModel):
    since: str
    first_sha256: str


def find_mark_problem(store: Directory, lines: Sequence[bytes], since: bytes | None) -> str:
    """Say that the ledger is not the one that the store's mark tells of; empty where it is, and in a store without a mark.

    Args:
        store: Its root.
        lines: Of the ledger.
        since: The mark as it was before the ledger was read.
    """
    if since is None:
        return ""
    try:
        mark = _Mark.model_validate_json(since)
    except ValidationError:
        return f"{store.path / MARK_FILE}, which says how it begins, was changed by hand"
    if not lines:
        return f"not there, but this store has one since {mark.since}"
    if hashlib.sha256(lines[0]).hexdigest() != mark.first_sha256:
        return f"not the one that this store has since {mark.since}, which begins with another line"
    return ""


def read_mark(store: Directory) -> bytes | None:
    """Read the mark; None where there is none.

    Raises:
        OSError: it cannot be read.
    """
    with suppress(FileNotFoundError), store.enter(ARTIFACTS_DIR) as artifacts, naming(artifacts.path / _NAME):
        try:
            return read_bounded(_NAME, _MAX_BYTES, dir_fd=artifacts.fd)
        except ValueError:
            return b""
    return None


def write_mark(store: Directory, since: str, first_sha256: str) -> None:
    """Write the mark; the ledger is held."""
    with store.enter(ARTIFACTS_DIR, create=True) as artifacts, naming(artifacts.path / _NAME):
        content = json.dumps({"since": since, "first_sha256": first_sha256}).encode() + b"\n"
        replace_durably(_NAME, content, dir_fd=artifacts.fd)


def remove_mark(store: Directory) -> None:
    """Remove the mark, as the ledger will begin anew; the ledger is held."""
    with suppress(FileNotFoundError), store.enter(ARTIFACTS_DIR) as artifacts, naming(artifacts.path / _NAME):
        os.unlink(_NAME, dir_fd=artifacts.fd)
        sync_descriptor(artifacts.fd)


def has_mark(store: Directory) -> bool:
    """Tell whether a store has a mark."""
    with suppress(FileNotFoundError), store.enter(ARTIFACTS_DIR) as artifacts:
        os.stat(_NAME, dir_fd=artifacts.fd, follow_symlinks=False)
        return True
    return False
