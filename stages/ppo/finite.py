"""A run that diverges stops, and says where and what to do."""

import math

from torch import Tensor

from stages.ppo.advantages import SumOverRanks
from stages.ppo.update import UpdateStats
from stages.runtime import StageError


def require_finite_scores(scores_B: Tensor, iteration: int, sum_over_ranks: SumOverRanks) -> None:
    """Refuse scores of the reward model that are not finite, on any rank.

    Raises:
        StageError: with their number; `iteration` counts from 1.
    """
    not_finite = int(sum_over_ranks((~scores_B.isfinite()).sum()))
    if not_finite:
        raise StageError(
            f"iteration {iteration}: {not_finite} scores of the reward model are not finite; needed: finite scores; "
            "retrain the rm stage with a lower learning rate, or set hardware.precision: float32"
        )


def require_finite_update(stats: UpdateStats, iteration: int) -> None:
    """Refuse losses and gradient norms that are not finite.

    Raises:
        StageError: with the first of them; `iteration` counts from 1.
    """
    for name in ("policy_loss", "value_loss", "policy_grad_norm", "critic_grad_norm"):
        value: float = getattr(stats, name)
        if not math.isfinite(value):
            raise StageError(
                f"iteration {iteration}: {name} is {value}; needed: a finite number; lower ppo.learning_rate "
                "(or ppo.critic_learning_rate), or set hardware.precision: float32"
            )
