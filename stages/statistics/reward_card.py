"""Margins of pairs -> what a reward model sees and how sure it may be: its card.

Axes: Q pairs (better, worse) of answers to one prompt, N answers. A margin is score of the better − score of the worse.
Pairs weigh alike, as in the held-out accuracy of the reward model's stage; prompts are what is resampled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from stages.statistics.bootstrap import DRAWS, Estimate, estimate_share, percentile_interval, resample, sum_by_cluster
from stages.statistics.intervals import Floats, Ints

LENGTH_BUCKETS = ("under half as long", "shorter", "as long", "longer", "over twice as long")
Label = TypeVar("Label", int, str)
_BINS = 10  # of a reliability curve
_AS_LONG = 0.1  # share by which lengths may differ and still count as equal


@dataclass(frozen=True)
class CalibrationBin:
    """Pairs in which the model is about equally sure of the side that it prefers."""

    low: float
    high: float
    predicted: float  # mean probability of the preferred side
    observed: Estimate  # how often people prefer that side


@dataclass(frozen=True)
class Calibration:
    """A reliability curve, and how far it is from the diagonal."""

    bins: tuple[CalibrationBin, ...]
    error: float  # expected calibration error, in [0, 1]


def score_pairs(margins_Q: Floats) -> Floats:
    """Tell for each pair whether the better answer scores higher: 1, 0, or 0.5 for equal scores."""
    return (np.sign(margins_Q) + 1) / 2


def compute_accuracy(margins_Q: Floats, prompts_Q: Ints) -> Estimate:
    """Compute the share of pairs in which the better answer scores higher; equal scores count half."""
    return estimate_share(score_pairs(margins_Q), prompts_Q)


def group_accuracy(margins_Q: Floats, prompts_Q: Ints, labels_Q: Sequence[Label]) -> dict[Label, Estimate]:
    """Compute the accuracy of each group of pairs, such as a rank distance, a source or a bucket of lengths.

    Example: margins 1, −1, 2 labelled 1, 1, 2: accuracy 0.5 at distance 1 and 1 at distance 2.

    Args:
        margins_Q: score of the better answer − score of the worse.
        prompts_Q: which prompt each pair belongs to.
        labels_Q: which group each pair belongs to.

    Returns:
        Label -> accuracy, in the order of the labels; groups without a pair are not there.
    """
    groups: dict[Label, list[int]] = {}
    for place, label in enumerate(labels_Q):
        groups.setdefault(label, []).append(place)
    return {label: compute_accuracy(margins_Q[groups[label]], prompts_Q[groups[label]]) for label in sorted(groups)}


def bucket_lengths(better_lengths_Q: Floats, worse_lengths_Q: Floats) -> list[str]:
    """Name for each pair how long the better answer is beside the worse one: one of `LENGTH_BUCKETS`.

    A model that likes length is right where the better answer is longer and wrong where it is shorter. Empty answers count as length 1.
    """
    ratios_Q = np.maximum(better_lengths_Q, 1) / np.maximum(worse_lengths_Q, 1)
    edges = [0.5, 1 / (1 + _AS_LONG), 1 + _AS_LONG, 2.0]
    low_Q = np.searchsorted(edges[:2], ratios_Q, side="right")  # exactly half as long is not under half
    high_Q = np.searchsorted(edges[2:], ratios_Q, side="left")  # nor exactly twice over twice
    return [LENGTH_BUCKETS[place] for place in low_Q + high_Q]


def measure_calibration(margins_Q: Floats, prompts_Q: Ints, *, draws: int = DRAWS) -> Calibration:
    """Measure how often the side that the model prefers is the one that people prefer, by how sure it is.

        confidence_q = σ(|margin_q|) in [0.5, 1],   bins of equal width,   ECE = Σ_b n_b / n · |mean confidence_b − share right_b|

    σ of the margin is the probability of the pair that the model was trained on (InstructGPT 2022, eq. 1); the error is that of Naeini
    et al. 2015 (AAAI).

    Example: margins 2, 2, 2, −2 have confidence 0.881 and are right in 0.75: error 0.131.
    """
    confidence_Q = 1 / (1 + np.exp(-np.abs(margins_Q)))
    right_Q = score_pairs(margins_Q)
    bin_Q = np.minimum(((confidence_Q - 0.5) * 2 * _BINS).astype(np.int64), _BINS - 1)
    bins: list[CalibrationBin] = []
    error = 0.0
    for index in np.unique(bin_Q).tolist():
        inside_Q = bin_Q == index
        observed = estimate_share(right_Q[inside_Q], prompts_Q[inside_Q], draws=draws)
        predicted = float(confidence_Q[inside_Q].mean())
        bins.append(CalibrationBin(0.5 + index / (2 * _BINS), 0.5 + (index + 1) / (2 * _BINS), predicted, observed))
        error += float(inside_Q.mean()) * abs(predicted - observed.value)
    return Calibration(tuple(bins), error)


def correlate(x_N: Floats, y_N: Floats, clusters_N: Ints) -> Estimate | None:
    """Compute Pearson's correlation, such as that of scores with lengths, with its interval by cluster bootstrap.

        r = (mean xy − mean x · mean y) / √(var x · var y),   all moments weighted by how often a cluster is in a draw

    Example: x 1, 2, 3 and y 1, 3, 2: r = 0.5.

    Returns:
        None where one of the two does not vary.
    """
    if len(x_N) == 0 or np.ptp(x_N) == 0 or np.ptp(y_N) == 0:
        return None
    # Centred and scaled first: the moments do not cancel then.
    x_N, y_N = (x_N - x_N.mean()) / x_N.std(), (y_N - y_N.mean()) / y_N.std()
    columns = [sum_by_cluster(values_N, clusters_N)[0] for values_N in (np.ones_like(x_N), x_N, y_N, x_N * x_N, y_N * y_N, x_N * y_N)]
    moments_CM = np.stack(columns, axis=1)
    value, num_clusters = float((x_N * y_N).mean()), len(moments_CM)
    if num_clusters < 2:
        return Estimate(value, None, None, len(x_N), num_clusters)
    sums_DM = np.concatenate([counts_DC @ moments_CM for counts_DC in resample(num_clusters, DRAWS, seed=0)])
    x_D, y_D, xx_D, yy_D, xy_D = (sums_DM[:, 1:] / sums_DM[:, :1]).T
    variances_D = (xx_D - x_D**2) * (yy_D - y_D**2)
    varies_D = variances_D > 1e-18  # a draw of one cluster over and over may not
    r_D = np.clip((xy_D - x_D * y_D)[varies_D] / np.sqrt(variances_D[varies_D]), -1, 1)
    low, high = percentile_interval(r_D, num_clusters)
    return Estimate(value, float(low), float(high), len(x_N), num_clusters)
