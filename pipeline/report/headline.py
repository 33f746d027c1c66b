"""The few figures of each stage that tell whether it works, and how they are called on a screen."""

from collections.abc import Mapping

from pipeline.text import format_number
from stages.spec import StageName

# While a stage runs, and of what it made: metric key -> label.
PROGRESS: dict[StageName, dict[str, str]] = {
    "pretrain": {"train/loss": "loss", "eval/loss": "held-out loss"},
    "sft": {"train/loss": "loss", "eval/loss": "held-out loss"},
    "rm": {"train/loss": "loss", "train/accuracy": "accuracy", "eval/accuracy": "held-out accuracy"},
    "ppo": {"objective/reward_model_scores": "score", "objective/kl": "KL", "eval/sampled/judge_score": "held-out judge"},
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
}


def labels_of(kind: str) -> Mapping[str, str]:
    """Return the figures that tell of an artifact; none where its kind is of no stage."""
    return {str(stage): labels for stage, labels in RESULT.items()}.get(kind, {})


def headline(labels: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    """Write the figures that are there: `loss 0.41, held-out loss 0.38`."""
    return ", ".join(f"{label} {format_number(metrics[key])}" for key, label in labels.items() if key in metrics)
