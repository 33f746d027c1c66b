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
