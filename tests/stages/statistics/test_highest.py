"""Which models may be the best: on known truth the best is among them in 95 % of cases, and far worse ones are not."""

import numpy as np
import pytest

from stages.statistics.highest import find_highest


def test_models_that_differ_on_every_prompt_are_told_apart_and_equal_ones_are_not():
    values_PK = np.array([[0.0, 1.0, 1.0]] * 5)
    assert find_highest(values_PK) == [False, True, True]
    assert find_highest(values_PK[:1]) == [True, True, True]  # one prompt shows no spread


def test_a_difference_is_judged_by_its_spread_over_prompts():
    # Differences of the second to the first: mean 0.5, standard deviation 1, of 400 prompts: 10 standard errors. Of 4: one.
    noise = np.tile([1.0, -1.0], 200)
    assert find_highest(np.stack([np.zeros(400), 0.5 + noise], axis=1)) == [False, True]
    assert find_highest(np.stack([np.zeros(4), 0.5 + noise[:4]], axis=1)) == [True, True]


def test_what_prompts_share_is_no_noise():
    """Hard prompts are hard for all models: paired, a small difference shows."""
    generator = np.random.default_rng(0)
    shared, small = generator.normal(0, 10, 100), generator.normal(0, 0.1, (100, 2))
    assert find_highest(np.stack([shared, shared + 0.2], axis=1) + small) == [False, True]


@pytest.mark.parametrize(("num_prompts", "truth"), [(5, (0.0, 0.0)), (30, (0.0, 0.0, 0.0, 0.0, 0.0)), (60, (0.0, 0.3, 0.35, 0.3, -0.5))])
def test_the_best_is_among_those_found_in_95_percent_of_cases(num_prompts, truth):
    generator = np.random.default_rng(1)
    repeats, best = 600, int(np.argmax(truth))
    kept = np.zeros(len(truth))
    for repeat in range(repeats):
        shared = generator.normal(0, 1, (num_prompts, 1))
        values = np.array(truth) + shared + generator.normal(0, 0.6, (num_prompts, len(truth)))
        kept += find_highest(values, draws=400, seed=repeat)
    shares = kept / repeats
    # Each of equal ones may be called the best: 95 % +- 3 for each, as the binomial error of 600 is 0.9 %.
    assert shares[best] > 0.92
    if len(set(truth)) == 1:
        assert (shares > 0.92).all() and (shares < 0.98).all()
    else:
        assert shares[4] < 0.02
