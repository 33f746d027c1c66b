"""A stage that does not fit -> changes with which it does, each tried by an estimate of its own."""

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.cost.changes import Change, list_changes
from pipeline.errors import ConfigError
from pipeline.estimates.estimate import StageEstimate, make_estimate
from pipeline.estimates.machine import Machine
from pipeline.recipe.schema import Recipe


@dataclass(frozen=True)
class Fit:
    """A change with which a stage fits.

    Args:
        change: Key -> value.
        estimate: With it.
    """

    change: Change
    estimate: StageEstimate

    @property
    def words(self) -> str:
        """As a command line takes it."""
        return " ".join(f"--set {shlex.quote(f'{key}={value}')}" for key, value in self.change.items())

    @property
    def gpu_seconds(self) -> float:
        """What it costs: seconds of all processes."""
        return self.estimate.seconds * self.estimate.gpus


def find_fits(
    estimate: StageEstimate,
    change_recipe: Callable[[Change], Recipe],
    recipe: Recipe,
    store_root: Path,
    machine: Machine,
    records: Mapping[str, int],
    told: Callable[[str], None],
) -> list[Fit]:
    """Try changes with which a stage that does not fit would; the cheapest first.

    Args:
        estimate: Of the stage, as past runs correct it: so they do with a change.
        change_recipe: Reads the recipe again with a change.
        recipe: As it is.
        store_root: Of the store.
        machine: That it runs on.
        records: As `make_estimate` takes them.
        told: Hears which is tried.
    """
    stage, found = estimate.stage, list[Fit]()
    longest = recipe.tokens.max_prompt_tokens + recipe.tokens.max_response_tokens
    for change in list_changes(stage, recipe.settings(stage), estimate.setup, longest):
        told(f"{stage} does not fit; trying {' '.join(f'{key}={value}' for key, value in change.items())}")
        try:
            changed = change_recipe(change)
        except ConfigError:  # it contradicts something else in the recipe
            continue
        with_time = machine.gpu is not None
        made = make_estimate(changed, [stage], store_root, machine, records=records, told=told, with_time=with_time).stages[-1]
        if made.verdict.word != "does not fit":
            found.append(Fit(change, dataclasses.replace(made, calibration=estimate.calibration)))
    return sorted(found, key=lambda fit: (fit.gpu_seconds, fit.estimate.setup.processes))
