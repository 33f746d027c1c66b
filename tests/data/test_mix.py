"""Sources of comparisons become one set: who holds what out, whose name stands where, how often a record is seen."""

import pytest

from data.mix import MixedPart, count_passes, mix_parts, part_of, split_comparisons
from data.schema import Comparison, DataError, Message


def ask(n, source="", system=""):
    before = (Message("system", system),) if system else ()
    return Comparison((*before, Message("user", f"question {n}")), (f"good {n} {source}", f"bad {n} {source}"), (1, 2), source)


def asked(records):
    return [record.prompt[-1].content for record in records]


BASE = [ask(n) for n in range(40)]
ROUND = MixedPart("rankings@v1", [ask(n, "mail") for n in range(100, 110)], [ask(n) for n in (110, 111)])


def test_a_source_without_a_list_of_its_own_holds_out_what_it_would_alone():
    mixed = mix_parts([MixedPart("base", BASE), ROUND], None, 0.2, seed=3)
    train, held_out = split_comparisons(BASE, 0.2, 3, "base")
    assert asked(mixed.train) == asked([*train, *ROUND.train]) and asked(mixed.held_out) == asked([*held_out, *ROUND.held_out])
    assert {record.source for record in mixed.train} == {"base", "rankings@v1/mail"}
    assert {part_of(record.source) for record in mixed.held_out} == {"base", "rankings@v1"}
    assert mixed.left_out == {}


def test_a_list_that_is_given_is_for_those_without_one_of_their_own():
    given = [ask(n) for n in (200, 201)]
    mixed = mix_parts([MixedPart("base", BASE), ROUND], given, 0.2, seed=3)
    assert len(mixed.train) == 50 and [record.source for record in mixed.held_out] == ["rankings@v1", "rankings@v1", "base", "base"]


def test_what_one_source_holds_out_no_other_trains_on():
    """Other answers to the same question, and later turns of the same conversation, count as the same."""
    later = Comparison((Message("user", "question 110"), Message("assistant", "yes"), Message("user", "and?")), ("a", "b"), (1, 2))
    other = MixedPart("rankings@v2", [ask(110, "web"), later, ask(300)], [ask(3), ask(301)])
    mixed = mix_parts([MixedPart("base", BASE), ROUND, other], [ask(400)], 0.2, seed=3)
    assert mixed.left_out == {"base": 1, "rankings@v2": 2}
    assert not set(asked(mixed.train)) & set(asked(mixed.held_out)) and "and?" not in asked(mixed.train)
    assert len(mixed.train) == 39 + 10 + 1


def test_a_source_too_small_to_hold_something_out_is_named():
    with pytest.raises(DataError, match=r"tiny: data\.comparisons\.eval: found fewer than two"):
        mix_parts([MixedPart("tiny", BASE[:1]), ROUND], None, 0.2, seed=3)


@pytest.mark.parametrize(
    ("weight", "draw", "passes"),
    [(1.0, 0.0, 1), (1.0, 0.99, 1), (2.0, 0.0, 2), (2.5, 0.49, 3), (2.5, 0.5, 2), (0.25, 0.24, 1), (0.25, 0.25, 0)],
)
def test_a_record_is_seen_a_whole_number_of_times(weight, draw, passes):
    assert count_passes(weight, draw) == passes
