"""Held-out comparisons and probes -> what the reward model sees, and how sure it may be.

Axes: N answers, Q pairs (better, worse) of answers to one prompt.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.tokens import EncodedComparison
from stages.evaluate.results import Group, Probe, RewardCard
from stages.statistics.bootstrap import estimate_mean, estimate_share
from stages.statistics.intervals import Floats
from stages.statistics.reward_card import (
    LENGTH_BUCKETS,
    bucket_lengths,
    compute_accuracy,
    correlate,
    group_accuracy,
    measure_calibration,
)

_FEWEST = 8  # pairs of a probe: fewer say nothing, even where all agree
_COIN = 0.5


@dataclass
class ProbePairs:
    """Answers and their copies with one flaw."""

    description: str
    prompts: list[int] = field(default_factory=list[int])
    copies: list[int] = field(default_factory=list[int])  # places among all copies


@dataclass(frozen=True)
class _Pairs:
    better_Q: NDArray[np.int64]
    worse_Q: NDArray[np.int64]
    prompts_Q: NDArray[np.int64]
    distances: list[int]
    num_tied: int


def make_card(comparisons: Sequence[EncodedComparison], scores_N: Floats, scale: float, probes: tuple[Probe, ...]) -> RewardCard | None:
    """Make the card of a reward model.

    Args:
        comparisons: Held-out ones.
        scores_N: Of all their answers, in order; finite.
        scale: Of its calibration: scores · scale differ by the log odds that it was trained on.
        probes: What was found of them.

    Returns:
        None where no two answers of different ranks are left.
    """
    pairs = _pair(comparisons)
    if not len(pairs.better_Q):
        return None
    margins_Q, prompts_Q = scores_N[pairs.better_Q] - scores_N[pairs.worse_Q], pairs.prompts_Q
    lengths_N = np.array([len(response) for item in comparisons for response in item.responses], dtype=np.float64)
    prompts_N = np.repeat(np.arange(len(comparisons)), [len(item.responses) for item in comparisons])
    sources = [comparisons[place].source for place in prompts_Q.tolist()]
    buckets = bucket_lengths(lengths_N[pairs.better_Q], lengths_N[pairs.worse_Q])
    return RewardCard(
        accuracy=compute_accuracy(margins_Q, prompts_Q),
        by_rank_distance=_group(margins_Q, prompts_Q, pairs.distances),
        by_source=_group(margins_Q, prompts_Q, sources) if any(sources) else (),
        by_length=tuple(sorted(_group(margins_Q, prompts_Q, buckets), key=lambda group: LENGTH_BUCKETS.index(group.name))),
        calibration=measure_calibration(margins_Q * scale, prompts_Q),
        equal_scores=estimate_share((margins_Q == 0).astype(np.float64), prompts_Q),
        tied_pairs=pairs.num_tied,
        length_correlation=correlate(_centre(scores_N, prompts_N), _centre(lengths_N, prompts_N), prompts_N),
        probes=probes,
    )


def judge_probes(probes: dict[str, ProbePairs], original_P: Floats, copied_N: Floats) -> tuple[tuple[Probe, ...], list[str]]:
    """Say of each probe whether the reward model sees it.

    Args:
        probes: Name -> pairs.
        original_P: Scores of the answers without a flaw, by prompt.
        copied_N: Scores of all copies.

    Returns:
        (probes, the least seen first; what cannot be told).
    """
    found: list[Probe] = []
    too_few: list[str] = []
    for name, pairs in probes.items():
        margins_Q = original_P[pairs.prompts] - copied_N[pairs.copies]
        if len(margins_Q) < _FEWEST:
            too_few.append(f"{name} ({len(margins_Q)})")
            continue
        prompts_Q = np.array(pairs.prompts)
        accuracy = compute_accuracy(margins_Q, prompts_Q)
        blind = accuracy.low is None or accuracy.low <= _COIN
        found.append(
            Probe(name=name, description=pairs.description, accuracy=accuracy, margin=estimate_mean(margins_Q, prompts_Q), blind=blind)
        )
    told = f"whether the reward model sees {', '.join(too_few)}: fewer than {_FEWEST} held-out answers can have it"
    found.sort(key=lambda probe: probe.accuracy.value)
    return tuple(found), [f"{told}; give more held-out comparisons"] if too_few else []


def _pair(comparisons: Sequence[EncodedComparison]) -> _Pairs:
    better: list[int] = []
    worse: list[int] = []
    prompts: list[int] = []
    distances: list[int] = []
    start = num_tied = 0
    for prompt, item in enumerate(comparisons):
        for i, own in enumerate(item.ranks):
            for j, other in enumerate(item.ranks):
                if own < other:
                    better.append(start + i)
                    worse.append(start + j)
                    prompts.append(prompt)
                    distances.append(other - own)
                num_tied += i < j and own == other
        start += len(item.ranks)
    return _Pairs(np.array(better, dtype=np.int64), np.array(worse, dtype=np.int64), np.array(prompts, dtype=np.int64), distances, num_tied)


def _group(margins_Q: Floats, prompts_Q: NDArray[np.int64], labels: Sequence[Any]) -> tuple[Group, ...]:
    found: Iterable[tuple[Any, Any]] = group_accuracy(margins_Q, prompts_Q, labels).items()
    return tuple(Group(name=str(label) or "without a source", accuracy=accuracy) for label, accuracy in found)


def _centre(values_N: Floats, prompts_N: NDArray[np.int64]) -> Floats:
    """Take from each value the mean of its prompt's."""
    means = np.bincount(prompts_N, weights=values_N) / np.bincount(prompts_N)
    return values_N - means[prompts_N]
