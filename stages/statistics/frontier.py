"""Scored samples of the SFT model -> the highest score that any policy can have at a KL from it.

The best policy under a KL penalty b is π ∝ π_ref · exp(r / b), so samples of π_ref, weighted, tell its score and its KL without
training it (arXiv 2605.07105). Axes: P prompts, M samples of each.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stages.statistics.bootstrap import DRAWS, Estimate, percentile_interval, resample
from stages.statistics.intervals import Floats

MIN_EFFECTIVE_SAMPLES = 4.0
_SWEEP = np.geomspace(50.0, 0.02, 400)  # b, in standard deviations of the scores of one prompt


@dataclass(frozen=True)
class FrontierPoint:
    """What the best policy under one KL penalty has."""

    penalty: float  # b; infinite at the reference
    kl: float  # nats, mean over prompts
    score: float  # mean over prompts
    effective_samples: float  # harmonic mean over prompts


def tilt(scores_PM: Floats, penalty: float) -> FrontierPoint:
    """Estimate score and KL of π ∝ π_ref · exp(r / b) from samples of π_ref.

        w_i = exp(r_i / b) / Σ_j exp(r_j / b),   E[r] = Σ w_i r_i,   KL = E[r] / b − log mean_i exp(r_i / b)
        effective samples = 1 / Σ w_i²; over prompts their harmonic mean, as the bias of a weighted mean goes with 1 / effective samples

    Example: scores 0 and 1, b = 1: w = 0.269, 0.731; E[r] = 0.731; KL = 0.731 − log 1.859 = 0.111; effective samples 1.648.
    """
    logits_PM = scores_PM / penalty
    logits_PM = logits_PM - logits_PM.max(axis=1, keepdims=True)  # changes neither the weights nor the KL
    weights_PM = np.exp(logits_PM)
    log_mean_P = np.log(weights_PM.mean(axis=1))
    weights_PM /= weights_PM.sum(axis=1, keepdims=True)
    kl_P = (weights_PM * logits_PM).sum(axis=1) - log_mean_P
    effective = 1 / (weights_PM**2).sum(axis=1)
    score = float((weights_PM * scores_PM).sum(axis=1).mean())
    return FrontierPoint(penalty, max(0.0, float(kl_P.mean())), score, float(1 / (1 / effective).mean()))


def trace_frontier(scores_PM: Floats) -> list[FrontierPoint]:
    """Trace the frontier from the reference on, as far as the samples show it: at least 4 effective samples.

    Beyond that the estimate is biased downwards: m samples show no KL above log m, whatever the scores.

    Returns:
        Points by rising KL, the first of them the reference (KL 0); it alone where no prompt's samples differ in score.
    """
    if scores_PM.size == 0 or not np.isfinite(scores_PM).all():
        raise ValueError("found no scores, or some that are not finite; leave their prompts out and tell")
    samples = float(scores_PM.shape[1])
    points = [FrontierPoint(float("inf"), 0.0, float(scores_PM.mean()), samples)]
    return [*points, *_sweep(scores_PM, MIN_EFFECTIVE_SAMPLES)]


def _sweep(scores_PM: Floats, effective_samples: float) -> Iterator[FrontierPoint]:
    """Sweep the penalty down for as long as there are so many effective samples."""
    spread = float(np.sqrt(scores_PM.var(axis=1).mean()))
    for penalty in (_SWEEP * spread).tolist() if spread > 0 else ():
        point = tilt(scores_PM, penalty)
        if point.effective_samples < effective_samples:
            return
        yield point


def share_of_frontier(points: list[FrontierPoint], kl: float, score: float) -> float | None:
    """Compute which share of the gain that is possible at a KL a policy reached.

        (score − score_ref) / (frontier(KL) − score_ref),   the frontier between two points drawn straight over √KL

    Example: a frontier through (0, 0) and (1, 2): at KL 0.25 it is 1, and a score of 0.5 is a share of 0.5.

    Args:
        points: the frontier, by rising KL, from the reference on.
        kl: of the policy, nats.
        score: of the policy, on the same prompts as the frontier.

    Returns:
        None where nothing can be said: KL not above 0, or beyond the last point, or no gain possible.
    """
    if not 0 < kl <= points[-1].kl:
        return None
    roots = [math.sqrt(point.kl) for point in points]
    scores = [point.score for point in points]
    possible = float(np.interp(math.sqrt(kl), roots, scores))
    gain = possible - points[0].score
    return (score - points[0].score) / gain if gain > 0 else None


def bound_share(scores_PM: Floats, kl_P: Floats, gain_P: Floats, *, draws: int = DRAWS, seed: int = 0) -> Estimate | None:
    """Bound from below which share of the possible gain a policy reached, at a KL that samples of the reference do not show.

    The frontier is concave and its slope at penalty b is b, so that no policy lies above its tangents (weak duality, for each b > 0):

        E_π[r]  ≤  b · KL(π) + b · log E_ref[exp(r / b)]        share  ≥  Σ_p gain_p / Σ_p (b · KL_p + b · log Z_p − mean_p)

    Z_p is the mean of exp(r / b) over a prompt's M samples. Its logarithm is too low by half its relative variance, which is added back:
    (1 / effective samples − 1 / M) · M / (M − 1) / 2. Further on, the tangent at the smallest b is the lowest; b goes as low as M / 2
    effective samples, where exp(r / b) varies by its mean. Below, the bound would not hold for scores with a tail: on exponential ones
    with 4 of 16 it came out 25 % too high.

    Example: 2 samples, scores 0 and 1, at b = 1: log Z = log 1.859 = 0.620, effective samples 1.648, + (0.607 − 0.5) · 2 / 2 = 0.107; at
    KL 2 no policy gains more than 2 + 0.727 − 0.5 = 2.227, so that a gain of 1 is a share of at least 0.449.

    Args:
        scores_PM: Samples of the reference.
        kl_P: Of the policy, by prompt, nats.
        gain_P: Score of the policy - mean score of the reference.

    Returns:
        The bound with its interval over prompts; None where it says nothing: fewer than two prompts or samples, or no gain to be had.
    """
    num_prompts, num_samples = scores_PM.shape
    points = list(_sweep(scores_PM, num_samples / 2))
    if num_prompts < 2 or num_samples < 2 or not points:
        return None
    possible_P = bound_score(scores_PM, points[-1].penalty, kl_P) - scores_PM.mean(axis=1)
    sums_D2 = np.concatenate([counts_DP @ np.stack([gain_P, possible_P], axis=1) for counts_DP in resample(num_prompts, draws, seed)])
    if (sums_D2[:, 1] <= 0).any() or possible_P.sum() <= 0:
        return None
    low, high = percentile_interval(sums_D2[:, 0] / sums_D2[:, 1], num_prompts)
    return Estimate(float(gain_P.sum() / possible_P.sum()), float(low), float(high), num_prompts, num_prompts)


def bound_score(scores_PM: Floats, penalty: float, kl_P: Floats) -> Floats:
    """Bound from above, by the tangent at a penalty, what a policy can score at a KL; see `bound_share`."""
    num_samples = scores_PM.shape[1]
    tops_P = scores_PM.max(axis=1)
    weights_PM = np.exp((scores_PM - tops_P[:, None]) / penalty)
    inverse_effective_P = (weights_PM**2).sum(axis=1) / weights_PM.sum(axis=1) ** 2
    log_z_P = np.log(weights_PM.mean(axis=1)) + (inverse_effective_P - 1 / num_samples) * num_samples / (num_samples - 1) / 2
    return penalty * (kl_P + log_z_P) + tops_P
