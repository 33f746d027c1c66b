"""Seconds at a few depths -> at the model's own: by hand, and against every pair of bounds tried apart by numpy."""

import math

import numpy as np
from pytest import approx, mark

from pipeline.cost.fitted import DEARER, fit_seconds
from pipeline.cost.traced import extrapolate
from stages.tracing.report import Depth, Phase, StageTrace


@mark.parametrize(
    ("measured", "outside", "seconds"),
    [
        ([(2, 5.0), (3, 6.0)], 8.0, 33.0),  # 3 s outside and 1 s a layer: within the bounds, so the line itself
        ([(2, 2.0), (3, 4.0)], 8.0, 480 / 13),  # less than nothing outside: a x layers, a = (2 x 2 + 3 x 4) / 13
        ([(2, 4.0), (3, 1.0)], 8.0, 171 / 2381 * 62),  # falls: b x (layers + 32), b = (34 x 4 + 35 x 1) / (34 x 34 + 35 x 35)
        ([(2, 4.0), (3, 1.0)], math.inf, 2.5),  # nothing known of layers: the mean
        ([(2, 4.0), (3, 9.0)], 0.0, 35 / 13 * 30),  # all of it is layers: by the number of them
        ([(2, 4.0), (3, 1.0), (30, 7.0)], 8.0, 7.0),  # what was measured whole
    ],
)
def test_seconds_are_on_a_line_between_what_can_be_true(measured, outside, seconds):
    assert DEARER == 4
    assert fit_seconds(measured, 30, outside) == approx(seconds)


def fit_by_numpy(measured, layers, outside):
    """Non-negative least squares by all sets of columns: the best of those whose shares are not negative."""
    depths, seconds = (np.array(values, dtype=float) for values in zip(*measured, strict=True))
    matrix = np.stack([depths, depths + DEARER * outside], axis=1)
    best = (math.inf, 0.0)
    for columns in ([0, 1], [0], [1]):
        shares = np.linalg.lstsq(matrix[:, columns], seconds)[0]
        if (shares >= 0).all():
            left = float(((matrix[:, columns] @ shares - seconds) ** 2).sum())
            best = min(best, (left, float(np.array([layers, layers + DEARER * outside])[columns] @ shares)))
    return best[1]


def test_it_is_the_least_of_squares_and_never_nothing_however_measurements_were_disturbed():
    draw = np.random.default_rng(3)
    cut = 0
    for _ in range(500):
        outside, layer_s = draw.uniform(0.1, 40), draw.uniform(0.01, 1)
        depths = [2, 3, *([int(draw.integers(4, 29))] if draw.random() < 0.5 else [2, 3])]
        measured = [(depth, layer_s * (depth + outside) * draw.lognormal(sigma=0.4)) for depth in depths]
        found = fit_seconds(measured, 30, outside)
        assert found == approx(fit_by_numpy(measured, 30, outside))
        ratios = [found / seconds * depth / 30 for depth, seconds in measured]
        assert min(ratios) <= 1 + 1e-9  # not more than layers alone would take
        assert found >= min(seconds * (30 + DEARER * outside) / (depth + DEARER * outside) for depth, seconds in measured) * (1 - 1e-9)
        first, last = measured[0], measured[1]
        cut += first[1] + (last[1] - first[1]) * 28 < 0
    assert cut > 50  # in which a line through two depths says less than nothing


def make_depth(layers, phases, learning=0):
    given = {"parameters": 0, "held": 0, "whole": 0, "checkpoint": 0, "output": 0, "learning": [learning]}
    return Depth(layers=layers, phases={name: Phase(start=0, peak=0, **phase) for name, phase in phases.items()}, **given)


def test_what_is_outside_of_layers_is_known_by_operations_and_of_an_optimizer_by_the_weights_that_learn():
    def count(layers):
        flops = {"backward": 100 * (layers + 8), "decode": 7 * (layers + 4), "optimizer": 0}
        return make_depth(layers, {name: {"flops": number} for name, number in flops.items()}, learning=10 * (layers + 12))

    def measure(layers, seconds):
        names = ("backward", "decode", "decode by few rows", "optimizer", "widen")
        return make_depth(layers, {name: {"flops": 0, "seconds": seconds} for name in names})

    counted = StageTrace(layers=30, depths=[count(2), count(3)], tokens={})
    timed = StageTrace(layers=30, depths=[measure(2, 4.0), measure(3, 1.0)], tokens={})
    found = {name: phase.seconds for name, phase in extrapolate(timed, counted).phases.items()}
    # b x (layers + 32), and of 4 layers outside + 16, of 12 layers outside + 48
    decode, optimizer = (18 * 4 + 19 * 1) / (18**2 + 19**2) * 46, (50 * 4 + 51 * 1) / (50**2 + 51**2) * 78
    expected = {"backward": 171 / 2381 * 62, "decode": decode, "decode by few rows": decode, "optimizer": optimizer, "widen": 2.5}
    assert found == approx(expected)
