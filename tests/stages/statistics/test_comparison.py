"""Win rates and differences, worked by hand; the length-controlled rate against closed forms and a slow climb."""

import math

import numpy as np
import pytest

from stages.statistics.bootstrap import percentile_interval, resample
from stages.statistics.comparison import compare_means, compare_scores, compute_win_rate
from stages.statistics.intervals import wilson_interval
from stages.statistics.length_control import control_length, fit_logistic


def test_a_win_rate_worked_by_hand():
    # prompt 0: 1 and a tie; prompt 1: a loss. Prompts weigh alike: (0.75 + 0) / 2
    found = compute_win_rate(np.array([1.0, 0.5, 0.0]), np.array([0, 0, 1]))
    assert found.estimate.value == 0.375
    assert (found.wins, found.ties, found.losses) == (1, 1, 1)
    # s of 0.75 and 0 is 0.53033: 2.80158 * 0.53033 / sqrt 2
    assert found.smallest_difference == pytest.approx(1.05059, abs=1e-4)


def test_a_prompt_with_many_samples_weighs_as_one_with_few():
    outcomes = np.array([1.0] * 90 + [0.0])
    assert compute_win_rate(outcomes, np.array([0] * 90 + [1])).estimate.value == 0.5


def test_equal_scores_are_ties():
    assert compare_scores(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 1.0])).tolist() == [1.0, 0.5, 0.0]


def test_asking_in_both_orders_does_not_count_as_twice_the_evidence():
    outcomes = (np.random.default_rng(0).random(40) < 0.6).astype(float)
    once = compute_win_rate(outcomes, np.arange(40))
    both = compute_win_rate(np.concatenate([outcomes, outcomes]), np.tile(np.arange(40), 2))
    assert (both.estimate.low, both.estimate.high) == (once.estimate.low, once.estimate.high)


def test_eight_wins_of_eight_are_not_certain():
    found = compute_win_rate(np.ones(8), np.arange(8))
    assert (found.estimate.low, found.estimate.high) == wilson_interval(8, 8)
    assert found.smallest_difference == pytest.approx(2.80158 * 0.5 / math.sqrt(8), abs=1e-4)


def test_a_mean_difference_worked_by_hand():
    found = compare_means(np.array([1.0, 2.0, 0.0]), np.array([3.0, 3.0, 0.0]), np.array([0, 1, 1]))
    assert found.estimate.value == 1.25  # prompt 0: 2; prompt 1: (1 + 0) / 2
    assert found.smallest_difference == pytest.approx(2.80158 * 1.06066 / math.sqrt(2), abs=1e-4)


def test_pairing_takes_out_what_prompts_have_in_common():
    generator = np.random.default_rng(1)
    difficulty = generator.normal(0, 10, 100)
    found = compare_means(difficulty, difficulty + 0.5 + generator.normal(0, 0.1, 100), np.arange(100))
    assert 0.45 < found.estimate.low < 0.5 < found.estimate.high < 0.55


# Length-controlled


def share(outcomes, ones):
    """As many outcomes, of which so many are 1."""
    return [1.0] * ones + [0.0] * (outcomes - ones)


def test_a_length_controlled_win_rate_worked_by_hand():
    # 80 % where B is longer, 50 % where it is shorter: alpha = (log 4 + log 1) / 2, sigma(alpha) = 2/3
    outcomes = np.array(share(1000, 800) + share(1000, 500))
    found = control_length(outcomes, np.array([30.0] * 1000 + [-30.0] * 1000), np.arange(2000), draws=200)
    assert found.value == pytest.approx(2 / 3, abs=1e-4)


def test_the_fit_is_where_a_slow_climb_ends():
    generator = np.random.default_rng(0)
    inputs, outcomes, weights = generator.normal(0.5, 1, 60), generator.choice([0.0, 0.5, 1.0], 60), generator.integers(0, 4, 60) / 2
    alpha, beta = 0.0, 0.0
    for _ in range(20_000):
        residuals = weights * (outcomes - 1 / (1 + np.exp(-alpha - beta * inputs)))
        alpha += 0.01 * (residuals.sum() - alpha / 100)
        beta += 0.01 * ((residuals * inputs).sum() - beta / 6.25)
    found_alpha, found_beta = fit_logistic(outcomes, inputs, np.stack([np.ones(60), weights]))
    assert (found_alpha[1], found_beta[1]) == pytest.approx((alpha, beta), abs=1e-6)
    assert found_alpha[0] != pytest.approx(alpha, abs=1e-3)


def test_every_draw_is_fitted_anew():
    """One draw at a time, each prompt's pairs written out as often as it is drawn, beside the weights of all draws at once."""
    generator = np.random.default_rng(2)
    prompts = np.repeat(np.arange(12), 2)
    lengths, outcomes = generator.normal(0, 20, 24), (generator.random(24) < 0.6).astype(float)
    inputs, values = lengths / lengths.std(), []
    for counts in np.concatenate(list(resample(12, 40, seed=9))):
        rows = [row for prompt in range(12) for _ in range(int(counts[prompt])) for row in (2 * prompt, 2 * prompt + 1)]
        alpha, _ = fit_logistic(outcomes[rows], inputs[rows], np.full((1, 24), 0.5))
        values.append(1 / (1 + math.exp(-alpha[0])))
    found = control_length(outcomes, lengths, prompts, draws=40, seed=9)
    assert (found.low, found.high) == pytest.approx(tuple(map(float, percentile_interval(np.array(values), 12))))


def test_where_length_explains_all_wins_little_is_left():
    lengths = np.linspace(-50, 100, 300)
    outcomes = (np.random.default_rng(0).random(300) < 1 / (1 + np.exp(-lengths / 20))).astype(float)
    plain, controlled = compute_win_rate(outcomes, np.arange(300)), control_length(outcomes, lengths, np.arange(300), draws=500)
    assert plain.estimate.low > 0.54 and controlled.low < 0.5 < controlled.high


def test_equal_lengths_leave_the_plain_win_rate():
    outcomes = np.array(share(50, 30))
    assert control_length(outcomes, np.zeros(50), np.arange(50), draws=200).value == pytest.approx(0.6, abs=1e-3)


def test_what_length_cannot_tell_is_said():
    outcomes = np.array(share(50, 30))
    assert control_length(outcomes, np.full(50, 7.0), np.arange(50)) is None


def test_lengths_that_separate_wins_from_losses_leave_a_finite_fit():
    found = control_length(np.array(share(20, 10)), np.array([9.0] * 10 + [-9.0] * 10), np.arange(20), draws=500)
    assert found.value == pytest.approx(0.5) and 0 < found.low < 0.5 < found.high < 1


def test_wins_throughout_have_wilsons_interval():
    found = control_length(np.ones(8), np.arange(8.0) - 3, np.arange(8))
    assert (found.low, found.high) == wilson_interval(8, 8)


@pytest.mark.slow
def test_the_length_controlled_interval_covers_the_truth_in_95_percent_of_300_simulated_sets():
    """300 sets tell the coverage to ±2.5 % (two standard errors); 80 prompts each, B longer on average."""
    generator, covered = np.random.default_rng(0), 0
    for _ in range(300):
        lengths = generator.normal(10, 20, 80)
        outcomes = (generator.random(80) < 1 / (1 + np.exp(-(0.4 + lengths / 20)))).astype(float)
        found = control_length(outcomes, lengths, np.arange(80), draws=2000)
        covered += found.low <= 1 / (1 + math.exp(-0.4)) <= found.high
    assert covered / 300 == pytest.approx(0.95, abs=0.03)
