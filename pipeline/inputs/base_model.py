"""What a base model is: the part of a cache key that stands for its bytes, and its size for the estimate of disk space."""

import hashlib
import json
import struct
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.store.disk import hash_file
from stages.spec import EXIT_RESOURCE

# What from_pretrained reads; a README or a note beside it changes nothing.
_PATTERNS = ("*.json", "*.jinja", "additional_chat_templates/*.jinja", "*.model", "*.txt", "*.safetensors")
_MAX_HEADER_BYTES = 100_000_000


def identify_model(model: str, revision: str | None) -> str:
    """Name a base model by content: a directory by the sha256 of its files, a hub id by its revision.

    Raises:
        StoreError: A file cannot be read (exit 5).
    """
    directory = Path(model)
    if not directory.is_absolute():
        return f"hub:{model}@{revision or 'main'}"
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _PATTERNS for path in directory.glob(pattern)}):
        try:
            _, sha256 = hash_file(path.resolve())  # a hub cache is made of links
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}; read permission needed; change its mode or owner", EXIT_RESOURCE) from error
        digest.update(f"{path.name} {sha256}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def count_parameters(model: str) -> int | None:
    """Count the weights of a model directory from its safetensors headers; None where that cannot be told."""
    directory = Path(model)
    total = 0
    for path in directory.glob("*.safetensors") if directory.is_absolute() else ():
        try:
            with path.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                if length > _MAX_HEADER_BYTES:
                    return None
                header: dict[str, dict[str, list[int]]] = json.loads(stream.read(length))
            total += sum(_product(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
        except (OSError, ValueError, KeyError, struct.error):
            return None
    return total or None


def _product(shape: list[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
