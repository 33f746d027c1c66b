import pytest

from data.schema import Comparison, Demonstration, Message, Prompt

PROMPT = (Message("user", "What is it?"), Message("assistant", "A cat."), Message("user", "Whose?\n\nAnd why?"))
START = "\n\nHuman: What is it?\n\nAssistant: A cat.\n\nHuman: Whose?\n\nAnd why?\n\nAssistant:"


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": START + " Ada's.", "rejected": START + " No idea."},
        {"prompt": START, "response": " Ada's.", "chosen": " Ada's.", "rejected": " No idea."},
    ],
)
def test_dialogues_in_one_text_are_comparisons(read, row):
    assert read("comparisons", row) == [Comparison(PROMPT, ("Ada's.", "No idea."), (1, 2))]
    assert read("prompts", row) == [Prompt(PROMPT)]


def test_dialogues_are_demonstrations_of_each_answer(read):
    expected = [Demonstration(PROMPT[:1], "A cat."), Demonstration(PROMPT, "Ada's.")]
    assert read("demonstrations", {"text": START + " Ada's."}) == expected
    assert read("demonstrations", {"prompt": START, "response": " Ada's."}) == expected[1:]
    guanaco = {"text": "### Human: What is it?### Assistant: A cat.### Human: Whose?\n\nAnd why?### Assistant: Ada's."}
    assert read("demonstrations", guanaco) == expected
    hh = {"chosen": START + " Ada's.", "rejected": START + " No."}
    assert read("demonstrations", hh, columns={"text": "chosen"}) == expected


def test_a_dialogue_that_ends_where_the_answer_begins_is_a_prompt(read):
    assert read("prompts", {"text": START}) == [Prompt(PROMPT)]


def test_an_empty_answer_may_be_ranked(read):
    assert read("comparisons", {"chosen": START + " Ada's.", "rejected": START})[0].completions == ("Ada's.", "")


def test_what_is_no_pair_of_dialogues_is_told(refused):
    good = {"chosen": START + " a", "rejected": START + " b"}
    found = refused(
        "comparisons",
        good,
        {"chosen": START + " a", "rejected": "\n\nHuman: Other?\n\nAssistant: b"},
        {"chosen": START + " a", "rejected": "No dialogue."},
        {"chosen": START + " a", "rejected": START + " b\n\nHuman: And?"},
    )
    assert found == [
        "records.jsonl:2: rejected: differs from chosen before the last message; needed one prompt for both; make them equal",
        "records.jsonl:3: rejected: found no dialogue that begins with Human: and has an Assistant:; needed one; write it so",
        "records.jsonl:4: rejected: the last message is from user; needed the assistant's answer last; add it",
    ]
    assert refused("demonstrations", good) == [
        "records.jsonl:1: text: missing; found chosen and rejected only; needed a dialogue to imitate; map it by columns: {text: chosen}"
    ]
