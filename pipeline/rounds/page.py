"""Rounds -> a page: what each brought for its labels, old and new reward model on old and new answers, who sees which flaw."""

from collections.abc import Sequence
from itertools import pairwise

from data.mix import part_of
from pipeline.report.charts import Axis, Bar, bar_table
from pipeline.report.page.blocks import Banner, Page, Picture, Section, Table
from pipeline.report.page.findings import keep_whole, write_cell
from pipeline.report.scales import format_value
from pipeline.report.svg import bar_chart
from pipeline.report.verdict import write_estimate, write_share
from pipeline.rounds.arms import Arms, tell_arms
from pipeline.rounds.flaws import Flaw
from pipeline.rounds.table import ARM_COLUMNS, HELD_OUT, PER, RoundRow, arm_cells, list_arms, name_first, tell_flaws, tell_gain
from pipeline.text import count
from stages.result import Interval

_NO_CHOICE = "The prompts of all rounds were drawn at random: no chosen ones are there to compare with random ones."


def build_rounds_page(name: str, rows: Sequence[RoundRow], flaws: Sequence[Flaw], missing: Sequence[str] = ()) -> Page:
    """Build the page of a recipe's rounds.

    Args:
        name: Of the recipe.
        rows: As `list_rounds` returns them.
        flaws: As `measure_flaws` returns them.
        missing: What could not be told of them.
    """
    verdict = tell_gain(rows)
    labels = sum(row.labels for row in rows)
    sections = [_show_all(rows), *(_show_round(before, row) for before, row in pairwise(rows) if row.number)]
    sections += [_show_arms(found)] if (found := list_arms(rows)) else []
    sections += [_show_flaws(flaws, [row.reward_model for row in rows if row.reward_model])] if flaws else []
    judged = all(row.judge is not None for row in rows)
    missing = [*missing, *([] if judged else ["what each round brought: no judge saw the answers of all policies; set `judge`"])]
    trained = max(len(rows) - 1, 0)
    subtitle = f"{count(trained, 'round')} {'is' if trained == 1 else 'are'} trained, on {count(labels, 'ranking')} of people"
    return Page(f"Rounds of {name}", subtitle, [Banner(name, verdict.sentence, verdict.news)], sections, missing)


def _show_all(rows: Sequence[RoundRow]) -> Section:
    """Show all rounds side by side."""
    head = (
        "rankings of",
        "new to train on",
        "policy",
        "judge",
        f"gain per {PER} rankings",
        f"gain over {name_first(rows)}",
        "reward model",
    )
    cells = [
        (
            f"round {row.number}" if row.number else "none",
            f"{row.labels:,}" if row.labels else "–",
            row.policy,
            _write(row.judge, row.judge_interval),
            write_cell(row.gain, signed=True),
            write_cell(row.gain_in_all, signed=True),
            row.reward_model or "–",
        )
        for row in rows
    ]
    tables = [Table("Rounds", head, cells)]
    texts = ["Gains are paired: differences of the judge on the same held-out prompts, resampled by prompt."]
    texts += [] if list_arms(rows) else [_NO_CHOICE]
    return Section("rounds", "All rounds", texts=texts, tables=tables, pictures=_draw_judge(rows))


def _draw_judge(rows: Sequence[RoundRow]) -> list[Picture]:
    bars = [
        Bar(
            row.policy,
            row.judge,
            row.judge_interval.low if row.judge_interval else None,
            row.judge_interval.high if row.judge_interval else None,
        )
        for row in rows
        if row.judge is not None
    ]
    title, axis = "What the judge says of each round's policy", Axis("judge")
    return [Picture(title, bar_chart("judge", title, bars, axis), bar_table(title, bars, axis))] if bars else []


def _show_round(before: RoundRow, row: RoundRow) -> Section:
    """Show what the rankings of one round brought: the policy after them beside the one before, both reward models on all lists."""
    texts = [f"{row.rankings}: {row.labels:,} rankings to train on, {row.held_out:,} held out for good. {before.policy} gave the answers."]
    if row.judge is not None and before.judge is not None:
        gain = "" if row.gain is None else f": {write_estimate(row.gain, signed=True)} for {PER} rankings"
        told = (
            f"The judge's mean went from {format_value(before.judge)} ({before.policy}) to {format_value(row.judge)} ({row.policy}){gain}."
        )
        texts.append(told)
    tables: list[Table] = []
    if row.accuracy and before.reward_model:
        caption = "Old and new reward model on held-out lists"
        newest = next((name for name in row.accuracy if name == row.rankings), "")
        old = {name: _find_before(before, name) for name in row.accuracy if part_of(name) != row.rankings}
        old |= {newest: (row.before.value, _as_interval(row))} if row.before and newest else {}
        cells = [
            (f"{name} (new answers)" if name == newest else name, _share(old.get(name)), _share(accuracy))
            for name, accuracy in row.accuracy.items()
        ]
        tables.append(Table(caption, ("held-out list", before.reward_model, row.reward_model), cells))
        texts.append(
            f"On answers that are new to it, {before.reward_model} shows how stale it is; {row.reward_model} learnt from others of them."
        )
    elif row.reward_model:
        texts.append(
            f"{row.reward_model} is the first reward model: {', '.join(f'{name} {_share(each)}' for name, each in row.accuracy.items())}."
        )
    return Section(f"round-{row.number}", f"Round {row.number}", texts=texts, tables=tables)


def _find_before(before: RoundRow, name: str) -> tuple[float, Interval | None] | None:
    """Find an older accuracy on a held-out list: of a reward model that learnt from the recipe's one source alone, it has not its name."""
    return before.accuracy.get(name) or before.accuracy.get(name.partition("/")[2] or HELD_OUT)


def _show_arms(found: Sequence[Arms]) -> Section:
    """Show whether choosing pays: chosen answers beside those left to chance."""
    caption = "Chosen answers and those left to chance"
    cells = [row for each in found for row in arm_cells(each, lambda share: write_cell(share, share=True))]
    texts = [
        *(f"{tell_arms(each).sentence}." for each in found),
        "A part of each round's prompts and answers is left to chance, unknown to who ranks. Right before: how often the reward model that "
        "chose already preferred what people prefer. Then a head on its states learns from as many rankings of either kind, and is "
        "asked of others that were left to chance.",
    ]
    return Section("choice", "Does choosing pay?", texts=texts, tables=[Table(caption, ARM_COLUMNS, cells)])


def _show_flaws(flaws: Sequence[Flaw], models: Sequence[str]) -> Section:
    caption = "How often the answer without the flaw scores higher"
    rows = [(f"{flaw.name}: {flaw.description}", *(_write_seen(flaw, model) for model in models)) for flaw in flaws]
    text = "Each is a copy of a good held-out answer with one flaw. Blind: it may as well toss a coin, so PPO is free to make that mistake."
    told = [f"{sentence}." for sentence in tell_flaws(flaws, models)]
    return Section("flaws", "Who sees which flaw", texts=[*told, text], tables=[Table(caption, ("a copy that", *models), rows)])


def _write_seen(flaw: Flaw, model: str) -> str:
    probe = flaw.seen.get(model)
    return "–" if probe is None else write_cell(probe.accuracy, share=True) + (" blind" if probe.blind else "")


def _as_interval(row: RoundRow) -> Interval | None:
    found = row.before
    return (
        Interval(low=found.low, high=found.high, n=found.num_clusters)
        if found and found.low is not None and found.high is not None
        else None
    )


def _share(found: tuple[float, Interval | None] | None) -> str:
    if found is None:
        return "–"
    value, interval = found
    return keep_whole(write_share(value) + (f" ({write_share(interval.low)} to {write_share(interval.high)})" if interval else ""))


def _write(value: float | None, interval: Interval | None) -> str:
    if value is None:
        return "–"
    return keep_whole(format_value(value) + (f" ({format_value(interval.low)} to {format_value(interval.high)})" if interval else ""))
