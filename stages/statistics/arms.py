"""Answers that were chosen for people to rank, beside those left to chance: which of them teach a reward model more?

A head on the reward model's backbone as it was before learns from as many rankings of either arm, and is asked of those left to chance,
which are prompts and answers as they come. Folds see to it that no head is asked of what it learnt from. Only the last layer learns, so
that no training is needed to know; what the whole model makes of them may be more.

Axes: K answers of a set, H size of a state, Q pairs, C sets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.statistics.bootstrap import Estimate, estimate_mean, estimate_share
from stages.statistics.intervals import Floats, Ints

FOLDS = 5
FEWEST = 2 * FOLDS  # sets of an arm
_MOST_PAIRS = 2400  # that a head learns from: of more than states have numbers, they bound what is solved
_NEWTON_STEPS, _TOLERANCE = 50, 1e-9


@dataclass(frozen=True)
class RankedStates:
    """A set that people ranked, and what the reward model made of it before: whitened states (stages.choice), logits, ranks."""

    whitened_KH: Floats
    logits_K: Floats
    ranks_K: Ints


@dataclass(frozen=True)
class Arm:
    """One arm as people ranked it.

    Args:
        sets: How many were ranked.
        decided: Share of pairs of which one is better.
        right: Share of these in which the reward model said so before.
    """

    sets: int
    decided: Estimate
    right: Estimate | None


@dataclass(frozen=True)
class Lesson:
    """What heads make of pairs left to chance: shares that they have right.

    Args:
        rankings: From how many each head learnt.
        before: Of the reward model's own head.
        by_random: Of heads that learnt from sets left to chance.
        by_chosen: Of heads that learnt from as many that were chosen.
        gain: `by_chosen` less `by_random`, paired by set.
    """

    rankings: int
    before: Estimate
    by_random: Estimate
    by_chosen: Estimate
    gain: Estimate


def pair(ranked: RankedStates) -> tuple[Floats, Floats, Floats]:
    """Pair the answers of a set: (differences_QH of states, margins_Q of logits, weights_Q), each better one less the worse one.

    The weight of a pair is 2 / K, as in stages.choice: a ranking says K − 1 things.
    """
    better_Q, worse_Q = np.nonzero(ranked.ranks_K[:, None] < ranked.ranks_K[None, :])
    margins_Q = ranked.logits_K[better_Q] - ranked.logits_K[worse_Q]
    return ranked.whitened_KH[better_Q] - ranked.whitened_KH[worse_Q], margins_Q, np.full(len(better_Q), 2 / len(ranked.ranks_K))


def teach(differences_QH: Floats, margins_Q: Floats, weights_Q: Floats) -> Floats:
    """Find how a head moves that learns from pairs, in whitened coordinates: the a that maximises its posterior.

        log p(a | pairs) = −½ |a|² + Σ ω log σ(m + a·z) + const

    By Newton's method, in the span of the z: outside of it a is 0.

    Args:
        differences_QH: z, better less worse.
        margins_Q: m, what the head says of them before.
        weights_Q: ω.

    Returns:
        a, of shape H; 0 without pairs.
    """
    basis_HM, z_MQ = np.linalg.qr(differences_QH.T)
    a_M = np.zeros(len(z_MQ))
    for _ in range(_NEWTON_STEPS if len(margins_Q) else 0):
        wrong_Q = np.exp(-np.logaddexp(0, margins_Q + z_MQ.T @ a_M))
        curvature_MM = (z_MQ * (weights_Q * wrong_Q * (1 - wrong_Q))) @ z_MQ.T + np.eye(len(a_M))
        step_M = np.linalg.solve(curvature_MM, z_MQ @ (weights_Q * wrong_Q) - a_M)
        a_M += step_M
        if np.abs(z_MQ.T @ step_M).max() < _TOLERANCE:
            break
    return basis_HM @ a_M


def describe_arm(ranked: Sequence[RankedStates]) -> Arm | None:
    """Describe how people ranked an arm; None where they ranked nothing."""
    decided: list[float] = []
    right: list[tuple[float, int]] = []
    for number, each in enumerate(ranked):
        _, margins_Q, _ = pair(each)
        decided.append(len(margins_Q) / (len(each.ranks_K) * (len(each.ranks_K) - 1) / 2))
        right += [(float(value), number) for value in (np.sign(margins_Q) + 1) / 2]
    if not decided:
        return None
    shares = estimate_share(np.array([value for value, _ in right]), np.array([number for _, number in right])) if right else None
    return Arm(len(ranked), estimate_share(np.array(decided), np.arange(len(decided))), shares)


def compare_lessons(chosen: Sequence[RankedStates], at_random: Sequence[RankedStates], seed: int = 0) -> Lesson | None:
    """Measure which arm teaches more; None where an arm has fewer than `FEWEST` sets in which something is better than something.

    Args:
        chosen: As people ranked them.
        at_random: The same.
        seed: Of the folds.
    """
    chosen, at_random = _list_decided(chosen), _list_decided(at_random)
    if min(len(chosen), len(at_random)) < FEWEST:
        return None
    generator = np.random.default_rng(seed)
    order: list[int] = generator.permutation(len(at_random)).tolist()
    most = max(FEWEST, int(_MOST_PAIRS / np.mean([len(pair(each)[1]) for each in (*chosen, *at_random)])))
    number = min(len(at_random) - -(-len(at_random) // FOLDS), len(chosen), most)
    rows: list[tuple[float, float, float]] = []
    for fold in range(FOLDS):
        others = [at_random[place] for position, place in enumerate(order) if position % FOLDS != fold]
        drawn: list[int] = generator.permutation(len(chosen))[:number].tolist()
        moves = [_teach_all(others[:number]), _teach_all([chosen[place] for place in drawn])]
        rows += [_ask(at_random[place], moves) for place in order[fold::FOLDS]]
    right_C3 = np.array(rows)
    before, by_random, by_chosen = (estimate_share(right_C3[:, column], np.arange(len(rows))) for column in range(3))
    return Lesson(number, before, by_random, by_chosen, estimate_mean(right_C3[:, 2] - right_C3[:, 1], np.arange(len(rows))))


def _list_decided(sets: Sequence[RankedStates]) -> list[RankedStates]:
    return [each for each in sets if len(np.unique(each.ranks_K)) > 1]


def _teach_all(sets: Sequence[RankedStates]) -> Floats:
    differences, margins, weights = zip(*map(pair, sets), strict=True)
    return teach(np.concatenate(differences), np.concatenate(margins), np.concatenate(weights))


def _ask(ranked: RankedStates, moves: Sequence[Floats]) -> tuple[float, float, float]:
    """Say which share of a set's pairs the old head has right, and those that moved."""
    differences_QH, margins_Q, _ = pair(ranked)
    said = [margins_Q, *(margins_Q + differences_QH @ move_H for move_H in moves)]
    before, *after = (float((np.sign(each) + 1).mean() / 2) for each in said)
    return before, after[0], after[1]
