"""Aliases: names that people give to versions. One small file each, replaced in one step under a lock; `latest` is never stored."""

import getpass
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from pipeline.errors import StoreError
from pipeline.store.disk import locked, make_directories, read_bounded, replace_durably, writing
from pipeline.store.refs import check_alias, check_kind
from stages.blocks import Closed
from stages.spec import EXIT_MISSING, EXIT_VERIFICATION

ALIASES_DIR = "aliases"
_LOCK_FILE = ".lock"
_MAX_ALIAS_BYTES = 64 * 1024


class Alias(Closed):
    """A name for a version."""

    ref: str = Field(description="Kind and version.")
    content_id: str = Field(description="Of that version; guards against a version number that was removed and given again.")
    previous: str | None = Field(None, description="The ref before the last change.")
    by: str = Field(description="Who set it: a person or a run.")
    at: str = Field(description="ISO 8601, UTC.")


def user_name() -> str:
    """Name who runs this command; in many containers nobody has the user's number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def write_alias(root: Path, kind: str, name: str, *, ref: str, content_id: str, by: str) -> Alias:
    """Point a name to a version; of two writers at a time the later one sees the earlier one's ref as `previous`.

    Raises:
        StoreError: the name is no alias (exit 2), or the file system refused (exit 5).
    """
    path = _path(root, kind, name)
    with writing(path):
        make_directories(path.parent)
        with locked(root / ALIASES_DIR / _LOCK_FILE):
            previous = None
            # A damaged alias is mended by setting it anew.
            with suppress(StoreError):
                previous = read_alias(root, kind, name).ref
            alias = Alias(ref=ref, content_id=content_id, previous=previous, by=by, at=datetime.now(UTC).isoformat(timespec="seconds"))
            replace_durably(path, alias.model_dump_json(indent=1).encode() + b"\n")
    return alias


def read_alias(root: Path, kind: str, name: str) -> Alias:
    """Read an alias.

    Raises:
        StoreError: there is none (exit 4), or its file is damaged (exit 3).
    """
    path = _path(root, kind, name)
    try:
        return Alias.model_validate_json(read_bounded(path, _MAX_ALIAS_BYTES))
    except FileNotFoundError as error:
        known = ", ".join(sorted(list_aliases(root, kind))) or "none"
        message = f"no alias {name} of {kind}; known: {known}; set it, or take {kind}@latest"
        raise StoreError(message, EXIT_MISSING) from error
    except (OSError, ValueError) as error:
        reason = f"{error.error_count()} fields are wrong" if isinstance(error, ValidationError) else error
        raise StoreError(f"{path}: {reason}; an alias as the store writes it is needed; set it anew", EXIT_VERIFICATION) from error


def list_aliases(root: Path, kind: str) -> dict[str, Alias]:
    """Read the intact aliases of a kind by name."""
    aliases: dict[str, Alias] = {}
    with suppress(FileNotFoundError):
        for path in sorted((root / ALIASES_DIR / kind).iterdir()):
            if path.suffix == ".json" and not path.name.startswith("."):
                with suppress(StoreError):
                    aliases[path.stem] = read_alias(root, kind, path.stem)
    return aliases


def _path(root: Path, kind: str, name: str) -> Path:
    check_kind(kind)
    check_alias(name)
    return root / ALIASES_DIR / kind / f"{name}.json"
