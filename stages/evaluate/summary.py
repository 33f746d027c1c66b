"""What was found -> the few figures of the manifest. Torch-free."""

from stages.evaluate.results import Evaluation
from stages.statistics.bootstrap import Estimate


def summarize(evaluation: Evaluation) -> dict[str, float]:
    """Name the figures that lists of artifacts show; all begin with `eval/`, those that are not there are left out."""
    found: dict[str, float] = {}

    def put(name: str, estimate: Estimate | None) -> None:
        if estimate is not None:
            found[f"eval/{name}"] = estimate.value
            found[f"eval/{name}/prompts"] = float(estimate.num_clusters)
            if estimate.low is not None and estimate.high is not None:
                found[f"eval/{name}/low"], found[f"eval/{name}/high"] = estimate.low, estimate.high

    first = next((found for found in evaluation.comparisons if (found.a, found.b) == ("sft", "ppo")), None)
    if first is not None:
        put("win_rate", first.win_rate.estimate)
        found["eval/win_rate/by_judge"] = float(first.by == "judge")
        put("win_rate/length_controlled", first.length_controlled)
    for answers in evaluation.answers:
        if answers.model in ("sft", "ppo") and answers.way == "sampled":
            put(f"{answers.model}/score", answers.score)
            put(f"{answers.model}/kl", answers.kl_k1)
            put(f"{answers.model}/judge", answers.judge.get("score"))
    if evaluation.reward_card is not None:
        put("reward_model/accuracy", evaluation.reward_card.accuracy)
        found["eval/reward_model/blind"] = float(sum(probe.blind for probe in evaluation.reward_card.probes))
    curve = evaluation.over_optimisation
    if curve is not None:
        flags = {
            "share_of_frontier": curve.share_of_frontier,
            "stop_iteration": curve.stop_iteration,
            "over_optimised": curve.over_optimised,
        }
        found |= {f"eval/{name}": float(value) for name, value in flags.items() if value is not None}
    return found
