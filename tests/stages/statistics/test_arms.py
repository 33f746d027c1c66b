"""Chosen answers beside those left to chance: pairs and heads by hand and by another way, and planted benefits that are found."""

import math

import numpy as np
import pytest

from stages.statistics.arms import FEWEST, RankedStates, compare_lessons, describe_arm, pair, teach


def test_pairs_are_the_better_less_the_worse_and_ties_make_none():
    ranked = RankedStates(np.array([[0.0, 1.0], [2.0, 0.0], [5.0, 5.0]]), np.array([0.5, 1.0, -1.0]), np.array([2, 1, 2]))
    differences, margins, weights = pair(ranked)
    assert differences.tolist() == [[2.0, -1.0], [-3.0, -5.0]] and margins.tolist() == [0.5, 2.0]
    assert weights.tolist() == [2 / 3, 2 / 3]


def test_a_head_that_learns_from_one_pair_by_hand():
    # a = α z with α = σ(−(m + α |z|²)): of z = (1, 0) and m = −1, α = σ(1 − α), of which α ↦ σ(1 − α) has one fixed point.
    alpha = 0.5
    for _ in range(200):
        alpha = 1 / (1 + math.exp(-(1 - alpha)))
    assert teach(np.array([[1.0, 0.0]]), np.array([-1.0]), np.array([1.0])) == pytest.approx([alpha, 0.0], abs=1e-8)
    assert teach(np.zeros((0, 3)), np.zeros(0), np.zeros(0)).tolist() == [0.0, 0.0, 0.0]


def test_a_head_that_learns_maximises_its_posterior_as_steps_along_the_gradient_do():
    generator = np.random.default_rng(0)
    z_QH, m_Q, omega_Q = generator.normal(size=(30, 4)) * 2, generator.normal(size=30) * 3, generator.uniform(0.2, 1.0, 30)
    a = np.zeros(4)
    for _ in range(20_000):
        a += 0.01 * (z_QH.T @ (omega_Q / (1 + np.exp(m_Q + z_QH @ a))) - a)
    assert teach(z_QH, m_Q, omega_Q) == pytest.approx(a, abs=1e-6)


def make_sets(number, generator, truth, *, spread, axes=slice(None), answers=3):
    """Sets whose answers differ along some axes by so much, ranked by a Bradley-Terry head; the old head knows nothing."""
    sets = []
    for _ in range(number):
        states = np.zeros((answers, len(truth)))
        states[:, axes] = generator.normal(size=states[:, axes].shape) * spread
        utilities = states @ truth + generator.gumbel(size=answers)
        sets.append(RankedStates(states, generator.normal(size=answers) * 0.01, (-utilities).argsort().argsort() + 1))
    return sets


def test_that_choosing_pays_is_found_where_it_does_and_that_it_costs_where_it_does():
    truth = np.array([2.0, -2.0, 1.0, 1.5])
    generator = np.random.default_rng(1)
    at_random = make_sets(100, generator, truth, spread=1.0)
    wide = compare_lessons(make_sets(100, generator, truth, spread=4.0), at_random)  # far apart: little noise
    assert wide.rankings == 80 and wide.gain.num_clusters == 100
    narrow = compare_lessons(make_sets(100, generator, truth, spread=1.0, axes=slice(3, 4)), at_random)  # of one axis alone
    assert narrow.gain.high < 0 and narrow.by_chosen.value < narrow.by_random.value
    same = compare_lessons(make_sets(100, generator, truth, spread=1.0), at_random)
    assert same.gain.low < 0 < same.gain.high
    assert wide.before.low < 0.5 < wide.before.high
    # What comes by chance differs in one thing each, of which no other set says anything; chosen answers differ in all.
    truth = generator.choice([-3.0, 3.0], size=60)
    single = [make_sets(1, generator, truth, spread=1.0, axes=slice(axis, axis + 1))[0] for axis in range(60)]
    told = compare_lessons(make_sets(100, generator, truth, spread=2.0), single)
    assert told.by_random.low < 0.5 < told.by_random.high and told.gain.low > 0


def test_too_few_sets_say_nothing_and_tied_ones_do_not_count():
    generator = np.random.default_rng(2)
    sets = make_sets(FEWEST, generator, np.ones(2), spread=1.0)
    tied = [RankedStates(each.whitened_KH, each.logits_K, np.ones(3, dtype=int)) for each in sets]
    assert compare_lessons(sets, sets) is not None
    assert compare_lessons(sets[1:] + tied, sets) is None and compare_lessons(sets, sets[1:] + tied) is None


def test_an_arm_is_described_by_what_is_not_tied_and_what_was_right_before():
    states = np.zeros((3, 1))
    sets = [
        RankedStates(states, np.array([3.0, 2.0, 1.0]), np.array([1, 2, 3])),  # all decided, all right
        RankedStates(states, np.array([1.0, 2.0, 2.0]), np.array([1, 2, 2])),  # two of three decided, none right
        RankedStates(states, np.array([1.0, 2.0, 3.0]), np.array([1, 1, 1])),  # none decided
    ]
    arm = describe_arm(sets)
    assert (arm.sets, arm.decided.value, arm.right.value) == (3, pytest.approx((1 + 2 / 3) / 3), pytest.approx(3 / 5))
    assert describe_arm(sets[2:]).right is None and describe_arm([]) is None


@pytest.mark.slow
def test_where_choosing_brings_nothing_the_interval_misses_that_about_as_often_as_it_says():
    generator, draws, missed = np.random.default_rng(3), 120, 0
    for _ in range(draws):
        truth = generator.normal(size=8)
        gain = compare_lessons(*(make_sets(30, generator, truth, spread=1.0) for _ in range(2))).gain
        missed += not gain.low <= 0 <= gain.high
    assert 0.01 * draws < missed < 0.12 * draws, missed  # 5 % of them, if it were exact
