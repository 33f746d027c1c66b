"""Sources on disk, and the demo's real tokenizer."""

import json
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Source:
    """What `data.load` needs of a source."""

    path: str
    split: str | None = None
    subset: str | None = None
    revision: str | None = None


@pytest.fixture
def source():
    """Make a source: `source(path, split=...)`."""

    def make(path, **options):
        return Source(str(path), **options)

    return make


@pytest.fixture
def write_lines(tmp_path):
    """Write rows (objects, or raw text or bytes) as one JSONL file and return its source."""

    def write(*rows, name="records.jsonl"):
        lines = [row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows]
        path = tmp_path / name
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return Source(str(path))

    return write


@pytest.fixture(scope="session")
def tokenizer(base_model_dir):
    """The demo's tokenizer: `<|user|>` 1, `<|assistant|>` 2, `<|end|>` 3, `<|pad|>` 0, byte-level BPE."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base_model_dir)
