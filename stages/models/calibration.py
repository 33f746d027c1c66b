"""What turns a reward model's logit into its score, and the file beside the weights that says so.

A file of its own, for an adapter's directory has no config.json. A loaded reward model carries it as `calibration`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from stages.process.errors import StageError
from stages.spec import EXIT_VERIFICATION

_FILE = "score.json"
# Of the spread of ranked answers: below it, demonstrations that score 1 apart would leave answers 20 apart.
_SMALLEST_SHARE = 0.05


@dataclass(frozen=True)
class Calibration:
    """score = (logit − bias) / scale.

    The bias is chosen so that demonstrations score 0 on average (Ziegler et al. 2019, 2.1).
    """

    bias: float = 0.0
    scale: float = 1.0

    def apply(self, logits: Tensor) -> Tensor:
        """Turn logits into scores, in float32."""
        return (logits.float() - self.bias) / self.scale

    def write(self, directory: Path) -> None:
        """Write it beside a model's weights."""
        (directory / _FILE).write_text(json.dumps({"score_bias": self.bias, "score_scale": self.scale}), encoding="utf-8")


def choose_calibration(
    demonstrations_N: Tensor, ranked_N: Tensor, *, scale_scores: bool, rounding: float
) -> tuple[Calibration, str | None]:
    """Choose the calibration under which demonstrations score 0 on average, and with `scale_scores` differ by 1.

    Demonstrations that hardly differ, or of which there is one, say nothing of the unit of a score: dividing by their standard deviation
    would make huge scores of all others. Ranked answers, which were chosen to differ, then stand in for them.

    Args:
        demonstrations_N: logits of demonstrations, finite.
        ranked_N: logits of ranked answers, finite.
        scale_scores: whether scores are scaled at all.
        rounding: what of a logit is rounding, as a share of its size.

    Returns:
        (calibration, why it is not scaled by the demonstrations: found and what is done; or None).
    """
    bias = demonstrations_N.mean().item()
    if not scale_scores:
        return Calibration(bias), None
    spread, ranked_spread = _measure_spread(demonstrations_N, rounding), _measure_spread(ranked_N, rounding)
    if spread > _SMALLEST_SHARE * ranked_spread:
        return Calibration(bias, spread), None
    found = f"the scores of {len(demonstrations_N)} demonstrations differ by {spread:.2g} (standard deviation; 0: nothing but rounding)"
    if ranked_spread == 0:
        return Calibration(bias), f"{found}, and those of ranked answers by 0: scores are not scaled"
    return Calibration(bias, ranked_spread), f"{found}: scores are scaled by the {ranked_spread:.2g} of ranked answers instead"


def _measure_spread(logits_N: Tensor, rounding: float) -> float:
    """Standard deviation, 0 where it is no more than rounding."""
    spread = logits_N.double().std().item() if len(logits_N) > 1 else 0.0
    return spread if spread > rounding * logits_N.abs().max().item() else 0.0


def has_calibration(path: str) -> bool:
    """Whether a reward model says what makes scores of its logits, as all of ours do."""
    return (Path(path) / _FILE).exists()


def read_calibration(path: str) -> Calibration:
    """Read what lies beside a trained reward model's weights.

    Raises:
        StageError: nothing readable does; exit code 3.
    """
    try:
        found = json.loads((Path(path) / _FILE).read_text(encoding="utf-8"))
        return Calibration(float(found["score_bias"]), float(found["score_scale"]))
    except (OSError, ValueError, KeyError) as error:
        raise StageError(
            f"{path}: no readable {_FILE} ({error}); a reward model of this project is needed; run the rm stage", EXIT_VERIFICATION
        ) from error
