"""A directory from elsewhere -> an artifact of this store, which says that it was imported.

An artifact's directory (with its manifest): every byte is compared, then it keeps what its manifest says. Of its parents those are kept
that this store has with the same content, under their names here.
A plain model directory (safetensors, config, tokenizer): becomes model/; nothing is claimed of it.

Neither has a cache key: no run reuses what it did not make, or pull, by itself.
"""

import json
import os
import re
import stat
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open

from pipeline.errors import StoreError, escape_controls
from pipeline.store.adapter_bases import find_missing_base
from pipeline.store.aliases import user_name
from pipeline.store.artifact import Artifact
from pipeline.store.directory import Directory, list_tree, naming, open_root
from pipeline.store.disk import hash_file, read_bounded, reading, writing
from pipeline.store.manifest import MANIFEST_FILE, Imported, Manifest, ManifestFields, Parent, check_file_name, read_sealed_manifest
from pipeline.store.store import Store
from stages.spec import EXIT_MISSING, EXIT_USAGE, EXIT_VERIFICATION, MERGED_DIR, MODEL_DIR

_CONFIGS = ("config.json", "adapter_config.json")
_MAX_CONFIG_BYTES = 64 * 1024 * 1024
_CHUNK_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class Import:
    """What was imported, and what of the directory was not."""

    artifact: Artifact
    notes: list[str]


def import_directory(store: Store, directory: Path, kind: str | None) -> Import:
    """Publish a copy of a directory as the next version of a kind.

    Args:
        store: Where to.
        directory: A model directory, or an artifact's directory.
        kind: Of a model; None: `rm` where its config names a sequence classifier, `sft` where a language model. Of an artifact: its own.

    Raises:
        StoreError: there is no such directory, or not the model on which an adapter stands (exit 4), its kind is another or cannot be told
            (exit 2), a file is refused or damaged (exit 3), or the file system refused (exit 5). Nothing is published then.
    """
    directory = directory.absolute()
    try:
        with reading(directory), open_root(directory) as source:
            if MANIFEST_FILE in source.names():
                return _import_artifact(store, source, kind)
            return _import_model(store, source, kind)
    except FileNotFoundError as error:
        message = f"{error.filename or directory}: not there; a model's directory, or an artifact's, is needed"
        raise StoreError(message, EXIT_MISSING) from error


def _import_artifact(store: Store, source: Directory, kind: str | None) -> Import:
    manifest = read_sealed_manifest(source)[0]
    if kind not in (None, manifest.kind):
        raise StoreError(f"{source.path}: found kind {manifest.kind}, needed {kind}; leave --kind away", EXIT_USAGE)
    names = {entry.path for entry in manifest.files}
    found = dict(list_tree(source))
    if odd := sorted(found.keys() - names - {MANIFEST_FILE}) + sorted(name for name in found if not found[name]):
        raise StoreError(f"{source.path / odd[0]}: not a file of its manifest; only those are imported; remove it", EXIT_VERIFICATION)
    parents, notes = _find_parents(store, manifest)
    kept = {name: getattr(manifest, name) for name in ManifestFields.model_fields}
    origin = _origin(source, ref=manifest.ref, content_id=manifest.content_id, created_utc=manifest.created_utc)
    fields = ManifestFields.model_validate(kept | {"parents": parents, "cache_key": None, "run_id": None, "imported": origin})
    with store.staging(manifest.kind) as staging, writing(staging.path, sum(entry.size for entry in manifest.files)):
        _copy(source, staging.path, [(name, name) for name in sorted(names)])
        for entry in manifest.files:
            if hash_file(staging.path / entry.path) != (entry.size, entry.sha256):
                raise StoreError(f"{source.path / entry.path}: not as its manifest says; take an intact copy", EXIT_VERIFICATION)
        artifact = store.publish(staging, fields)
    # It keeps what its manifest says, and its parents may be imported after it, which only it would have to be once more.
    missing = None if (artifact.path / MERGED_DIR).is_dir() else find_missing_base(artifact.model_path)
    return Import(artifact, [*notes, f"it does not open here: {missing}"] if missing else notes)


def _find_parents(store: Store, manifest: Manifest) -> tuple[list[Parent], list[str]]:
    """Find the parents in this store by content, and name those that it does not have."""
    parents: list[Parent] = []
    notes: list[str] = []
    there = store.list() if manifest.parents else []
    for parent in manifest.parents:
        same = [artifact for artifact in there if (artifact.kind, artifact.content_id) == (parent.kind, parent.content_id)]
        if same:
            parents.append(Parent(ref=same[-1].ref, content_id=parent.content_id))
        else:
            notes.append(
                f"made from {parent.ref} ({parent.content_id[:12]}), which is not in this store; import that first to have it as parent"
            )
    return parents, notes


def _import_model(store: Store, source: Directory, kind: str | None) -> Import:
    names = [name for name, _ in list_tree(source)]
    hidden = {name.split("/")[0] for name in names if name.startswith(".")}
    names = [name for name in names if not name.startswith(".")]
    total = _check_model(source, names)
    if missing := find_missing_base(source.path):
        raise StoreError(f"not imported: {missing}", EXIT_MISSING)
    kind, notes = (kind, []) if kind else _guess_kind(source, names)
    fields = ManifestFields.model_validate({"imported": _origin(source)})
    with store.staging(kind) as staging, writing(staging.path, total):
        _copy(source, staging.path, [(name, f"{MODEL_DIR}/{name}") for name in names], links=True)
        for name in names:
            if name.endswith(".safetensors"):
                _check_weights(staging.path / MODEL_DIR / name, source.path / name)
        return Import(store.publish(staging, fields), [*notes, *(f"left out: {name}" for name in sorted(hidden))])


def _check_model(source: Directory, names: list[str]) -> int:
    """Refuse what is no model, or holds what may run code; returns its bytes."""
    problems: list[str] = []
    for name in names:
        try:
            check_file_name(name)
            _resolve(source, name)
        except ValueError as error:
            problems.append(f"{source.path}: {error}")
    if not any(config in names for config in _CONFIGS):
        problems.append(f"{source.path}: found no config.json; a model's directory, as save_pretrained writes it, is needed")
    elif not any(name.endswith(".safetensors") for name in names):
        problems.append(f"{source.path}: found no weights in *.safetensors; save them as safetensors")
    for index in (name for name in names if name.endswith(".safetensors.index.json")):
        missing = sorted(set(_texts(_read_json(source, index).get("weight_map"))) - set(names))
        problems += [f"{source.path / index}: names {shard}, which is not there; take the whole model" for shard in missing]
    if problems:
        raise StoreError("not imported: " + " | ".join(problems[:20]), EXIT_VERIFICATION)
    return sum(_resolve(source, name).stat().st_size for name in names)


def _resolve(source: Directory, name: str) -> Path:
    """Follow a link as a hub's cache makes them (`../../blobs/<hash>`), and no other."""
    path = source.path / name
    try:
        target = path.resolve()
    except RuntimeError:  # links that go round in a circle
        raise ValueError(f"{name!r}: a link that leads nowhere; copy the file there") from None
    own, blobs = source.path.resolve(), (source.path.resolve() / "../../blobs").resolve()
    if not target.is_relative_to(own) and target.parent != blobs:
        raise ValueError(f"{name!r}: a link to {target}, outside of the model; copy the file there")
    if not stat.S_ISREG(target.stat().st_mode):
        raise ValueError(f"{name!r}: pipes, devices and links to directories are refused; leave it out")
    return target


def _guess_kind(source: Directory, names: list[str]) -> tuple[str, list[str]]:
    """Take a model for a reward model or a policy by its head; returns the kind, and by what it was taken for it.

    Raises:
        StoreError: It cannot be told (exit 2).
    """
    config, adapter = (_read_json(source, name) for name in _CONFIGS)
    heads = [*_texts(config.get("architectures")), *_texts([adapter.get("task_type")])]
    extra = sorted(
        {head for name in names if name.endswith(".safetensors") for head in _find_heads(_resolve(source, name), source.path / name)}
    )
    scores = any(name.endswith(("ForSequenceClassification", "RewardModel")) or name == "SEQ_CLS" for name in heads)
    writes = any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) or name == "CAUSAL_LM" for name in heads)
    if scores == writes or (writes and extra):
        found = ", ".join([*heads, *(f"the tensor {name}" for name in extra)]) or "neither architectures nor a task_type in its config"
        needed = "needed a sequence classifier (rm) or a language model (sft, ppo)"
        raise StoreError(f"{source.path}: found {found}, {needed} to tell its kind by; give --kind", EXIT_USAGE)
    kind, other = ("rm", "a policy") if scores else ("sft", "ppo or pretrain")
    return kind, [f"taken for {kind}, as its config names {', '.join(heads):.200}; for {other} give --kind"]


def _find_heads(path: Path, told: Path) -> list[str]:
    """Name the tensors of a file that make a number of a response, as TRL's value head does; at most one."""
    _check_weights(path, told)
    opened: Any = safe_open(path, framework="numpy")
    with opened as weights:
        names: list[str] = list(weights.keys())
    return [name for name in names if re.search(r"(^|\.)(v_head|value_head|score|reward_head)\.", name)][:1]


def _texts(value: Any) -> list[str]:
    """List the texts in a list, or among a dictionary's values."""
    items = (
        cast("dict[Any, Any]", value).values() if isinstance(value, dict) else cast("list[Any]", value) if isinstance(value, list) else ()
    )
    return [item for item in items if isinstance(item, str)]


def _read_json(source: Directory, name: str) -> dict[str, Any]:
    path = source.path / name
    try:
        found = json.loads(read_bounded(_resolve(source, name), _MAX_CONFIG_BYTES))
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: {error}; a JSON object is needed; take an intact copy", EXIT_VERIFICATION) from error
    return cast("dict[str, Any]", found)


def _check_weights(path: Path, told: Path) -> None:
    try:
        with safe_open(path, framework="numpy"):  # reads the header, and compares it with the size
            pass
    except (SafetensorError, ValueError) as error:
        raise StoreError(f"{told}: {error}; weights in safetensors are needed; take an intact copy", EXIT_VERIFICATION) from error


def _copy(source: Directory, target: Path, names: Iterable[tuple[str, str]], *, links: bool = False) -> None:
    with ExitStack() as stack:
        top = stack.enter_context(open_root(target))
        for name, new in names:
            with top.enter(new.rpartition("/")[0], create=True) as directory, naming(target / new):
                with naming(source.path / name):
                    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
                    reader = stack.enter_context(open(os.open(_resolve(source, name) if links else source.path / name, flags), "rb"))  # noqa: PTH123
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                with open(os.open(new.rpartition("/")[2], flags, 0o666, dir_fd=directory.fd), "wb") as copy:  # noqa: PTH123
                    while chunk := _read(reader, source.path / name):
                        copy.write(chunk)
                reader.close()


def _read(stream: BufferedReader, path: Path) -> bytes:
    with naming(path):
        return stream.read(_CHUNK_BYTES)


def _origin(source: Directory, **of_manifest: str) -> Imported:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Imported(path=escape_controls(str(source.path)), by=escape_controls(user_name()), at=now, **of_manifest)
