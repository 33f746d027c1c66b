"""Rounds that are done -> their reward models are asked of what they did not learn from -> table and page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pipeline.recipe.schema import Recipe
from pipeline.report.page.write import render, write_report
from pipeline.rounds.chain import Round, find_reward_model
from pipeline.rounds.flaws import Flaw, measure_flaws
from pipeline.rounds.page import build_rounds_page
from pipeline.rounds.stale import measure_before
from pipeline.rounds.table import RoundRow, list_rounds
from pipeline.store.store import Store

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
