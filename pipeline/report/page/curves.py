"""The figures of a stage by step -> its curves as pictures."""

from collections.abc import Mapping, Sequence

from pipeline.report.charts import Axis, Series, line_table
from pipeline.report.metrics import Curves
from pipeline.report.page.blocks import Picture
from pipeline.report.scales import Point
from pipeline.report.svg import line_chart

# kind -> pictures: title, y axis, {metric: name in the legend}; those of which nothing was measured are left out.
_LOSSES = ("Loss", "loss, nats per token", {"train/loss": "training", "eval/loss": "held-out"})
_OPTIMIZER = (
    ("Gradient norm", "norm before clipping", {"train/grad_norm": "gradient norm"}),
    ("Learning rate", "learning rate", {"train/learning_rate": "learning rate"}),
)
_PICTURES: dict[str, tuple[tuple[str, str, dict[str, str]], ...]] = {
    "pretrain": (_LOSSES, *_OPTIMIZER),
    "sft": (_LOSSES, ("Judge", "judge", {"eval/sampled/judge_score": "sampled", "eval/greedy/judge_score": "greedy"}), *_OPTIMIZER),
    "rm": (
        ("Loss", "ranking loss, nats per pair", {"train/loss": "training", "eval/loss": "held-out"}),
        ("Accuracy", "share of pairs", {"train/accuracy": "training", "eval/accuracy": "held-out"}),
        *_OPTIMIZER,
    ),
    "ppo": (
        ("Score", "reward model's score", {"objective/reward_model_scores": "rollouts", "eval/sampled/score": "held-out"}),
        ("KL to the SFT model", "KL, nats per response", {"objective/kl": "rollouts", "eval/sampled/kl": "held-out"}),
        ("Judge", "judge", {"eval/sampled/judge_score": "held-out, sampled", "eval/ema_sampled/judge_score": "held-out, average"}),
        ("Length of responses", "tokens", {"response_length": "rollouts", "eval/sampled/response_tokens": "held-out"}),
        ("Finished by themselves", "share of responses", {"eos_rate": "rollouts", "eval/sampled/finished": "held-out"}),
        ("Entropy", "nats per token", {"policy/entropy_avg": "policy"}),
        ("What the critic explains", "share of the variance", {"val/explained_variance": "explained variance"}),
        ("Losses", "loss", {"loss/policy_avg": "policy", "loss/value_avg": "critic"}),
        ("Update", "share or nats", {"policy/clipfrac_avg": "clipped share", "policy/approxkl_avg": "KL to before the update"}),
        ("KL coefficient", "reward per nat", {"kl_coef": "kl_coef"}),
        ("Learning rate", "learning rate", {"lr": "policy", "critic_lr": "critic"}),
        ("Speed", "tokens per second", {"time/tokens_per_s": "whole iteration"}),
    ),
}
_ALWAYS_CONSTANT = ("kl_coef",)  # drawn only where it moves
_SAME_ANYWAY = ("Learning rate", "Speed", "KL coefficient")  # not drawn where two artifacts are compared
_FEW = 12  # points that are shown as dots too
_STEP = {"ppo": "iteration"}


def list_metrics(kind: str) -> set[str]:
    """List the figures that the pictures of a kind show, and `tokens`."""
    return {name for _, _, names in _PICTURES.get(kind, ()) for name in names} | {"tokens"}


def draw_curves(prefix: str, kind: str, curves: Curves) -> list[Picture]:
    """Draw what was measured."""
    pictures: list[Picture] = []
    x = Axis(_STEP.get(kind, "optimizer step"), whole=True)
    for place, (title, label, names) in enumerate(_PICTURES.get(kind, ())):
        series = _make_series(names, curves.points)
        if not series or (names.keys() <= set(_ALWAYS_CONSTANT) and _is_constant(series[0].points)):
            continue
        y = Axis(label)
        pictures.append(Picture(title, line_chart(f"{prefix}-curve-{place}", title, series, x, y), line_table(title, series, x, y)))
    return pictures


def overlay_curves(prefix: str, kind: str, curves: Mapping[str, Curves]) -> list[Picture]:
    """Draw each metric of several artifacts of a kind in one picture."""
    pictures: list[Picture] = []
    x = Axis(_STEP.get(kind, "optimizer step"), whole=True)
    for title, label, names in _PICTURES.get(kind, ()):
        for name, what in names.items():
            series = [
                Series(ref, found.points[name], dots=len(found.points[name]) <= _FEW)
                for ref, found in curves.items()
                if found.points.get(name)
            ]
            if len(series) < 2 or title in _SAME_ANYWAY:
                continue
            whole, y = f"{title}: {what}" if len(names) > 1 else title, Axis(label)
            pictures.append(Picture(whole, line_chart(f"{prefix}-{len(pictures)}", whole, series, x, y), line_table(whole, series, x, y)))
    return pictures


def _make_series(names: Mapping[str, str], points: Mapping[str, Sequence[Point]]) -> list[Series]:
    """Make a line of each metric; few points are shown as dots too."""
    there = [(label, points[name]) for name, label in names.items() if points.get(name)]
    return [Series(label, found, dots=len(found) <= _FEW) for label, found in there]


def _is_constant(points: Sequence[Point]) -> bool:
    return len({value for _, value in points}) <= 1
