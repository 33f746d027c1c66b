"""Aliases: names that people give to versions. One small file each, replaced in one step under a lock; `latest` is never stored."""

import getpass
import os
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from pipeline.errors import StoreError
from pipeline.store.directory import naming, open_root
from pipeline.store.disk import locked, read_bounded, reading, replace_durably, sync_descriptor, writing
from pipeline.store.manifest import Sha256, VersionRef
from pipeline.store.refs import check_alias, check_kind, is_alias, is_kind
from stages.blocks import Closed
from stages.spec import EXIT_MISSING, EXIT_VERIFICATION

ALIASES_DIR = "aliases"
_LOCK_FILE = ".lock"
_MAX_ALIAS_BYTES = 64 * 1024


class Alias(Closed):
    """A name for a version."""

    ref: VersionRef = Field(description="Kind and version.")
    content_id: Sha256 = Field(description="Of that version; guards against a version number that was removed and given again.")
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
    with writing(path), ExitStack() as stack:
        store = stack.enter_context(open_root(root, create=True))
        aliases = stack.enter_context(store.enter(ALIASES_DIR, create=True))
        directory = stack.enter_context(aliases.enter(kind, create=True))
        with naming(aliases.path / _LOCK_FILE):
            stack.enter_context(locked(_LOCK_FILE, dir_fd=aliases.fd))
        previous = None
        # A damaged alias is mended by setting it anew.
        with suppress(StoreError):
            previous = read_alias(root, kind, name).ref
        alias = Alias(ref=ref, content_id=content_id, previous=previous, by=by, at=datetime.now(UTC).isoformat(timespec="seconds"))
        replace_durably(path.name, alias.model_dump_json(indent=1).encode() + b"\n", dir_fd=directory.fd)
    return alias


def read_alias(root: Path, kind: str, name: str) -> Alias:
    """Read an alias.

    Raises:
        StoreError: there is none (exit 4), or its file is damaged (exit 3).
    """
    path = _path(root, kind, name)
    try:
        with reading(path), open_root(root) as store, store.enter(f"{ALIASES_DIR}/{kind}") as directory:
            return _parse(path, directory.fd)
    except FileNotFoundError as error:
        known = ", ".join(sorted(list_aliases(root, kind))) or "none"
        message = f"no alias {name} of {kind}; known: {known}; set it, or take {kind}@latest"
        raise StoreError(message, EXIT_MISSING) from error


def list_aliases(root: Path, kind: str) -> dict[str, Alias]:
    """Read the intact aliases of a kind by name."""
    check_kind(kind)
    aliases: dict[str, Alias] = {}
    directory_path = root / ALIASES_DIR / kind
    with suppress(FileNotFoundError), reading(directory_path), open_root(root) as store, store.enter(f"{ALIASES_DIR}/{kind}") as directory:
        for path in sorted(directory_path / name for name in directory.names()):
            if path.suffix == ".json" and is_alias(path.stem):
                with suppress(StoreError, FileNotFoundError):
                    aliases[path.stem] = _parse(path, directory.fd)
    return aliases


def list_alias_refs(root: Path) -> list[str]:
    """List all names that are given, damaged ones too, as refs: `ppo@best`."""
    refs: list[str] = []
    with suppress(FileNotFoundError), reading(root / ALIASES_DIR), open_root(root) as store, store.enter(ALIASES_DIR) as top:
        for kind in sorted(filter(is_kind, [*top.directories(), *top.links()])):
            with top.enter(kind) as directory:
                names = sorted(name.removesuffix(".json") for name in directory.names() if name.endswith(".json"))
            refs += [f"{kind}@{name}" for name in filter(is_alias, names)]
    return refs


def read_all_aliases(root: Path) -> dict[str, Alias]:
    """Read all aliases of a store by ref; for whoever must not miss one.

    Raises:
        StoreError: one is damaged (exit 3).
    """
    aliases: dict[str, Alias] = {}
    for ref in list_alias_refs(root):
        kind, _, name = ref.partition("@")
        aliases[ref] = read_alias(root, kind, name)
    return aliases


def remove_alias(root: Path, kind: str, name: str) -> None:
    """Forget a name; its version stays.

    Raises:
        StoreError: there is no such name (exit 4), or the file system refused (exit 5).
    """
    path = _path(root, kind, name)
    with writing(path), ExitStack() as stack:
        try:
            aliases = stack.enter_context(stack.enter_context(open_root(root)).enter(ALIASES_DIR))
            directory = stack.enter_context(aliases.enter(kind))
            with naming(aliases.path / _LOCK_FILE):
                stack.enter_context(locked(_LOCK_FILE, dir_fd=aliases.fd))
            with naming(path):
                os.unlink(path.name, dir_fd=directory.fd)
        except FileNotFoundError:
            pass
        else:
            sync_descriptor(directory.fd)
            return
    read_alias(root, kind, name)  # tells which there are


def _parse(path: Path, dir_fd: int) -> Alias:
    try:
        return Alias.model_validate_json(read_bounded(path.name, _MAX_ALIAS_BYTES, dir_fd=dir_fd))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = f"{error.error_count()} fields are wrong" if isinstance(error, ValidationError) else error
        reason = error.strerror if isinstance(error, OSError) else reason
        raise StoreError(f"{path}: {reason}; an alias as the store writes it is needed; set it anew", EXIT_VERIFICATION) from error


def _path(root: Path, kind: str, name: str) -> Path:
    check_kind(kind)
    check_alias(name)
    return root / ALIASES_DIR / kind / f"{name}.json"
