"""PPO's models and samples of SFT -> how score and judge move with the KL, what was possible, and where to stop.

Axes: P prompts, M samples of each.
"""

import math
from collections.abc import Sequence

import numpy as np

from stages.evaluate.measure import Measured, average_known
from stages.evaluate.results import BestOfN, By, CurvePoint, OverOptimisation
from stages.statistics.best_of_n import bound_kl, estimate_best_of_n
from stages.statistics.bootstrap import Estimate, average_by_cluster, estimate_mean
from stages.statistics.frontier import FrontierPoint, bound_share, share_of_frontier, trace_frontier
from stages.statistics.highest import find_highest
from stages.statistics.intervals import Floats
from stages.statistics.overoptimisation import Fit, fit_rl

BEST_OF = (1, 4, 16)
_FRONTIER_POINTS = 60  # in the file: more look like a line already


def measure_over_optimisation(measured: dict[str, Measured], *, may_judge: bool = True) -> OverOptimisation | None:
    """Measure it from all that was sampled; None where the SFT model has no scores, or no model of PPO has.

    Args:
        measured: Name -> answers.
        may_judge: Whether the judge may say where to stop.
    """
    sft = measured.get("sft-sampled")
    steps = sorted(
        (
            found
            for found in measured.values()
            if found.subject.iteration is not None and found.subject.way == "sampled" and _is_whole(found)
        ),
        key=lambda found: found.subject.iteration or 0,
    )
    if sft is None or sft.scores_N is None or not steps:
        return None
    points = [sft, *steps]
    curve = tuple(_make_point(found) for found in points)
    judged = may_judge and all(found.by("judge") is not None for found in points)
    scores_PM = sft.scores_N.reshape(-1, sft.answers.samples)
    frontier = trace_frontier(scores_PM)
    published = next((found for found in steps if found.subject.model == "ppo"), None)
    best = max(range(len(curve)), key=lambda place: _value(curve[place], "judge")) if judged else None
    may_be = () if best is None else _list_highest(points, curve[best].iteration)
    share, share_at_least = (None, None) if published is None else _measure_share(scores_PM, frontier, published)
    return OverOptimisation(
        curve=curve,
        score_fit=_fit(curve, "score"),
        judge_fit=_fit(curve, "judge") if judged else None,
        best_of_n=_list_best_of_n(sft, scores_PM),
        frontier=_thin(frontier[1:]),
        share_of_frontier=share,
        share_at_least=share_at_least,
        stop_iteration=None if best is None else curve[best].iteration,
        stop_may_be=may_be,
        over_optimised=None if best is None else _fell_behind(curve, best, may_be),
    )


def _is_whole(found: Measured) -> bool:
    return found.scores_N is not None and found.k1_N is not None


def _make_point(found: Measured) -> CurvePoint:
    prompts_N, judge_N = found.answers.prompts_N, found.by("judge")
    assert found.scores_N is not None
    return CurvePoint(
        iteration=found.subject.iteration or 0,
        kl=0.0 if found.k1_N is None or found.subject.model == "sft" else float(found.k1_N.mean()),
        score=estimate_mean(found.scores_N, prompts_N),
        judge=average_known(judge_N, prompts_N) if judge_N is not None else None,
    )


def _value(point: CurvePoint, by: By) -> float:
    estimate = point.score if by == "score" else point.judge
    assert estimate is not None
    return estimate.value


def _fit(curve: Sequence[CurvePoint], by: By) -> Fit | None:
    distances = np.array([math.sqrt(max(0.0, point.kl)) for point in curve[1:]])
    return fit_rl(distances, np.array([_value(point, by) - _value(curve[0], by) for point in curve[1:]]))


def _fell_behind(curve: Sequence[CurvePoint], best: int, may_be: Sequence[int]) -> bool:
    """Whether the judge is lower at the end than at its highest, by more than chance, and the score is not.

    The highest was picked by looking, so its luck is part of the gap: an interval of the difference of these two alone says "lower" of one
    run in seven where 16 models are equally good. By `find_highest` it is one in twenty, however many there are.
    """
    last = curve[-1]
    return last.iteration not in may_be and _value(last, "score") > _value(curve[best], "score")


def _measure_share(scores_PM: Floats, frontier: list[FrontierPoint], published: Measured) -> tuple[float | None, Estimate | None]:
    """Measure how much of the possible score the published policy gained, or a bound of it where its KL lies beyond the samples."""
    point = _make_point(published)
    share = share_of_frontier(frontier, point.kl, point.score.value)
    if share is not None or point.kl <= frontier[-1].kl:
        return share, None
    assert published.scores_N is not None and published.k1_N is not None
    prompts_N = published.answers.prompts_N
    gain_P = average_by_cluster(published.scores_N, prompts_N) - scores_PM.mean(axis=1)
    return None, bound_share(scores_PM, average_by_cluster(published.k1_N, prompts_N), gain_P)


def _list_highest(points: Sequence[Measured], highest: int) -> tuple[int, ...]:
    """List the iterations among which the one that the judge truly likes best lies, of prompts on which all of them were judged."""
    columns: list[Floats] = []
    for found in points:
        judge_N = found.by("judge")
        assert judge_N is not None
        judge_PM = judge_N.reshape(-1, found.answers.samples)
        known_PM = np.isfinite(judge_PM)
        sums_P, counts_P = np.where(known_PM, judge_PM, 0.0).sum(axis=1), known_PM.sum(axis=1)
        columns.append(np.where(counts_P > 0, sums_P / np.maximum(counts_P, 1), np.nan))
    values_PK = np.stack(columns, axis=1)
    may_be = find_highest(values_PK[np.isfinite(values_PK).all(axis=1)])
    iterations = [found.subject.iteration or 0 for found in points]
    return tuple(iteration for iteration, may in zip(iterations, may_be, strict=True) if may or iteration == highest)


def _list_best_of_n(sft: Measured, scores_PM: Floats) -> tuple[BestOfN, ...]:
    judge_N = None if sft.pairwise else sft.by("judge")
    judge_PM = None if judge_N is None else judge_N.reshape(scores_PM.shape)
    prompts_P = np.arange(len(scores_PM))
    return tuple(
        BestOfN(
            n=n,
            kl_bound=bound_kl(n),
            score=estimate_mean(estimate_best_of_n(scores_PM, n), prompts_P),
            judge=None if judge_PM is None else estimate_mean(estimate_best_of_n(scores_PM, n, judge_PM), prompts_P),
        )
        for n in BEST_OF
        if n <= scores_PM.shape[1]
    )


def _thin(points: Sequence[FrontierPoint]) -> tuple[FrontierPoint, ...]:
    step = max(1, -(-len(points) // _FRONTIER_POINTS))
    kept = list(points[::step])
    return tuple(kept if not points or kept[-1] is points[-1] else [*kept, points[-1]])
