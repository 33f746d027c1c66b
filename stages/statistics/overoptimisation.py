"""Gains of judge or proxy over d = √KL -> the curve of Gao et al. 2023 (arXiv 2210.10760) and its peak."""

from dataclasses import dataclass

import numpy as np

from stages.statistics.intervals import Floats

MIN_D = 0.5  # the RL form's slope is infinite at 0, where nothing is
_PARAMETERS = 2


@dataclass(frozen=True)
class Fit:
    """A curve of two parameters, and where it is highest."""

    a: float
    b: float
    peak: float | None  # d*; None where the curve has no highest point
    beyond: bool  # the peak lies beyond the largest d that was seen
    error: float  # root mean square of what is left, in the unit of the gains
    num_points: int


def fit_rl(d: Floats, gains: Floats) -> Fit | None:
    """Fit R(d) = d · (a − b · log d) by least squares to points with d >= 0.5.

        peak: R'(d*) = a − b − b · log d* = 0, so d* = exp(a / b − 1), where b > 0

    Example: a = 2, b = 1 has its peak at d* = e.

    Args:
        d: √KL from the reference, KL in nats.
        gains: score − score of the reference.

    Returns:
        None where fewer than 3 points have different d >= 0.5: too few to tell a fit from a coincidence.
    """
    kept = d >= MIN_D
    d, gains = d[kept], gains[kept]
    if not (np.isfinite(d).all() and np.isfinite(gains).all()):
        raise ValueError("found a d or a gain that is not finite; leave it out and tell")
    if len(np.unique(d)) <= _PARAMETERS:
        return None
    features = np.stack([d, -d * np.log(d)], axis=1)
    solution, *_ = np.linalg.lstsq(features, gains, rcond=None)
    a, b = solution.tolist()
    error = float(np.sqrt(np.mean((features @ solution - gains) ** 2)))
    peak = float(np.exp(a / b - 1)) if b > 0 and a / b < 100 else None
    return Fit(a, b, peak, peak is not None and peak > float(d.max()), error, len(d))
