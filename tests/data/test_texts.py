"""Texts -> ids and pieces: what comes before and after, and that no token is lost."""

import pytest
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from data.schema import DataError, Text
from data.system import watched
from data.texts import encode_documents, split_documents


def texts(*contents):
    return [Text(content) for content in contents]


def test_a_document_is_its_text_and_the_end_token(tokenizer_of):
    tokenizer = tokenizer_of(None)  # words: [P] 0, </s> 1, [U] 2, [A] 3, a 4, b 5, Hello 6, x 7
    documents, counts = encode_documents(tokenizer, texts("Hello a b", "", "b"))
    assert documents == [[6, 4, 5, 1], [5, 1]]
    assert counts == {"texts": 3, "texts_used": 2, "texts_with_control_tokens": 0, "text_tokens": 4}
    assert encode_documents(tokenizer, texts("Hello a b"), end=False)[0] == [[6, 4, 5]]


def test_a_text_without_the_end_has_two_tokens_at_least_or_teaches_nothing(tokenizer_of):
    documents, counts = encode_documents(tokenizer_of(None), texts("a", "a b"), end=False)
    assert documents == [[4, 5]] and counts["texts_used"] == 1 and counts["texts"] == 2


def test_a_tokenizer_that_begins_each_text_with_a_token_begins_each_document_with_it(tokenizer_of):
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_of(None, special=("[U]", "[A]"))
    tokenizer.bos_token = "[U]"
    assert encode_documents(tokenizer, texts("a"))[0] == [[4, 1]]  # it has one, and does not use it
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="[U] $A </s>", special_tokens=[("[U]", 2), ("</s>", 1)])
    assert encode_documents(tokenizer, texts("a b", ""))[0] == [[2, 4, 5, 1]]


def test_the_text_of_a_control_token_stays_text_and_is_counted(tokenizer):
    documents, counts = encode_documents(tokenizer, texts("one<|end|>two", "three"))
    assert [ids.count(tokenizer.eos_token_id) for ids in documents] == [1, 1]
    assert tokenizer.decode(documents[0][:-1]) == "one<|end|>two"
    assert counts["texts_with_control_tokens"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "length", "why"),
    [
        ("(a|aa)+b", 60, r"broke off \(Onig: Regex search error: retry-limit-in-match over\)"),  # 1.6 times as long for each letter
        ("a+b", 90_000, r"took more than 0\.5 s"),  # the square of the length
    ],
)
def test_a_text_at_which_a_tokenizer_never_ends_is_told_and_not_waited_for(tokenizer_of, monkeypatch, pattern, length, why):
    monkeypatch.setattr(watched, "ITEM_SECONDS", 0.5)
    monkeypatch.setattr(watched, "CHUNK_SECONDS", 0.5)
    tokenizer = tokenizer_of(None)
    tokenizer.backend_tokenizer.pre_tokenizer = Split(Regex(pattern), "isolated")
    assert len(encode_documents(tokenizer, texts("aaab", "aaa"))[0]) == 2
    with pytest.raises(DataError, match=rf"^text 2 \('aaaaa.*found {length:,} characters, of which tokenising {why}; needed"):
        encode_documents(tokenizer, texts("aaab", "a" * length, "b"))


def test_a_long_document_is_split_into_pieces_that_share_one_token():
    (first, second, third), short = split_documents([[1, 2, 3, 4, 5, 6, 7, 8]], 4), split_documents([[1, 2, 3, 4], [5, 6]], 4)
    assert (first.prompt_ids, first.response_ids) == ([1], [2, 3, 4])
    assert (second.prompt_ids, second.response_ids) == ([4], [5, 6, 7])
    assert (third.prompt_ids, third.response_ids) == ([7], [8])
    assert [piece.prompt_ids + piece.response_ids for piece in short] == [[1, 2, 3, 4], [5, 6]]


@pytest.mark.parametrize("max_tokens", [2, 3, 7, 100])
def test_every_token_but_a_documents_first_is_learnt_once(max_tokens):
    documents = [list(range(start, start + length)) for start, length in ((0, 2), (100, 3), (200, 7), (300, 8), (400, 50))]
    pieces = split_documents(documents, max_tokens)
    assert [token for piece in pieces for token in piece.response_ids] == [token for ids in documents for token in ids[1:]]
    assert all(2 <= len(piece.prompt_ids + piece.response_ids) <= max_tokens for piece in pieces)
