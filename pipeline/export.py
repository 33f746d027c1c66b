"""An artifact -> a plain Hugging Face model: merged, cast, with its card.

every byte is verified -> a draft beside the directory -> stages.merge in a child process, where it needs torch -> README.md
(pipeline.card) -> one rename: there as a whole or not at all
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from data.system.drafts import make_draft
from pipeline.card import write_card
from pipeline.errors import StoreError
from pipeline.launch.dialogue import last_said, run_program
from pipeline.store.artifact import Artifact
from pipeline.store.disk import hash_file, make_directories, sync_directory, writing
from pipeline.store.manifest import FileEntry
from pipeline.store.parts import PARTS
from pipeline.store.store import Store
from stages.adapter_base import read_base
from stages.spec import ADAPTER_CONFIG, EXIT_OK, EXIT_USAGE, EXIT_VERIFICATION, MERGED_DIR, MODEL_DIR

Dtype = Literal["bfloat16", "float16", "float32"]
_README = "README.md"
_OTHER_README = "README.original.md"  # a model's own, where it has one
_STALE_S = 24 * 3600.0


def export(
    store: Store, ref: str, directory: Path, *, merge: bool, dtype: Dtype | None = None, told: Callable[[str], None] = lambda step: None
) -> Artifact:
    """Write an artifact's model, with its tokenizer, into a new directory.

    Args:
        store: Where it is.
        ref: Which one.
        directory: Where to; made, or empty.
        merge: A whole model in place of an adapter: merged/ where it was made, else merged now.
        dtype: Write the weights in this precision; None: as they are.
        told: Hears of each step that takes long with a large model.

    Raises:
        StoreError: the directory is not empty, or there is no such model (exit 2), the artifact or the adapter's base is not there (exit 4)
            or damaged (exit 3), or the file system refused (exit 5). Nothing is left at `directory` then.
    """
    told(f"{ref}: copying it, every byte verified")
    directory = directory.absolute()
    _require_free(directory)
    _require_elsewhere(store, directory)
    artifact = store.require_verified(store.get(ref).ref)
    entries = (merge and _list_part(artifact, MERGED_DIR)) or _list_part(artifact, MODEL_DIR)
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
            _change(artifact, draft, told, merge=merge, dtype=dtype)
            card = write_card(store, artifact, whole=not (draft / ADAPTER_CONFIG).exists(), dtype=dtype)
            (draft / _README).write_text(card, encoding="utf-8")
            for path in [*draft.rglob("*"), draft]:
                _sync(path)
            _require_free(directory)
            draft.replace(directory)  # onto an empty directory too, and onto no other
            sync_directory(directory.parent)
    return artifact


def _change(artifact: Artifact, draft: Path, told: Callable[[str], None], *, merge: bool, dtype: Dtype | None) -> None:
    """Merge and cast what was copied, in a child process; of an adapter that stays one, name the base."""
    arguments: list[str] = []
    if merge and (draft / ADAPTER_CONFIG).exists():
        kind = "reward_model" if artifact.kind == "rm" else "policy"
        arguments += ["--merge", str(artifact.model_path), "--kind", kind]
    elif (draft / ADAPTER_CONFIG).exists():
        _name_base(draft / ADAPTER_CONFIG, artifact.model_path)
    if dtype:
        arguments += ["--dtype", dtype]
    if not arguments:
        return
    steps = ["merging the adapter into its base"] * ("--merge" in arguments) + [f"writing weights in {dtype}"] * (dtype is not None)
    told(f"{artifact.ref}: {', '.join(steps)}")
    base = artifact.manifest.facts.get("base_model")
    done = run_program("stages.merge", str(draft), *arguments, offline=Path(str(base)).is_absolute())
    if done.returncode != EXIT_OK:
        reason = last_said(done) or f"its process ended with exit code {done.returncode}"
        raise StoreError(f"{artifact.ref}: {reason}", done.returncode if done.returncode > 0 else 1)


def _name_base(config: Path, adapter: Path) -> None:
    """Have an adapter's copy name its base where that is, though the store was moved since it was trained."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    if (base := read_base(adapter)[0]) != settings.get("base_model_name_or_path"):
        config.write_text(json.dumps(settings | {"base_model_name_or_path": base}, indent=2), encoding="utf-8")


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
