"""`.trash/`: where a version goes in one step, to be deleted there. So nothing is half removed, and the ledger says what happened.

<kind>-v0001-<uuid>        taken away, and the ledger may not say so yet: whoever opens it next writes the line
<kind>-v0001-<uuid>.gone   its line is written
.staging/<...>.trash       the same in place of the first, on a disk that has no room for one more directory
"""

import os
import re
import shutil
import stat
import uuid
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipeline.store.directory import Directory, list_directories, naming, open_root
from pipeline.store.disk import FULL, reading, sync_descriptor
from pipeline.store.parts import TRASH_DIR, removes
from pipeline.store.refs import SIGNATURE_SUFFIX, Ref, parse_version_directory, version_directory
from pipeline.store.staging import ARTIFACTS_DIR, STAGING_DIR

_NOTED, _IN_STAGING = ".gone", ".trash"
_TRASHED = re.compile(r"(?P<kind>[a-z][a-z0-9_-]{0,31})-(?P<version>v[0-9]{4,9})-[0-9a-f]{32}(?P<suffix>\.gone|\.trash)?")


def take_away(store: Directory, kind: str, version: int) -> str:
    """Rename what stands in a version's place into the trash, links and files too; where that fails all is as it was.

    Args:
        store: Its root.
        kind: Of the version.
        version: Its number.

    Returns:
        Its place now, relative to the store.

    Raises:
        OSError: the file system refused.
    """
    name = version_directory(version)
    with store.enter(f"{ARTIFACTS_DIR}/{kind}") as versions, _open_trash(store) as (part, trash), naming(versions.path / name):
        trashed = f"{kind}-{name}-{uuid.uuid4().hex}{_IN_STAGING if part == STAGING_DIR else ''}"
        with _writable(versions, name):
            os.rename(name, trashed, src_dir_fd=versions.fd, dst_dir_fd=trash.fd)
        sync_descriptor(trash.fd)
        sync_descriptor(versions.fd)
    return f"{part}/{trashed}"


@contextmanager
def _open_trash(store: Directory) -> Generator[tuple[str, Directory]]:
    with ExitStack() as stack:
        try:
            found = TRASH_DIR, stack.enter_context(store.enter(TRASH_DIR, create=True))
        except OSError as error:
            if error.errno not in FULL:
                raise
            found = STAGING_DIR, stack.enter_context(store.enter(STAGING_DIR))
        yield found


@contextmanager
def _writable(versions: Directory, name: str) -> Generator[None]:
    """Give a directory the right to write in it, which renaming it takes; where that failed it is taken again."""
    mode = os.stat(name, dir_fd=versions.fd, follow_symlinks=False).st_mode
    if not stat.S_ISDIR(mode):
        yield
        return
    with versions.enter(name) as directory:
        os.chmod(directory.fd, 0o700)  # noqa: PTH101
        try:
            yield
        except OSError:
            os.chmod(directory.fd, stat.S_IMODE(mode))  # noqa: PTH101
            raise


def list_unnoted(store: Directory) -> dict[str, str]:
    """List what was taken away and may not stand in the ledger yet: place -> ref. What is there again under its number is not listed."""
    found: dict[str, str] = {}
    for place, match in _list_trashed(store):
        number = parse_version_directory(match["version"])
        if match["suffix"] != _NOTED and number and not _is_there(store, match["kind"], match["version"]):
            found[place] = str(Ref(match["kind"], number))
    return found


def settle(store: Directory, place: str) -> str:
    """Say of what was taken away that it stands in the ledger, and drop the signature that it had, as far as that is allowed.

    Returns:
        Its place now.
    """
    part, _, name = place.partition("/")
    match = _TRASHED.fullmatch(name)
    assert match is not None
    settled = name.removesuffix(_IN_STAGING) + _NOTED
    with suppress(OSError), store.enter(f"{ARTIFACTS_DIR}/{match['kind']}") as versions:
        os.unlink(f"{match['version']}{SIGNATURE_SUFFIX}", dir_fd=versions.fd)
    with suppress(OSError), store.enter(part) as trash:
        os.rename(name, settled, src_dir_fd=trash.fd, dst_dir_fd=trash.fd)
        return f"{part}/{settled}"
    return place


def list_trash(root: Path) -> list[str]:
    """List what removals that were killed left, by place; nothing while one is at work."""
    with suppress(FileNotFoundError), reading(root / TRASH_DIR), open_root(root) as store:
        found = sorted(place for place, _ in _list_trashed(store))
        return [] if found and removes(store) else found
    return []


def delete_noted(store: Directory) -> None:
    """Delete what removals that were killed left and the ledger knows of; `artifacts/.lock` is held alone."""
    kept = list_unnoted(store)
    for place, _ in _list_trashed(store):
        if place not in kept:
            delete(store, place)


def delete(store: Directory, place: str, *, but_itself: bool = False) -> None:
    """Delete what lies in the trash, or all that is in it; what cannot be deleted is left to the next removal."""
    part, _, name = place.partition("/")
    with suppress(OSError), store.enter(part) as trash:
        if not stat.S_ISDIR(os.stat(name, dir_fd=trash.fd, follow_symlinks=False).st_mode):
            if not but_itself:
                os.unlink(name, dir_fd=trash.fd)
            return
        with trash.enter(name) as top:
            for below in list_directories(top):
                with top.enter(below) as directory:
                    os.chmod(directory.fd, 0o700)  # noqa: PTH101
            for inner in top.names() if but_itself else []:
                if inner in top.directories():
                    shutil.rmtree(inner, dir_fd=top.fd)
                else:
                    os.unlink(inner, dir_fd=top.fd)
        if not but_itself:
            shutil.rmtree(name, dir_fd=trash.fd)


def _list_trashed(store: Directory) -> Iterator[tuple[str, "re.Match[str]"]]:
    for part in (TRASH_DIR, STAGING_DIR):
        with suppress(FileNotFoundError), store.enter(part) as directory:
            for name in directory.names():
                match = _TRASHED.fullmatch(name)
                if match and (part == TRASH_DIR or match["suffix"]):
                    yield f"{part}/{name}", match


def _is_there(store: Directory, kind: str, name: str) -> bool:
    with suppress(FileNotFoundError), store.enter(f"{ARTIFACTS_DIR}/{kind}") as versions:
        os.stat(name, dir_fd=versions.fd, follow_symlinks=False)
        return True
    return False
