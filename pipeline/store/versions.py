"""Which kinds and versions a store holds, and each of them as it is loaded: what is damaged is told of, not left out."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.store.artifact import Artifact, load_artifact
from pipeline.store.directory import Directory, open_root
from pipeline.store.disk import reading
from pipeline.store.refs import Ref, check_kind, is_kind, parse_version_directory
from pipeline.store.staging import ARTIFACTS_DIR


@contextmanager
def open_kind(root: Path, kind: str) -> Generator[Directory]:
    """Open a kind's directory to read.

    Raises:
        FileNotFoundError: there is none.
        ResourceError: a link stands in its place, or it cannot be read (exit 5).
    """
    check_kind(kind)
    with reading(root / ARTIFACTS_DIR / kind), open_root(root) as store, store.enter(f"{ARTIFACTS_DIR}/{kind}") as kind_directory:
        yield kind_directory


def list_kinds(root: Path) -> list[str]:
    """List the kinds that have a directory, in order."""
    with suppress(FileNotFoundError), reading(root), open_root(root) as store, store.enter(ARTIFACTS_DIR) as artifacts:
        return sorted(filter(is_kind, [*artifacts.directories(), *artifacts.links()]))  # of a link it is told that it is one
    return []


def list_versions(root: Path, kind: str) -> list[int]:
    """List the numbers of a kind's version directories, in order."""
    check_kind(kind)
    with suppress(FileNotFoundError), open_kind(root, kind) as kind_directory:
        return sorted(filter(None, map(parse_version_directory, kind_directory.names())))
    return []


def load_each(root: Path, kind: str | None = None, *, newest_first: bool = False) -> Iterator[tuple[str, Artifact | StoreError]]:
    """Yield the ref of each version, of one kind or of all in order, and what it is, or what is wrong with it."""
    for name in list_kinds(root) if kind is None else [kind]:
        if versions := list_versions(root, name):
            with open_kind(root, name) as kind_directory:
                for version in reversed(versions) if newest_first else versions:
                    try:
                        yield str(Ref(name, version)), load_artifact(kind_directory, version)
                    except StoreError as error:
                        yield str(Ref(name, version)), error
