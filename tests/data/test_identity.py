"""Whose record is whose: what counts as the same, and what the list of what was forgotten leaves out."""

import hashlib
import time
import unicodedata
from collections import Counter

import pytest

from data.fingerprint import fingerprint
from data.identity import SECRET_FILE, Forgotten, ask_for, find_digests, make_secret, normalise, read_forgotten, render_forgotten
from data.load import load_records
from data.reading import report_on
from data.schema import Comparison, DataError, Demonstration, Message, Prompt, Text
from data.treatment import FORGOTTEN, make_treatment

SECRET = bytes(range(32))
ASKED = (Message("user", "I am Anna, where is order 77?"),)


def user(text):
    return (Message("user", text),)


def is_found(record, asked):
    return not ask_for(asked, SECRET).isdisjoint(find_digests(record, SECRET))


def forget(directory, *records):
    directory.mkdir(exist_ok=True)
    (directory / SECRET_FILE).write_bytes(SECRET)
    digests = frozenset(digest for record in records for digest in ask_for(record, SECRET))
    (directory / "forgotten").write_bytes(render_forgotten(Forgotten(SECRET, digests)))
    return directory


def test_what_people_do_not_see_as_a_difference_is_none():
    assert normalise("  Grüße,\n\tANNA  ") == normalise("gru\u0308sse, anna") == "grüsse, anna"
    assert normalise("ｆｕｌｌ ① ﬁ") == "full 1 fi" and normalise("a b") != normalise("ab")


def test_a_prompt_finds_all_records_with_it_and_an_answer_only_those_that_have_it():
    comparison = Comparison(ASKED, ("It is on its way.", "No."), (1, 2))
    records = {
        "demonstration": Demonstration(ASKED, "It is on its way."),
        "another answer": Demonstration(ASKED, "Lost."),
        "comparison": comparison,
        "prompt": Prompt(ASKED),
        "with a system message": Demonstration((Message("system", "You are kind."), *ASKED), "It is ON its way."),
        "another question": Prompt(user("I am Anna, where is order 78?")),
        "two messages": Prompt((*ASKED, Message("assistant", "a"), *user("b"))),
        "text": Text("I am Anna, where is order 77?"),
    }

    def found(asked):
        return [name for name, record in records.items() if is_found(record, asked)]

    everywhere = ["demonstration", "another answer", "comparison", "prompt", "with a system message", "two messages"]
    assert found(Prompt(user("i am anna,  where is ORDER 77?"))) == everywhere
    assert found(records["demonstration"]) == ["demonstration", "comparison", "prompt", "with a system message"]
    assert found(Demonstration(ASKED, "No.")) == ["comparison", "prompt"]
    assert found(records["text"]) == ["text"] and found(Text("anna")) == []


def test_an_exchange_is_found_as_a_turn_of_a_longer_conversation_and_a_conversation_as_the_beginning_of_one():
    reply, bye = Message("assistant", "It is on its way."), (Message("user", "Thanks, bye"),)
    hello = (*user("hello"), Message("assistant", "hi"))
    records = {
        "first": Demonstration((*ASKED, reply, *bye), "Welcome."),
        "last": Demonstration((*hello, *ASKED), "It is on its way."),
        "middle": Prompt((*hello, *ASKED, reply, *bye)),
        "ranked": Comparison((*hello, *ASKED), ("It is on its way.", "No."), (1, 2)),
        "asked last": Prompt((*hello, *ASKED)),
        "another reply": Demonstration((*ASKED, Message("assistant", "Lost."), *bye), "Welcome."),
        "two in a row": Prompt((*user("hello"), *ASKED)),
    }

    def found(asked):
        return [name for name, record in records.items() if is_found(record, asked)]

    assert found(Prompt(ASKED)) == list(records)
    assert found(Demonstration(ASKED, "It is on its way.")) == ["first", "last", "middle", "ranked", "asked last", "two in a row"]
    assert found(Demonstration((*hello, *ASKED), "It is on its way.")) == ["last", "middle", "ranked", "asked last"]
    assert found(Demonstration((*ASKED, reply, *bye), "Welcome.")) == ["first"]  # and not each one that ends with bye


@pytest.mark.parametrize(
    "text",
    [
        "I am An\u200bna",
        "\ufeffI am Anna",
        "I am An\u00adna",
        "I am Anna\u200f",
        "I\u00a0am\u3000Anna",
        "I am An\u034fna",
        "I am Anna\ufe0f",
    ],
)
def test_what_nobody_sees_hides_no_record_and_what_was_forgotten_before_it_counted_for_nothing_stays_forgotten(text):
    plain, odd = Prompt(user("I am Anna")), Prompt(user(text))
    assert is_found(plain, odd) and is_found(odd, plain)
    earlier = hashlib.blake2b(  # as it was listed
        "\0".join(["prompt", " ".join(unicodedata.normalize("NFKC", text).casefold().split())]).encode(), digest_size=16, key=SECRET
    ).digest()
    assert earlier in ask_for(odd, SECRET) and earlier in find_digests(odd, SECRET)


def test_quotes_and_dashes_that_an_editor_makes_are_those_of_a_keyboard():
    assert normalise("\u201cAnna\u2019s\u201d \u2013 or\u2014x\u2026") == normalise('"Anna\'s" - or-x...')


def test_another_store_has_other_hashes():
    assert set(find_digests(Prompt(ASKED), SECRET)).isdisjoint(find_digests(Prompt(ASKED), make_secret()))


def test_forgotten_records_are_left_out_counted_and_told_and_the_fingerprint_is_that_without_them(write_lines, tmp_path):
    rows = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(6)]
    source = write_lines(*rows, {"prompt": "I am Anna, where is order 77?", "completion": "Here."})
    treat = make_treatment((), forget(tmp_path / "records", Prompt(ASKED), Prompt(user("QUESTION 3"))))
    reports = []
    records = load_records(source, "demonstrations", 0, reports, treat)
    assert [record.completion for record in records] == [f"answer {i}" for i in (0, 1, 2, 4, 5)]
    assert reports[0].counts == {FORGOTTEN: 2} and reports[0].line().endswith("; 2 records left out, as they were forgotten")
    assert fingerprint(records) == fingerprint(load_records(write_lines(*rows[:3], *rows[4:], name="other.jsonl"), "demonstrations"))


def test_a_set_of_which_all_is_forgotten_is_not_called_empty(write_lines, tmp_path):
    source = write_lines({"prompt": "I am Anna, where is order 77?"})
    assert load_records(source, "prompts", treat=make_treatment((), forget(tmp_path / "records", Prompt(ASKED)))) == []


@pytest.mark.parametrize("damage", ["cut", "flipped", "another secret", "no secret"])
def test_a_damaged_list_lets_nothing_back_in(tmp_path, damage):
    directory = forget(tmp_path / "records", Prompt(ASKED))
    content = (directory / "forgotten").read_bytes()
    if damage == "cut":
        (directory / "forgotten").write_bytes(content[:-16])
    elif damage == "flipped":
        (directory / "forgotten").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "another secret":
        (directory / SECRET_FILE).write_bytes(make_secret())
    else:
        (directory / SECRET_FILE).unlink()
    with pytest.raises(DataError, match="needed"):
        make_treatment((), directory)


def test_where_nothing_is_to_be_done_nothing_is_done(tmp_path):
    assert read_forgotten(tmp_path) is None and make_treatment((), None) is None and make_treatment((), tmp_path) is None


def test_a_record_is_hashed_in_microseconds(write_lines):
    record = Demonstration(user("How do I return my order? " * 5), "You can send it back within 30 days. " * 6)
    start_s = time.process_time()
    for _ in range(20_000):
        find_digests(record, SECRET)
    assert (time.process_time() - start_s) / 20_000 < 40e-6  # 8 here: 1 M records in 8 s of one core
    assert report_on(write_lines()).counts == Counter()
