import pytest
from datasets import Dataset, Features, List, Value

from data.load import load_records
from data.schema import Comparison, Demonstration, Message, Prompt

SYSTEM, HI = Message("system", "Be brief."), Message("user", "Hi?")


def turns(*pairs, keys=("from", "value")):
    return [dict(zip(keys, pair, strict=True)) for pair in pairs]


TALK = turns(("human", "Hi?"), ("gpt", "Hello."), ("human", "Bye?"), ("gpt", "Bye."))


@pytest.mark.parametrize(
    "row",
    [
        {"id": "c0", "conversations": turns(("system", "Be brief."), *(turn.values() for turn in TALK))},
        {"conversations": TALK, "system": "Be brief.", "tools": None},
        {"conversations": turns(("system", "Be brief."), ("user", "Hi?"), ("assistant", "Hello."), ("user", "Bye?"), ("chatgpt", "Bye."))},
        {
            "conversation": turns(
                ("system", "Be brief."),
                ("user", "Hi?"),
                ("assistant", "Hello."),
                ("user", "Bye?"),
                ("assistant", "Bye."),
                keys=("role", "content"),
            )
        },
        {"messages": TALK, "system": "Be brief."},
    ],
)
def test_every_way_to_write_turns_gives_a_demonstration_per_answer(read, row):
    assert read("demonstrations", row) == [
        Demonstration((SYSTEM, HI), "Hello."),
        Demonstration((SYSTEM, HI, Message("assistant", "Hello."), Message("user", "Bye?")), "Bye."),
    ]


def test_a_dataset_that_keeps_turns_as_lists_of_their_values_is_read(tmp_path, read, source):
    talk = {"from": ["human", "gpt"], "value": ["Hi?", "Hello."]}
    features = Features({"conversations": {"from": List(Value("string")), "value": List(Value("string"))}})
    Dataset.from_dict({"conversations": [talk]}, features=features).save_to_disk(tmp_path / "saved")
    expected = [Demonstration((HI,), "Hello.")]
    assert load_records(source(tmp_path / "saved"), "demonstrations") == read("demonstrations", {"conversations": talk}) == expected


def test_what_a_tool_answered_is_a_turn_of_the_prompt(read):
    talk = turns(("human", "Weather?"), ("gpt", "look()"), ("observation", "3 degrees"), ("gpt", "It is cold."))
    assert read("demonstrations", {"conversations": talk})[1].prompt[2] == Message("tool", "3 degrees")


def test_tool_calls_are_refused_where_they_stand(refused):
    talk = turns(("human", "Weather?"), ("function_call", '{"name": "look"}'), ("observation", "3"), ("gpt", "Cold."))
    (line,) = refused("demonstrations", {"conversations": talk})
    assert line.startswith("records.jsonl:1: conversations[1].from: found function_call; needed the call as the text")


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": TALK[:1], "chosen": {"from": "gpt", "value": "Good."}, "rejected": {"from": "gpt", "value": "Bad."}},
        {"conversations": TALK[:1], "chosen": "Good.", "rejected": "Bad."},
        {"chosen": [*TALK[:1], *turns(("gpt", "Good."))], "rejected": [*TALK[:1], *turns(("gpt", "Bad."))]},
        {"prompt": "Hi?", "chosen": turns(("gpt", "Good.")), "rejected": turns(("gpt", "Bad."))},
    ],
)
def test_pairs_of_answers_are_comparisons(read, row):
    assert read("comparisons", row) == [Comparison((HI,), ("Good.", "Bad."), (1, 2))]


def test_a_conversation_is_a_prompt_up_to_its_last_answer_and_that_is_told(read, told):
    rows = {"conversations": TALK}, {"conversations": TALK[:1]}
    assert read("prompts", *rows)[1] == Prompt((HI,))
    assert read("prompts", *rows)[0].prompt[-1] == Message("user", "Bye?")
    assert told("prompts", *rows).endswith("ShareGPT: conversations/from/value; 1 conversations read as prompts up to their last answer")


def test_bad_turns_are_told_under_the_users_names(refused):
    good = {"conversations": TALK}
    assert refused(
        "demonstrations",
        good,
        {"conversations": turns(("human", "Hi?"), ("gpt", 3))},
        {"conversations": turns(("human", "Hi?"), ("narrator", "x"))},
        {"conversations": turns(("gpt", "Hello."))},
        {"conversations": turns(("user", ""), ("assistant", "x"), keys=("role", "content"))},
        {"conversations": [], "system": "x"},
        {"conversations": turns(("human", "Hi?"), ("gpt", " ")), "system": "x"},
        {"id": "c7"},
        {"conversations": [{"input": "Hi?", "output": "Hello."}]},
    ) == [
        "records.jsonl:2: conversations[1].value: found 3 (a number); needed text; correct it",
        "records.jsonl:3: conversations[1].from: found 'narrator'; needed one of system, user, assistant, tool; rename it",
        "records.jsonl:4: conversations[:0]: found no message before the answer; needed a user's message; add it",
        "records.jsonl:5: conversations[0].content: found an empty text; needed text; fill it or remove the line",
        "records.jsonl:6: conversations: found an empty list; needed a list of messages with role and content; write it so",
        "records.jsonl:7: conversations[1].value: found blanks only; needed text; fill it or remove the line",
        "records.jsonl:8: conversations: missing; needed a list of turns; add it",
        "records.jsonl:9: conversations[0]: found an object with input, output; needed from and value, or role and content; write it so",
    ]
