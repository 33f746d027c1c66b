import pytest

from data.schema import Comparison, Demonstration, Message, Prompt, Text
from data.validate import check


def user(text):
    return (Message("user", text),)


def compare(prompt, completions, ranks):
    return Comparison(user(prompt), tuple(completions), tuple(ranks))


def test_clean_records_give_counts_and_nothing_else():
    findings = check({"train": [Prompt(user("a")), Prompt(user("b"))], "eval": [Prompt(user("c"))]})
    assert findings.errors == findings.warnings == ()
    assert findings.counts == {
        "train": 2,
        "eval": 1,
        "duplicates": 0,
        "contradictions": 0,
        "leaked_prompts": 0,
        "comparisons_without_pair": 0,
        "empty_answers": 0,
    }


def test_each_extra_copy_of_a_training_record_counts_as_duplicate():
    record, other = Demonstration(user("a"), "x"), Demonstration(user("a"), "y")
    findings = check({"train": [record, other, record, record]})
    assert findings.counts["duplicates"] == 2
    assert findings.warnings[0].startswith("2 training records occur more than once")


def test_held_out_prompt_in_training_is_counted_once_per_prompt():
    train = [Demonstration(user("a"), "x"), Demonstration(user("a"), "y"), Demonstration(user("b"), "x")]
    findings = check({"train": train, "eval": [Demonstration(user("a"), "z"), Demonstration(user("c"), "x")]})
    assert findings.counts["leaked_prompts"] == 1
    assert "held-out figures look too good" in findings.warnings[0]


def test_pair_ranked_both_ways_is_a_contradiction_only_for_the_same_prompt():
    one_way = compare("a", ["x", "y", "z"], [1, 2, 3])
    assert check({"train": [one_way, compare("b", ["x", "y"], [2, 1])]}).counts["contradictions"] == 0
    assert check({"train": [one_way, compare("a", ["x", "y"], [1, 1])]}).counts["contradictions"] == 0
    # y over x and z over x are said too, y over z agrees.
    assert check({"train": [one_way, compare("a", ["y", "z", "x"], [1, 2, 3])]}).counts["contradictions"] == 2
    assert check({"train": [one_way], "eval": [compare("a", ["x", "z"], [5, 4])]}).counts["contradictions"] == 1


def test_one_text_at_two_ranks_contradicts_itself():
    assert check({"train": [compare("a", ["x", "x"], [1, 2])]}).counts["contradictions"] == 1


def test_some_comparisons_without_a_pair_warn_and_only_such_ones_stop():
    tie, ranked = compare("a", ["x", "y"], [2, 2]), compare("b", ["x", "y"], [1, 2])
    mixed = check({"train": [tie, ranked]})
    assert mixed.counts["comparisons_without_pair"] == 1
    assert mixed.errors == ()
    assert mixed.warnings == ("1 comparisons rank all answers equal; they make no pair and are left out",)
    assert check({"train": [ranked], "eval": [tie]}).errors == (
        "eval: ranks: all 1 comparisons rank their answers equal; needed different ranks; rank them",
    )


def test_empty_split_stops_and_empty_answers_warn():
    findings = check({"train": [compare("a", ["", " \n", "x"], [1, 2, 3])], "eval": []})
    assert findings.counts["empty_answers"] == 2
    assert findings.errors == ("eval: found no records; needed at least one; check the source",)


@pytest.mark.parametrize(
    ("texts", "errors", "warnings"),
    [
        (["one\ntwo"], [], ["found a single text and no eval file; its end is held out"]),
        (["one"], ["found fewer than two texts that can be used, and no single one of several lines, among 1 records"], []),
        (["", "one\ntwo"], [], ["found a single text", "1 texts are empty"]),
        (["one\ntwo"] * 2, ["found fewer than two texts"], ["1 training records occur more than once"]),
        (["one", "two"], [], []),
    ],
)
def test_a_single_text_without_an_eval_file_is_told(texts, errors, warnings):
    findings = check({"train": [Text(text) for text in texts]})
    for found, begins in ((findings.errors, errors), (findings.warnings, warnings)):
        assert [text[: len(begin)] for text, begin in zip(found, begins, strict=True)] == begins
    assert not check({"train": [Text("one")], "eval": [Text("two")]}).errors


def test_texts_are_checked_for_copies_leaks_and_emptiness():
    train = [Text("a"), Text("b"), Text("a"), Text(""), Text("")]
    findings = check({"train": train, "eval": [Text("b"), Text("c")]})
    assert findings.counts == {"train": 5, "eval": 2, "duplicates": 1, "leaked_texts": 1, "empty_texts": 2}
    assert findings.errors == ()
    assert [warning.partition(";")[0] for warning in findings.warnings] == [
        "1 training records occur more than once",
        "1 held-out texts also occur in training",
        "2 texts are empty",
    ]
    assert check({"train": [Text("a")], "eval": [Text("")]}).errors == (
        "eval: found no text that is not empty; needed at least one; check the source",
    )
