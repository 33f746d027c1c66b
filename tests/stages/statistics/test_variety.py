"""How much responses repeat, worked by hand."""

import pytest

from stages.statistics.variety import measure_distinct, measure_repetition


def test_distinct_ngrams_worked_by_hand():
    # a b a a b: 2 of 5; ab ba ab: 2 of 3. No bigram runs from one response into the next.
    responses = [["a", "b", "a"], ["a", "b"]]
    assert measure_distinct(responses, 1) == pytest.approx(2 / 5)
    assert measure_distinct(responses, 2) == pytest.approx(2 / 3)


def test_repetition_worked_by_hand():
    # abab baba abab: 1/3 repeated; 1 2 3 4 5: nothing; too short: not counted
    assert measure_repetition([list("ababab"), [1, 2, 3, 4, 5], [1]]) == pytest.approx((1 / 3 + 0) / 2)
    assert measure_repetition([[7] * 13]) == pytest.approx(0.9)


def test_responses_without_ngrams_have_no_figure():
    assert measure_distinct([[1], []], 2) is None
    assert measure_repetition([]) is None
