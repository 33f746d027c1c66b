import gzip
import json
import tracemalloc
from string import ascii_letters

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from data.fingerprint import fingerprint
from data.holdout import split_text
from data.load import load_records
from data.rows import MAX_LINE_BYTES
from data.schema import Comparison, DataError, Demonstration, Message, Problem, Prompt, Text

GOOD = {"prompt": "Hi?", "completion": "Hello."}
USER, ANSWER, WORSE = (
    {"role": "user", "content": "Hi?"},
    {"role": "assistant", "content": "Hello."},
    {"role": "assistant", "content": "No."},
)


def user(text):
    return (Message("user", text),)


def problems_of(source, kind="demonstrations"):
    with pytest.raises(DataError) as caught:
        load_records(source, kind)
    return [str(problem).split("/")[-1] for problem in caught.value.problems]


# What a line may look like


def test_demonstration_of_prompt_and_completion_keeps_text_exactly(write_lines):
    row = {"prompt": "  Wie  geht's? \u2028\n", "completion": "Gut 🙂\t", "score": 3, "extra": {"deep": [None]}}
    assert load_records(write_lines(row), "demonstrations") == [Demonstration(user("  Wie  geht's? \u2028\n"), "Gut 🙂\t")]


def test_every_assistant_turn_becomes_a_demonstration_of_all_that_precedes_it(write_lines):
    texts = [("system", "Be kind."), ("user", "a?"), ("assistant", "b"), ("user", "c?"), ("assistant", "d"), ("user", "e?")]
    messages = [{"role": role, "content": content} for role, content in texts]
    history = tuple(Message(role, content) for role, content in texts)
    assert load_records(write_lines({"messages": messages}), "demonstrations") == [
        Demonstration(history[:2], "b"),
        Demonstration(history[:4], "d"),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi?", "completions": ["Hello.", "No."], "ranks": [1, 2]},
        {"prompt": "Hi?", "chosen": "Hello.", "rejected": "No."},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]},
        {"chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
        {"prompt": "Hi?", "chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
        {"prompt": [USER], "completions": [[ANSWER], [WORSE]], "ranks": [1, 2]},
    ],
)
def test_all_ways_to_write_a_comparison_give_the_same_record(write_lines, row):
    assert load_records(write_lines(row), "comparisons") == [Comparison(user("Hi?"), ("Hello.", "No."), (1, 2))]


def test_comparison_keeps_ties_source_and_an_empty_answer(write_lines):
    row = {"prompt": "Hi?", "completions": ["", "b", "c"], "ranks": [2, 1, 2], "source": "forum"}
    assert load_records(write_lines(row), "comparisons") == [Comparison(user("Hi?"), ("", "b", "c"), (2, 1, 2), "forum")]


def test_grades_stand_beside_ranks_and_none_is_none(write_lines):
    row = {"prompt": "Hi?", "completions": ["a", "b"], "ranks": [1, 2]}
    graded, half, none = (
        load_records(write_lines(row | {"grades": grades}), "comparisons")[0] for grades in ([7, 2.5], [None, 3], [None, None])
    )
    assert (graded.grades, half.grades, none.grades) == ((7.0, 2.5), (None, 3.0), ())
    plain = load_records(write_lines(row), "comparisons")
    assert fingerprint([none]) == fingerprint(plain) != fingerprint([graded]) != fingerprint([half])


def test_prompt_may_be_text_or_messages(write_lines):
    source = write_lines({"prompt": "Hi?", "completion": 7}, {"prompt": [{"role": "system", "content": "s"}, USER]})
    assert load_records(source, "prompts") == [Prompt(user("Hi?")), Prompt((Message("system", "s"), Message("user", "Hi?")))]


# Formats


def test_json_jsonl_gz_parquet_and_saved_datasets_give_the_same_records(tmp_path, write_lines, source):
    rows = [{"prompt": f"{i}?", "completions": ["a", "b\n"], "ranks": [1, 1 + i % 2], "unused": i} for i in range(5)]
    expected = load_records(write_lines(*rows), "comparisons")
    (tmp_path / "array.json").write_text("\ufeff" + json.dumps(rows, indent=2), encoding="utf-8")
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "crlf.jsonl").write_bytes(b"\r\n\r\n".join(json.dumps(row).encode() for row in rows))
    with gzip.open(tmp_path / "lines.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list(rows[:1])}).save_to_disk(tmp_path / "splits")
    for name in ("array.json", "lines.json", "crlf.jsonl", "lines.jsonl.gz", "table.parquet", "saved"):
        assert load_records(source(tmp_path / name), "comparisons") == expected, name
    assert load_records(source(tmp_path / "splits", split="train"), "comparisons") == expected


def test_columns_that_parquet_fills_with_null_count_as_absent(tmp_path, source):
    pq.write_table(pa.Table.from_pylist([{**GOOD, "messages": None}, {"messages": [USER, ANSWER]}]), tmp_path / "mixed.parquet")
    assert load_records(source(tmp_path / "mixed.parquet"), "demonstrations") == [Demonstration(user("Hi?"), "Hello.")] * 2


def test_saved_dataset_with_several_splits_asks_for_one(tmp_path, source):
    DatasetDict({"train": Dataset.from_list([GOOD]), "test": Dataset.from_list([GOOD])}).save_to_disk(tmp_path / "splits")
    assert problems_of(source(tmp_path / "splits")) == ["splits: split: found train, test; needed one of them, not None; set split"]


def test_bad_row_of_a_dataset_is_named_by_number(tmp_path, source):
    Dataset.from_list([GOOD, {"prompt": "Hi?", "completion": " "}]).save_to_disk(tmp_path / "saved")
    assert problems_of(source(tmp_path / "saved")) == [
        "saved:2: completion: found blanks only; needed text; fill it or remove the line",
    ]


def test_items_of_an_array_are_named_by_the_line_they_begin_on(tmp_path, source):
    path = tmp_path / "array.json"
    path.write_text('[\n  {"prompt": "a",\n   "completion": "b"},\n  {"prompt":\n 1, "completion": "b"},\n  7\n]')
    assert problems_of(source(path)) == [
        "array.json:4: prompt: found 1 (a number); needed text or a list of messages; correct it",
        "array.json:6: found 7 (a number); needed a JSON object with named fields; wrap the values",
    ]


@pytest.mark.parametrize("text", ['[\n{"prompt": "a", "completion": "b"}\n]', '[{"prompt": "a", "completion": "b"},\n{"prompt": 1}]'])
def test_an_array_is_read_as_one_whatever_the_name_of_its_file(tmp_path, source, text):
    path = tmp_path / "array.jsonl"
    path.write_text(text)
    if "1" in text:
        assert problems_of(source(path)) == ["array.jsonl:2: completion: missing; needed prompt and completion, or messages; add it"]
    else:
        assert len(load_records(source(path), "demonstrations")) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[", "array.json:1: not JSON (Expecting value at column 2); needed one JSON object; correct it (the rest is unread)"),
        (
            '[{"prompt": "a"},]',
            "array.json:1: not JSON (Expecting value at column 18); needed one JSON object; correct it (the rest is unread)",
        ),
        (
            '[{"prompt": "a"}\n{"prompt": "b"}]',
            "array.json:2: found '{' after an item; needed ',' or ']'; correct the array (the rest is unread)",
        ),
        ('[{"prompt": "a"}]\n[]', "array.json:1: found text after the end of the array; needed one array; remove the rest"),
        ("[NaN]", "array.json:1: found NaN, which JSON does not have; needed an ordinary number or text; replace it (the rest is unread)"),
    ],
)
def test_broken_arrays_say_where_they_break(tmp_path, source, text, expected):
    (tmp_path / "array.json").write_text(text)
    assert problems_of(source(tmp_path / "array.json"), "prompts") == [expected]


# Bad lines


def test_all_bad_lines_are_reported_at_once_with_line_and_field(write_lines):
    lines = [
        GOOD,
        {"prompt": "a"},
        {"prompt": 3, "completion": "b"},
        "",
        {"prompt": "a", "completion": ""},
        b'{"prompt": "\xff", "completion": "b"}',
        b'{"prompt": "a\x00", "completion": "b"}',
        r'{"prompt": "a\u0000", "completion": "b"}',
        r'{"prompt": "a\ud83d", "completion": "b"}',
        '{"prompt": NaN, "completion": "b"}',
        '["a", "b"]',
        '{"prompt": "a"',
        {"messages": []},
        {"messages": [USER]},
        {"messages": [USER, {"role": "bot", "content": "x"}]},
        {"messages": [USER, ANSWER, {"role": "system", "content": "x"}]},
        {"messages": [ANSWER]},
        {"messages": [USER, ANSWER, ANSWER]},
        {"messages": [USER, {"role": "assistant", "content": [{"type": "text"}]}]},
    ]
    assert problems_of(write_lines(*lines)) == [
        "records.jsonl:2: completion: missing; needed prompt and completion, or messages; add it",
        "records.jsonl:3: prompt: found 3 (a number); needed text or a list of messages; correct it",
        "records.jsonl:5: completion: found an empty text; needed text; fill it or remove the line",
        "records.jsonl:6: byte 0xff at column 13 is not UTF-8; needed UTF-8 text; save the file as UTF-8",
        "records.jsonl:7: found a NUL byte; needed text; remove it",
        "records.jsonl:8: prompt: found a NUL character; needed plain text; remove it",
        "records.jsonl:9: prompt: found half a surrogate pair (\\ud83d); needed Unicode text; repair the export",
        "records.jsonl:10: found NaN, which JSON does not have; needed an ordinary number or text; replace it",
        "records.jsonl:11: found a list; needed a JSON object with named fields; wrap the values",
        "records.jsonl:12: not JSON (Expecting ',' delimiter at column 15); needed one JSON object on each line; correct it",
        "records.jsonl:13: messages: found an empty list; needed a list of messages with role and content; write it so",
        "records.jsonl:14: messages: found no assistant message; needed at least one; add the answer",
        "records.jsonl:15: messages[1].role: found 'bot'; needed one of system, user, assistant, tool; rename it",
        "records.jsonl:16: messages[2].role: found a system message after another; needed it first; move it",
        "records.jsonl:17: messages[:0]: found no message before the answer; needed a user's message; add it",
        "records.jsonl:18: messages[:2]: the prompt ends with a message from assistant; needed the user's last; reorder or merge messages",
        "records.jsonl:19: messages[1].content[0]: found an object; needed text, or parts of type text; remove the line",
    ]


def test_bad_comparisons_are_told_by_field(write_lines):
    lines = [
        {"prompt": "a", "completions": ["b", "c"], "ranks": [1, 2, 3]},
        {"prompt": "a", "completions": ["b"], "ranks": [1]},
        {"prompt": "a", "completions": "bc", "ranks": [1, 2]},
        {"prompt": "a", "completions": ["b", None], "ranks": [1, 2]},
        {"prompt": "a", "completions": ["b", "c"]},
        {"prompt": "a", "completions": ["b", "c"], "ranks": [1, True]},
        {"prompt": "a", "completions": ["b", "c"], "ranks": [0, 1]},
        {"prompt": "a", "completions": ["b", "c"], "ranks": [1, 2.5]},
        {"prompt": "a", "chosen": "b"},
        {"chosen": "b", "rejected": "c"},
        {"chosen": [USER, ANSWER], "rejected": [{"role": "user", "content": "Other?"}, WORSE]},
        {"chosen": [USER, ANSWER], "rejected": [USER]},
        {"prompt": "Other?", "chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
        {"prompt": "a", "chosen": "b", "rejected": "c", "source": 4},
        {"prompt": "a", "completions": ["b", "c"], "ranks": [1, 2], "grades": [7]},
        {"prompt": "a", "completions": ["b", "c"], "ranks": [1, 2], "grades": [7, 8]},
        {"prompt": "a", "completions": ["b", "c"], "ranks": [1, 2], "grades": "75"},
    ]
    assert problems_of(write_lines(*lines), "comparisons") == [
        "records.jsonl:1: ranks: 3 ranks for 2 completions; needed equal numbers; give one rank per completion",
        "records.jsonl:2: completions: found 1; needed two or more answers to one prompt; add some or remove the line",
        "records.jsonl:3: completions: found the text 'bc'; needed a list of two or more answers; write it so",
        "records.jsonl:4: completions[1]: found null; needed text; correct it",
        "records.jsonl:5: ranks: missing; needed one rank per completion, 1 = best; add them",
        "records.jsonl:6: ranks[1]: found true (a truth value); needed a whole number from 1 (best); correct it",
        "records.jsonl:7: ranks[0]: found 0 (a number); needed a whole number from 1 (best); correct it",
        "records.jsonl:8: ranks[1]: found 2.5 (a number); needed a whole number from 1 (best); correct it",
        "records.jsonl:9: rejected: missing; needed completions and ranks, or chosen and rejected; add it",
        "records.jsonl:10: prompt: missing; needed a prompt, or chosen and rejected as message lists that begin with it; add it",
        "records.jsonl:11: rejected: differs from chosen before the last message; needed one prompt for both; make them equal",
        "records.jsonl:12: rejected: the last message is from user; needed the assistant's answer last; add it",
        "records.jsonl:13: prompt: differs from the messages before the answer in chosen; needed one prompt; remove one of them",
        "records.jsonl:14: source: found 4 (a number); needed text; quote it",
        "records.jsonl:15: grades: 1 grades for 2 completions; needed equal numbers; give one grade, or null, per completion",
        "records.jsonl:16: grades[1]: found 8; needed 1 (bad) to 7, or null for none; correct it",
        "records.jsonl:17: grades: found the text '75'; needed a list of numbers from 1 (bad) to 7, or null for none; write it so",
    ]


def test_many_lines_that_are_bad_in_the_same_way_are_told_once(write_lines):
    """Whatever stands in each; a line that is bad in another way is not lost among them."""
    lines = [f'{{"prompt": {number}}}' for number in range(100, 300)]
    with pytest.raises(DataError) as caught:
        load_records(write_lines(*lines, '{"prompt": ""}'), "prompts")
    assert len(caught.value.problems) == 201
    first, other = str(caught.value).splitlines()
    assert "records.jsonl:1: prompt: found 100 (a number); needed " in first and "records.jsonl:201: prompt: " in other
    assert first.endswith(" (alike: lines 2, 3, 4, 5, 6 and 194 more)")
    assert len(str(DataError(caught.value.problems[:20])).splitlines()) == 20  # few are shown each


def test_twenty_problems_are_shown_and_the_rest_counted():
    error = DataError([Problem(f"file.jsonl:{number}", letter, "bad") for number, letter in enumerate(ascii_letters[:25], start=1)])
    shown = str(error).splitlines()
    assert len(error.problems) == 25
    assert len(shown) == 21
    assert ":20: " in shown[19]
    assert shown[20] == "and 5 more"


def test_line_over_the_cap_is_refused_without_being_held_and_the_next_is_read(tmp_path, source):
    path = tmp_path / "long.jsonl"
    with path.open("wb") as stream:
        stream.write(b'{"prompt": "' + b"a" * MAX_LINE_BYTES * 4 + b'"}\n')
        stream.write(b'{"prompt": 1}\n')
    tracemalloc.start()
    assert problems_of(source(path), "prompts") == [
        "long.jsonl:1: line longer than 10,000,000 bytes; needed shorter ones; split or remove it",
        "long.jsonl:2: prompt: found 1 (a number); needed text or a list of messages; correct it",
    ]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.1 * MAX_LINE_BYTES


def test_line_of_exactly_the_cap_is_read(tmp_path, source):
    frame = b'{"prompt": ""}'
    (tmp_path / "a.jsonl").write_bytes(frame.replace(b'""', b'"' + b"a" * (MAX_LINE_BYTES - len(frame)) + b'"') + b"\n")
    assert len(load_records(source(tmp_path / "a.jsonl"), "prompts")[0].prompt[0].content) == MAX_LINE_BYTES - len(frame)


def test_deep_nesting_and_giant_numbers_are_bad_lines_not_crashes(write_lines):
    found = problems_of(write_lines("[" * 200_000, '{"prompt": ' + "9" * 5000 + "}"), "prompts")
    assert found[0] == "records.jsonl:1: nested too deeply; needed one flat JSON object; correct it"
    assert found[1].startswith("records.jsonl:2: found a number of thousands of digits")


# Sources that cannot be read at all


def test_sources_that_cannot_be_read_say_what_is_needed(tmp_path, write_lines, source):
    (tmp_path / "table.csv").write_text("prompt\nHi\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing PAR1")
    (tmp_path / "broken.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 100)[:-10])
    assert problems_of(write_lines()) == ["records.jsonl: found no rows; needed at least one of demonstrations; check the export"]
    assert problems_of(source(tmp_path / "none.jsonl")) == [
        "none.jsonl: no such file or directory; needed a file, a saved dataset directory or a dataset id; check the path"
    ]
    assert problems_of(source(tmp_path / "table.csv")) == [
        "table.csv: found a .csv file; needed .jsonl, .jsonl.gz, .json, .parquet, .txt, .json.gz, .ndjson, .ndjson.gz; convert or rename it"
    ]
    assert problems_of(source(tmp_path / "broken.parquet"))[0].startswith("broken.parquet: not a readable Parquet file (")
    assert problems_of(source(tmp_path / "broken.jsonl.gz"), "prompts")[-1].startswith("broken.jsonl.gz: cannot be read (")
    assert problems_of(source(write_lines(GOOD).path, split="train")) == [
        "records.jsonl: split: set for a plain file; needed for datasets only; remove it"
    ]


def test_dataset_without_known_columns_names_what_it_has(tmp_path, source):
    Dataset.from_list([{"question": "a", "answer": "b"}]).save_to_disk(tmp_path / "saved")
    assert problems_of(source(tmp_path / "saved"))[0].startswith("saved: found columns question, answer; needed some of prompt, completion")


# Texts


def test_a_text_file_is_one_document_and_a_line_of_jsonl_one_each(tmp_path, source, write_lines):
    (tmp_path / "novel.txt").write_bytes(b"\xef\xbb\xbfOne.\n\nTwo.\r\n")
    assert load_records(source(tmp_path / "novel.txt"), "texts") == [Text("One.\n\nTwo.\r\n")]
    # Columns of other formats beside it are not read.
    rows = [
        {"text": "One.", "id": 3},
        {"text": "", "source": "web"},
        {"text": "Human: Hi?\n\nAssistant: Hello.", "messages": [USER, ANSWER]},
    ]
    assert load_records(write_lines(*rows), "texts") == [Text(row["text"]) for row in rows]
    assert load_records(source(tmp_path / "records.jsonl", format="text"), "texts") == [Text(row["text"]) for row in rows]
    pq.write_table(pa.Table.from_pylist([{"text": "One.", "url": "x"}]), tmp_path / "web.parquet")
    assert load_records(source(tmp_path / "web.parquet"), "texts") == [Text("One.")]


def test_a_directory_of_text_files_has_one_document_each_in_the_order_of_their_paths(tmp_path, source):
    (tmp_path / "books" / "b").mkdir(parents=True)
    for name in ("z.txt", "b/1.TXT", "a.txt", ".hidden.txt", "cover.png"):
        (tmp_path / "books" / name).write_text(name)
    assert load_records(source(tmp_path / "books"), "texts") == [Text("a.txt"), Text("b/1.TXT"), Text("z.txt")]
    (tmp_path / "books" / "more.jsonl").write_text("{}")
    assert problems_of(source(tmp_path / "books"), "texts") == [
        "books: found 3 .txt files and more.jsonl; needed files of one format; move the others away"
    ]


def test_of_prompts_each_line_of_a_text_file_is_one_and_a_web_page_is_neither(tmp_path, source):
    (tmp_path / "prompts.txt").write_text("Hi?\nHo?\n")
    assert load_records(source(tmp_path / "prompts.txt"), "prompts") == [Prompt(user("Hi?")), Prompt(user("Ho?"))]
    assert load_records(source(tmp_path / "prompts.txt"), "texts") == [Text("Hi?\nHo?\n")]
    (tmp_path / "page.html").write_text("Hi?")
    (told,) = problems_of(source(tmp_path / "page.html"), "texts")
    assert told.startswith("page.html: found a .html file; needed .jsonl, .jsonl.gz, .json, .parquet, .txt, ")


def test_a_text_that_is_none_is_told_with_its_line(write_lines, tmp_path, source):
    assert problems_of(write_lines({"text": "a"}, {"content": "b"}, {"text": 3}), "texts") == [
        "records.jsonl:2: text: missing; needed a document's text; add it",
        "records.jsonl:3: text: found 3 (a number); needed text; correct it",
    ]
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert problems_of(source(tmp_path / "latin.txt"), "texts") == [
        "latin.txt: byte 0xe9 at column 4 is not UTF-8; needed UTF-8 text; save the file as UTF-8"
    ]


@pytest.mark.parametrize(
    ("text", "fraction", "parts"),
    [
        ("one\ntwo\nthree\nfour", 0.25, ("one\ntwo\nthree\n", "four")),
        ("one\r\n \r\ntwo\nthree\nfour five six\n", 0.05, ("one\r\n \r\n", "two\nthree\nfour five six\n")),
        ("\n\none line\n\n", 0.5, None),
        ("", 0.5, None),
    ],
)
def test_a_text_is_split_between_paragraphs_else_between_lines(text, fraction, parts):
    assert split_text(text, fraction) == parts


def test_an_assistant_that_speaks_first_is_context_and_counted(write_lines):
    opening = [{"role": "assistant", "content": "How can I help?"}, USER, ANSWER]
    turns = [{"from": "gpt", "value": "How can I help?"}, {"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]
    for row in (
        {"messages": opening},
        {"messages": [{"role": "system", "content": "s"}, *opening]},
        {"conversations": turns, "system": "s"},
    ):
        reports = []
        (record,) = load_records(write_lines(row), "demonstrations", 0, reports)
        assert [message.role for message in record.prompt][-2:] == ["assistant", "user"] and record.completion != "How can I help?"
        assert reports[0].line().endswith("; 1 answers before the user's first message, which are context alone")
    assert problems_of(write_lines({"messages": opening[:2]}), "demonstrations") == [
        "records.jsonl:1: messages[:0]: found no message before the answer; needed a user's message; add it"
    ]


def test_whole_ranks_that_are_written_as_decimals_are_ranks(write_lines):
    (record,) = load_records(write_lines({"prompt": "Q", "completions": ["a", "b"], "ranks": [2.0, 1.0]}), "comparisons")
    assert record.ranks == (2, 1) and all(isinstance(rank, int) for rank in record.ranks)
    assert (
        "found 1.5 (a number)" in problems_of(write_lines({"prompt": "Q", "completions": ["a", "b"], "ranks": [1.5, 1]}), "comparisons")[0]
    )


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (gzip.compress(b'{"prompt": "Hi"}', mtime=0), "found gzip data; needed text; give its name the ending .jsonl.gz"),
        (b"PAR1....", "found a Parquet file; needed text; give its name the ending .parquet"),
        (b"PK\x03\x04...", "found a zip archive; needed text; unpack it"),
        ('{"prompt": "Hi"}'.encode("utf-16"), "found UTF-16 text; needed UTF-8 text; save the file as UTF-8"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "found zstd data; needed text; unpack it (zstd -d)"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "found a pointer to the file, which git-lfs has not fetched; needed the file itself; run git lfs pull",
        ),
        (b"<!DOCTYPE html>\n<html>", "found a web page; needed records; fetch the file itself"),
    ],
    ids=("gzip", "parquet", "zip", "utf-16", "zstd", "git-lfs", "web page"),
)
def test_a_file_that_is_not_what_its_name_says_is_told_as_what_it_is(tmp_path, source, content, found):
    (tmp_path / "records.jsonl").write_bytes(content)
    assert problems_of(source(tmp_path / "records.jsonl"), "prompts") == [f"records.jsonl: {found}"]


@pytest.mark.parametrize("name", ["a.ndjson", "a.json.gz", "A.JSONL", "a.ndjson.gz"])
@pytest.mark.parametrize("text", ['{"prompt": "a"}\n\ufeff{"prompt": "b"}\n', '[{"prompt": "a"},\n{"prompt": "b"}]'])
def test_lines_and_arrays_are_read_whatever_the_ending_and_a_mark_within_joined_files_is_none_of_theirs(tmp_path, source, name, text):
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert [record.prompt[0].content for record in load_records(source(tmp_path / name), "prompts")] == ["a", "b"]


def test_records_inside_of_an_object_are_told_as_such(tmp_path, source):
    (tmp_path / "all.json").write_text('{"data": [{"prompt": "a"}, {"prompt": "b"}]}')
    assert problems_of(source(tmp_path / "all.json"), "prompts") == [
        "all.json:1: prompt: missing; found one object, whose data is a list of 2 objects; needed a prompt, or messages; add it; if they "
        "are the records, write that list alone"
    ]


def test_what_is_wrong_with_every_set_alike_is_told_once():
    # Such as a limit that is too short for any prompt, found in each of three sets.
    limit = Problem("", "tokens.max_prompt_tokens", "found 1, too short for a prompt; raise it")
    assert str(DataError([limit, Problem("a.jsonl:1", "prompt", "found no text"), limit])).count("tokens.max_prompt_tokens") == 1


# What exports write


@pytest.mark.parametrize("name", ["demos.json", "demos.jsonl", "demos.jsonl.gz"])
def test_objects_over_several_lines_are_told_once(tmp_path, source, name):
    text = "\ufeff" + "".join(json.dumps({"prompt": f"{i}?", "completion": "a"}, indent=2) + "\n" for i in range(30))
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    needed = "needed one object on each line, or one list of them ([ first); write it so (jq -c . FILE)"
    assert problems_of(source(tmp_path / name)) == [f"{name}:1: found an object that goes over several lines; {needed}"]


def test_a_rank_that_is_none_and_a_number_of_thousands_of_digits_are_bad_lines(write_lines):
    lines = write_lines(
        {"prompt": "a", "completions": ["b", "c"], "ranks": [1, 10**30]},
        {"prompt": "a", "completions": ["b", "c"], "ranks": [1, 1e300]},
        '{"id": ' + "9" * 5000 + ', "prompt": "a", "completions": ["b", "c"], "ranks": [1, 2]}',
    )
    first, second, third = problems_of(lines, "comparisons")
    assert first.startswith("records.jsonl:1: ranks[1]: found 1000000000") and first.endswith(
        "needed a whole number from 1 (best); correct it"
    )
    assert second.startswith("records.jsonl:2: ranks[1]: found 1000000000")
    assert third == "records.jsonl:3: found a number of thousands of digits; needed an ordinary number or text; replace it"


@pytest.mark.parametrize(
    "names", [("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating"), ("chosen-rating", "rejected-rating")]
)
def test_scores_of_a_pair_are_read_whatever_they_are_called(write_lines, tmp_path, source, names):
    pair = {"prompt": "Hi?", "chosen": "Hello.", "rejected": "No."}
    rows = [pair | dict(zip(names, scores, strict=True)) for scores in ([2, 1], [2, 2], [2, None])]
    assert [record.ranks for record in load_records(write_lines(*rows), "comparisons")] == [(1, 2), (1, 1), (1, 2)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    assert [record.ranks for record in load_records(source(tmp_path / "pairs.parquet"), "comparisons")] == [(1, 2), (1, 1), (1, 2)]
    (told,) = problems_of(write_lines(pair | dict(zip(names, [1, 2], strict=True))), "comparisons")
    assert told.startswith(f"records.jsonl:1: {names[0]}: found 1, below")


def test_a_parquet_file_without_known_columns_names_what_it_has_and_one_column_twice_is_refused(tmp_path, source):
    pq.write_table(pa.table({"Question": ["a"] * 3, "Answer": ["b"] * 3}), tmp_path / "a.parquet")
    (told,) = problems_of(source(tmp_path / "a.parquet"))
    assert told.startswith("a.parquet: found columns Question, Answer; needed some of prompt, completion")
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, ["prompt", "completion", "prompt"]), tmp_path / "b.parquet")
    assert problems_of(source(tmp_path / "b.parquet")) == [
        "b.parquet: found the column prompt twice; needed it once; remove one of the two"
    ]
