"""Agreement, on published figures, by hand and beside the plain definitions; a planted bias is found."""

import itertools
import math

import numpy as np
import pytest

from stages.statistics.agreement import measure_alpha, measure_position_bias, measure_tau_b

NAN = math.nan
# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", example C: four observers, twelve units.
OBSERVERS = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_the_published_one(level, published):
    alpha = measure_alpha(OBSERVERS, np.arange(12), level)
    assert alpha.value == pytest.approx(published, abs=5e-4)
    assert alpha.low < alpha.value < alpha.high <= 1
    assert (alpha.num_values, alpha.num_clusters) == (40, 11)  # the unit that one observer valued says nothing


def test_alpha_by_hand():
    people = np.array([[1.0, 2.0], [2.0, 1.0]])
    assert measure_alpha(people, np.arange(2), "nominal").value == pytest.approx(-0.5)
    assert measure_alpha(np.array([[1.0, 2.0], [1.0, 2.0]]), np.arange(2)).value == 1


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_is_that_of_the_plain_definition(level):
    values = np.random.default_rng(3).integers(1, 5, size=(3, 20)).astype(float)
    values[0, :5] = NAN
    units = [[value for value in column if not math.isnan(value)] for column in values.T]
    everything = [value for unit in units for value in unit]

    def distance(c, k):
        if level == "nominal":
            return float(c != k)
        if level == "interval":
            return (c - k) ** 2
        low, high = min(c, k), max(c, k)
        between = sum(low <= value <= high for value in everything)
        return (between - (everything.count(c) + everything.count(k)) / 2) ** 2 if c != k else 0.0

    observed = sum(distance(c, k) / (len(unit) - 1) for unit in units for c, k in itertools.permutations(unit, 2)) / len(everything)
    pairs = list(itertools.permutations(everything, 2))
    expected = sum(itertools.starmap(distance, pairs)) / len(pairs)
    assert measure_alpha(values, np.arange(20), level).value == pytest.approx(1 - observed / expected)


def test_no_alpha_where_nobody_can_disagree():
    assert measure_alpha(np.array([[1.0, NAN], [NAN, 2.0]]), np.arange(2)) is None
    assert measure_alpha(np.ones((2, 3)), np.arange(3)) is None


def test_one_prompt_alone_gives_no_interval():
    alpha = measure_alpha(np.array([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]]), np.zeros(3, int))
    assert alpha.low is None and alpha.num_clusters == 1


@pytest.mark.parametrize(
    ("x", "y", "tau"),
    [
        ([1, 2, 3], [1, 3, 2], 1 / 3),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1),
        ([1, 2, 2, 3], [1, 2, 3, 4], 5 / math.sqrt(5 * 6)),
        ([12, 2, 1, 12, 2], [1, 4, 7, 1, 0], -0.47140452079103173),  # of scipy.stats.kendalltau's page
    ],
)
def test_tau_b(x, y, tau):
    assert measure_tau_b(np.array(x, float), np.array(y, float)) == pytest.approx(tau)


def test_no_tau_b_where_one_ties_all():
    assert measure_tau_b(np.ones(3), np.array([1.0, 2, 3])) is None


def test_position_bias_by_hand():
    ranks = np.array([[1.0, 2, 3], [2, 1, NAN], [1, 1, NAN]])  # 3 of 3 pairs; 0 of 1; a tie
    assert measure_position_bias(ranks, np.arange(3)).value == pytest.approx(3 / 4)
    assert measure_position_bias(np.ones((2, 2)), np.arange(2)) is None


@pytest.mark.parametrize("planted", [0.5, 0.6])
def test_the_interval_covers_a_planted_bias(planted):
    covered = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        first_better = generator.random(150) < planted
        ranks = np.where(first_better[:, None], [1.0, 2.0], [2.0, 1.0])
        bias = measure_position_bias(ranks, np.arange(150) // 2, draws=400, seed=seed)  # two people a prompt
        covered += bias.low <= planted <= bias.high
    assert covered >= 90  # 95 expected; 90 or fewer by chance in 3 of 100
