"""Texts -> ids, mapped, and pieces: what comes before and after, and that no token is lost."""

import pytest
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from data.fingerprint import fingerprint
from data.holdout import find_places
from data.pieces import TextSet, split_texts, take_all_texts
from data.schema import DataError, Text
from data.system import watched
from data.texts import encode_texts
from data.token_maker import make_tokens, open_tokens
from data.tokens import EncodedRecord


@pytest.fixture
def make(tmp_path):
    """make(encode, contents) -> all texts of the file that they became."""

    def make(encode, *contents):
        records = [Text(content) for content in contents]
        placed = [(f"file.jsonl:{number}", record) for number, record in enumerate(records, start=1)]
        name = tmp_path / f"texts-{len(list(tmp_path.iterdir()))}"
        assert make_tokens(name, lambda: placed, encode, expected=fingerprint(records), workers=1, progress=lambda count: None)
        return take_all_texts(open_tokens(name))

    return make


@pytest.fixture
def encode_all(make):
    """encode_all(tokenizer, contents, end=True) -> (the ids of each document that is used, counts)."""

    def encode_all(tokenizer, *contents, end=True):
        found = make(lambda chunk: encode_texts(tokenizer, chunk, end=end), *contents)
        return [found.file.ids(row).tolist() for row in found.used], found.counts()

    return encode_all


@pytest.fixture
def documents_of(make):
    """documents_of(lists of ids) -> texts that are just these."""

    def documents_of(documents):
        encoded = iter(documents)
        return make(
            lambda chunk: [EncodedRecord([], [next(encoded)], (1,), cut=False, dropped=0, repeated=0, used=True) for _ in chunk],
            *(f"text {number}" for number in range(len(documents))),
        )

    return documents_of


def test_a_document_is_its_text_and_the_end_token(tokenizer_of, encode_all):
    tokenizer = tokenizer_of(None)  # words: [P] 0, </s> 1, [U] 2, [A] 3, a 4, b 5, Hello 6, x 7
    documents, counts = encode_all(tokenizer, "Hello a b", "", "b")
    assert documents == [[6, 4, 5, 1], [5, 1]]
    assert counts == {"texts": 3, "texts_used": 2, "texts_with_control_tokens": 0, "text_tokens": 4}
    assert encode_all(tokenizer, "Hello a b", end=False)[0] == [[6, 4, 5]]


def test_a_text_without_the_end_has_two_tokens_at_least_or_teaches_nothing(tokenizer_of, encode_all):
    documents, counts = encode_all(tokenizer_of(None), "a", "a b", end=False)
    assert documents == [[4, 5]] and counts["texts_used"] == 1 and counts["texts"] == 2


def test_a_tokenizer_that_begins_each_text_with_a_token_begins_each_document_with_it(tokenizer_of, encode_all):
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_of(None, special=("[U]", "[A]"))
    tokenizer.bos_token = "[U]"
    assert encode_all(tokenizer, "a")[0] == [[4, 1]]  # it has one, and does not use it
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="[U] $A </s>", special_tokens=[("[U]", 2), ("</s>", 1)])
    assert encode_all(tokenizer, "a b", "")[0] == [[2, 4, 5, 1]]


def test_the_text_of_a_control_token_stays_text_and_is_counted(tokenizer, encode_all):
    documents, counts = encode_all(tokenizer, "one<|end|>two", "three")
    assert [ids.count(tokenizer.eos_token_id) for ids in documents] == [1, 1]
    assert tokenizer.decode(documents[0][:-1]) == "one<|end|>two"
    assert counts["texts_with_control_tokens"] == 1


def test_the_same_texts_are_held_out_whatever_a_tokenizer_makes_of_them(make, tokenizer_of):
    contents = ["", *("a" if i % 2 else "a b" for i in range(40)), *(f"x {i}" for i in range(40))]
    places, held_out = find_places(contents, seed=3), []
    for end in (True, False):  # without it, "a" teaches nothing
        texts = make(lambda chunk, end=end: encode_texts(tokenizer_of(None), chunk, end=end), *contents)
        train, other = split_texts(texts.file, places, 0.2, "file.jsonl")
        assert sorted([*train.rows, *other.rows]) == list(range(81)) and train.rows[0] == 0
        held_out.append(other.rows.tolist())
    assert held_out[0] == held_out[1] and 1 < len(held_out[0]) < 40
    with pytest.raises(DataError, match=r"^file\.jsonl: data\.texts\.eval: found fewer than two texts .*, among 3 records; needed"):
        few = make(lambda chunk: encode_texts(tokenizer_of(None), chunk), "a b", "a b", "")
        split_texts(few.file, find_places(["a b", "a b", ""], seed=3), 0.2, "file.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "length", "why"),
    [
        ("(a|aa)+b", 60, r"broke off \(Onig: Regex search error: retry-limit-in-match over\)"),  # 1.6 times as long for each letter
        ("a+b", 90_000, r"took more than 0\.5 s"),  # the square of the length
    ],
)
def test_a_text_at_which_a_tokenizer_never_ends_is_told_and_not_waited_for(tokenizer_of, encode_all, monkeypatch, pattern, length, why):
    monkeypatch.setattr(watched, "ITEM_SECONDS", 0.5)
    monkeypatch.setattr(watched, "CHUNK_SECONDS", 0.5)
    tokenizer = tokenizer_of(None)
    tokenizer.backend_tokenizer.pre_tokenizer = Split(Regex(pattern), "isolated")
    assert len(encode_all(tokenizer, "aaab", "aaa")[0]) == 2
    with pytest.raises(DataError, match=rf"^file\.jsonl:2: found {length:,} characters, of which tokenising {why}; needed a tokenizer "):
        encode_all(tokenizer, "aaab", "a" * length, "b")


def test_a_long_document_is_split_into_pieces_that_share_one_token(documents_of):
    (first, second, third), short = documents_of([[1, 2, 3, 4, 5, 6, 7, 8]]).pieces(4), documents_of([[1, 2, 3, 4], [5, 6]]).pieces(4)
    assert (first.prompt_ids, first.response_ids) == ([1], [2, 3, 4])
    assert (second.prompt_ids, second.response_ids) == ([4], [5, 6, 7])
    assert (third.prompt_ids, third.response_ids) == ([7], [8])
    assert [piece.prompt_ids + piece.response_ids for piece in short] == [[1, 2, 3, 4], [5, 6]]


@pytest.mark.parametrize("max_tokens", [2, 3, 7, 100])
def test_every_token_but_a_documents_first_is_learnt_once(documents_of, max_tokens):
    documents = [list(range(start, start + length)) for start, length in ((0, 2), (100, 3), (200, 7), (300, 8), (400, 50))]
    pieces = documents_of(documents).pieces(max_tokens)
    assert [token for piece in pieces for token in piece.response_ids] == [token for ids in documents for token in ids[1:]]
    assert all(2 <= len(piece.prompt_ids + piece.response_ids) <= max_tokens for piece in pieces)
    assert pieces.count_tokens().tolist() == [len(piece.prompt_ids + piece.response_ids) for piece in pieces]
    assert pieces[-1] == pieces[len(pieces) - 1] and pieces[2:4] == [pieces[2], pieces[3]]
    with pytest.raises(IndexError):
        pieces[len(pieces)]


def test_where_nothing_can_be_learnt_there_are_no_pieces(documents_of):
    texts = documents_of([[1, 2, 3]])
    none = TextSet(texts.file, texts.rows[:0])
    assert len(none.pieces(4)) == 0 and none.pieces(4).count_tokens().tolist() == [] and none.counts()["text_tokens"] == 0


def test_a_beginning_is_half_a_text_at_most(documents_of):
    texts = documents_of([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9]])
    assert [texts.beginning(number, 4) for number in (0, 1)] == [[1, 2, 3], [1, 2, 3, 4]]
