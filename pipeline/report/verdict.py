"""What was measured -> one sentence with its numbers, and whether it is good news. The report and the terminal say the same.

Pure functions of an evaluation; of what an artifact's manifest has, where there is none; of why a stage failed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.report.scales import format_value
from pipeline.store.withdrawn import name_maker
from pipeline.text import count
from stages.evaluate.results import Comparison, CurvePoint, Evaluation, OverOptimisation
from stages.result import Interval
from stages.spec import RANKINGS_KIND, STAGES
from stages.statistics.bootstrap import Estimate
from stages.statistics.intervals import wilson_interval

News = Literal["good", "bad", "open"]  # open: nothing can tell, or no difference is visible
_MUST_BE_FINITE = ("eval/", "train/", "loss/", "objective/scores", "objective/kl")
_NAMED = 3  # figures that are listed by name
_EVALUATE = "`rlhf run --until evaluate` measures it"


@dataclass(frozen=True)
class Verdict:
    """One sentence, and whether it is good news."""

    sentence: str
    news: News


def tell_evaluation(evaluation: Evaluation) -> Verdict:
    """Say of an evaluation whether the last model is better than the one before it, and whether it fools the reward model."""
    if evaluation.prompts == 0:
        return Verdict("Nothing can be said: there are no held-out prompts; give some (`data.prompts` with an eval source)", "open")
    if not evaluation.comparisons:
        why = f": {evaluation.missing[0]}" if evaluation.missing else ""
        return Verdict(f"Nothing was compared on {count(evaluation.prompts, 'held-out prompt')}{why}", "open")
    main = evaluation.comparisons[0]
    if evaluation.judge_doubt is not None and main.by == "judge":
        told = _tell_comparison(main, evaluation)
        return Verdict(f"{told.sentence}; but {evaluation.judge_doubt}", "open" if told.news == "good" else told.news)
    curve = evaluation.over_optimisation
    told = _tell_comparison(main, evaluation)
    best = None if curve is None or not curve.over_optimised else curve.at(curve.stop_iteration)
    if curve is None or best is None or best.judge is None:
        return told
    highest = f"the judge was highest at iteration {best.iteration} with {write_estimate(best.judge)} {evaluation.judge_unit}"
    fell, published = f"{highest} and {_tell_fall(curve, best)}", curve.at(evaluation.published)
    if published is not curve.curve[-1] and published.iteration in (best.iteration, *curve.stop_may_be):
        which = f"What is published is iteration {published.iteration}"
        return Verdict(f"{told.sentence}. {which}; later PPO over-optimised: {fell}", told.news)
    wins = f"{write_estimate(main.win_rate.estimate, share=True)} over {name_model(main.a)} by {_name_scorer(main, evaluation)}"
    return Verdict(f"PPO over-optimised: {fell}; {_tell_where_to_stop(curve, best)}; what is published wins {wins}", "bad")


def tell_artifact(
    kind: str,
    metrics: Mapping[str, float],
    counts: Mapping[str, int],
    held_out_answers: int | None = None,
    intervals: Mapping[str, Interval] | None = None,
    ref: str = "",
) -> Verdict:
    """Say of an artifact what its stage measured, where no evaluation compares it with others.

    Args:
        kind: Of the artifact.
        metrics: Its final figures.
        counts: Its counts of records.
        held_out_answers: How many held-out prompts were answered, where that is known (`eval_samples`).
        intervals: Of its figures, as far as they are known.
        ref: Of it, for a command that takes it.
    """
    if diverged := sorted(name for name, value in metrics.items() if name.startswith(_MUST_BE_FINITE) and not math.isfinite(value)):
        more = f" and {len(diverged) - _NAMED} more" if len(diverged) > _NAMED else ""
        what = f"{', '.join(diverged[:_NAMED])}{more} {'is not a number' if len(diverged) == 1 else 'are not numbers'}"
        return Verdict(
            f"{_start(name_model(kind))} diverged: {what}; nothing can be said of it; try a lower learning rate, look at its data", "bad"
        )
    if kind == "rm" and "eval/accuracy" in metrics:
        return _tell_accuracy(metrics["eval/accuracy"], counts.get("held_out_comparisons_used", 0), (intervals or {}).get("eval/accuracy"))
    if kind == "ppo" and (told := _tell_ppo(metrics, counts, held_out_answers, intervals or {})):
        return Verdict(told, "open")
    if "eval/loss" in metrics:
        records = next((f" on {count(counts[name], word)}" for name, word in _HELD_OUT.items() if name in counts), "")
        loss = f"{_start(name_model(kind))} has a held-out loss of {format_value(metrics['eval/loss'])}{records}"
        return Verdict(f"{loss}; a loss alone does not say how good its answers are; {_EVALUATE}", "open")
    if kind == STAGES["sample"].kind:
        sets = f"{counts['sets']:,} prompts" if "sets" in counts else "prompts"
        return Verdict(f"Answers to {sets}, for people to rank: `rlhf rank {ref or kind}`", "open")
    if kind == RANKINGS_KIND:
        sides = f"{count(counts.get('comparisons_train', 0), 'comparison')} to train on, {counts.get('comparisons_eval', 0):,} held out"
        return Verdict(f"{sides}; data.comparisons.train: [..., {{ref: {ref or kind}}}] has a reward model learn from them", "open")
    return Verdict(f"Nothing was measured of {name_model(kind)} on held-out data; {_EVALUATE}", "open")


def tell_failure(stage: str, reason: str) -> Verdict:
    """Say that a stage ended without an artifact, and why."""
    return Verdict(
        f"{_start(name_model(stage))} did not end well: {reason or 'its log says why'}; what stands here is what was there before", "bad"
    )


def tell_damage(why: str, instead: str) -> Verdict:
    """Say that an artifact is damaged, and which one is told of instead; nothing where there is none."""
    return Verdict(f"Damaged: {why}" + (f"; what stands here is of {instead}" if instead else ""), "bad")


def tell_withdrawal(kind: str, reason: str) -> Verdict:
    """Say that an artifact is withdrawn (`rlhf forget`), and why."""
    return Verdict(f"Withdrawn: {reason}; {name_maker(kind)} makes one without them", "bad")


def name_model(name: str) -> str:
    """Name a model or a kind of artifact in a sentence: ppo-20 -> PPO at iteration 20."""
    stem, dash, iteration = name.partition("-")
    return _MODELS.get(stem, stem) + (f" at iteration {iteration}" if dash else "")


def place_model(name: str) -> tuple[int, str]:
    """Where a model stands among others: as they came about."""
    models = list(_MODELS)
    return models.index(name) if name in models else -1, name


def write_share(share: float) -> str:
    """Write a share in percent, with a decimal near none and all: 84 %, 99.6 %, 100 %."""
    percent, shown = 100 * share, round(100 * share, 1)
    return f"{shown:.1f} %" if 0 < shown < 1 or 99 < shown < 100 else f"{percent:.0f} %"


def write_estimate(estimate: Estimate, *, share: bool = False, signed: bool = False) -> str:
    """Write a figure with its interval: `0.899 (0.81 to 0.98)`; without where nothing shows one."""

    def write(value: float) -> str:
        return write_share(value) if share else _write_short(value)

    plus = "+" if signed and estimate.value > 0 else ""
    interval = "no interval" if estimate.low is None or estimate.high is None else f"{write(estimate.low)} to {write(estimate.high)}"
    return f"{plus}{write(estimate.value)} ({interval})"


_MODELS = {
    "base": "the base model",
    "pretrain": "the pre-trained model",
    "sft": "SFT",
    "rm": "the reward model",
    "ppo": "PPO",
    "evaluate": "the evaluation",
    "evaluation": "the evaluation",
}
_HELD_OUT = {
    "held_out_demonstrations_used": "held-out demonstration",
    "held_out_comparisons_used": "held-out comparison",
    "held_out_texts_used": "held-out text",
    "held_out_prompts": "held-out prompt",
}


def _tell_comparison(main: Comparison, evaluation: Evaluation) -> Verdict:
    won, a, b = main.win_rate.estimate, name_model(main.a), name_model(main.b)
    wins = f"{b} wins {write_share(won.value)} of {count(won.num_clusters, 'held-out prompt')} over {a} by {_name_scorer(main, evaluation)}"
    if won.low is None or won.high is None or won.num_clusters < 2:
        return Verdict(
            _start(f"{wins}, of which one alone shows nothing; some 200 show a difference of 10 points; give more held-out prompts"), "open"
        )
    wins += f" (95 % interval {write_share(won.low)} to {write_share(won.high)})"
    if won.low <= 0.5 <= won.high:
        return Verdict(f"No visible difference between {b} and {a}: {wins}; {_tell_power(main)}", "open")
    difference = f", {write_estimate(main.difference.estimate, signed=True)} {_unit(main, evaluation)}" if main.difference else ""
    if main.by == "score":
        doubt = "there is no judge, so nothing can tell whether it is better or fools that model; name one (`judge: module:function`)"
        return Verdict(_start(f"{wins}{difference}; {doubt}"), "open" if won.value > 0.5 else "bad")
    if won.value < 0.5:
        fooled = _find_score(evaluation, main)
        also = (
            f"; the reward model scores it higher, {write_estimate(fooled, signed=True)}: it is fooled"
            if fooled is not None and (fooled.low or 0.0) > 0
            else ""
        )
        return Verdict(_start(f"{b} is worse than {a}: {wins}{difference}{also}"), "bad")
    level = main.length_controlled
    if level is not None and level.low is not None and level.low <= 0.5:
        return Verdict(
            _start(f"{wins}{difference}, but at equal length {write_estimate(level, share=True)}: its length may be what wins"), "open"
        )
    return Verdict(_start(f"{b} is better than {a}: {wins}{difference}"), "good")


def _tell_fall(curve: OverOptimisation, best: CurvePoint) -> str:
    """Say how the judge went on from its highest point, while the score rose."""
    last = curve.curve[-1]
    fell = f"fell to {write_estimate(last.judge)}" if last.judge is not None else "fell"
    scores = f"{_write_short(best.score.value)} to {_write_short(last.score.value)}"
    return f"{fell}{name_stops(curve)}, while the reward model's score went from {scores}"


def _tell_where_to_stop(curve: OverOptimisation, best: CurvePoint) -> str:
    if best.iteration == 0:
        return "it should not have begun: raise ppo.kl_coef, look at what the reward model cannot see"
    kls = f"KL {_write_short(best.kl)} nats, at the end {_write_short(curve.curve[-1].kl)}"
    return f"it should have stopped at iteration {best.iteration} ({kls})"


def _tell_power(main: Comparison) -> str:
    """Say the smallest difference that so many prompts can show."""
    prompts, needed = main.win_rate.estimate.num_clusters, 0.5 + main.win_rate.smallest_difference
    if needed >= 1:
        return f"{count(prompts, 'prompt')} can hardly show any; some 200 show a win rate of 60 %; give more"
    return f"{count(prompts, 'prompt')} can show a win rate of {write_share(needed)} or more, or {write_share(1 - needed)} or less"


def _tell_accuracy(accuracy: float, comparisons: int, interval: Interval | None) -> Verdict:
    """Say the accuracy; where no interval is known, with Wilson's for as many pairs as comparisons, as pairs of one go together."""
    right = f"the reward model prefers the better answer in {write_share(accuracy)} of held-out pairs"
    comparisons = comparisons if interval is None else interval.n
    if comparisons < 2:
        return Verdict(
            _start(f"{right}, of {count(comparisons, 'comparison')}: that shows nothing; give more held-out comparisons"), "open"
        )
    low, high = (
        wilson_interval(min(max(accuracy, 0.0), 1.0) * comparisons, comparisons) if interval is None else (interval.low, interval.high)
    )
    most = "at most " if interval is None else ""
    right += f" (95 % interval {most}{write_share(low)} to {write_share(high)}, {count(comparisons, 'comparison')})"
    if low <= 0.5 <= high:
        return Verdict(_start(f"{right}, which may be a coin's 50 %: PPO would learn noise from it"), "open")
    if high < 0.5:
        return Verdict(_start(f"{right}: worse than a coin; are the ranks the other way round?"), "bad")
    return Verdict(_start(right), "good")


def _tell_ppo(metrics: Mapping[str, float], counts: Mapping[str, int], answered: int | None, intervals: Mapping[str, Interval]) -> str:
    """Say how score and judge moved on held-out prompts; nothing where neither was measured at the start and the end."""
    told: list[str] = []
    known = False
    for name, label in (("score", "its score"), ("judge_score", "the judge")):
        start, end, interval = metrics.get(f"eval/start/{name}"), metrics.get(f"eval/sampled/{name}"), intervals.get(f"eval/sampled/{name}")
        if start is not None and end is not None:
            known = known or interval is not None
            chance = ", which may be chance" if interval and interval.low <= start <= interval.high else ""
            bounds = f" ({_write_short(interval.low)} to {_write_short(interval.high)}{chance})" if interval else ""
            told.append(f"{label} went from {_write_short(start)} to {_write_short(end)}{bounds}")
    if not told:
        return ""
    prompts = min(filter(None, (answered, counts.get("held_out_prompts"))), default=0)
    on = f" on {count(prompts, 'held-out prompt')}" if prompts else ""
    kl = f" at KL {_write_short(metrics['eval/sampled/kl'])} nats" if "eval/sampled/kl" in metrics else ""
    unseen = "no judge has seen its answers, so nothing can tell whether it fools the reward model; "
    judged = "" if "eval/sampled/judge_score" in metrics else unseen
    doubt = "it was not compared with SFT prompt by prompt" if known else "without an interval this may be chance"
    return f"PPO: {' and '.join(told)}{on}{kl}; {judged}{doubt}; {_EVALUATE}"


def _find_score(evaluation: Evaluation, main: Comparison) -> Estimate | None:
    """Find by how much the reward model prefers b to a, of the same answers."""
    for other in evaluation.comparisons:
        if other.by == "score" and (other.a, other.b, other.way) == (main.a, main.b, main.way) and other.difference is not None:
            return other.difference.estimate
    return None


def name_judge(evaluation: Evaluation) -> str:
    """Name the judge in a sentence: a function is `the judge`; of a language model also how it was asked, and what that cost."""
    if evaluation.judge_kind == "reward_model":
        return f"the judge, a second reward model ({evaluation.judge})"
    asked = evaluation.llm
    if evaluation.judge_kind == "function" or asked is None:
        return "the judge"
    cost = "" if asked.cost is None else f", cost {_write_short(asked.cost)}"
    disagreed = f"asked in both orders, which disagreed on {write_share(asked.disagreement)} of pairs: ties"
    return f"the LLM judge {evaluation.judge} ({disagreed}{cost})"


def name_stops(curve: OverOptimisation) -> str:
    """Say among which iterations the judge's highest lies, where that is not one alone."""
    others = [str(iteration) for iteration in curve.stop_may_be if iteration != curve.stop_iteration]
    return f"; within noise (95 %) it may as well be {', '.join(others)}" if others else ""


def _name_scorer(main: Comparison, evaluation: Evaluation) -> str:
    return name_judge(evaluation) if main.by == "judge" else "the reward model that it learnt from"


def _unit(main: Comparison, evaluation: Evaluation) -> str:
    return evaluation.judge_unit if main.by == "judge" else "in score"


def _write_short(value: float) -> str:
    """Write a number with three digits: 0.899, 45.4, 1,234."""
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"
    return text.replace("-", "−", 1)


def _start(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
