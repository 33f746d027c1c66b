"""Cluster bootstrap: against a slow loop, against what it must cover, and where it has nothing to say."""

import math
from itertools import product

import numpy as np
import pytest

from stages.statistics.bootstrap import average_by_cluster, estimate_mean, estimate_share, percentile_interval, resample, sum_by_cluster
from stages.statistics.intervals import t_quantile, wilson_interval


def test_sums_and_means_of_clusters_worked_by_hand():
    values, clusters = np.array([1.0, 0.5, 0.0]), np.array([7, 7, 3])
    assert [part.tolist() for part in sum_by_cluster(values, clusters)] == [[0.0, 1.5], [1.0, 2.0]]
    assert average_by_cluster(values, clusters).tolist() == [0.0, 0.75]


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [([], [], "0 values"), ([1.0], [0, 1], "2 cluster ids"), ([1.0, math.nan, math.inf], [0, 1, 2], "2 of 3 values that are not finite")],
)
def test_what_makes_no_mean_is_refused(values, clusters, message):
    with pytest.raises(ValueError, match=message):
        estimate_mean(np.array(values), np.array(clusters))


def test_every_draw_has_as_many_clusters_as_there_are_whatever_the_blocks():
    whole = np.concatenate(list(resample(7, 300, seed=1)))
    assert whole.shape == (300, 7) and (whole.sum(axis=1) == 7).all()
    blocks = list(resample(900_000, 5, seed=1))
    assert [len(block) for block in blocks] == [4, 1] and all((block.sum(axis=1) == 900_000).all() for block in blocks)


def test_the_bootstrap_has_the_distribution_of_all_possible_draws():
    """Three clusters of unequal size have 27 draws: all of them, in a loop, beside the random ones."""
    sums, sizes = [3.0, 1.0, 4.0], [1, 2, 4]
    ratios = [sum(sums[i] for i in draw) / sum(sizes[i] for i in draw) for draw in product(range(3), repeat=3)]
    counts = np.concatenate(list(resample(3, 200_000, seed=0)))
    drawn = (counts @ np.array(sums)) / (counts @ np.array(sizes))
    for q in (0.05, 0.3, 0.5, 0.7, 0.95):
        assert np.mean(drawn <= q * 3) == pytest.approx(np.mean(np.array(ratios) <= q * 3), abs=0.005)


def test_values_of_one_cluster_go_together():
    """Ten copies of each value are no more evidence than one: a bootstrap over values would be three times as narrow."""
    values = np.random.default_rng(3).normal(size=20)
    once = estimate_mean(values, np.arange(20))
    often = estimate_mean(np.repeat(values, 10), np.repeat(np.arange(20), 10))
    assert (often.value, often.low, often.high) == pytest.approx((once.value, once.low, once.high))
    assert (once.num_values, often.num_values, once.num_clusters, often.num_clusters) == (20, 200, 20, 20)


@pytest.mark.parametrize("num_clusters", [5, 10, 40])
def test_the_interval_of_normal_values_is_about_that_of_t(num_clusters):
    values = np.random.default_rng(num_clusters).normal(size=num_clusters)
    found, half = estimate_mean(values, np.arange(num_clusters), draws=20_000), t_quantile(num_clusters - 1) * values.std(ddof=1)
    assert (found.high - found.low) / (2 * half / math.sqrt(num_clusters)) == pytest.approx(1, abs=0.12)


def test_the_same_seed_gives_the_same_interval():
    values, clusters = np.random.default_rng(0).normal(size=50), np.arange(50)
    assert estimate_mean(values, clusters, seed=4) == estimate_mean(values, clusters, seed=4) != estimate_mean(values, clusters, seed=5)


def test_one_cluster_shows_no_spread():
    found = estimate_mean(np.array([1.0, 3.0]), np.array([0, 0]))
    assert (found.value, found.low, found.high, found.num_clusters) == (2.0, None, None, 1)


def test_shares_that_all_agree_have_wilsons_interval():
    found = estimate_share(np.ones(8), np.arange(8))
    assert (found.value, (found.low, found.high)) == (1.0, wilson_interval(8, 8))
    assert estimate_share(np.ones(5), np.zeros(5, dtype=int)).low == wilson_interval(1, 1)[0]


def test_values_outside_of_0_to_1_are_no_shares():
    with pytest.raises(ValueError, match="outside of"):
        estimate_share(np.array([0.5, 1.5]), np.array([0, 1]))


def simulate(kind, num_prompts, sets, generator):
    """Prompts' mean outcomes in many sets, and the true mean."""
    if kind.startswith("wins"):  # prompts differ, four samples of each are alike: beta-binomial
        mean = float(kind.split()[1])
        chances = generator.beta(3 * mean, 3 * (1 - mean), (sets, num_prompts, 1))
        return (generator.random((sets, num_prompts, 4)) < chances).mean(axis=2), mean
    if kind == "ties":  # one sample of each: 0, 0.5 or 1
        return generator.choice([0.0, 0.5, 1.0], (sets, num_prompts), p=[0.2, 0.4, 0.4]), 0.6
    if kind == "normal":
        return generator.normal(0.2, 1.0, (sets, num_prompts)), 0.2
    return generator.exponential(1.0, (sets, num_prompts)), 1.0


@pytest.mark.slow
@pytest.mark.parametrize("num_prompts", [10, 30, 100])
@pytest.mark.parametrize("kind", ["wins 0.5", "wins 0.8", "ties", "normal", "skewed"])
def test_intervals_of_95_percent_cover_the_truth_in_95_percent_of_2000_simulated_sets(kind, num_prompts):
    """2000 sets tell the coverage to ±1 % (two standard errors)."""
    values, truth = simulate(kind, num_prompts, 2000, np.random.default_rng(num_prompts))
    counts = np.concatenate(list(resample(num_prompts, 2000, seed=0)))
    low, high = percentile_interval(values @ counts.T / num_prompts, num_prompts)
    for row in range(20):
        found = estimate_mean(values[row], np.arange(num_prompts), draws=2000)
        assert (found.low, found.high) == pytest.approx((low[row], high[row]))
    covered = np.mean((low <= truth) & (truth <= high))
    margin = 0.06 if kind == "skewed" and num_prompts < 100 else 0.03  # few values of a long tail do not show it
    assert covered == pytest.approx(0.95, abs=margin)


def test_equal_averages_show_no_spread_so_that_no_interval_is_known():
    # 8 prompts of two answers each: 0 of 100 points for all of them does not say that the next prompt has none.
    equal = estimate_mean(np.zeros(16), np.arange(16) // 2)
    assert (equal.value, equal.low, equal.high, equal.num_clusters) == (0.0, None, None, 8)
    rounded = estimate_mean(np.array([0.1 + 0.2, 0.3, 0.3, 0.3]), np.arange(4))
    assert rounded.low is None
    shares = estimate_share(np.zeros(16), np.arange(16) // 2)
    assert shares.low == 0.0 and shares.high == pytest.approx(0.324, abs=1e-3)  # Wilson's of 0 of 8
