import itertools
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.load import load_records
from data.reading import PROBED_ROWS
from data.schema import Comparison, DataError, Demonstration, Message, Prompt

ALPACA = {"instruction": "Say hi.", "input": "", "output": "Hi."}
SHAREGPT = {"conversations": [{"from": "human", "value": "Say hi."}, {"from": "gpt", "value": "Hi."}]}
OWN = {"prompt": "Say hi.", "completion": "Hi."}
USER = {"role": "user", "content": "Say hi."}
HI = Demonstration((Message("user", "Say hi."),), "Hi.")


def read(source, kind="demonstrations", skip_bad=0):
    """The records, and the report on the source."""
    reports = []
    return load_records(source, kind, skip_bad, reports), reports[0]


def refused(source, kind="demonstrations", skip_bad=0):
    with pytest.raises(DataError) as caught:
        load_records(source, kind, skip_bad)
    return [str(problem).removeprefix(f"{Path(source.path).parent}/") for problem in caught.value.problems]


# The format of a file


@pytest.mark.parametrize(("row", "looks"), [(ALPACA, "Alpaca"), (SHAREGPT, "ShareGPT"), (OWN, "TRL")])
def test_the_format_of_a_file_is_recognised_and_told(write_lines, row, looks):
    records, report = read(write_lines(row, row))
    assert records == [HI, HI]
    assert report.line().startswith(f"records.jsonl: read as {looks}: ")
    assert report.is_plain == (row is OWN)


def test_one_odd_line_does_not_decide_and_is_the_one_refused_wherever_it_stands(write_lines):
    rows = [ALPACA] * (PROBED_ROWS + 5)
    for odd in (0, 1, PROBED_ROWS + 2):
        mixed = [*rows[:odd], SHAREGPT, *rows[odd:]]
        needed = "needed Alpaca: instruction/input/output, as most of the first lines are"
        assert refused(write_lines(*mixed)) == [
            f"records.jsonl:{odd + 1}: found ShareGPT: conversations/from/value; {needed}; write it alike, or move it to a file of its own"
        ]


def test_every_pair_of_formats_in_one_file_is_refused(write_lines):
    for most, odd in itertools.permutations((ALPACA, SHAREGPT, OWN), 2):
        (line,) = refused(write_lines(most, most, odd))
        assert line.startswith("records.jsonl:3: found "), (most, odd)


def test_columns_that_parquet_fills_with_null_do_not_mislead(tmp_path, source):
    pq.write_table(pa.Table.from_pylist([{**OWN, "instruction": None, "conversations": None}]), tmp_path / "a.parquet")
    assert read(source(tmp_path / "a.parquet"))[0] == [HI]


@pytest.mark.parametrize("row", [ALPACA, SHAREGPT])
def test_parquet_gives_the_same_records_as_lines(tmp_path, source, row):
    pq.write_table(pa.Table.from_pylist([{**row, "embedding": [0.5]}]), tmp_path / "a.parquet")
    assert read(source(tmp_path / "a.parquet"))[0] == [HI]


def test_a_named_format_is_taken_and_lines_of_another_are_refused(write_lines):
    both = {**SHAREGPT, "messages": [USER, {"role": "assistant", "content": "Other."}]}
    assert read(write_lines(both, format="sharegpt"))[0] == [HI]
    found = refused(write_lines(ALPACA, SHAREGPT, format="sharegpt"))
    assert [line.partition(" ")[0] for line in found] == ["records.jsonl:1:"]


def test_columns_are_mapped_and_told_under_the_users_names(write_lines):
    mapped = {"columns": {"prompt": "question", "chosen": "answer_a", "rejected": "answer_b"}}
    row = {"question": "Say hi.", "answer_a": "Hi.", "answer_b": "No.", "prompt": "an id"}
    assert read(write_lines(row, **mapped), "comparisons")[0] == [Comparison(HI.prompt, ("Hi.", "No."), (1, 2))]
    assert refused(write_lines(row, {**row, "answer_a": 3}, {"question": "x", "answer_b": "y"}, **mapped), "comparisons") == [
        "records.jsonl:2: answer_a: found 3 (a number); needed text; correct it",
        "records.jsonl:3: answer_a: missing; needed completions and ranks, or chosen and rejected; add it",
    ]


def test_mapped_columns_are_read_from_parquet(tmp_path, source):
    pq.write_table(pa.Table.from_pylist([{"question": "Say hi.", "answer": "Hi."}]), tmp_path / "a.parquet")
    assert read(source(tmp_path / "a.parquet", columns={"prompt": "question", "completion": "answer"}))[0] == [HI]


def test_unknown_columns_are_named(write_lines):
    assert refused(write_lines({"question": "a", "reply": "b"})) == [
        "records.jsonl:1: prompt: missing; found question, reply; needed prompt and completion, or messages; add it, "
        "or say by columns: which is which"
    ]


# Prompts


def test_prompts_may_be_lines_of_text_messages_or_bare_lists_of_them(tmp_path, source, write_lines):
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbfSay hi.\r\n\r\n  Why?  \n")
    assert read(source(tmp_path / "prompts.txt"), "prompts")[0] == [Prompt(HI.prompt), Prompt((Message("user", "  Why?"),))]
    for row in ({"messages": [USER]}, [USER], {"text": "Say hi."}, {"chosen": [USER, USER], "rejected": []}):
        assert read(write_lines(row), "prompts")[0][0].prompt[-1] == HI.prompt[0], row
    assert refused(source(tmp_path / "prompts.txt")) == [
        "prompts.txt: found plain text: a prompt a line, or in the column text, which gives prompts; needed demonstrations; "
        "give another file, or say by columns: which is which"
    ]


def test_an_answer_at_the_end_of_a_prompt_column_is_refused_and_of_a_conversation_told(write_lines):
    talk = [USER, {"role": "assistant", "content": "Hi."}]
    assert "the prompt ends with a message from assistant" in refused(write_lines({"prompt": talk}), "prompts")[0]
    records, report = read(write_lines({"messages": talk}), "prompts")
    assert records == [Prompt(HI.prompt)]
    assert report.line().endswith("; 1 conversations read as prompts up to their last answer")


# What a message may hold


def test_typed_parts_of_text_are_joined_and_told(write_lines):
    parts = [{"type": "text", "text": "Say "}, {"type": "text", "text": "hi."}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "Hi."}]}]}
    records, report = read(write_lines(row, OWN))
    assert records == [HI, HI]
    assert report.line().endswith("; 1 records whose typed parts of text were joined")


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}, {"type": "text", "text": "?"}]}]},
            "messages[0].content[0]: found a part of type image; needed text, or parts of type text; remove the line",
        ),
        ({**OWN, "images": ["a.png"]}, "images: found images, video or audio; needed text only; remove the line"),
        (
            {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}]},
            "messages[1].tool_calls: found a tool call apart from the text; needed the call as the text that the model shall write; "
            "write it into content",
        ),
    ],
)
def test_what_is_no_text_is_refused_by_line(write_lines, row, line):
    assert refused(write_lines(OWN, row)) == [f"records.jsonl:2: {line}"]


def test_what_a_tool_answered_and_empty_calls_pass_and_unread_fields_are_told(write_lines):
    tool = {"role": "tool", "content": "3 degrees", "name": "weather"}
    row = {
        "messages": [USER, {"role": "assistant", "content": "look()", "tool_calls": []}, tool, {"role": "assistant", "content": "Cold."}]
    }
    records, report = read(write_lines(row))
    assert records[1].prompt[2] == Message("tool", "3 degrees")
    assert report.line().endswith("; 1 records with fields of messages that are not read (name, tool_calls)")


def test_tools_beside_a_conversation_are_told(write_lines):
    for row in (OWN, SHAREGPT, ALPACA):
        line = read(write_lines({**row, "tools": '[{"name": "weather"}]'}, {**row, "tools": ""}))[1].line()
        assert line.endswith("; 1 records whose column tools is not read")


def test_a_margin_between_answers_is_told(write_lines):
    pair = {"prompt": "Say hi.", "chosen": "Hi.", "rejected": "No.", "margin": 0.5}
    assert read(write_lines(pair), "comparisons")[1].line().endswith("; 1 records whose column margin is not read")


@pytest.mark.parametrize("label", ["label", "kto_tag"])
@pytest.mark.parametrize("row", [OWN, SHAREGPT, ALPACA])
def test_answers_that_are_labelled_as_bad_are_no_demonstrations_and_that_is_told(write_lines, row, label):
    records, report = read(write_lines({**row, label: True}, {**row, label: False}, row))
    assert records == [HI, HI]
    assert report.line().endswith("; 1 rows whose label says that the answer is a bad one, left out")


@pytest.mark.parametrize("bad", [0, 0.0, "false", "False", "0"])
def test_a_label_that_an_export_wrote_as_number_or_text_counts_too(write_lines, bad):
    records, report = read(write_lines({**OWN, "label": 1}, {**OWN, "label": bad}, {**OWN, "label": "true"}, {**OWN, "label": "greeting"}))
    assert records == [HI, HI, HI] and "1 rows whose label says that the answer is a bad one, left out" in report.line()
    (problem,) = refused(write_lines({**OWN, "label": bad}))
    assert "found nothing to use (1 rows whose label says that the answer is a bad one, left out)" in problem


@pytest.mark.parametrize("text", [repr([USER]), json.dumps([USER]), " " + json.dumps([USER], indent=1) + "\n"])
def test_messages_that_an_export_wrote_as_text_are_refused(write_lines, text):
    told = "found a list of messages that is written as text; needed the list itself; export it as JSON or Parquet"
    assert refused(write_lines(OWN, {**OWN, "prompt": text})) == [f"records.jsonl:2: prompt: {told}"]
    assert refused(write_lines(OWN, {**OWN, "completion": text})) == [f"records.jsonl:2: completion: {told}"]
    about = f"[{{'role': 'user'}}] is how it begins: {text}"  # text that is about messages is text
    assert len(read(write_lines({**OWN, "completion": about}))[0]) == 1


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"train": False}, {"training": False}, {"loss": False}, {"train": "false"}, {"weight": "0"}]
)
@pytest.mark.parametrize(("column", "keys"), [("messages", ("role", "content")), ("conversations", ("from", "value"))])
def test_an_answer_that_is_marked_as_context_is_not_learnt_and_that_is_told(write_lines, mark, column, keys):
    said = [("user", "Say hi.", {}), ("assistant", "Ho.", mark), ("user", "No.", {}), ("assistant", "Hi.", {"weight": 1, "train": True})]
    turns = [{keys[0]: role, keys[1]: text, **marks} for role, text, marks in said]
    records, report = read(write_lines({column: turns}, {column: turns[:2]}))
    assert [(len(record.prompt), record.completion) for record in records] == [(3, "Hi.")]
    assert report.line().endswith("; 2 answers marked as not to be learnt (weight: 0, train: false)")


def test_answers_that_begin_with_their_whole_prompt_are_told(write_lines):
    whole = {"prompt": "Say hi.", "chosen": "Say hi. Hi.", "rejected": "Say hi. No."}
    half = {"prompt": "Say hi.", "chosen": "Say hi. Hi.", "rejected": "No."}
    told = "; 2 records whose answers begin with their whole prompt, and are learnt so"
    assert read(write_lines(whole, whole, half), "comparisons")[1].line().endswith(told)
    word = {"prompt": "Hi", "completion": "Hi there!"}  # a greeting is answered so
    assert "whole prompt" not in read(write_lines(word, OWN))[1].line()


def test_other_weights_are_told_as_not_read(write_lines):
    answer = {"role": "assistant", "content": "Hi.", "weight": 0.5}
    assert (
        read(write_lines({"messages": [USER, answer]}))[1].line().endswith("; 1 records with fields of messages that are not read (weight)")
    )


def test_messages_after_the_last_answer_are_told(write_lines):
    answer = {"role": "assistant", "content": "Hi."}
    records, report = read(write_lines({"messages": [USER, answer, USER]}, {"messages": [USER, answer]}))
    assert records == [HI, HI]
    assert report.line().endswith("; 1 conversations of which what follows the last answer is not read")


def test_a_missing_column_is_told_with_those_that_are_there(write_lines):
    """PKU-SafeRLHF's, and Orca's pairs: what lacks is there, under another name."""
    rows = {"prompt": "a", "response_0": "b", "response_1": "c"}, {"system": "s", "question": "a", "chosen": "b", "rejected": "c"}
    found = [refused(write_lines(row), "comparisons")[0] for row in rows]
    assert found[0].startswith("records.jsonl:1: chosen: missing; found prompt, response_0, response_1; needed completions and ranks")
    assert found[1].startswith("records.jsonl:1: prompt: missing; found system, question, chosen, rejected; needed a prompt")
    assert all(line.endswith("or say by columns: which is which") for line in found)


def test_several_rejected_answers_beside_one_chosen_are_told_as_such(write_lines):
    assert refused(write_lines({"prompt": "a", "chosen": "b", "rejected": ["c", "d"]}), "comparisons") == [
        "records.jsonl:1: rejected: found a list of 2 beside one text; needed text on both sides, or message lists; give several answers "
        "as completions with ranks"
    ]


def test_the_system_column_begins_the_conversation(write_lines):
    system = {"system": "Be brief."}
    expected = (Message("system", "Be brief."), *HI.prompt)
    talk = [USER, {"role": "assistant", "content": "Hi."}]
    for row in (OWN, {"messages": talk}, {"prompt": [USER], "completion": "Hi."}):
        assert read(write_lines({**row, **system}))[0] == [Demonstration(expected, "Hi.")], row
    both = {"messages": [{"role": "system", "content": "Other."}, *talk], **system}
    assert refused(write_lines(both)) == [
        "records.jsonl:1: system: found a system message in the conversation too, and another; needed one; remove one of them"
    ]


# Keys that stand twice


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_key_that_stands_twice_is_told_and_the_other_lines_are_read(tmp_path, source, name):
    rows = [
        '{"prompt": "Say hi.", "completion": "good", "completion": "OVERWRITTEN"}',
        '{"prompt": "Say hi.", "completion": "Hi."}',
        '{"messages": [{"role": "user", "content": "a", "content": "b"}]}',
    ]
    (tmp_path / name).write_text("[" + ",\n".join(rows) + "]" if name == "a.json" else "\n".join(rows))
    assert refused(source(tmp_path / name)) == [
        f"{name}:1: completion: found the key twice in one object; needed it once; remove one of the two",
        f"{name}:3: content: found the key twice in one object; needed it once; remove one of the two",
    ]
    assert read(source(tmp_path / name), skip_bad=2)[0] == [HI]


# Bad lines that are skipped


def test_up_to_so_many_bad_lines_are_skipped_and_named(write_lines):
    source = write_lines(OWN, "{", {"prompt": ""}, OWN, ALPACA)
    records, report = read(source, skip_bad=3)
    assert records == [HI, HI]
    assert [problem.where.rpartition(":")[2] for problem in report.skipped] == ["2", "3", "5"]
    assert report.line().endswith("; 3 bad lines skipped")
    assert len(refused(source, skip_bad=2)) == 3


def test_an_unread_rest_is_never_skipped(tmp_path, source):
    (tmp_path / "a.json").write_text('[{"prompt": "Say hi.", "completion": "Hi."}, {"prompt": }, {"prompt": "b", "completion": "c"}]')
    assert "the rest is unread" in refused(source(tmp_path / "a.json"), skip_bad=10)[0]


def test_a_source_of_bad_lines_alone_is_refused(write_lines):
    assert refused(write_lines("{"), skip_bad=1) == [
        "records.jsonl: found no rows; needed at least one of demonstrations; check the export"
    ]


# Identical answers


@pytest.mark.parametrize(
    ("answers", "ranks", "settled"),
    [
        ("aa", (1, 2), (1, 1)),
        ("aab", (1, 2, 3), (1, 1, 3)),
        ("aba", (1, 2, 3), (1, 1, 1)),
        ("abac", (1, 2, 3, 4), (1, 1, 1, 4)),
        ("aabb", (1, 3, 2, 4), (1, 1, 1, 1)),
        ("abc", (1, 2, 3), (1, 2, 3)),
        ("aab", (1, 1, 2), (1, 1, 2)),
    ],
)
def test_identical_answers_tie_with_what_is_ranked_between_them(write_lines, answers, ranks, settled):
    (record,), report = read(write_lines({"prompt": "Why?", "completions": list(answers), "ranks": list(ranks)}), "comparisons")
    assert record.ranks == settled
    assert record.has_pair == (len(set(settled)) > 1)
    assert ("identical answers" in report.line()) == (answers != "abc")
