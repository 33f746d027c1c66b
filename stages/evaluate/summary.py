"""What was found -> the few figures of the manifest, and their intervals. Torch-free."""

from stages.evaluate.results import Evaluation
from stages.result import Interval
from stages.result_intervals import to_interval
from stages.statistics.bootstrap import Estimate


def summarize(evaluation: Evaluation) -> tuple[dict[str, float], dict[str, Interval]]:
    """Name the figures that lists of artifacts show; all begin with `eval/`, those that are not there are left out.

    Returns:
        (figures, intervals of those that have one).
    """
    figures: dict[str, float] = {}
    intervals: dict[str, Interval] = {}

    def put(name: str, estimate: Estimate | None) -> None:
        if estimate is not None:
            figures[f"eval/{name}"] = estimate.value
            if interval := to_interval(estimate):
                intervals[f"eval/{name}"] = interval

    first = next((found for found in evaluation.comparisons if (found.a, found.b) == ("sft", "ppo")), None)
    if first is not None:
        by = "" if first.by == "judge" else "_by_score"
        put(f"win_rate{by}", first.win_rate.estimate)
        put(f"win_rate{by}_at_equal_length", first.length_controlled)
    for answers in evaluation.answers:
        if answers.model in ("sft", "ppo") and answers.way == "sampled":
            put(f"{answers.model}/score", answers.score)
            put(f"{answers.model}/kl", answers.kl_k1)
            put(f"{answers.model}/judge_score", answers.judge.get("score"))
    if evaluation.reward_card is not None:
        put("reward_model/accuracy", evaluation.reward_card.accuracy)
        if evaluation.reward_card.probes:  # none tried, none missed
            figures["eval/reward_model/blind"] = float(sum(probe.blind for probe in evaluation.reward_card.probes))
    curve = evaluation.over_optimisation
    if curve is not None:
        flags = {
            "share_of_frontier": curve.share_of_frontier,
            "stop_iteration": curve.stop_iteration,
            "over_optimised": curve.over_optimised,
        }
        figures |= {f"eval/{name}": float(value) for name, value in flags.items() if value is not None}
        put("share_of_frontier_at_least", curve.share_at_least)
    return figures, intervals
