"""Rounds that are done -> what each brought: the judge of its policy, the gain for its labels, its reward model on all held-out lists.

The first row is before any ranking of these rounds. Gains are paired: the same held-out prompts, their differences resampled by prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.console import Console

from data.answers import AT_RANDOM, CHOSEN
from pipeline.report.rows import read_rows
from pipeline.report.tables import print_figures_table, print_line
from pipeline.report.verdict import Verdict, write_estimate
from pipeline.rounds.arms import Arms, arms_data, measure_arms, tell_arms
from pipeline.rounds.chain import Round, find_reward_model
from pipeline.rounds.flaws import Flaw
from pipeline.store.artifact import Artifact
from pipeline.text import count
from stages.result import Interval
from stages.spec import SAMPLES_FILE
from stages.statistics.bootstrap import Estimate, estimate_mean

_JUDGE, _ACCURACY, _OF_SOURCE = "eval/sampled/judge_score", "eval/accuracy", "eval/accuracy_source_"
PER = 100  # labels
ARM_COLUMNS = ("rankings", "answers", "ranked", "pairs not tied", "right before", "head taught by as many")
HELD_OUT = "held out"  # the list of a reward model that learnt from one source, which has no name
Measure = Callable[[Round], Estimate | None]


@dataclass(frozen=True)
class RoundRow:
    """What a round's reward model and policy are.

    Args:
        number: Of the rankings that they learnt from last; 0: of none.
        labels: Rankings that were new to the reward model, to train on.
        policy: Its ref.
        judge: Mean of what the judge says of its sampled held-out answers.
        gain: Over the row before, per 100 new rankings.
        gain_in_all: Over the row of the first reward model.
        reward_model: Its ref.
        accuracy: Of the reward model on held-out lists: name -> figure.
        before: Of the reward model of the row before on the newest of these lists, which it has not seen.
        rankings: Ref of those that it learnt from last.
        held_out: How many of these are held out.
        arms: Of these, those that were chosen beside those left to chance; None where nothing was chosen, or nobody looked.
    """

    number: int
    labels: int
    policy: str
    judge: float | None
    judge_interval: Interval | None
    gain: Estimate | None
    gain_in_all: Estimate | None
    reward_model: str = ""
    accuracy: dict[str, tuple[float, Interval | None]] = field(default_factory=dict[str, tuple[float, Interval | None]])
    before: Estimate | None = None
    rankings: str = ""
    held_out: int = 0
    arms: Arms | None = None


def list_rounds(rounds: Sequence[Round], measure: Measure | None = None, *, arms: bool = False) -> list[RoundRow]:
    """Describe the policies of rounds, in order; those that are not trained yet are left out.

    Args:
        rounds: As `walk` yields them.
        measure: Asks the reward model of a round of its rankings, from which it did not learn; None: nothing is asked.
        arms: Look at what was chosen beside what was left to chance.
    """
    rows: list[RoundRow] = []
    said: list[dict[str, float]] = []
    for place, found in enumerate(rounds):
        policy, reward_model = found.policy, find_reward_model(found)
        if policy is None:
            continue
        new = rounds[place - 1].rankings if place else None
        labels = new.manifest.counts["comparisons_train"] if new else 0
        said.append(_read_judged(policy))
        first = next((each for each, row in zip(said, rows, strict=False) if row.reward_model), None)
        rows.append(
            RoundRow(
                number=found.number - 1,
                labels=labels,
                policy=policy.ref,
                judge=policy.manifest.metrics.get(_JUDGE),
                judge_interval=policy.manifest.intervals.get(_JUDGE),
                gain=_compare(said[-2], said[-1], PER / labels) if len(said) > 1 and labels else None,
                gain_in_all=_compare(first, said[-1], 1.0) if first else None,
                reward_model=reward_model.ref if reward_model else "",
                accuracy=_read_accuracy(reward_model) if reward_model else {},
                before=measure(rounds[place - 1]) if measure and new else None,
                rankings=new.ref if new else "",
                held_out=new.manifest.counts["comparisons_eval"] if new else 0,
                arms=measure_arms(rounds[place - 1]) if arms and new else None,
            )
        )
    return rows


def _read_judged(policy: Artifact) -> dict[str, float]:
    """Read what the judge said of each sampled held-out answer: prompt -> score."""
    path = policy.path / SAMPLES_FILE
    if not path.is_file():
        return {}
    found = (row for _, row in read_rows(path, {}))
    return {str(row["prompt"]): float(row["judge_score"]) for row in found if row.get("way") == "sampled" and "judge_score" in row}


def _compare(before: dict[str, float], after: dict[str, float], scale: float) -> Estimate | None:
    shared = [prompt for prompt in after if prompt in before]
    if not shared:
        return None
    return estimate_mean(np.array([after[prompt] - before[prompt] for prompt in shared]) * scale, np.arange(len(shared)))


def _read_accuracy(reward_model: Artifact) -> dict[str, tuple[float, Interval | None]]:
    metrics, intervals = reward_model.manifest.metrics, reward_model.manifest.intervals
    names = {name.removeprefix(_OF_SOURCE): name for name in metrics if name.startswith(_OF_SOURCE)}
    names = names or ({HELD_OUT: _ACCURACY} if _ACCURACY in metrics else {})
    return {said: (metrics[name], intervals.get(name)) for said, name in names.items()}


def rounds_data(rows: Sequence[RoundRow]) -> list[dict[str, Any]]:
    """Return rows as plain data."""
    dumped = [asdict(row) for row in rows]
    for row, plain in zip(rows, dumped, strict=True):
        plain["judge_interval"] = row.judge_interval.model_dump() if row.judge_interval else None
        plain["accuracy"] = {name: [value, each.model_dump() if each else None] for name, (value, each) in row.accuracy.items()}
        plain["arms"] = arms_data(row.arms)
    return dumped


def flaws_data(flaws: Sequence[Flaw]) -> list[dict[str, Any]]:
    """Return flaws as plain data."""
    return [asdict(flaw) | {"seen": {model: probe.model_dump() for model, probe in flaw.seen.items()}} for flaw in flaws]


def print_rounds(console: Console, rows: Sequence[RoundRow]) -> None:
    """Print a line for each round."""
    columns = (
        "rankings of",
        "new",
        "policy",
        "judge",
        f"gain per {PER}",
        "gain over the first",
        "reward model",
        "accuracy on held-out lists",
    )
    cells = [
        (
            f"round {row.number}" if row.number else "none",
            f"{row.labels:,}" if row.labels else "",
            row.policy,
            "" if row.judge is None else _write(row.judge, row.judge_interval),
            _write_estimate(row.gain),
            _write_estimate(row.gain_in_all),
            row.reward_model,
            ", ".join(f"{name} {_write(value, interval)}" for name, (value, interval) in row.accuracy.items())
            + (f"; before, on the newest: {write_estimate(row.before)}" if row.before else ""),
        )
        for row in rows
    ]
    print_figures_table(console, columns, cells)


def name_first(rows: Sequence[RoundRow]) -> str:
    """Name the row of the first reward model, over which gains in all are; where the recipe has comparisons, that is before any round."""
    first = next((row for row in rows if row.reward_model), None)
    return f"round {first.number}" if first and first.number else "the first policy"


def tell_gain(rows: Sequence[RoundRow]) -> Verdict:
    """Say whether the last policy is above that of the first reward model by more than chance."""
    last = rows[-1] if rows else None
    if last is None or last.gain_in_all is None or last.gain_in_all.low is None:
        return Verdict("too few rounds, or no judge: nothing can be said of the gain", "open")
    first, gain = name_first(rows), f"{last.gain_in_all.value:+.1f} ({last.gain_in_all.low:+.1f} to {last.gain_in_all.high:+.1f})"
    if last.gain_in_all.low > 0:
        return Verdict(f"round {last.number} is above {first} by {gain} points of the judge, more than chance", "good")
    told = f"round {last.number} against {first}: {gain} points of the judge"
    if last.gain_in_all.high is not None and last.gain_in_all.high < 0:
        return Verdict(f"{told}, less by more than chance", "bad")
    return Verdict(f"{told}, which chance alone can be; more rankings a round would tell", "open")


def list_arms(rows: Sequence[RoundRow]) -> list[Arms]:
    """List the rounds of which something was chosen, as far as they were looked at."""
    return [row.arms for row in rows if row.arms is not None]


def arm_cells(found: Arms, write: Callable[[Estimate | None], str]) -> list[tuple[str, ...]]:
    """Write both arms of a round as rows of a table; `write` writes a share."""
    lesson = found.lesson
    taught = {CHOSEN: lesson.by_chosen, AT_RANDOM: lesson.by_random} if lesson else {}
    return [
        (
            found.rankings,
            name,
            f"{arm.sets:,}" if arm else "0",
            write(arm and arm.decided),
            write(arm and arm.right),
            write(taught.get(name)),
        )
        for name, arm in found.arms.items()
    ]


def print_arms(console: Console, rows: Sequence[RoundRow]) -> None:
    """Print both arms of each round of which something was chosen, and whether choosing pays; nothing where there is none."""
    found = list_arms(rows)
    if not found:
        return
    cells = [row for each in found for row in arm_cells(each, lambda share: "" if share is None else write_estimate(share, share=True))]
    print_figures_table(console, ARM_COLUMNS, cells)
    for each in found:
        print_line(console, tell_arms(each).sentence)


def print_flaws(console: Console, flaws: Sequence[Flaw], models: Sequence[str]) -> None:
    """Print a line for each flaw: in how many pairs each round's reward model prefers the answer without it."""
    cells = [(flaw.name, *(_write_seen(flaw, model) for model in models), flaw.description) for flaw in flaws]
    print_figures_table(console, ("prefers the answer without", *models, "a copy that"), cells)


def _write_seen(flaw: Flaw, model: str) -> str:
    """Write in how many pairs a reward model sees a flaw."""
    probe = flaw.seen.get(model)
    return "" if probe is None else write_estimate(probe.accuracy, share=True) + (" blind" if probe.blind else "")


def tell_flaws(flaws: Sequence[Flaw], models: Sequence[str]) -> list[str]:
    """Say where the first reward model was blind and the last one sees, where it is blind still, and what it no longer sees."""
    if not models or not flaws:
        return []
    first, last = models[0], models[-1]
    known = [(flaw.name, flaw.seen[first].blind, flaw.seen[last].blind) for flaw in flaws if first in flaw.seen and last in flaw.seen]
    if not known:
        return []
    groups = {
        f"{first} was blind to {{}}, which {last} sees": [name for name, was, still in known if was and not still],
        f"{last} is blind to {{}}, as {first} was": [name for name, was, still in known if was and still and first != last],
        f"{last} is blind to {{}}, which {first} saw": [name for name, was, still in known if not was and still],
        f"{last} is blind to {{}}": [name for name, _, still in known if still and first == last],
    }
    told = [sentence.format(", ".join(names)) for sentence, names in groups.items() if names]
    return told or [f"{last} sees {count(len(known), 'flaw')} of {len(known):,}" + (f", and so did {first}" if first != last else "")]


def _write(value: float, interval: Interval | None) -> str:
    return f"{value:.3g}" + (f" ({interval.low:.3g} to {interval.high:.3g})" if interval else "")


def _write_estimate(found: Estimate | None) -> str:
    if found is None:
        return ""
    return f"{found.value:+.3g}" + (f" ({found.low:+.3g} to {found.high:+.3g})" if found.low is not None else "")
