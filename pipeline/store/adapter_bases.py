"""Whether the model on which an imported adapter stands is there: an artifact is never written again, so no wrong name in it is mended."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.store.disk import read_bounded
from stages.adapter_base import locate_base
from stages.spec import ADAPTER_CONFIG

_HUB_ID = re.compile(r"[\w-][\w.-]{0,95}(/[\w-][\w.-]{0,95})?")
_NEEDED = "needed the model that the adapter stands on"
_MAX_CONFIG_BYTES = 64 * 1024 * 1024
_KEY = "base_model_name_or_path"


def find_missing_base(adapter: Path) -> str | None:
    """Say of an adapter's directory what it stands on and is not there; None: it is, or a hub may have it, or this is no adapter.

    What it stands on may be an adapter itself, and so on; a circle is told too.
    """
    seen = list[Path]()
    while (config := adapter / ADAPTER_CONFIG).is_file():
        seen.append(adapter.resolve())
        fields: dict[str, Any] = {}
        with suppress(OSError, ValueError, TypeError, RecursionError):
            fields = dict(json.loads(read_bounded(config.resolve(), _MAX_CONFIG_BYTES)))
        named: object = fields.get(_KEY)
        if not isinstance(named, str) or not named:
            return f"{config}: {_KEY}: found {named!r:.80}; {_NEEDED}; write its directory or hub id there"
        try:
            base = Path(locate_base(named, adapter))
            is_there = base.is_dir()
        except OSError:  # a name that is too long, a directory that may not be looked into
            base, is_there = Path(named), False
        if not is_there:
            return None if not base.is_absolute() and _may_come(named, fields.get("revision")) else _describe(config, named)
        if not any((base / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
            return f"{config}: {_KEY}: found no config.json in {named:.300}; {_NEEDED}; copy it there whole, and import again"
        if base.resolve() in seen:
            return f"{config}: {_KEY}: found {named}, which stands on this one again; write there the model that it was trained on"
        adapter = base
    return None


def _may_come(named: str, revision: object) -> bool:
    """Whether a name is an id that a hub may have, or that is in its cache where the network may not be asked."""
    if not _HUB_ID.fullmatch(named) or ".." in named:
        return False
    import huggingface_hub  # here, not at the top: most adapters name a directory
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        return True
    found = huggingface_hub.try_to_load_from_cache(named, "config.json", revision=revision if isinstance(revision, str) else None)
    return isinstance(found, str)


def _describe(config: Path, named: str) -> str:
    what = (
        "directory" if Path(named).is_absolute() or not _HUB_ID.fullmatch(named) else "directory, nor model in the hub's cache (offline),"
    )
    return f"{config}: {_KEY}: found no {what} {named:.300}; {_NEEDED}; copy it there, or write there where it is, and import again"
