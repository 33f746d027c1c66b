"""An artifact -> a plain model directory: model/ (or merged/) with the tokenizer.

every byte is verified -> a draft beside the directory -> one rename: there as a whole or not at all
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from data.system.drafts import make_draft
from pipeline.errors import StoreError
from pipeline.store.artifact import Artifact
from pipeline.store.disk import hash_file, make_directories, sync_directory, writing
from pipeline.store.manifest import FileEntry
from pipeline.store.parts import PARTS
from pipeline.store.store import Store
from stages.spec import EXIT_USAGE, EXIT_VERIFICATION, MERGED_DIR, MODEL_DIR

_README = "README.md"
_OTHER_README = "README.original.md"  # a model's own, where it has one
_STALE_S = 24 * 3600.0


def export_artifact(store: Store, ref: str, directory: Path, *, merged: bool, finish: Callable[[Artifact, Path], None]) -> Artifact:
    """Copy an artifact's model into a new directory.

    Args:
        store: Where it is.
        ref: Which one.
        directory: Where to; made, or empty.
        merged: The merged model, where there is one, in place of the adapter.
        finish: Called with the artifact and the draft before it gets its name: changes it, and writes its README.md.

    Raises:
        StoreError: the directory is not empty, or there is no such model (exit 2), the artifact is not there (exit 4) or damaged
            (exit 3), or the file system refused (exit 5). Nothing is left at `directory` then.
    """
    directory = directory.absolute()
    _require_free(directory)
    _require_elsewhere(store, directory)
    artifact = store.require_verified(store.get(ref).ref)
    entries = (merged and _list_part(artifact, MERGED_DIR)) or _list_part(artifact, MODEL_DIR)
    if not entries:
        found = f"found no {MODEL_DIR}/; one with a model is needed"
        raise StoreError(f"{artifact.ref}: {found}; see `rlhf show {artifact.ref}`", EXIT_USAGE)
    with writing(directory, sum(entry.size for entry in entries.values()), elsewhere="give another directory"):
        make_directories(directory.parent)
        with make_draft(directory, stale_s=_STALE_S) as draft:
            for name, entry in entries.items():
                target = draft / (_OTHER_README if name == _README else name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(artifact.path / entry.path, target)
                if hash_file(target) != (entry.size, entry.sha256):
                    raise StoreError(f"{artifact.path / entry.path}: changed while it was copied; run it again", EXIT_VERIFICATION)
            finish(artifact, draft)
            for path in [*draft.rglob("*"), draft]:
                _sync(path)
            _require_free(directory)
            draft.replace(directory)  # onto an empty directory too, and onto no other
            sync_directory(directory.parent)
    return artifact


def _list_part(artifact: Artifact, part: str) -> dict[str, FileEntry]:
    """List the files of model/ or merged/, by their names in it."""
    return {entry.path.removeprefix(f"{part}/"): entry for entry in artifact.manifest.files if entry.path.startswith(f"{part}/")}


def _require_free(directory: Path) -> None:
    if os.path.lexists(directory) and not (directory.is_dir() and not directory.is_symlink() and not any(directory.iterdir())):
        raise StoreError(f"{directory}: already there; a new or an empty directory is needed; choose another", EXIT_USAGE)


def _require_elsewhere(store: Store, directory: Path) -> None:
    below = Path(os.path.realpath(directory)).parts[len(Path(os.path.realpath(store.root)).parts) :]
    if below and below[0] in PARTS and Path(os.path.realpath(directory)).is_relative_to(os.path.realpath(store.root)):
        found = f"{directory}: found a place in {below[0]}/ of the store, which is its own"
        raise StoreError(f"{found}; a directory elsewhere is needed; choose another", EXIT_USAGE)


def _sync(path: Path) -> None:
    if path.is_dir():
        sync_directory(path)
    else:
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
