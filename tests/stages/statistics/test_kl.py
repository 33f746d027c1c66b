"""Two estimators of a KL that is known."""

import math

import numpy as np
import pytest

from stages.statistics.bootstrap import estimate_mean
from stages.statistics.kl import sum_k1, sum_k3


def test_sums_worked_by_hand_leave_out_what_is_no_token():
    log_ratios, mask = np.array([[0.5, -0.5, 9.0], [0.5, 9.0, 9.0]]), np.array([[True, True, False], [True, False, False]])
    assert sum_k1(log_ratios, mask).tolist() == [0.0, 0.5]
    # exp(-0.5) - 1 + 0.5 = 0.106531; exp(0.5) - 1 - 0.5 = 0.148721
    assert sum_k3(log_ratios, mask) == pytest.approx([0.255252, 0.106531], abs=1e-6)


def test_both_find_the_kl_of_two_normals():
    # KL(N(1, 1) | N(0, 1)) = 1/2; log pi - log pi_ref = x - 1/2
    x = np.random.default_rng(0).normal(1, 1, (20_000, 1))
    mask = np.ones_like(x, dtype=bool)
    k1 = estimate_mean(sum_k1(x - 0.5, mask), np.arange(20_000) // 20)
    assert k1.low < 0.5 < k1.high and k1.high - k1.low < 0.05
    assert sum_k3(x - 0.5, mask).mean() == pytest.approx(0.5, abs=0.02)
    assert np.mean(np.expm1(x - 0.5) - (x - 0.5)) == pytest.approx(1.2183, abs=0.1)  # the sign that is often seen: e - 3/2, no KL of pi


def test_a_ratio_beyond_a_float_is_infinite_and_says_nothing_on_stderr():
    assert sum_k3(np.array([[-1000.0]]), np.array([[True]])).tolist() == [math.inf]
