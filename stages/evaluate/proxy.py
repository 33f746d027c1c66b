"""Whether the judge is the reward model that PPO learnt from: such a judge cannot tell whether PPO fools that model."""

import filecmp
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from stages.evaluate.measure import Measured

_SAME = 0.999  # a copy in bfloat16 correlates by 0.9999 with its original; two trainings on the same comparisons by far less
_FEWEST = 20  # answers: of a few, any two figures may rise together
_TODO = "it cannot tell whether PPO fools that model; take a judge that PPO did not learn from"


def find_same_weights(judge: Path, reward_model: Path) -> str | None:
    """Say that a judge has the weights of the reward model that PPO learnt from, to the last byte; None: it has others.

    Args:
        judge: Its directory, or what a hub calls it.
        reward_model: Its directory.
    """
    weights = sorted(path.name for path in reward_model.glob("*.safetensors"))
    if not weights or sorted(path.name for path in judge.glob("*.safetensors")) != weights:
        return None
    same = all(filecmp.cmp(judge / name, reward_model / name, shallow=False) for name in weights)
    return f"the judge is the reward model that PPO learnt from (the same weights): {_TODO}" if same else None


def find_same_order(measured: Iterable[Measured]) -> str | None:
    """Say that a judge says of all answers what the reward model says of them, but for scale and shift; None: it says something else.

    It may be a copy of it in another precision, or a function that asks it.
    """
    both = [
        (found.scores_N, judge_N)
        for found in measured
        if found.scores_N is not None and not found.pairwise and (judge_N := found.by("judge")) is not None
    ]
    if not both:
        return None
    scores_N, judge_N = (np.concatenate(each) for each in zip(*both, strict=True))
    if len(scores_N) < _FEWEST or not scores_N.std() or not judge_N.std():
        return None
    correlation = float(np.corrcoef(scores_N, judge_N)[0, 1])
    said = f"the judge says what the reward model says that PPO learnt from (correlation {correlation:.4f} over {len(scores_N):,} answers)"
    return f"{said}: {_TODO}" if correlation >= _SAME else None
