"""Which files a base model is made of: the weights that its directory names, here and further down, and what an adapter stands on."""

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, cast

from pipeline.errors import ConfigError, StoreError, escape_controls
from stages.adapter_base import locate_base
from stages.spec import ADAPTER_CONFIG, EXIT_MISSING, EXIT_RESOURCE, MERGED_DIR

_MAX_JSON_BYTES = 100_000_000
_INDEX = ".safetensors.index.json"


def pin_revision(model: str, revision: str | None) -> str | None:
    """Name the commit that a revision of a hub's model stands for now, so that all that is read is of one state.

    Returns:
        The commit; or the revision as it is: of a directory, and where neither the hub nor its cache tells.
    """
    if Path(model).is_absolute():
        return revision
    import huggingface_hub  # here, not at the top: few recipes name a hub's ids

    try:
        return huggingface_hub.HfApi().resolve_revision(model, revision=revision).resolved
    except Exception:  # no network, no such model: opening it tells what
        return revision


def list_weights(model: str) -> list[Path]:
    """List the safetensors files that loading a model directory reads, its own and those that it stands on; none of a hub's.

    Raises:
        ConfigError: It names weights outside of its directory, or its chain of adapters has no end (exit 2).
        StoreError: A file cannot be read (exit 5), or is not there (exit 4).
    """
    return list(_list_weights(model, ()))


def find_damage(path: Path) -> str | None:
    """Say what is wrong with a safetensors file that was cut or overwritten; None: its length is what its header says."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header: dict[str, Any] = json.loads(stream.read(length)) if length <= min(size, _MAX_JSON_BYTES) else {}
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            needed = 8 + length + max(ends, default=0)
        except (ValueError, RecursionError, AttributeError, LookupError, TypeError):
            ends, needed = [], 0
    if not ends:
        return f"found {size:,} bytes that are no safetensors file"
    return None if size == needed else f"found {size:,} bytes, needed {needed:,}"


def _list_weights(model: str, above: tuple[str, ...]) -> Iterator[Path]:
    directory = Path(model)
    if not directory.is_absolute():
        return
    named = [directory / name for name in name_weights(directory)]
    if below := find_below(model, None, above):
        yield from (path for path in [directory / "adapter_model.safetensors"] if path.is_file())
        yield from _list_weights(below[0], below[2])
        return
    whole = directory / "model.safetensors"
    for path in [whole] if whole.is_file() else named or sorted(directory.glob("*.safetensors")):
        if not path.is_file():
            raise StoreError(f"{path}: not there, needed as a part of the base model; copy it there", EXIT_MISSING)
        yield path


def find_below(model: str, revision: str | None, above: tuple[str, ...]) -> tuple[str, str | None, tuple[str, ...]] | None:
    """Find what a model that is an adapter stands on, as `stages.models.weights.find_base` does.

    Args:
        model: A directory, or a hub id.
        revision: Of a hub's model.
        above: The models that stand on it.

    Returns:
        (model, its revision, the models that stand on that); None: it is no adapter.

    Raises:
        ConfigError, StoreError: As `list_weights`.
    """
    path = Path(model) / ADAPTER_CONFIG if Path(model).is_absolute() else _find_in_hub(model, ADAPTER_CONFIG, revision)
    if path is None or not path.is_file():
        return None
    above = (*above, str(Path(model).resolve()) if Path(model).is_absolute() else model)
    merged = path.parent.parent / MERGED_DIR
    if Path(model).is_absolute() and merged.exists():
        base, revision = str(merged), None
    else:
        config = _read_json(path)
        named = config.get("base_model_name_or_path")
        if not isinstance(named, str) or not named:
            raise ConfigError(
                [f"{path}: base_model_name_or_path: found {named!r:.80}, needed the model that the adapter stands on; name it"]
            )
        named = locate_base(named, path.parent)
        if Path(named).is_absolute() and not Path(named).is_dir():
            found = f"found no directory {named}"
            raise StoreError(f"{path}: base_model_name_or_path: {found}, on which the adapter stands; mend the path", EXIT_MISSING)
        base = str(Path(named).absolute()) if Path(named).is_dir() else named
        revision = pin_revision(base, cast("str | None", config.get("revision")))
    if (str(Path(base).resolve()) if Path(base).is_absolute() else base) in above:
        raise ConfigError(
            [f"{path}: base_model_name_or_path: found {base}, which stands on this one again; name the model it was trained on"]
        )
    return base, revision, above


def _find_in_hub(model: str, name: str, revision: str | None) -> Path | None:
    """Get a small file of a hub's model; None where it has none, or none can be got."""
    hub: Any = import_module("huggingface_hub")  # partly typed
    try:
        return Path(hub.hf_hub_download(model, name, revision=revision))
    except Exception:  # no network, no such model: opening it tells what
        return None


def name_weights(directory: Path) -> list[str]:
    """Name the weights that the indexes and config.json of a directory list, those in it and those further down.

    Raises:
        ConfigError: One lies outside of it.
    """
    config_path = directory / "config.json"
    explicit = _read_json(config_path).get("transformers_weights") if config_path.is_file() else None
    indexes = [path.name for path in sorted(directory.glob(f"*{_INDEX}"))]
    names: dict[str, None] = {}
    if explicit is not None:
        name = _require_inside(explicit, f"{config_path}: transformers_weights")
        names[name] = None
        indexes += [name] if name.endswith(_INDEX) and name not in indexes else []
    for index in indexes:
        if (directory / index).is_file():
            weight_map = _read_json(directory / index).get("weight_map")
            shards = cast("dict[str, object]", weight_map) if isinstance(weight_map, dict) else {}
            for tensor, shard in shards.items():
                if shard not in names:
                    names[_require_inside(shard, f"{directory / index}: weight_map.{tensor}")] = None
    # An index beside a whole file is not read, and what it names need not be there.
    whole = (directory / "model.safetensors").is_file() and explicit is None
    return sorted(name for name in names if not name.endswith(_INDEX) and not (whole and not (directory / name).exists()))


def _require_inside(name: object, where: str) -> str:
    """Refuse the name of a file that does not lie below the model's directory."""
    path = PurePosixPath(name) if isinstance(name, str) and name and "\0" not in name else None
    if path is None or path.is_absolute() or ".." in path.parts:
        found = f"found {escape_controls(str(name))[:120]!r}"
        raise ConfigError([f"{where}: {found}, needed the name of a file inside the model's directory; copy it there and name it so"])
    return str(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"more than {_MAX_JSON_BYTES:,} bytes")
        content: object = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}")
        return cast("dict[str, Any]", content)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}; read permission needed; change its mode or owner", EXIT_RESOURCE) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{path}: found {error}, needed a JSON object; take the file as its maker wrote it"]) from error
