"""Answers that a tokenizer cannot write as they are, counted."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data.lossless import find_altered, writes_all
from data.schema import Comparison, Message
from data.tokens import encode_records

TEXTS = ["one two", "One", "一 one", " one\n two ", "ﬁne"]
LETTERS = [*"efinotw", "Ġ"]


def wrap(backend):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[?]", eos_token="</s>", pad_token="[P]")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"
    return tokenizer


def unknown():
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[?]", "one", "two", "fine", "ﬁne"])}, unk_token="[?]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


def small():
    backend = unknown()
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return backend


def dropping():
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(LETTERS)}, []))  # no unknown token: others vanish
    backend.normalizer, backend.decoder = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "Ġ")]), decoders.Fuse()
    return backend


@pytest.mark.parametrize(
    ("backend", "altered"), [(unknown(), [0, 1, 1, 0, 0]), (small(), [0, 1, 1, 0, 0])], ids=["unknown words", "capitals made small"]
)
def test_a_text_with_unknown_signs_or_lost_capitals_is_altered_and_one_with_other_blanks_is_not(backend, altered):
    tokenizer = wrap(backend)
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    assert find_altered(tokenizer, TEXTS, encoded) == list(map(bool, altered))


def test_characters_that_vanish_are_found(tokenizer_of):
    tokenizer = wrap(dropping())
    texts = ["two", "two!", "t二wo"]
    assert find_altered(tokenizer, texts, [tokenizer.encode(text, add_special_tokens=False) for text in texts]) == [False, True, True]


def test_a_tokenizer_of_bytes_writes_all_and_is_not_asked_for_each_text(tokenizer, monkeypatch):
    assert writes_all(tokenizer)
    decoded = []
    real = type(tokenizer).decode
    monkeypatch.setattr(type(tokenizer), "decode", lambda self, ids, **options: decoded.append(ids) or real(self, ids, **options))
    assert find_altered(tokenizer, ["a"] * 9, [[1]] * 9) == [False] * 9
    assert len(decoded) == 1


def test_altered_answers_of_a_record_are_counted_and_so_are_those_of_its_set(tmp_path):
    records = [Comparison((Message("user", "one"),), answers, (1, 2)) for answers in (("one", "two"), ("One!", "two"), ("A", "B"))]
    encoded = encode_records(wrap(unknown()), records, (50, 50))
    assert [record.altered for record in encoded] == [0, 1, 2]
