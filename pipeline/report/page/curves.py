"""metrics.jsonl of a stage -> its curves as pictures. 100,000 rows take a second; rows that are none are counted and told."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from pipeline.report.charts import Axis, Series, line_table
from pipeline.report.page.blocks import Picture
from pipeline.report.scales import LARGEST, Point
from pipeline.report.svg import line_chart
from pipeline.store.disk import open_regular
from stages.lines import read_line
from stages.spec import METRICS_FILE

_MAX_LINE_BYTES = 1_000_000
_NAMES = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
_SHOWN_BAD = 3

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


@dataclass(frozen=True)
class Curves:
    """Metric -> its points by rising step, and what is to be told of the file."""

    points: dict[str, list[Point]] = field(default_factory=dict[str, list[Point]])
    problems: tuple[str, ...] = ()
    rows: int = 0


def read_curves(directory: Path, kind: str) -> Curves:
    """Read the metrics that a kind's pictures show, and `tokens`; values that are not finite are kept and told."""
    wanted = {name for _, _, names in _PICTURES.get(kind, ()) for name in names} | {"tokens"}
    points: dict[str, list[Point]] = {}
    bad: list[str] = []
    rows, num_bad, not_finite = 0, 0, dict[str, int]()
    last, in_order = -math.inf, True
    try:
        stream = open_regular(directory / METRICS_FILE, None)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return Curves(problems=(f"{METRICS_FILE}: {reason}; there are no curves of this stage",))
    with stream:
        for number, line in enumerate(stream, start=1):
            try:
                row = json.loads(line) if len(line) < _MAX_LINE_BYTES else read_line(line[:_MAX_LINE_BYTES])
                step = float(row["step"])
            except (ValueError, LookupError, TypeError, RecursionError, AttributeError, OverflowError):
                num_bad += 1
                bad += [str(number)] if num_bad <= _SHOWN_BAD else []
                continue
            rows += 1
            last, in_order = step, in_order and last <= step
            for name in wanted & row.keys():
                value = row[name]
                value = _NAMES.get(value, value) if isinstance(value, str) else value
                if isinstance(value, int | float) and not isinstance(value, bool):
                    points.setdefault(name, []).append((step, value))
                    if not abs(value) < LARGEST:  # also where it is not a number
                        not_finite[name] = not_finite.get(name, 0) + 1
    problems = [f"{METRICS_FILE}: {name} is not finite in {count:,} of {rows:,} rows" for name, count in sorted(not_finite.items())]
    if num_bad:
        places = ", ".join(bad) + (" and others" if num_bad > _SHOWN_BAD else "")
        problems.append(f"{METRICS_FILE}: {num_bad:,} lines are no rows of figures and are left out: line {places}")
    if not in_order:  # after a restart; of a step that was logged twice both stay
        points = {name: sorted(found, key=lambda point: point[0]) for name, found in points.items()}
    return Curves(points, tuple(problems), rows)


def draw_curves(prefix: str, kind: str, curves: Curves) -> list[Picture]:
    """Draw what was measured."""
    pictures: list[Picture] = []
    x = Axis(_STEP.get(kind, "optimizer step"))
    for place, (title, label, names) in enumerate(_PICTURES.get(kind, ())):
        series = _make_series(names, curves.points)
        if not series or (names.keys() <= set(_ALWAYS_CONSTANT) and _is_constant(series[0].points)):
            continue
        y = Axis(label)
        picture = line_chart(f"{prefix}-curve-{place}", title, series, x, y)
        pictures.append(Picture(title, Markup(picture), Markup(line_table(title, series, x, y))))
    return pictures


def overlay_curves(prefix: str, kind: str, curves: Mapping[str, Curves]) -> list[Picture]:
    """Draw each metric of several artifacts of a kind in one picture."""
    pictures: list[Picture] = []
    x = Axis(_STEP.get(kind, "optimizer step"))
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
            picture = line_chart(f"{prefix}-{len(pictures)}", whole, series, x, y)
            pictures.append(Picture(whole, Markup(picture), Markup(line_table(whole, series, x, y))))
    return pictures


def _make_series(names: Mapping[str, str], points: Mapping[str, Sequence[Point]]) -> list[Series]:
    """Make a line of each metric; few points are shown as dots too."""
    there = [(label, points[name]) for name, label in names.items() if points.get(name)]
    return [Series(label, found, dots=len(found) <= _FEW) for label, found in there]


def _is_constant(points: Sequence[Point]) -> bool:
    return len({value for _, value in points}) <= 1
