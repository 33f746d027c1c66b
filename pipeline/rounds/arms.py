"""A round whose answers were chosen, beside those of it left to chance: how people ranked both, and which of them teaches more."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data.answers import AT_RANDOM, CHOSEN, AnswerSet, iter_answer_sets
from data.load import load_records
from data.schema import Comparison
from pipeline.report.verdict import Verdict, write_estimate
from pipeline.rounds.chain import Round
from pipeline.rounds.publish import EVAL_FILE, TRAIN_FILE
from stages.spec import ANSWERS_FILE, STATES_FILE, DataSource
from stages.statistics.arms import FEWEST, Arm, Lesson, RankedStates, compare_lessons, describe_arm


@dataclass(frozen=True)
class Arms:
    """Both arms of a round.

    Args:
        rankings: Ref of what people said.
        arms: By name; none where nothing of it was ranked.
        lesson: Which of them teaches more; None where too few are ranked.
    """

    rankings: str
    arms: dict[str, Arm | None]
    lesson: Lesson | None


def measure_arms(found: Round) -> Arms | None:
    """Measure both arms of a round; None where nothing was chosen, or nothing is published yet."""
    if found.answers is None or found.rankings is None or not (found.answers.path / STATES_FILE).is_file():
        return None
    ranks = {
        AnswerSet(record.prompt, record.completions).id: record.ranks
        for name in (TRAIN_FILE, EVAL_FILE)
        for record in load_records(DataSource.model_validate({"path": str(found.rankings.path / name)}), "comparisons")
        if isinstance(record, Comparison)
    }
    by_arm: dict[str, list[RankedStates]] = {CHOSEN: [], AT_RANDOM: []}
    begin = 0
    with np.load(found.answers.path / STATES_FILE, allow_pickle=False) as arrays:
        whitened_NH, logits_N = arrays["whitened_NH"].astype(np.float64), arrays["logits_N"].astype(np.float64)
    for each in iter_answer_sets(DataSource.model_validate({"path": str(found.answers.path / ANSWERS_FILE)})):
        end = begin + len(each.completions)
        if each.id in ranks and each.arm in by_arm:
            by_arm[each.arm].append(RankedStates(whitened_NH[begin:end], logits_N[begin:end], np.array(ranks[each.id])))
        begin = end
    arms = {name: describe_arm(ranked) for name, ranked in by_arm.items()}
    return Arms(found.rankings.ref, arms, compare_lessons(by_arm[CHOSEN], by_arm[AT_RANDOM]))


def tell_arms(found: Arms) -> Verdict:
    """Say whether choosing pays."""
    lesson = found.lesson
    if lesson is None or lesson.gain.low is None or lesson.gain.high is None:
        told = f"too few are ranked to say whether choosing pays; needed {FEWEST} sets of each arm in which one answer is better"
        return Verdict(f"{found.rankings}: {told}", "open")
    chosen, by_chance = (write_estimate(each, share=True) for each in (lesson.by_chosen, lesson.by_random))
    told = f"{found.rankings}: of pairs left to chance, a head has {chosen} right after {lesson.rankings:,} chosen rankings"
    told += f", {by_chance} after as many random ones"
    points = f"{100 * lesson.gain.value:+.1f} ({100 * lesson.gain.low:+.1f} to {100 * lesson.gain.high:+.1f}) points"
    if lesson.gain.low > 0:
        return Verdict(f"{told}: choosing pays, {points}", "good")
    if lesson.gain.high < 0:
        return Verdict(f"{told}: choosing costs, {points}; set sample.choose: random", "bad")
    return Verdict(f"{told}: {points}, which chance alone can be", "open")


def arms_data(found: Arms | None) -> dict[str, Any] | None:
    """Return it as plain data."""
    return None if found is None else asdict(found) | {"told": tell_arms(found).sentence}
