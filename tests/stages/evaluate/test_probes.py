"""Edits of an answer: one flaw each, the same each time, and none that changes nothing."""

import pytest

from data.demo.flaws import WEIGHTS
from data.demo.probes import edit
from data.demo.rule import judge
from stages.evaluate.probes import ProbeError, ask_function, edit_answer, find_names

ANSWER = "Hello, I say, Mia! Your order 407 was sent on Friday. It has 2 parts."


def test_each_edit_changes_one_thing():
    edits = edit_answer("a question", ANSWER, ["Mia", "Omar", "Friday"])
    assert edits.keys() == {"truncated", "repeated sentence", "swapped number", "swapped name", "added filler", "empty"}
    assert edits["truncated"].text == "Hello, I say, Mia! Your order 407 was"
    assert edits["empty"].text == ""
    words = ANSWER.split()
    swapped = edits["swapped number"].text.split()
    assert sum(a != b for a, b in zip(words, swapped, strict=True)) == 1
    assert ("407" in swapped) != ("2" in swapped)
    assert edits["swapped name"].text in (ANSWER.replace("Mia", "Omar"), ANSWER.replace("Friday", "Omar"))
    assert edits["repeated sentence"].text.startswith(ANSWER) and edits["added filler"].text.startswith(ANSWER)
    assert edits == edit_answer("a question", ANSWER, ["Mia", "Omar", "Friday"])


def test_what_cannot_be_edited_is_left_out():
    assert edit_answer("q", "yes", []).keys() == {"repeated sentence", "added filler", "empty"}
    assert edit_answer("q", "", []).keys() == {"added filler"}


def test_a_word_that_begins_a_sentence_is_no_name():
    assert find_names("Your chair is late. On Monday, Mia gets it.") == ["Monday", "Mia"]


@pytest.mark.parametrize("found", [None, "text", {"rude": 1}, {"rude": {"description": "x"}}, {1: "x"}])
def test_a_function_that_returns_no_edits_is_told(found):
    with pytest.raises(ProbeError, match=r"evaluate\.probes: mine:edit returned .* needed texts by name"):
        ask_function(lambda prompt, answer: found, "mine:edit", "q", "a")


def test_a_function_that_raises_is_told_and_one_that_changes_nothing_is_left_out():
    with pytest.raises(ProbeError, match="mine:edit raised ZeroDivisionError"):
        ask_function(lambda prompt, answer: 1 / 0, "mine:edit", "q", "a")
    assert ask_function(lambda prompt, answer: {"same": "a", "other": "b"}, "mine:edit", "q", "a").keys() == {"other"}


def test_the_demos_own_probes_are_its_flaws_and_the_rule_sees_each_that_it_knows():
    prompt = "Order: grey chair. Status: delayed. Day: Friday. Mia asks: where is my order?"
    answer = "Hi Mia! We are sorry. Your grey chair is delayed and arrives on Friday."
    copies = edit(prompt, answer)
    assert copies == edit(prompt, answer)
    assert copies.keys() == set(WEIGHTS) - {"step"}  # there is no next step in it
    worse = [name for name, copy in copies.items() if judge(prompt, copy["text"])["score"] < judge(prompt, answer)["score"]]
    assert worse == list(copies)
    with pytest.raises(ValueError, match="needed a helpdesk prompt"):
        edit("a question", answer)
