"""Closed intervals against published tables and a slow integral."""

import math

import numpy as np
import pytest

from stages.statistics.intervals import smallest_difference, t_probability, t_quantile, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (10, 10, 0.7225, 1.0), (0, 10, 0.0, 0.2775), (8, 8, 0.6756, 1.0), (15, 100, 0.0931, 0.2328)],
)
def test_wilson_intervals_are_the_published_ones(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_a_wilson_bound_is_where_the_share_lies_1_96_standard_errors_away():
    for bound in wilson_interval(13, 40):
        assert abs(13 / 40 - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / 40), rel=1e-6)


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ValueError, match="needed at least one trial"):
        wilson_interval(successes, trials)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (7, 2.3646), (9, 2.2622), (30, 2.0423), (99, 1.9842), (100_000, 1.95999)],
)
def test_quantiles_of_t_are_those_of_the_tables(degrees, quantile):
    assert t_quantile(degrees) == pytest.approx(quantile, abs=1e-4)


def test_a_one_sided_quantile_of_t_is_that_of_the_tables():
    assert (t_quantile(4, 0.9), t_quantile(9, 0.9)) == pytest.approx((2.132, 1.833), abs=1e-3)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 10, 11])
def test_the_probability_of_t_is_the_integral_of_its_density(degrees):
    t = np.linspace(0, 1.7, 20_001)
    scale = math.gamma((degrees + 1) / 2) / math.sqrt(degrees * math.pi) / math.gamma(degrees / 2)
    density = scale * (1 + t**2 / degrees) ** (-(degrees + 1) / 2)
    assert t_probability(1.7, degrees) == pytest.approx(2 * float(np.trapezoid(density, t)), abs=1e-8)


def test_the_smallest_difference_worked_by_hand():
    # (1.95996 + 0.84162) * 0.5 / 10
    assert smallest_difference(0.5, 100) == pytest.approx(0.140079, abs=1e-6)


def test_a_difference_of_the_smallest_size_is_seen_in_80_percent_of_simulated_sets():
    generator = np.random.default_rng(0)
    differences = generator.normal(smallest_difference(1.0, 200), 1.0, (4000, 200))
    errors = differences.std(axis=1, ddof=1) / math.sqrt(200)
    assert np.mean(differences.mean(axis=1) / errors > 1.96) == pytest.approx(0.8, abs=0.02)


def test_the_interval_of_none_or_all_ends_at_the_share_itself_whatever_rounding_does():
    for trials in range(1, 200):
        assert wilson_interval(0, trials)[0] == 0.0 and wilson_interval(trials, trials)[1] == 1.0
