"""Best of n, the frontier and Gao's curves: by hand, by brute force, and where their truth is known."""

import math
from itertools import combinations, pairwise

import numpy as np
import pytest

from stages.statistics.best_of_n import bound_kl, estimate_best_of_n, weigh_ranks
from stages.statistics.frontier import FrontierPoint, share_of_frontier, tilt, trace_frontier
from stages.statistics.overoptimisation import fit_rl


def test_weights_of_ranks_worked_by_hand():
    assert weigh_ranks(4, 2) == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6])
    assert weigh_ranks(300, 16).sum() == pytest.approx(1)


@pytest.mark.parametrize("n", [0, 5])
def test_best_of_more_than_there_are_is_refused(n):
    with pytest.raises(ValueError, match=f"n = {n} with 4 samples"):
        weigh_ranks(4, n)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_is_the_mean_over_all_choices_of_n(n):
    scores, values = [0.3, 2.0, -1.0, 0.7, 1.1], [5.0, 1.0, 2.0, 4.0, 3.0]
    chosen = [max(some, key=lambda place: scores[place]) for some in combinations(range(5), n)]
    assert estimate_best_of_n(np.array([scores]), n)[0] == pytest.approx(np.mean([scores[place] for place in chosen]))
    assert estimate_best_of_n(np.array([scores]), n, np.array([values]))[0] == pytest.approx(np.mean([values[place] for place in chosen]))


def test_equal_scores_are_chosen_alike_in_whatever_order_they_come():
    scores = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    values = np.array([[10.0, 20.0, 0.0], [10.0, 0.0, 20.0], [0.0, 20.0, 10.0]])
    assert estimate_best_of_n(scores, 2, values) == pytest.approx([15, 15, 15])


def test_bounds_of_best_of_n_worked_by_hand():
    assert (bound_kl(1), bound_kl(4)) == pytest.approx((0, 0.636294), abs=1e-6)


# The frontier


def test_a_tilt_worked_by_hand():
    # w = 1 / (1 + e), e / (1 + e); KL = 0.731059 - log((1 + e) / 2)
    found = tilt(np.array([[0.0, 1.0]]), 1.0)
    assert (found.score, found.kl, found.effective_samples) == pytest.approx((0.731059, 0.110944, 1.6480), abs=1e-4)


def test_a_tilt_has_the_kl_of_its_weights_and_scores_may_be_large():
    scores = np.random.default_rng(0).normal(1e5, 3, (4, 50))
    weights = np.exp((scores - 1e5) / 2)
    weights /= weights.sum(axis=1, keepdims=True)
    found = tilt(scores, 2.0)
    assert found.kl == pytest.approx(np.mean((weights * np.log(weights * 50)).sum(axis=1)), abs=1e-8)
    assert found.score == pytest.approx((weights * scores).sum(axis=1).mean())


def test_the_frontier_of_normal_scores_is_a_line_over_root_kl():
    # r ~ N(0, 1) tilted by 1 / b is N(1 / b, 1): KL = 1 / 2b², score = 1 / b = √(2 KL)
    points = trace_frontier(np.random.default_rng(0).normal(0, 1, (200, 500)))
    for point in points[1:]:
        if point.kl < 1:
            assert point.score - points[0].score == pytest.approx(math.sqrt(2 * point.kl), rel=0.05)


def test_the_frontier_ends_where_samples_show_no_more():
    points = trace_frontier(np.random.default_rng(0).normal(0, 1, (100, 16)))
    assert all(later.kl > earlier.kl and later.score > earlier.score for earlier, later in pairwise(points))
    assert points[0].kl == 0 and points[-1].kl < math.log(16 / 4) and 4 <= points[-1].effective_samples < 4.5


def test_no_policy_of_the_same_kl_scores_more():
    """Random reweightings of one pool, beside the frontier at their KL."""
    generator = np.random.default_rng(1)
    scores = generator.normal(0, 1, (1, 40))
    points = trace_frontier(scores)
    for _ in range(300):
        weights = generator.dirichlet(np.full(40, generator.uniform(2, 30)))
        kl, score = float((weights * np.log(weights * 40)).sum()), float(weights @ scores[0])
        share = share_of_frontier(points, kl, score)
        assert share is None or share <= 1.01


def test_a_share_of_the_frontier_worked_by_hand():
    points = [FrontierPoint(math.inf, 0.0, 3.0, 16.0), FrontierPoint(1.0, 1.0, 5.0, 8.0)]
    assert share_of_frontier(points, 0.25, 3.5) == pytest.approx(0.5)  # the frontier at √0.25 is 4
    assert share_of_frontier(points, 1.0, 2.0) == pytest.approx(-0.5)
    assert share_of_frontier(points, 1.1, 5.0) is None
    assert share_of_frontier(points, 0.0, 3.0) is None
    assert share_of_frontier(points, -0.1, 3.0) is None


def test_scores_that_are_all_alike_have_the_reference_only():
    (only,) = trace_frontier(np.ones((3, 8)))
    assert (only.kl, only.score) == (0.0, 1.0)
    assert share_of_frontier([only], 0.5, 1.0) is None


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        trace_frontier(np.array([[1.0, math.nan]]))


# Gao's curves


def test_the_rl_curve_finds_the_parameters_and_the_peak_that_made_the_points():
    d = np.array([0.1, 0.6, 1.0, 2.0, 3.0, 5.0])
    gains = d * (2 - np.log(d))
    gains[0] = 99.0  # d < 0.5 is not looked at
    found = fit_rl(d, gains)
    assert (found.a, found.b, found.peak, found.error, found.num_points) == pytest.approx((2, 1, math.e, 0, 5), abs=1e-9)
    assert not found.beyond
    around = [peak * (found.a - found.b * math.log(peak)) for peak in (0.99 * math.e, math.e, 1.01 * math.e)]
    assert max(around) == around[1]
    assert fit_rl(d[:5], gains[:5]).beyond is False and fit_rl(d[:4], gains[:4]).beyond is True


def test_a_curve_that_only_rises_has_no_peak():
    d = np.array([0.5, 1.0, 2.0])
    assert fit_rl(d, d * (1 + 0.5 * np.log(d))).peak is None


def test_two_points_fit_every_curve_and_so_none():
    assert fit_rl(np.array([1.0, 2.0, 2.0, 0.1]), np.array([1.0, 1.0, 1.0, 1.0])) is None
    assert fit_rl(np.array([]), np.array([])) is None


def test_the_fit_is_the_least_squares_one():
    generator = np.random.default_rng(0)
    d = generator.uniform(0.5, 4, 30)
    gains = d * (1.5 - 0.7 * np.log(d)) + generator.normal(0, 0.1, 30)
    found = fit_rl(d, gains)

    def squares(a, b):
        return float(np.mean((d * (a - b * np.log(d)) - gains) ** 2))

    assert found.error == pytest.approx(math.sqrt(squares(found.a, found.b)))
    for a, b in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)):
        assert squares(found.a + a, found.b + b) > squares(found.a, found.b)
