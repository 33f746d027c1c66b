"""How score and judge moved with the KL -> pictures with their tables, and what these allow to say: where PPO should have stopped."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from markupsafe import Markup

from pipeline.report.charts import Axis, Series
from pipeline.report.markup import table
from pipeline.report.page.blocks import Picture, Section
from pipeline.report.page.findings import write_cell
from pipeline.report.scales import choose_ticks, format_value
from pipeline.report.svg import line_chart
from pipeline.report.verdict import name_stops, write_estimate
from stages.evaluate.results import Evaluation, OverOptimisation
from stages.statistics.bootstrap import Estimate
from stages.statistics.overoptimisation import MIN_D, Fit

_KL = "KL to the SFT model, nats (root scale)"


def show_over_optimisation(found: OverOptimisation, evaluation: Evaluation) -> Section:
    """Draw proxy and judge over the root of the KL, each with Gao's curve, best of n, and what SFT samples alone allow."""
    kls = [point.kl for point in found.curve] + [point.kl_bound for point in found.best_of_n] + [point.kl for point in found.frontier]
    x = Axis(_KL, _root_ticks(max(kls, default=1.0)))
    proxy = Axis("reward model's score")
    series = _curve_series(found, judged=False, published=evaluation.published)
    series += (
        [Series("possible from SFT samples", [(math.sqrt(point.kl), point.score) for point in found.frontier])] if found.frontier else []
    )
    title = "The proxy: the reward model's score"
    pictures = [Picture(title, line_chart("proxy", title, series, x, proxy, 300), _curve_table(title, found, judged=False))]
    if any(point.judge is not None for point in found.curve):
        title = f"The judge, {evaluation.judge_unit}"
        judged = _curve_series(found, judged=True, published=evaluation.published)
        picture = line_chart("judged", title, judged, x, Axis(evaluation.judge_unit), 300)
        pictures.append(Picture(title, picture, _curve_table(title, found, judged=True)))
    return Section("over-optimisation", "Over-optimisation", texts=_tell_curve(found, evaluation), pictures=pictures)


def draw_checkpoints(found: Sequence[tuple[str, OverOptimisation]]) -> list[Picture]:
    """Draw the checkpoints of several runs over the root of the KL: the proxy, and the judge where all have one."""
    if len(found) < 2:
        return []
    x = Axis(_KL, _root_ticks(max(point.kl for _, part in found for point in part.curve)))
    pictures: list[Picture] = []
    for name, title, judged in (("both-proxy", "The proxy: the reward model's score", False), ("both-judged", "The judge", True)):
        series = [replace(_curve_series(part, judged=judged)[0], name=ref) for ref, part in found]
        if all(line.points for line in series):
            tables = [_curve_table(f"{title}, {ref}", part, judged=judged) for ref, part in found]
            picture = line_chart(name, title, series, x, Axis("judge" if judged else "score"), 300)
            pictures.append(Picture(title, picture, Markup("").join(tables)))
    return pictures


def _root_ticks(most: float) -> list[tuple[float, str]]:
    """Choose round KLs and their places on a root scale; few near 0, where they would touch."""
    return [(0.0, "0")] + [
        (root, format_value(float(f"{root * root:.3g}"))) for root, _ in choose_ticks(0.0, math.sqrt(most) or 1.0) if root > 0
    ]


def _curve_series(found: OverOptimisation, *, judged: bool, published: int | None = None) -> list[Series]:
    """Lines of the checkpoints, Gao's curve, best of n, a dot for the iteration that is published, and a line where to stop."""
    curve = [(math.sqrt(max(point.kl, 0.0)), estimate) for point in found.curve if (estimate := point.judge if judged else point.score)]
    series = [Series("PPO checkpoints", [(d, e.value) for d, e in curve], _band(curve), dots=True)]
    fit = found.judge_fit if judged else found.score_fit
    if fit is not None and curve:
        series.append(Series("Gao's curve, fitted", _trace_fit(fit, curve[0][1].value, [d for d, _ in curve if d >= MIN_D])))
    best = [(math.sqrt(point.kl_bound), estimate) for point in found.best_of_n if (estimate := point.judge if judged else point.score)]
    series += [Series("best of n, at most here", [(d, e.value) for d, e in best], line=False, dots=True)] if best else []
    if len(curve) > 2:  # it need not be the one furthest to the right, nor with ppo.publish: best the last
        marked = [(point.kl, point.judge if judged else point.score) for point in found.curve if point.iteration == published]
        places = [(math.sqrt(max(kl, 0.0)), estimate.value) for kl, estimate in marked if estimate is not None]
        series += [Series(f"published: iteration {published}", places, line=False, dots=True)] if places else []
    stop = next((point for point in found.curve if point.iteration == found.stop_iteration), None)
    if stop is not None and stop is not found.curve[-1] and curve:
        heights = [value for line in series for _, value in line.points]
        d = math.sqrt(max(stop.kl, 0.0))
        series.append(Series(f"stop: iteration {stop.iteration}", [(d, min(heights)), (d, max(heights))]))
    return series


def _band(curve: Iterable[tuple[float, Estimate]]) -> list[tuple[float, float, float]]:
    return [(d, e.low, e.high) for d, e in curve if e.low is not None and e.high is not None]


def _trace_fit(fit: Fit, start: float, seen: Sequence[float]) -> list[tuple[float, float]]:
    """Trace start + d (a − b log d) from the first to the last d that it was fitted to."""
    low, high = min(seen, default=1.0), max(seen, default=1.0)
    places = [low + (high - low) * step / 40 for step in range(41)] if high > low else []
    return [(d, start + d * (fit.a - fit.b * math.log(d))) for d in places]


def _curve_table(title: str, found: OverOptimisation, *, judged: bool) -> Markup:
    cells = [
        (f"PPO at iteration {point.iteration}", format_value(point.kl), write_cell(point.judge if judged else point.score))
        for point in found.curve
    ]
    cells += [
        (f"best of {point.n}", f"at most {format_value(point.kl_bound)}", write_cell(point.judge if judged else point.score))
        for point in found.best_of_n
    ]
    frontier = () if judged else found.frontier[:: max(1, len(found.frontier) // 12)]
    cells += [("possible from SFT samples", format_value(point.kl), format_value(point.score)) for point in frontier]
    return table(title, ("", "KL, nats", "value (95 % interval)"), cells)


def _tell_curve(found: OverOptimisation, evaluation: Evaluation) -> list[str]:
    told: list[str] = []
    published, last = found.at(evaluation.published), found.curve[-1]
    ppo = "PPO" if published is last else f"What PPO published, iteration {published.iteration},"
    if found.share_of_frontier is not None:
        low, before = published.score.low, found.curve[0].score.value
        chance = (
            "; its score is not above SFT's by more than chance, so this may be chance too" if low is not None and low <= before else ""
        )
        told.append(f"{ppo} reached {100 * found.share_of_frontier:.0f} % of the score possible at this KL{chance}.")
    elif found.frontier and published.kl > found.frontier[-1].kl:
        bound = found.share_at_least
        seen = f"The KL of what PPO published, {_round(published.kl)} nats, lies beyond what samples of SFT can show"
        if bound is not None and (bound.low or 0.0) > 0:
            told.append(f"{seen}; of the score possible there it reached at least {write_estimate(bound, share=True)}, by a bound.")
        else:
            told.append(f"{seen}, so no share of what is possible is given.")
    if evaluation.judge_doubt is not None:
        told.append(f"Nothing can tell where to stop: {evaluation.judge_doubt}.")
    elif found.stop_iteration is None:
        told.append(
            "No judge has seen these answers, so nothing can tell where to stop: a rising score alone looks the same when it fools."
        )
    elif found.over_optimised is not None:
        highest = f"The judge is highest at iteration {found.stop_iteration}"
        if found.over_optimised:
            told.append(f"{highest} and falls behind by more than chance afterwards{name_stops(found)}.")
        elif found.stop_iteration < last.iteration:
            told.append(f"{highest}; what comes after is not worse by more than chance{name_stops(found)}.")
        else:
            told.append("The judge was still at its highest at the end: no over-optimisation is visible.")
    if (fit := found.judge_fit) is not None and fit.peak is not None:
        first = min((point.kl for point in found.curve if point.kl >= MIN_D**2), default=0.0)
        where = "beyond what was seen, a guess" if fit.beyond else "within what was seen"
        where = "before the first kept checkpoint, a guess" if fit.peak**2 < first else where
        told.append(f"Gao's curve of the judge peaks at a KL of {_round(fit.peak**2)} nats, {where}.")
    if found.frontier:
        told.append(
            f"The line of what is possible ends at a KL of {_round(found.frontier[-1].kl)} nats, where fewer than 4 "
            "effective samples are left. Best of n stands at the bound of its KL: it lies there or to the left."
        )
    return told


def _round(value: float) -> str:
    return format_value(float(f"{value:.3g}"))
