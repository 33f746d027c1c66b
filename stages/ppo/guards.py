"""A run that diverges, or learns from responses that are not its policy's, stops and says where and what to do."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from stages.models.weights import count_broken_weights
from stages.ppo.advantages import SumOverRanks
from stages.ppo.update import UpdateStats
from stages.process.errors import StageError
from stages.process.ranks import Ranks
from stages.spec import EXIT_VERIFICATION
from stages.warnings.ppo import MAX_OWN_GAP, MAX_OWN_GAP_BFLOAT16

# Mean |log π_old − log μ| of a token, in nats. Kernels and bfloat16 make a hundredth of one; other weights make several.
_MAX_LOGPROB_GAP = 0.3


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


def require_same_policy(logprob_gap: float, iteration: int) -> None:
    """Refuse responses of an engine that samples from something else than the policy.

    Raises:
        StageError: with the gap between the trainer's and the engine's log-probabilities; `iteration` counts from 1.
    """
    if logprob_gap > _MAX_LOGPROB_GAP:  # not-a-number has a message of its own, see below
        raise StageError(
            f"iteration {iteration}: the log-probabilities of ppo.rollout's server are {logprob_gap:.2g} nats a token away from the "
            f"policy's; at most {_MAX_LOGPROB_GAP} is needed, or it samples from another model; see that the server serves this policy's "
            "base with --logprobs-mode processed_logprobs, or set ppo.rollout.engine: torch",
            EXIT_VERIFICATION,
        )


def require_finite_weights(modules: Iterable[nn.Module], iteration: int, ranks: Ranks) -> None:
    """Refuse weights that are not finite, on any rank, before anything is sampled from them, saved or published.

    Raises:
        StageError: with their number; `iteration` counts from 1.
    """
    broken = int(ranks.sum(torch.stack([count_broken_weights(module, ranks.index) for module in modules]).sum()))
    if broken:
        raise StageError(
            f"iteration {iteration}: {broken} trained weights hold numbers that are not finite; needed: finite ones; lower "
            "ppo.learning_rate (or ppo.critic_learning_rate), or set hardware.precision: float32"
        )


def require_same_numbers(logprob_gap: float, computes_in_bfloat16: bool) -> None:
    """Refuse a first rollout whose log-probabilities, as it was sampled, are not those that the update will compute.

    Raises:
        StageError: with the gap; exit code 3.
    """
    limit = MAX_OWN_GAP_BFLOAT16 if computes_in_bfloat16 else MAX_OWN_GAP
    if not logprob_gap <= limit:
        raise StageError(
            f"iteration 1: found sampled tokens whose log-probabilities are {logprob_gap:.2g} nats a token away from those that the update "
            f"computes; needed: at most {limit:g}, or PPO learns from another policy's responses; set hardware.attention: eager",
            EXIT_VERIFICATION,
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
