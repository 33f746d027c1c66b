"""Intervals of held-out figures, as stages leave them."""

import numpy as np
import pytest

from stages.result_intervals import find_answer_intervals, find_interval


def test_an_interval_is_that_of_the_prompts_and_not_of_the_records():
    # 40 prompts, each asked 4 times with the same outcome: 160 records, of which only 40 are independent.
    generator = np.random.default_rng(0)
    by_prompt = generator.normal(size=40)
    values, prompts = np.repeat(by_prompt, 4).tolist(), [f"p{place}" for place in np.repeat(np.arange(40), 4)]
    interval = find_interval(values, prompts)
    assert interval.n == 40
    half = 2.023 * by_prompt.std(ddof=1) / 40**0.5  # t interval of 40 independent values
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.1)
    assert (interval.high + interval.low) / 2 == pytest.approx(by_prompt.mean(), abs=0.1 * half)


def test_weights_count_each_value_as_often_as_its_tokens():
    values, counts = [1.0, 2.0, 4.0, 3.0], [30, 10, 10, 50]
    by_weights = find_interval(values, ["a", "b", "c", "d"], weights=counts)
    tokens = [place for place, count in enumerate(counts) for _ in range(count)]
    assert by_weights == find_interval([values[place] for place in tokens], ["abcd"[place] for place in tokens])
    assert by_weights.low < sum(values[place] for place in tokens) / 100 < by_weights.high


def test_shares_on_which_all_prompts_agree_have_wilsons_interval():
    interval = find_interval([1.0] * 8, list(range(8)), shares=True)
    assert (interval.low, interval.high, interval.n) == (pytest.approx(0.676, abs=1e-3), pytest.approx(1.0), 8)


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0, 2.0], [1.0, 1.0, 1.0], [1.0, float("nan"), 3.0]])
def test_what_shows_no_spread_or_is_no_number_has_no_interval(values):
    assert find_interval(values, list(range(len(values)))) is None


def test_each_figure_of_each_way_has_an_interval_around_its_average():
    rows = [
        {"way": way, "prompt": f"p{place}", "response": "x", "score": place + shift, "finished": place % 2 == 0, "response_tokens": place}
        for way, shift in (("sampled", 0.0), ("greedy", 5.0))
        for place in range(12)
    ]
    found = find_answer_intervals(rows)
    assert set(found) == {f"eval/{way}/{name}" for way in ("sampled", "greedy") for name in ("score", "finished", "response_tokens")}
    assert found["eval/greedy/score"].low < 10.5 < found["eval/greedy/score"].high
    assert found["eval/sampled/score"].high < found["eval/greedy/score"].high - 4.9
    assert all(interval.n == 12 for interval in found.values())


def test_a_figure_that_happens_to_be_0_or_1_everywhere_is_taken_for_no_share():
    # Answers of one token each, a judge of 0 to 100 that gives none a point, a rule that each greedy answer keeps and half of the others.
    rows = [
        {"way": way, "prompt": f"p{place}", "finished": True, "response_tokens": 1, "judge_score": 0.0, "judge_rule": rule(place)}
        for way, rule in (("greedy", lambda place: 1.0), ("sampled", lambda place: place % 2.0))
        for place in range(8)
    ]
    found = find_answer_intervals(rows)
    assert set(found) == {"eval/greedy/finished", "eval/sampled/finished", "eval/greedy/judge_rule", "eval/sampled/judge_rule"}
    assert found["eval/greedy/judge_rule"].low == pytest.approx(0.676, abs=1e-3)  # Wilson's of 8 of 8
