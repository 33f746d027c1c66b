"""Rounds that are done -> their reward models are asked of what they did not learn from -> table and page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from data.load import load_records
from data.schema import Comparison, Demonstration
from pipeline.recipe.schema import Recipe
from pipeline.report.page.write import render, write_report
from pipeline.rounds.chain import Round, find_reward_model
from pipeline.rounds.flaws import Flaw, measure_flaws
from pipeline.rounds.page import build_rounds_page
from pipeline.rounds.publish import EVAL_FILE
from pipeline.rounds.table import RoundRow, list_rounds
from pipeline.score import score
from pipeline.store.artifact import Artifact
from pipeline.store.store import Store
from stages.spec import DataSource
from stages.statistics.bootstrap import Estimate, estimate_share

Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Examined:
    """Rounds, and what their reward models said when they were asked.

    Args:
        rows: One for each policy.
        flaws: The one that the first reward model sees least comes first.
        missing: What could not be told.
    """

    rows: list[RoundRow]
    flaws: list[Flaw] = field(default_factory=list[Flaw])
    missing: list[str] = field(default_factory=list[str])

    @property
    def models(self) -> list[str]:
        """Refs of the reward models, in order."""
        return [row.reward_model for row in self.rows if row.reward_model]


def examine(recipe: Recipe, store: Store, rounds: Sequence[Round], told: Told, probes: str | None = None) -> Examined:
    """Ask the reward models of all rounds: the old ones of new answers, all of them of flawed ones.

    Args:
        recipe: Whose rounds these are.
        store: Where they lie.
        rounds: As `walk` yields them.
        told: Hears how many of how many flawed answers are scored.
        probes: The task's own flaws; default: `evaluate.probes`.

    Raises:
        StoreError: A reward model is damaged, or cannot be asked.
    """
    rows = list_rounds(rounds, partial(measure_before, store=store), arms=True)
    models = [store.require_verified(model.ref) for found in rounds if found.policy and (model := find_reward_model(found)) is not None]
    rankings = [found.rankings for found in rounds if found.rankings is not None]
    if not models or not rankings:
        return Examined(rows, missing=["which flaws the reward models see: needed a reward model, and rankings that are published"])
    own = probes or (recipe.evaluate.probes if recipe.evaluate else None)
    return Examined(rows, *measure_flaws(models, rankings, own, recipe.judge_directory, told))


def write_rounds_page(recipe: Recipe, store: Store, found: Examined) -> Path:
    """Write the page of a recipe's rounds; returns where it lies, in reports/ of the store."""
    page = build_rounds_page(recipe.name, found.rows, found.flaws, found.missing)
    return write_report(render(page), f"rounds-{recipe.name}.html", store.root, None, private=recipe.private)


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
