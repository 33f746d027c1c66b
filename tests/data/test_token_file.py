"""Token ids on the disk: what is read is what was encoded, whole or made again, and only what is asked for is held."""

import math
import os
import pickle
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from data.fingerprint import fingerprint
from data.schema import Comparison, DataError, Demonstration, Message, Problem, Prompt
from data.system import watched
from data.token_file import TokenRows, read_pair, read_prompt
from data.token_maker import CHUNK_RECORDS, MADE_FILE, TOKENS_FILE, is_whole, make_tokens, open_tokens
from data.token_split import TokenSet, load_places, split_tokens, take_all
from data.tokens import EncodedComparison, EncodedPair, EncodedPromptRecord, EncodedRecord, encode_records


def user(text):
    return (Message("user", text),)


def spell(records):
    """Stands for a tokenizer: letters are ids, answers of more than 3 letters are too long."""
    encoded = []
    for record in records:
        answers = [[*map(ord, text), 0] for text in record.answers]
        ranks = record.ranks if isinstance(record, Comparison) else [1] * len(answers)
        kept = [(ids, rank) for ids, rank in zip(answers, ranks, strict=True) if len(ids) <= 4]
        used = len({rank for _, rank in kept}) > 1 if isinstance(record, Comparison) else len(kept) == len(answers)
        kept = kept if used else []
        ids = [ord(letter) for letter in record.prompt[-1].content]
        own = {"cut": "!" in record.prompt[-1].content, "dropped": len(answers) - len(kept) if used else 1, "repeated": 0, "used": used}
        encoded.append(EncodedRecord(ids, [ids for ids, _ in kept], tuple(rank for _, rank in kept), **own))
    return encoded


@pytest.fixture
def make(tmp_path):
    """make(records, encode=spell) -> the file that they became."""

    def make(records, encode=spell, told=lambda count: None, name="tokens"):
        placed = [(f"file.jsonl:{number}", record) for number, record in enumerate(records, start=1)]
        assert make_tokens(tmp_path / name, lambda: placed, encode, expected=fingerprint(records), workers=1, progress=told)
        return open_tokens(tmp_path / name)

    return make


def test_a_record_is_read_as_it_was_encoded(make, tokenizer):
    records = [Comparison(user(f"Where is {i}?"), ("Here.", "No.", "", "Über " * 9), (2, 1, 3, 1), f"source {i % 2}") for i in range(5)]
    file = make(records, lambda chunk: encode_records(tokenizer, chunk, (50, 9)))
    encoded = encode_records(tokenizer, records, (50, 9))
    expected = [
        EncodedComparison(item.prompt_ids, item.responses, item.ranks, record.source) for item, record in zip(encoded, records, strict=True)
    ]
    found = take_all("comparisons", file)
    counts = {"comparisons": 5, "comparisons_used": 5, "prompts_cut": 0, "responses_dropped": 5, "comparisons_without_pair": 0}
    assert list(found.comparisons) == expected and found.counts() == counts
    assert [prompt.prompt for prompt in found.prompts] == [record.prompt for record in records]
    assert found.prompts.count_tokens()[0] == len(expected[0].prompt_ids) + sum(map(len, expected[0].responses))


def test_rows_are_found_across_batches_in_any_order(make):
    told = []
    records = [Demonstration(user(f"{i}"), "ab") for i in range(2 * CHUNK_RECORDS + 7)]
    file = make(records, told=told.append)
    assert told == [CHUNK_RECORDS, 2 * CHUNK_RECORDS, len(records)] and len(file) == len(records)
    rows = TokenRows(file, np.arange(len(file))[::-1], read_pair)
    assert rows[0] == EncodedPair([ord(c) for c in str(len(records) - 1)], [97, 98, 0]) and rows[-1].prompt_ids == [ord("0")]
    assert [pair.prompt_ids for pair in rows[CHUNK_RECORDS : CHUNK_RECORDS + 20]] == [
        [ord(c) for c in str(len(records) - 1 - i)] for i in range(CHUNK_RECORDS, CHUNK_RECORDS + 20)
    ]
    with pytest.raises(IndexError):
        rows[len(rows)]


@pytest.mark.slow
def test_nothing_is_held_of_rows_that_were_read(make):
    file = make([Demonstration(user("x" * 2000), "ab") for _ in range(2000)])
    rows = TokenRows(file, np.arange(len(file)), read_pair)
    tracemalloc.start()
    assert sum(len(pair.prompt_ids) for pair in rows) == 4_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000  # the ids of one record are 80 kB as Python's numbers, those of all 8 MB as they lie in the file


def test_of_each_record_a_process_holds_two_flags_and_its_row_number(make, tmp_path):
    make([Prompt(user(f"{i}")) for i in range(8_000)])
    load_places(tmp_path / "tokens", open_tokens(tmp_path / "tokens"), 3)
    tracemalloc.start()
    file = open_tokens(tmp_path / "tokens")
    train, _ = split_tokens("prompts", file, load_places(tmp_path / "tokens", file, 3), 0.05, "file.jsonl")
    train.counts()
    rows, held = train.used, tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert rows is train.rows and held < 8_000 * (2 + 8) + 50_000  # and 16 batches


def test_a_file_is_pickled_as_its_place(make):
    file = make([Demonstration(user("x" * 5000), "ab") for _ in range(200)])
    rows = TokenRows(file, np.arange(len(file)), read_pair)
    pickled = pickle.dumps(rows)
    assert len(pickled) < 10_000 and list(pickle.loads(pickled)) == list(rows)


def test_what_cannot_be_used_is_counted_and_its_prompt_kept(make):
    file = make([Demonstration(user("a"), "long text"), Demonstration(user("b!"), "ab")])
    found = take_all("demonstrations", file)
    assert list(found.pairs) == [EncodedPair([98, 33], [97, 98, 0])]
    assert [prompt.prompt_ids for prompt in found.prompts] == [[97], [98, 33]]
    assert found.counts() == {"demonstrations": 2, "demonstrations_used": 1, "prompts_cut": 1, "responses_dropped": 1}
    assert read_prompt(file, 0) == EncodedPromptRecord([97], user("a"))


def test_too_long_prompts_and_lost_pairs_are_not_held_out(make, tmp_path):
    records = [Comparison(user(f"{i}{'!' * (i % 2)}"), ("a", "b" if i % 4 else "too long"), (1, 2)) for i in range(200)]
    file = make(records)
    places = load_places(tmp_path / "tokens", file, 3)
    train, held_out = split_tokens("comparisons", file, places, 0.2, "file.jsonl")
    assert len(held_out.rows) > 4 and all(row % 4 == 2 for row in held_out.rows)
    assert sorted([*train.rows, *held_out.rows]) == list(range(200))
    first = held_out.comparisons[0]
    assert first == EncodedComparison(first.prompt_ids, [[97, 0], [98, 0]], (1, 2), "")
    only_cut = make([Prompt(user(f"{i}!")) for i in range(9)], name="cut")
    train, held_out = split_tokens("prompts", only_cut, load_places(tmp_path / "cut", only_cut, 3), 0.2, "file.jsonl")
    assert len(held_out.rows) >= 1


def test_grades_go_with_the_answers_that_are_kept(make, tokenizer):
    graded = Comparison(user("a"), ("a", "too long " * 9, "b"), (1, 2, 3), "", (7.0, 3.0, None))
    records = [Comparison(user("c"), ("a", "b"), (1, 2)), graded, Comparison(user("d"), ("a", "b"), (1, 2), "", (None, 2.5))]
    found = take_all("comparisons", make(records, lambda chunk: encode_records(tokenizer, chunk, (50, 9))))
    first, second, third = (item.grades for item in found.comparisons)
    assert first == () and second[0] == 7 and math.isnan(second[1]) and math.isnan(third[0]) and third[1] == 2.5
    assert found.counts()["comparisons_graded"] == 2


def test_too_few_usable_records_are_told_with_file_and_kind(make, tmp_path):
    file = make([Comparison(user(f"{i}"), ("a", "too long" if i else "b"), (1, 2)) for i in range(9)])
    with pytest.raises(
        DataError,
        match=r"^file\.jsonl: data\.comparisons\.eval: found fewer than two prompts .*, among 9 records, of which 8 tie, or are longer ",
    ):
        split_tokens("comparisons", file, load_places(tmp_path / "tokens", file, 3), 0.2, "file.jsonl")


def test_places_are_kept_by_seed_and_made_again_when_damaged(make, tmp_path):
    file = make([Prompt(user(f"{i}")) for i in range(9)])
    places = load_places(tmp_path / "tokens", file, 3)
    assert (load_places(tmp_path / "tokens", file, 4) != places).all()
    kept = tmp_path / "tokens" / "places-3.npy"
    kept.write_bytes(kept.read_bytes()[:-9])
    assert (load_places(tmp_path / "tokens", file, 3) == places).all()
    assert (np.load(kept) == places).all()


def test_a_directory_is_whole_or_not(make, tmp_path):
    make([Prompt(user("a"))])
    directory = tmp_path / "tokens"
    assert is_whole(directory)
    content = (directory / TOKENS_FILE).read_bytes()
    for damaged in (content[:-1], content[:300] + bytes([content[300] ^ 1]) + content[301:], b""):
        (directory / TOKENS_FILE).write_bytes(damaged)
        assert not is_whole(directory)
    (directory / TOKENS_FILE).write_bytes(content)
    assert is_whole(directory)
    (directory / MADE_FILE).write_text("{")
    assert not is_whole(directory)
    make([Prompt(user("a"))])
    assert is_whole(directory)


def test_a_refused_record_is_named_by_its_line_and_nothing_is_left(tmp_path):
    def refuse(chunk):
        found = [i for i, record in enumerate(chunk, start=1) if record.prompt[0].content in ("600", "3")]
        if found:
            raise DataError([Problem(f"record {i}", "prompt", "refused") for i in found])
        return spell(chunk)

    placed = [(f"file.jsonl:{2 * i}", Prompt(user(f"{i}"))) for i in range(2000)]
    with pytest.raises(DataError) as caught:
        make_tokens(tmp_path / "tokens", lambda: placed, refuse, expected="", workers=1, progress=lambda count: None)
    assert str(caught.value) == "file.jsonl:6: prompt: refused\nfile.jsonl:1200: prompt: refused"
    assert list(tmp_path.iterdir()) == []


def refused(directory, encode):
    """What is said of 1,500 prompts that cannot be made into tokens."""
    placed = [(f"file.jsonl:{i}", Prompt(user(f"{i}"))) for i in range(1500)]
    with pytest.raises(DataError) as caught:
        make_tokens(directory / "tokens", lambda: placed, encode, expected="", workers=2, progress=lambda count: None)
    assert list(directory.iterdir()) == []
    return str(caught.value).splitlines()


@pytest.mark.slow
def test_a_record_that_never_ends_is_named_by_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr(watched, "ITEM_SECONDS", 0.5)
    monkeypatch.setattr(watched, "CHUNK_SECONDS", 0.5)

    def hang(chunk):
        while any(record.prompt[0].content == "700" for record in chunk):
            pass
        return spell(chunk)

    (line,) = refused(tmp_path, hang)
    assert line.startswith("file.jsonl:700: found 3 characters, of which rendering and tokenising took more than 0.5 s; needed a chat")


def test_prompts_that_become_the_same_are_named_by_their_lines(tmp_path):
    first, *_ = lines = refused(tmp_path, lambda chunk: [replace(item, prompt_ids=item.prompt_ids[:3]) for item in spell(chunk)])
    found = "found another prompt than file.jsonl:100, of which chat template and tokenizer make the same"
    assert first.startswith(f"file.jsonl:1000: {found}; needed ")
    assert len(lines) == 20


def test_what_a_killed_maker_left_is_removed_later(make, tmp_path):
    old, young = tmp_path / ".draft-00000old", tmp_path / ".draft-000young"
    for draft, age_s in ((old, 30 * 3600), (young, 0)):
        draft.mkdir()
        (draft / TOKENS_FILE).touch()
        for path in (draft / TOKENS_FILE, draft):
            os.utime(path, (time.time() - age_s, time.time() - age_s))
    make([Prompt(user("a"))])
    assert not old.exists() and young.exists()


def test_a_set_knows_its_own_records_alone(make):
    file = make([Demonstration(user("a"), "ab"), Demonstration(user("b"), "cd"), Demonstration(user("c"), "long text")])
    assert TokenSet("demonstrations", file, np.array([1, 2])).counts() == {
        "demonstrations": 2,
        "demonstrations_used": 1,
        "prompts_cut": 0,
        "responses_dropped": 1,
    }
