"""The model on which an adapter stands: where its config says, or in the store with which both were moved or pulled; torch-free."""

import json
from contextlib import suppress
from pathlib import Path

from stages.spec import ADAPTER_CONFIG

_ARTIFACTS_DIR, _MANIFEST_FILE = "artifacts", "manifest.json"  # as pipeline.store has them


def read_base(adapter: Path) -> tuple[str, str | None]:
    """Read (directory or hub id, its revision) of what an adapter's directory stands on; FileNotFoundError where it is no adapter."""
    config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return locate_base(config["base_model_name_or_path"], adapter), config.get("revision")


def locate_base(named: str, adapter: Path) -> str:
    """Find what an adapter's config names by a path that is not there any more: `.../artifacts/sft/v0001/merged` of its own store.

    peft writes whole paths, and an artifact is never written again. The other artifact must be the one that the adapter's own manifest
    names as a parent, by its content: an adapter that was imported names one of another store, which may bear the same number here.

    Returns:
        The directory here; what is named, where that is there, a hub's, or no such artifact.
    """
    path = Path(named)
    if not path.is_absolute() or path.exists() or len(path.parts) < 5 or path.parts[-4] != _ARTIFACTS_DIR:
        return named
    kind, version, part = path.parts[-3:]
    artifact = adapter.resolve().parent
    other = artifact.parents[1] / kind / version
    with suppress(OSError, ValueError, LookupError, TypeError):
        content_id = json.loads((other / _MANIFEST_FILE).read_bytes())["content_id"]
        parents = json.loads((artifact / _MANIFEST_FILE).read_bytes())["parents"]
        if content_id in [parent["content_id"] for parent in parents] and (other / part).is_dir():
            return str(other / part)
    return named
