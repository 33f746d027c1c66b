"""Bias and scale of scores: from demonstrations, but never from rounding."""

import pytest
import torch

from stages.models.calibration import choose_calibration
from stages.rm import draw_sample

EPSILON = torch.finfo(torch.float32).eps


def choose(demonstrations, ranked, rounding=1e-5):
    return choose_calibration(torch.tensor(demonstrations), torch.tensor(ranked), scale_scores=True, rounding=rounding)


def test_demonstrations_get_mean_0_and_standard_deviation_1():
    logits = [1.0, 2.0, 6.0]
    calibration, remark = choose(logits, [-4.0, 4.0])
    assert remark is None and (calibration.bias, calibration.scale) == (3.0, pytest.approx(7**0.5))
    assert calibration.apply(torch.tensor(logits)).std().item() == pytest.approx(1.0)
    unscaled, remark = choose_calibration(torch.tensor(logits), torch.tensor([0.0]), scale_scores=False, rounding=1e-5)
    assert remark is None and (unscaled.bias, unscaled.scale) == (3.0, 1.0)


@pytest.mark.parametrize(
    "demonstrations",
    [
        [-0.75] * 4,
        [-0.75, -0.75, -0.75 * (1 + EPSILON), -0.75],  # the same text in another place of a row
        [300.0, 300.0 + 64 * EPSILON * 300.0],
        [5.0, 5.01],  # they do differ, but not by what says anything of the unit
        [0.0, 0.0],
        [2.5],
    ],
)
def test_a_scale_is_not_taken_from_demonstrations_that_hardly_differ(demonstrations):
    ranked = [-2.0, 0.0, 2.0]
    calibration, remark = choose(demonstrations, ranked)
    assert calibration.scale == 2.0 and "scaled by the 2 of ranked answers instead" in remark
    assert calibration.apply(torch.tensor(demonstrations)).abs().max() < 0.1


def test_where_nothing_differs_scores_are_not_scaled():
    for ranked in ([1.0, 1.0], [1.0, 1.0 + EPSILON], [1.0]):
        calibration, remark = choose([1.0, 1.0 + EPSILON], ranked)
        assert calibration.scale == 1.0 and "not scaled" in remark


def test_what_is_rounding_depends_on_the_precision():
    demonstrations, ranked = [8.0, 8.03125], [8.0, 8.0625, 8.125]  # steps of bfloat16 at 8
    assert choose(demonstrations, ranked)[1] is None
    assert "not scaled" in choose(demonstrations, ranked, rounding=1e-2)[1]


def test_a_sample_is_drawn_from_all_records_and_is_the_same_each_time():
    sample = draw_sample(50_000, 1000, seed=5)
    assert len(set(sample)) == 1000 and sample == sorted(sample) == draw_sample(50_000, 1000, seed=5)
    assert sample != draw_sample(50_000, 1000, seed=6)
    assert sum(sample) / 1000 == pytest.approx(25_000, abs=3 * 50_000 / 12**0.5 / 1000**0.5)  # three standard errors of a uniform mean
    assert draw_sample(7, 1000, seed=5) == list(range(7))
