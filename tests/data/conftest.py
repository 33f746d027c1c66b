"""Sources on disk, and the demo's real tokenizer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest


@dataclass(frozen=True)
class Source:
    """What `data.load` needs of a source."""

    path: str
    split: str | None = None
    subset: str | None = None
    revision: str | None = None
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@pytest.fixture
def source():
    """Make a source: `source(path, split=...)`."""

    def make(path, **options):
        return Source(str(path), **options)

    return make


@pytest.fixture
def write_lines(tmp_path):
    """Write rows (objects, or raw text or bytes) as one JSONL file and return its source."""

    def write(*rows, name="records.jsonl", **options):
        lines = [row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows]
        path = tmp_path / name
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return Source(str(path), **options)

    return write


@pytest.fixture(scope="session")
def tokenizer(base_model_dir):
    """The demo's tokenizer: `<|user|>` 1, `<|assistant|>` 2, `<|end|>` 3, `<|pad|>` 0, byte-level BPE."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base_model_dir)


@pytest.fixture
def tokenizer_of():
    """Make a word-level tokenizer with a given template: [U] and [A] are special, others as named."""

    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def make(template, pad="[P]", eos="</s>", special=("[U]", "[A]")):
        words = ["[P]", "</s>", "[U]", "[A]", "a", "b", "Hello", "x"]
        backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="x"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token=pad, eos_token=eos, extra_special_tokens=list(special), chat_template=template
        )

    return make


@pytest.fixture
def sentencepiece_of():
    """Make a tokenizer like Llama's with a given template: a blank before each text, `▁one` one token, letters and `<0x..>` the others."""

    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    def make(template):
        pieces = ["<unk>", "<pad>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *"▁\nabcdefghijklmnopqrstuvwxyz", "▁o", "▁on", "▁one"]
        merges = [("▁", "o"), ("▁o", "n"), ("▁on", "e")]
        backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", eos_token="</s>", chat_template=template
        )

    return make
