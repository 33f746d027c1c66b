"""Scored samples of the SFT model -> the highest score that any policy can have at a KL from it.

The best policy under a KL penalty b is π ∝ π_ref · exp(r / b), so samples of π_ref, weighted, tell its score and its KL without
training it (arXiv 2605.07105). Axes: P prompts, M samples of each.
"""

import math
from dataclasses import dataclass

import numpy as np

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
    spread = float(np.sqrt(scores_PM.var(axis=1).mean()))
    if spread == 0:
        return points
    for penalty in (_SWEEP * spread).tolist():
        point = tilt(scores_PM, penalty)
        if point.effective_samples < MIN_EFFECTIVE_SAMPLES:
            break
        points.append(point)
    return points


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
