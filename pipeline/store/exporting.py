"""An artifact -> a plain model directory: model/ (or merged/) with the tokenizer, and a README.md of where it is from.

every byte is verified -> a draft beside the directory -> one rename: there as a whole or not at all
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from data.system.drafts import make_draft
from pipeline.errors import StoreError
from pipeline.store.artifact import Artifact
from pipeline.store.disk import hash_file, make_directories, sync_directory, writing
from pipeline.store.store import Store
from pipeline.text import clean, format_number
from stages.spec import EXIT_USAGE, EXIT_VERIFICATION, MERGED_DIR, MODEL_DIR

_README = "README.md"
_OTHER_README = "README.original.md"  # a model's own, where it has one
_STALE_S = 24 * 3600.0


def export_artifact(store: Store, ref: str, directory: Path, *, merged: bool) -> Artifact:
    """Copy an artifact's model into a new directory.

    Args:
        store: Where it is.
        ref: Which one.
        directory: Where to; made, or empty.
        merged: The merged model, in place of the adapter.

    Raises:
        StoreError: the directory is not empty, or there is no such model (exit 2), the artifact is not there (exit 4) or damaged
            (exit 3), or the file system refused (exit 5). Nothing is left at `directory` then.
    """
    directory = directory.absolute()
    _require_free(directory)
    artifact = store.require_verified(store.get(ref).ref)
    part = MERGED_DIR if merged else MODEL_DIR
    entries = {entry.path.removeprefix(f"{part}/"): entry for entry in artifact.manifest.files if entry.path.startswith(f"{part}/")}
    if not entries:
        kinds = "lora.merge: true makes one" if merged else "one with a model is needed"
        raise StoreError(f"{artifact.ref}: found no {part}/; {kinds}; see `rlhf show {artifact.ref}`", EXIT_USAGE)
    with writing(directory, sum(entry.size for entry in entries.values())):
        make_directories(directory.parent)
        with make_draft(directory, stale_s=_STALE_S) as draft:
            for name, entry in entries.items():
                target = draft / (_OTHER_README if name == _README else name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(artifact.path / entry.path, target)
                if hash_file(target) != (entry.size, entry.sha256):
                    raise StoreError(f"{artifact.path / entry.path}: changed while it was copied; run it again", EXIT_VERIFICATION)
            (draft / _README).write_text("\n".join(_describe(store, artifact, part)) + "\n", encoding="utf-8")
            for path in [*draft.rglob("*"), draft]:
                _sync(path)
            _require_free(directory)
            draft.replace(directory)  # onto an empty directory too, and onto no other
            sync_directory(directory.parent)
    return artifact


def _require_free(directory: Path) -> None:
    if os.path.lexists(directory) and not (directory.is_dir() and not directory.is_symlink() and not any(directory.iterdir())):
        raise StoreError(f"{directory}: already there; a new or an empty directory is needed; choose another", EXIT_USAGE)


def _sync(path: Path) -> None:
    if path.is_dir():
        sync_directory(path)
    else:
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def _describe(store: Store, artifact: Artifact, part: str) -> Iterator[str]:
    """Write the README, line by line."""
    manifest = artifact.manifest
    yield f"# {artifact.ref}"
    yield ""
    yield f"The {'merged model' if part == MERGED_DIR else 'model'} of artifact `{artifact.ref}`, content id `{artifact.content_id}`,"
    yield f"published {manifest.created_utc} by `rlhf` (SFT, reward model, PPO)."
    if manifest.imported is not None:
        came = f", where it was `{manifest.imported.ref}`" if manifest.imported.ref else ""
        yield f"It was imported into that store from elsewhere{came}; no stage there made it."
    yield ""
    facts = {name: value for name, value in manifest.facts.items() if value is not None}
    if base := facts.get("base_model"):
        yield f"- base model: {_code(_short(str(base)))}"
    if "form" in facts:
        yield f"- form: {_code(str(facts['form']))}, {_code(str(facts.get('architecture', '')))}"
    for name in ("score_bias", "score_scale"):
        if name in facts:
            yield f"- {name}: {_code(str(facts[name]))} (score = (logit - score_bias) / score_scale)"
    if manifest.code.commit:
        yield f"- code: {_code(manifest.code.commit)}{' with changes' if manifest.code.dirty else ''}"
    yield from (f"- data {_code(name)}: {_code(value)}" for name, value in sorted(manifest.data.items()))
    yield from (f"- {_code(name)}: {format_number(value)}" for name, value in sorted(manifest.metrics.items()) if name.startswith("eval/"))
    lineage = store.lineage(artifact.ref)
    yield from ("", "## Lineage", "") if lineage else ()
    yield from (f"- `{parent.ref}`, content id `{parent.content_id}`" for parent in lineage)


def _short(model: str) -> str:
    """Name a base model without the directories of this machine."""
    return Path(model).name if Path(model).is_absolute() else model


def _code(text: str) -> str:
    return f"`{clean(text).replace('`', chr(39))}`"
