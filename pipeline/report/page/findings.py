"""An evaluation -> what the page shows of it: the models beside each other, over-optimisation, the reward model's card."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from markupsafe import Markup

from pipeline.report.charts import Axis, Bar, Bin, Series, bar_table, reliability_table
from pipeline.report.markup import table
from pipeline.report.page.blocks import Picture, Section, Table
from pipeline.report.scales import choose_ticks, format_value
from pipeline.report.svg import bar_chart, line_chart, reliability_chart
from pipeline.report.verdict import name_model, name_stops, place_model, write_estimate, write_share
from pipeline.text import count
from stages.evaluate.results import Answers, Comparison, Evaluation, Group, OverOptimisation, Probe, RewardCard
from stages.statistics.bootstrap import Estimate
from stages.statistics.overoptimisation import MIN_D, Fit

CHANCE = 0.5
_NARROW = "\u00a0"  # no line breaks there
_KL = "KL to the SFT model, nats (root scale)"


def tabulate_models(evaluation: Evaluation) -> Table:
    """Put the models beside each other: what they said, in figures with their intervals."""
    has_judge = any(answers.judge for answers in evaluation.answers)
    head = (
        "",
        "answers",
        "score",
        *([f"judge, {evaluation.judge_unit}"] if has_judge else []),
        "KL, nats",
        "length, tokens",
        "finished",
        "distinct pairs",
        "repeated",
    )
    cells = [
        (
            name_model(answers.model),
            f"{answers.way}, {answers.samples_per_prompt} each",
            write_cell(answers.score),
            *([write_cell(answers.judge.get("score"))] if has_judge else []),
            write_cell(answers.kl_k1),
            write_cell(answers.response_tokens),
            write_cell(answers.finished, share=True),
            "–" if answers.distinct_2 is None else write_share(answers.distinct_2),
            "–" if answers.repetition is None else write_share(answers.repetition),
        )
        for answers in _order(evaluation.answers)
    ]
    caption = f"Answers to {count(evaluation.prompts, 'held-out prompt')}; in brackets 95 % intervals, by resampling prompts"
    return Table(caption, Markup(table(caption, head, cells)))


def tabulate_comparisons(comparisons: Sequence[Comparison], unit: str) -> Table:
    """Write all comparisons, with the smallest difference that so many prompts show."""
    head = ("", "by", "answers", "win rate", "won, tied, lost", "difference", "at equal length", "smallest that shows")
    cells = [
        (
            f"{name_model(pair.b)} over {name_model(pair.a)}",
            "judge" if pair.by == "judge" else "reward model",
            pair.way,
            write_cell(pair.win_rate.estimate, share=True),
            f"{pair.win_rate.wins:,}, {pair.win_rate.ties:,}, {pair.win_rate.losses:,}",
            write_cell(pair.difference.estimate, signed=True, unit=f" {unit}" * (pair.by == "judge")) if pair.difference else "–",
            write_cell(pair.length_controlled, share=True),
            f"50{_NARROW}±{_NARROW}{100 * pair.win_rate.smallest_difference:.0f}{_NARROW}%",
        )
        for pair in comparisons
    ]
    caption = "Who wins, paired by prompt; a tie counts half"
    return Table(caption, Markup(table(caption, head, cells)))


def tabulate_judge(evaluation: Evaluation) -> Table | None:
    """Write every figure of the judge for each model, where it has more than a score."""
    told = [answers for answers in _order(evaluation.answers) if answers.judge]
    names = list(dict.fromkeys(name for answers in told for name in answers.judge))
    if len(names) < 2:
        return None
    cells = [(f"{name_model(a.model)}, {a.way}", *(write_cell(a.judge.get(name)) for name in names)) for a in told]
    caption = "Each figure of the judge"
    return Table(caption, Markup(table(caption, ("", *(name.replace("_", " ") for name in names)), cells)), folded=True)


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
    pictures = [Picture(title, Markup(line_chart("proxy", title, series, x, proxy, 300)), _curve_table(title, found, judged=False))]
    if any(point.judge is not None for point in found.curve):
        title = f"The judge, {evaluation.judge_unit}"
        judged = _curve_series(found, judged=True, published=evaluation.published)
        picture = Markup(line_chart("judged", title, judged, x, Axis(evaluation.judge_unit), 300))
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
            picture = Markup(line_chart(name, title, series, x, Axis("judge" if judged else "score"), 300))
            pictures.append(Picture(title, picture, Markup("").join(tables)))
    return pictures


def show_reward_card(card: RewardCard) -> Section:
    """Draw what the reward model sees: the probes that it is blind to come first."""
    pairs = count(card.accuracy.num_values, "held-out pair")
    texts = [f"The better answer scores higher in {write_estimate(card.accuracy, share=True)} of {pairs}."]
    blind = [probe for probe in card.probes if probe.blind]
    warnings = [_tell_blind(probe) for probe in blind]
    if card.probes and not blind:
        texts.append(f"It sees all of {count(len(card.probes), 'edit')} that {'was' if len(card.probes) == 1 else 'were'} tried on it.")
    if card.calibration is not None:
        texts.append(f"Its sureness is off by {write_share(card.calibration.error)} on average (expected calibration error).")
    if card.equal_scores is not None:
        texts.append(f"It scores {write_estimate(card.equal_scores, share=True)} of pairs alike.")
    if card.tied_pairs:
        texts.append(f"{count(card.tied_pairs, 'pair')} that people ranked alike {'is' if card.tied_pairs == 1 else 'are'} not counted.")
    if card.length_correlation is not None:
        texts.append(f"Within a prompt, score and length correlate by {write_estimate(card.length_correlation)}.")
    pictures = [_draw_probes(card.probes)] if card.probes else []
    for name, title, groups in (
        ("distance", "Accuracy by how far apart people ranked", card.by_rank_distance),
        ("source", "Accuracy by source", card.by_source),
        ("length", "Accuracy by length of the better answer", card.by_length),
    ):
        pictures += [_draw_groups(name, title, groups)] if len(groups) > 1 else []
    if card.calibration is not None and card.calibration.bins:
        bins = [
            Bin(part.predicted, part.observed.value, part.observed.low, part.observed.high, part.observed.num_values)
            for part in card.calibration.bins
        ]
        title = "How sure it is, and how often it is right"
        axes = Axis("probability of the preferred answer"), Axis("share that people prefer")
        picture = Markup(reliability_chart("reliability", title, bins, *axes))
        pictures.append(
            Picture(title, picture, Markup(reliability_table(title, bins, "pairs")), "On the line it is as right as it is sure.")
        )
    return Section("reward-model", "What the reward model sees", texts=texts, warnings=warnings, pictures=pictures)


def _order(answers: Iterable[Answers]) -> list[Answers]:
    """Sort answers as their models came about, without the checkpoints, which stand in the curve."""
    kept = [found for found in answers if "-" not in found.model]
    return sorted(kept, key=lambda found: (place_model(found.model), found.way != "sampled"))


def write_cell(estimate: Estimate | None, *, share: bool = False, signed: bool = False, unit: str = "") -> str:
    """Write a figure for a cell of a table."""
    if estimate is None:
        return "–"
    return keep_whole(f"{write_estimate(estimate, share=share, signed=signed)}{unit}")


def keep_whole(figure: str) -> str:
    """Have a figure break before its interval only."""
    return figure.replace(" ", _NARROW).replace(f"{_NARROW}(", " (")


def _tell_blind(probe: Probe) -> str:
    seen = f"in {write_estimate(probe.accuracy, share=True)} of {count(probe.accuracy.num_values, 'pair')}"
    does = probe.description.rstrip(".") or probe.name
    return f"Blind to {probe.name} ({does}): the answer without it scores higher {seen}; a coin's share is 50 %, so PPO is free to do that."


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
    return Markup(table(title, ("", "KL, nats", "value (95 % interval)"), cells))


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
        seen, bound = (
            f"The KL of what PPO published, {_round(published.kl)} nats, lies beyond what samples of SFT can show",
            found.share_at_least,
        )
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


def _draw_groups(name: str, title: str, groups: Sequence[Group]) -> Picture:
    bars = [Bar(group.name, group.accuracy.value, group.accuracy.low, group.accuracy.high) for group in groups]
    x = Axis("accuracy", [(0.0, "0"), (0.5, "0.5"), (1.0, "1")])
    return Picture(title, Markup(bar_chart(f"by-{name}", title, bars, x, CHANCE)), Markup(bar_table(title, bars, x)), "The line is chance.")


def _draw_probes(probes: Sequence[Probe]) -> Picture:
    """Draw the probes, the blind ones first, then by accuracy."""
    ordered = sorted(probes, key=lambda probe: (not probe.blind, probe.accuracy.value))
    bars = [Bar(f"blind: {p.name}" if p.blind else p.name, p.accuracy.value, p.accuracy.low, p.accuracy.high) for p in ordered]
    title, x = "Which single edits it sees", Axis("share of pairs", [(0.0, "0"), (0.5, "0.5"), (1.0, "1")])
    head = ("edit", "what it does", "seen in", "margin of the score", "pairs", "")
    cells = [
        (p.name, p.description, write_cell(p.accuracy, share=True), write_cell(p.margin), f"{p.accuracy.num_values:,}", p.blind * "blind")
        for p in ordered
    ]
    note = "An answer beside a copy with one edit; the line is chance. Blind: the interval does not lie above it."
    return Picture(title, Markup(bar_chart("probes", title, bars, x, CHANCE)), Markup(table(title, head, cells)), note)
