"""Which artifacts may go, and how one goes: renamed into `.trash/` in one step, then deleted.

roots (aliases, the newest of each kind, what unfinished runs start from, what people have judged) -> their ancestors -> all others may go

Whoever begins to rely on an artifact (an alias, a stage that starts) holds `artifacts/.lock` with others; whoever removes holds it alone.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ResourceError, StoreError
from pipeline.store.aliases import list_alias_refs, read_all_aliases, remove_alias
from pipeline.store.artifact import Artifact, add_ancestors
from pipeline.store.directory import Directory, open_root
from pipeline.store.disk import is_full, read_bounded, reading, writing
from pipeline.store.ledger import open_ledger
from pipeline.store.parts import RUNS_DIR, TRASH_DIR, hold_artifacts
from pipeline.store.refs import Ref, parse_ref, parse_version_directory, version_directory
from pipeline.store.staging import ARTIFACTS_DIR
from pipeline.store.store import Store
from pipeline.store.trash import delete, delete_noted, list_unnoted, settle, take_away
from stages.spec import EXIT_USAGE, EXIT_VERIFICATION

_MODEL_PATH = re.compile(rf"/{ARTIFACTS_DIR}/([a-z][a-z0-9_-]*)/(v[0-9]+)/[a-z]+$")
_MAX_SPEC_BYTES = 8 * 1024 * 1024

FindSaid = Callable[[Store], Sequence[str]]


@dataclass(frozen=True)
class Removal:
    """What a collection would remove.

    Args:
        artifacts: Those that may go, each before what it was made from.
        damaged: Versions that cannot be read; they stay, as it is not known what they were made from.
        spared: Versions that stay for what people said of them alone, and what they were made from with them.
    """

    artifacts: list[Artifact]
    damaged: list[str]
    spared: Sequence[str] = ()

    @property
    def num_bytes(self) -> int:
        return sum(entry.size for artifact in self.artifacts for entry in artifact.manifest.files)


def plan_collection(store: Store, keep: int, find_said: FindSaid = lambda store: []) -> Removal:
    """Find what nothing needs any more; nothing is changed.

    Args:
        store: The store.
        keep: How many of the newest versions of each kind stay in any case.
        find_said: Finds versions of which people said what nothing else holds.

    Raises:
        StoreError: an alias, or the spec of an unfinished run, is damaged, so that it is not known what it needs (exit 3).
    """
    artifacts = {artifact.ref: artifact for artifact in store.list()}
    kept = [artifact for artifact in artifacts.values() if not store.find_withdrawal(artifact)]
    kinds = {artifact.kind for artifact in artifacts.values()}
    needed = {alias.ref for alias in read_all_aliases(store.root).values()} | set(_find_inputs_of_runs(store.root))
    for kind in kinds:
        needed |= {artifact.ref for artifact in [found for found in kept if found.kind == kind][-keep:]}
    needed = add_ancestors(needed, artifacts)
    spared = [ref for ref in find_said(store) if ref not in needed]
    needed = add_ancestors(needed | set(spared), artifacts)
    unneeded = [artifact for ref, artifact in artifacts.items() if ref not in needed]
    return Removal(_children_first(unneeded), [ref for ref in store.refs() if ref not in artifacts], spared)


def collect(store: Store, keep: int, find_said: FindSaid = lambda store: []) -> Removal:
    """Remove what `plan_collection` finds, and what an earlier removal left in `.trash/`.

    Raises:
        StoreError: as `plan_collection`; or the file system refused (exit 5).
    """
    if not store.refs():
        return Removal([], [])
    with hold_artifacts(store.root, alone=True):
        removal = plan_collection(store, keep, find_said)
        for artifact in removal.artifacts:
            _remove_version(store.root, artifact.kind, artifact.version)
        empty_trash(store.root)
    return removal


def remove(store: Store, names: Sequence[str]) -> list[str]:
    """Remove versions (`sft@v1`), damaged ones too, and names (`sft@best`, whose version stays); return what is gone.

    Raises:
        StoreError: what is named is no version and no alias, or is needed by what stays (exit 2), is not there (exit 4), or the file system
            refused (exit 5). Nothing is removed then but what stood before it.
    """
    refs = [_require_explicit(name) for name in names]
    aliases = {str(ref): (ref.kind, ref.alias) for ref in refs if ref.alias}
    versions = [ref for ref in refs if ref.version is not None]
    there = [*store.refs(), *list_alias_refs(store.root)]
    for ref in refs:
        if str(ref) not in there:
            store.get(str(ref))  # tells what there is
    with hold_artifacts(store.root, alone=True):
        _require_unneeded(store, {str(ref) for ref in versions}, aliases.keys())
        for kind, name in aliases.values():
            remove_alias(store.root, kind, str(name))
        known = {artifact.ref: artifact for artifact in store.list()}
        ordered = _children_first([known[str(ref)] for ref in versions if str(ref) in known])
        damaged = [ref for ref in versions if str(ref) not in known]
        gone = [Ref(artifact.kind, artifact.version) for artifact in ordered] + damaged
        for ref in gone:
            assert ref.version is not None
            _remove_version(store.root, ref.kind, ref.version)
        empty_trash(store.root)
    return [*aliases, *map(str, gone)]


def _require_explicit(name: str) -> Ref:
    ref = parse_ref(name)
    if not isinstance(ref, Ref) or (ref.version is None and ref.alias is None):
        raise StoreError(f"{name}: found no version; needed one, such as sft@v1, or the name of one, such as sft@best", EXIT_USAGE)
    return ref


def _require_unneeded(store: Store, going: Collection[str], aliases_going: Collection[str]) -> None:
    for artifact in store.list():
        for parent in artifact.manifest.parents:
            if parent.ref in going and artifact.ref not in going:
                raise StoreError(f"{parent.ref}: {artifact.ref} was made from it; remove that too, or keep this", EXIT_USAGE)
    for name, alias in read_all_aliases(store.root).items():
        if alias.ref in going and name not in aliases_going:
            raise StoreError(f"{alias.ref}: {name} names it; remove that name too, or set it anew", EXIT_USAGE)
    if needed := sorted(set(_find_inputs_of_runs(store.root)) & set(going)):
        raise StoreError(
            f"{needed[0]}: a run that is not finished starts from it; let it end, or remove its directory in {RUNS_DIR}/", EXIT_USAGE
        )


def _find_inputs_of_runs(root: Path) -> Iterator[str]:
    """Yield the artifacts from which runs start that are at work, or were stopped and may go on: those that have checkpoints/."""
    with suppress(FileNotFoundError), reading(root / RUNS_DIR), open_root(root) as store, store.enter(RUNS_DIR) as runs:
        for name in runs.directories():
            with runs.enter(name) as run_dir:
                if "checkpoints" in run_dir.directories():
                    yield from _read_inputs(run_dir)


def _read_inputs(run_dir: Directory) -> list[str]:
    try:
        models = json.loads(read_bounded("spec.json", _MAX_SPEC_BYTES, dir_fd=run_dir.fd))["models"]
        found = [_MODEL_PATH.search(path) for path in models.values()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        message = f"{run_dir.path}: the spec of a run that is not finished cannot be read, so it is not known what it starts from"
        raise StoreError(f"{message}; a readable one is needed; let it run, or remove that directory", EXIT_VERIFICATION) from error
    versions = [(match[1], parse_version_directory(match[2])) for match in found if match]
    return [str(Ref(kind, version)) for kind, version in versions if version]


def _children_first(artifacts: Sequence[Artifact]) -> list[Artifact]:
    """Order artifacts so that none comes after what it was made from: a crash in between leaves no child without its parents."""
    left = {artifact.ref: artifact for artifact in artifacts}
    ordered: list[Artifact] = []
    while left:
        parents = {parent.ref for artifact in left.values() for parent in artifact.manifest.parents}
        free = [ref for ref in left if ref not in parents] or list(left)  # forged ones may go round in a circle
        ordered += [left.pop(ref) for ref in free]
    return ordered


def _remove_version(root: Path, kind: str, version: int) -> None:
    """Take a version away, say so in the ledger, delete it: after a crash in between, who opens the ledger next writes the line."""
    with writing(root / ARTIFACTS_DIR / kind / version_directory(version)), open_root(root) as store:
        place = ""
        try:
            with open_ledger(root) as append:  # held, so that nobody gives the number again before the line is there
                place = take_away(store, kind, version)
                append("remove", str(Ref(kind, version)))
                place = settle(store, place)
        except ResourceError as error:
            if not is_full(error):
                raise
            place = place or take_away(store, kind, version)
            delete(store, place, but_itself=True)  # who removes wants room, which the line needs too
            empty_trash(root)
        else:
            delete(store, place)


def empty_trash(root: Path) -> None:
    """Delete what removals that were killed left in the trash; `artifacts/.lock` is held alone.

    Raises:
        ResourceError: the ledger does not know of one of them, and cannot be written (exit 5).
    """
    with suppress(FileNotFoundError), reading(root / TRASH_DIR), open_root(root) as store:
        if list_unnoted(store):
            with open_ledger(root):  # which writes what is missing
                pass
        delete_noted(store)
