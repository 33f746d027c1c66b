"""An evaluation -> what the page shows of it: the models beside each other, the reward model's card."""

from collections.abc import Iterable, Sequence

from pipeline.report.charts import Axis, Bar, Bin, bar_table, reliability_table
from pipeline.report.markup import table
from pipeline.report.page.blocks import Picture, Section, Table
from pipeline.report.svg import bar_chart, reliability_chart
from pipeline.report.verdict import name_model, place_model, write_estimate, write_share
from pipeline.text import count
from stages.evaluate.results import Answers, Comparison, Evaluation, Group, Probe, RewardCard
from stages.statistics.bootstrap import Estimate

CHANCE = 0.5
_NARROW = "\u00a0"  # no line breaks there


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
    return Table(
        f"Answers to {count(evaluation.prompts, 'held-out prompt')}; in brackets 95 % intervals, by resampling prompts", head, cells
    )


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
    return Table("Who wins, paired by prompt; a tie counts half", head, cells)


def tabulate_judge(evaluation: Evaluation) -> Table | None:
    """Write every figure of the judge for each model, where it has more than a score."""
    told = [answers for answers in _order(evaluation.answers) if answers.judge]
    names = list(dict.fromkeys(name for answers in told for name in answers.judge))
    if len(names) < 2:
        return None
    cells = [(f"{name_model(a.model)}, {a.way}", *(write_cell(a.judge.get(name)) for name in names)) for a in told]
    return Table("Each figure of the judge", ("", *(name.replace("_", " ") for name in names)), cells, folded=True)


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
        picture = reliability_chart("reliability", title, bins, *axes)
        pictures.append(Picture(title, picture, reliability_table(title, bins, "pairs"), "On the line it is as right as it is sure."))
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


def _draw_groups(name: str, title: str, groups: Sequence[Group]) -> Picture:
    bars = [Bar(group.name, group.accuracy.value, group.accuracy.low, group.accuracy.high) for group in groups]
    x = Axis("accuracy", [(0.0, "0"), (0.5, "0.5"), (1.0, "1")])
    return Picture(title, bar_chart(f"by-{name}", title, bars, x, CHANCE), bar_table(title, bars, x), "The line is chance.")


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
    return Picture(title, bar_chart("probes", title, bars, x, CHANCE), table(title, head, cells), note)
