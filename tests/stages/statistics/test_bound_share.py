"""A bound on the share of the possible gain, beyond the KL that samples show: on known truth it is below it, and not far."""

import math

import numpy as np
import pytest

from stages.statistics.frontier import bound_score, bound_share, share_of_frontier, trace_frontier


def test_the_example_by_hand():
    possible = bound_score(np.array([[0.0, 1.0]]), 1.0, np.array([2.0]))[0] - 0.5
    weight = math.e / (1 + math.e)
    relative_variance = weight**2 + (1 - weight) ** 2 - 0.5
    assert possible == pytest.approx(2 + math.log((1 + math.e) / 2) + relative_variance - 0.5)
    assert 1 / possible == pytest.approx(0.449, abs=5e-4)


def gain_of_normal(kl):
    """r ~ N(0, 1): π ∝ exp(r / b) is N(1 / b, 1), whose KL is 1 / 2b²."""
    return math.sqrt(2 * kl)


def gain_of_exponential(kl):
    """r ~ Exp(1): π is Exp(1 / m), whose KL is m - 1 - log m; solved by halving."""
    low, high = 1.0, 1e3
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if middle - 1 - math.log(middle) < kl else (low, middle)
    return low - 1


@pytest.mark.slow  # 1 s each
@pytest.mark.parametrize(
    ("draw", "find_gain"), [(np.random.Generator.normal, gain_of_normal), (np.random.Generator.exponential, gain_of_exponential)]
)
@pytest.mark.parametrize(("share", "kl", "tight"), [(1.0, 4.3, 0.5), (0.6, 2.0, 0.7), (0.2, 8.0, 0.4)])
def test_beyond_what_samples_show_the_bound_holds_and_is_of_use(draw, find_gain, share, kl, tight):
    generator = np.random.default_rng(0)
    assert share_of_frontier(trace_frontier(draw(generator, size=(128, 16))), kl, 1.0) is None
    held, values, repeats = 0, [], 25
    for repeat in range(repeats):
        scores_PM = draw(generator, size=(128, 16))
        kl_P = kl + generator.normal(0, 0.5, 128)
        gain_P = share * find_gain(kl) + generator.normal(0, 0.5, 128)
        bound = bound_share(scores_PM, kl_P, gain_P, draws=200, seed=repeat)
        held += bound.low <= share
        values.append(bound.value)
    assert held == repeats
    assert tight * share < np.mean(values) <= share


def test_it_says_nothing_where_nothing_can_be_said():
    one, two = np.array([[0.0, 1.0]]), np.array([[0.0, 1.0]] * 2)
    assert bound_share(one, np.ones(1), np.ones(1)) is None
    assert bound_share(two[:, :1], np.ones(2), np.ones(2)) is None
    assert bound_share(np.zeros((2, 2)), np.zeros(2), np.ones(2)) is None
