"""Values that come in clusters -> their mean with a 95 % interval, by resampling clusters.

All samples of a prompt, in both orders, are one cluster: they are drawn together, since they are not independent.
Axes: N values, C clusters, D draws; `...` any leading axes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from stages.statistics.intervals import Floats, Ints, t_quantile, wilson_interval

DRAWS = 4000
_BLOCK = 4_000_000  # numbers held at once: 32 MB
_EQUAL = 1e-12  # averages of clusters that differ by no more than rounding, beside 1


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; the bounds are None where nothing shows a spread: one cluster alone, or equal ones."""

    value: float
    low: float | None
    high: float | None
    num_values: int
    num_clusters: int


def sum_by_cluster(values_N: Floats, clusters_N: Ints) -> tuple[Floats, Floats]:
    """Add the values of each cluster up; returns (sums_C, sizes_C), clusters in the order of their ids.

    Raises:
        ValueError: no value, unequal lengths, or a value that is not finite (leave it out where it can be told of).
    """
    if len(values_N) == 0 or len(values_N) != len(clusters_N):
        raise ValueError(f"found {len(values_N)} values and {len(clusters_N)} cluster ids; needed as many of each, and at least one")
    if not np.isfinite(values_N).all():
        raise ValueError(
            f"found {int((~np.isfinite(values_N)).sum())} of {len(values_N)} values that are not finite; leave them out and tell"
        )
    _, places_N, sizes_C = np.unique(clusters_N, return_inverse=True, return_counts=True)
    return np.bincount(places_N, weights=values_N).astype(np.float64), sizes_C.astype(np.float64)


def average_by_cluster(values_N: Floats, clusters_N: Ints) -> Floats:
    """Average the values of each cluster, so that clusters weigh alike whatever their size; returns values_C."""
    sums_C, sizes_C = sum_by_cluster(values_N, clusters_N)
    return sums_C / sizes_C


def resample(num_clusters: int, draws: int, seed: int) -> Iterator[Floats]:
    """Draw clusters with replacement; yields blocks of counts_DC, how often each cluster is in each draw."""
    generator = np.random.default_rng(seed)
    block = max(1, min(draws, _BLOCK // num_clusters))
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        drawn = generator.integers(num_clusters, size=(rows, num_clusters)) + np.arange(rows)[:, None] * num_clusters
        yield np.bincount(drawn.ravel(), minlength=rows * num_clusters).reshape(rows, num_clusters).astype(np.float64)


def percentile_interval(estimates_D: Floats, num_clusters: int) -> tuple[Floats, Floats]:
    """Find the expanded percentile interval of resampled estimates (Hesterberg 2015, arXiv 1411.5279).

        bounds at α' and 1 − α',   α' = Φ(−t_(0.975, n − 1) · √(n / (n − 1)))

    The plain percentiles (α' = 0.025) are as narrow as a normal interval that divides by n: with few clusters they miss too often.

    Example: n = 10 gives α' = Φ(−2.262 · 1.054) = 0.0086.

    Args:
        estimates_D: shape (..., D), one estimate for each draw.
        num_clusters: n, at least 2.

    Returns:
        (low, high), each of the leading shape.
    """
    tail = NormalDist().cdf(-t_quantile(num_clusters - 1) * math.sqrt(num_clusters / (num_clusters - 1)))
    low, high = np.quantile(estimates_D, [tail, 1 - tail], axis=-1)
    return low, high


def estimate_mean(values_N: Floats, clusters_N: Ints, *, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Estimate the mean over all values, each weighing alike, with its interval by cluster bootstrap.

        mean = Σ_c count_c · sum_c / Σ_c count_c · size_c,   count_c = how often cluster c is in a draw

    To have clusters weigh alike, average them first (`average_by_cluster`). Where all agree nothing shows a spread: no interval is known.
    """
    sums_C, sizes_C = sum_by_cluster(values_N, clusters_N)
    value, num_clusters = float(sums_C.sum() / sizes_C.sum()), len(sums_C)
    if num_clusters < 2 or np.ptp(sums_C / sizes_C) <= _EQUAL * max(1.0, abs(value)):
        return Estimate(value, None, None, len(values_N), num_clusters)
    ratios_D = np.concatenate([(counts_DC @ sums_C) / (counts_DC @ sizes_C) for counts_DC in resample(num_clusters, draws, seed)])
    low, high = percentile_interval(ratios_D, num_clusters)
    return Estimate(value, float(low), float(high), len(values_N), num_clusters)


def estimate_share(values_N: Floats, clusters_N: Ints, *, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Estimate the mean of values in [0, 1], such as wins, by `estimate_mean`; where all clusters agree, with Wilson's interval.

    8 wins of 8 resampled are 8 wins of 8, an interval of no width. Wilson's with n = clusters says (0.676, 1) instead.
    """
    if ((values_N < 0) | (values_N > 1)).any():
        raise ValueError("found a value outside of [0, 1]; needed shares")
    estimate = estimate_mean(values_N, clusters_N, draws=draws, seed=seed)
    if np.ptp(average_by_cluster(values_N, clusters_N)) > _EQUAL:
        return estimate
    low, high = wilson_interval(min(estimate.value, 1.0) * estimate.num_clusters, estimate.num_clusters)
    return Estimate(estimate.value, low, high, estimate.num_values, estimate.num_clusters)
