"""How well a reward model ranks what a round holds out whose rankings it has not seen: whether it went stale as the policy moved."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np

from data.load import load_records
from data.schema import Comparison, Demonstration
from pipeline.rounds.chain import Round, find_reward_model
from pipeline.rounds.publish import EVAL_FILE
from pipeline.score import score
from pipeline.store.artifact import Artifact
from pipeline.store.store import Store
from stages.spec import DataSource
from stages.statistics.bootstrap import Estimate, estimate_share

Told = Callable[[int, int], None]


def measure_elsewhere(model: Artifact, rankings: Artifact, told: Told) -> Estimate | None:
    """Measure the pair accuracy of a reward model on the held-out list of published rankings; None where no pair is there.

    Args:
        model: The reward model, of whichever round.
        rankings: The rankings.
        told: Hears how many answers are scored.

    Raises:
        StoreError: The program that scores cannot go on.
    """
    source = DataSource.model_validate({"path": str(rankings.path / EVAL_FILE)})
    lists = [record for record in load_records(source, "comparisons") if isinstance(record, Comparison)]
    asked: list[tuple[dict[str, Any], Demonstration]] = [
        ({}, Demonstration(record.prompt, answer)) for record in lists for answer in record.completions
    ]
    scores = iter([row["score"] for row in score(model, asked, told).rows])
    right: list[float] = []
    clusters: list[int] = []
    for number, record in enumerate(lists):
        own = [next(scores) for _ in record.completions]
        for one, other in combinations(range(len(own)), 2):
            if record.ranks[one] != record.ranks[other] and own[one] is not None and own[other] is not None:
                better, worse = (one, other) if record.ranks[one] < record.ranks[other] else (other, one)
                right.append((np.sign(own[better] - own[worse]) + 1) / 2)
                clusters.append(number)
    return estimate_share(np.array(right), np.array(clusters)) if right else None


def measure_before(earlier: Round, store: Store) -> Estimate | None:
    """Ask a round's reward model of that round's rankings, from which only the next one learnt; None where there is none."""
    model = find_reward_model(earlier)
    if model is None or earlier.rankings is None:
        return None
    return measure_elsewhere(store.require_verified(model.ref), earlier.rankings, lambda done, total: None)
