"""The few figures of each stage that tell whether it works, and how they are called on a screen."""

from collections.abc import Mapping

from pipeline.text import format_number
from stages.result import Interval
from stages.spec import RANKINGS_KIND, STAGES, StageName

# While a stage runs, and of what it made: metric key -> label.
PROGRESS: dict[StageName, dict[str, str]] = {
    "pretrain": {"train/loss": "loss", "eval/loss": "held-out loss"},
    "sft": {"train/loss": "loss", "eval/loss": "held-out loss"},
    "rm": {"train/loss": "loss", "train/accuracy": "accuracy", "eval/accuracy": "held-out accuracy"},
    "ppo": {"objective/reward_model_scores": "score", "objective/kl": "KL", "eval/sampled/judge_score": "held-out judge"},
    "evaluate": {},
    "sample": {},
}
RESULT: dict[StageName, dict[str, str]] = {
    "pretrain": {"eval/loss": "held-out loss", "eval/perplexity": "held-out perplexity"},
    "sft": {"eval/loss": "held-out loss", "eval/sampled/judge_score": "judge (sampled)", "eval/greedy/judge_score": "judge (greedy)"},
    "rm": {"eval/accuracy": "held-out accuracy", "eval/calibration_error": "calibration error"},
    "ppo": {
        "eval/sampled/score": "score",
        "eval/sampled/kl": "KL",
        "eval/sampled/judge_score": "judge (sampled)",
        "eval/greedy/judge_score": "judge (greedy)",
        # With ppo.ema_decay the published model is the average; the figures above are of the weights behind it.
        "eval/ema_sampled/score": "score of the average",
        "eval/ema_sampled/judge_score": "judge of the average",
    },
    "evaluate": {
        "eval/win_rate": "PPO over SFT",
        "eval/win_rate_by_score": "PPO over SFT by score",
        "eval/reward_model/blind": "flaws that the reward model does not see",
    },
    "sample": {
        "answers": "answers a prompt",
        "finished": "ended by themselves",
        "resampled": "sampled again as near-duplicates",
        "gap_chosen": "largest gap of chosen ones",
        "gap_random": "of those left to chance",
    },
}


_BY_PEOPLE = {
    RANKINGS_KIND: {
        "agreement": "agreement",
        "agreement_with_oneself": "with oneself",
        "first_shown_is_better": "the first shown is better",
    }
}


def labels_of(kind: str) -> Mapping[str, str]:
    """Return the figures that tell of an artifact; none where its kind is of no stage."""
    return ({STAGES[stage].kind: labels for stage, labels in RESULT.items()} | _BY_PEOPLE).get(kind, {})


def headline(labels: Mapping[str, str], metrics: Mapping[str, float], intervals: Mapping[str, Interval] | None = None) -> str:
    """Write the figures that are there: `held-out loss 0.38 (0.35 to 0.41), judge (sampled) 45.5 (38.2 to 52.8), n 64`.

    Args:
        labels: Which figures, and what they are called.
        metrics: The figures.
        intervals: 95 % intervals of those that have one. How many prompts they stand on is said once where it is the same number.
    """
    known = intervals or {}
    shown = [key for key in labels if key in metrics]
    counts = {known[key].n for key in shown if key in known}
    each = [f"{labels[key]} {write_figure(metrics[key], known.get(key), with_n=len(counts) > 1)}" for key in shown]
    return ", ".join([*each, *([f"n {counts.pop():,}"] if len(counts) == 1 else [])])


def write_figure(value: float, interval: Interval | None, *, with_n: bool = False) -> str:
    """Write a figure with its 95 % interval where it is known: `83.43 (80.1 to 86.6)`."""
    if interval is None:
        return format_number(value)
    return f"{format_number(value)} ({interval.low:.3g} to {interval.high:.3g}{f', n {interval.n:,}' if with_n else ''})"
