"""The reward model's card, worked by hand and beside the figures of the reward model's stage."""

import math

import numpy as np
import pytest
import torch

from stages import ranking
from stages.statistics.reward_card import (
    bucket_lengths,
    compute_accuracy,
    correlate,
    group_accuracy,
    measure_calibration,
)


@pytest.fixture
def ranked():
    """40 prompts with four ranked answers each, as the stage has them: (margins, prompts, distances, calibration error)."""
    generator = torch.Generator().manual_seed(0)
    ranks, prompts = torch.tensor([1, 2, 2, 3] * 40), torch.arange(40).repeat_interleave(4)
    scores = (2 - ranks) + 1.5 * torch.randn(160, generator=generator, dtype=torch.float64)
    scores[:6] = 0.5  # equal ones, as two answers of the same tokens have
    pairs = ranking.make_pairs(ranks, prompts)
    margins = scores[pairs.better_Q] - scores[pairs.worse_Q]
    return margins.numpy(), prompts[pairs.better_Q].numpy(), pairs.distance_Q.tolist(), ranking.calibration_error(scores, pairs)


def test_accuracy_by_distance_worked_by_hand():
    found = group_accuracy(np.array([1.0, -1.0, 2.0, 0.0]), np.array([0, 0, 0, 1]), [1, 1, 2, 2])
    assert {label: (estimate.value, estimate.num_values, estimate.num_clusters) for label, estimate in found.items()} == {
        1: (0.5, 2, 1),
        2: (0.75, 2, 2),
    }


def test_accuracy_is_that_of_the_stage(ranked):
    margins, prompts, distances, _ = ranked
    assert compute_accuracy(margins, prompts).value == pytest.approx(np.mean([0.5 * (margin == 0) + (margin > 0) for margin in margins]))
    for distance, estimate in group_accuracy(margins, prompts, distances).items():
        right = [0.5 * (margin == 0) + (margin > 0) for margin, other in zip(margins, distances, strict=True) if other == distance]
        assert estimate.value == pytest.approx(np.mean(right))
        assert estimate.low < estimate.value < estimate.high


def test_calibration_error_is_that_of_the_stage(ranked):
    margins, prompts, _, error = ranked
    found = measure_calibration(margins, prompts)
    assert found.error == pytest.approx(error, abs=1e-6)
    assert sum(part.observed.num_values for part in found.bins) == len(margins)
    assert all(part.low <= part.predicted <= part.high for part in found.bins)


def test_calibration_worked_by_hand():
    found = measure_calibration(np.array([2.0, 2.0, 2.0, -2.0]), np.arange(4))
    (only,) = found.bins
    assert (only.low, only.high, only.observed.value) == pytest.approx((0.85, 0.9, 0.75))
    assert (only.predicted, found.error) == pytest.approx((0.880797, 0.130797), abs=1e-6)


def test_a_model_whose_probabilities_are_true_is_calibrated():
    generator = np.random.default_rng(0)
    size = np.abs(generator.normal(0, 2, 20_000))
    margins = np.where(generator.random(20_000) < 1 / (1 + np.exp(-size)), size, -size)
    found = measure_calibration(margins, np.arange(20_000) // 4, draws=500)
    assert found.error < 0.015
    assert sum(part.observed.low <= part.predicted <= part.observed.high for part in found.bins) >= 9
    assert measure_calibration(5 * margins, np.arange(20_000) // 4, draws=500).error > 0.1  # surer than it may be


def test_margins_beyond_every_bin_fall_into_the_last():
    (only,) = measure_calibration(np.array([1000.0, -1000.0]), np.array([0, 1])).bins
    assert (only.high, only.predicted, only.observed.value) == (1.0, 1.0, 0.5)


@pytest.mark.parametrize(
    ("better", "worse", "bucket"),
    [
        (4, 10, "under half as long"),
        (5, 10, "shorter"),
        (90, 100, "shorter"),
        (95, 100, "as long"),
        (100, 100, "as long"),
        (109, 100, "as long"),
        (112, 100, "longer"),
        (200, 100, "longer"),
        (201, 100, "over twice as long"),
        (0, 0, "as long"),
        (0, 9, "under half as long"),
    ],
)
def test_lengths_fall_into_buckets(better, worse, bucket):
    assert bucket_lengths(np.array([float(better)]), np.array([float(worse)])) == [bucket]


def test_a_correlation_worked_by_hand():
    # deviations -1 0 1 and -1 1 0: r = 1 / 2
    assert correlate(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0]), np.arange(3)).value == pytest.approx(0.5)


def test_a_correlation_and_its_interval_agree_with_fishers():
    generator = np.random.default_rng(0)
    x = generator.normal(1e6, 1, 400)  # a large mean must not cancel the moments
    y = (x - 1e6) + generator.normal(0, 1, 400)
    found = correlate(x, y, np.arange(400))
    assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    for bound, sign in ((found.low, -1), (found.high, 1)):
        assert bound == pytest.approx(math.tanh(math.atanh(found.value) + sign * 1.96 / math.sqrt(397)), abs=0.02)


def test_what_does_not_vary_has_no_correlation():
    assert correlate(np.ones(5), np.arange(5.0), np.arange(5)) is None
    assert correlate(np.array([]), np.array([]), np.array([])) is None


def test_few_prompts_of_which_a_draw_may_have_one_only_still_have_a_correlation():
    found = correlate(np.arange(3.0), np.array([0.0, 2.0, 1.0]), np.arange(3))
    assert -1 <= found.low <= 0.5 <= found.high <= 1
