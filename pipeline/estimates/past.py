"""Past runs of a store -> how far what was said of such a stage was from what it took: the next plan is corrected by that."""

import dataclasses
from collections.abc import Iterator
from itertools import islice

from pipeline.cost.calibration import calibrate
from pipeline.estimates.estimate import Estimate, StageEstimate
from pipeline.estimates.kept import dump_recipe, make_digest, recall_estimate
from pipeline.estimates.taken import ran_here, read_recipe, read_taken
from pipeline.recipe.schema import Recipe
from pipeline.store.store import Store
from stages.spec import STAGES

_LOOKED_AT = 50  # runs of a stage, the newest


def calibrate_estimate(estimate: Estimate, recipe: Recipe, store: Store) -> Estimate:
    """Correct the times of an estimate by what stages took on the same hardware.

    A run counts where something was said of it: of the same recipe what is said now, of another what was kept when it was planned.
    """
    if not store.root.is_dir():
        return estimate
    stages = [
        dataclasses.replace(stage, calibration=calibrate(list(_list_ratios(stage, estimate, recipe, store)))) if stage.parts else stage
        for stage in estimate.stages
    ]
    return dataclasses.replace(estimate, stages=stages)


def correct_alike(estimate: Estimate, corrected: Estimate) -> Estimate:
    """Correct the times of an estimate as those of another of the same stages."""
    known = {stage.stage: stage.calibration for stage in corrected.stages}
    stages = [dataclasses.replace(stage, calibration=known.get(stage.stage)) for stage in estimate.stages]
    return dataclasses.replace(estimate, stages=stages)


def _list_ratios(stage: StageEstimate, estimate: Estimate, recipe: Recipe, store: Store) -> Iterator[float]:
    digest = make_digest(stage.stage, dump_recipe(recipe))
    for artifact in islice(store.newest_first(STAGES[stage.stage].kind), _LOOKED_AT):
        read = read_recipe(artifact)
        if read is None or not ran_here(store.root, artifact.manifest, estimate.machine.name):
            continue
        taken = read_taken(store.root, artifact, with_parts=False)
        if taken is None or not taken.whole:
            continue
        if make_digest(stage.stage, read) == digest and artifact.manifest.world_size == estimate.processes:
            said = sum(part.seconds for part in stage.parts)
        else:
            kept = recall_estimate(store.root, stage.stage, read, lambda machine: machine == estimate.machine.name)
            said = sum(kept.seconds.values()) if kept and kept.machine == estimate.machine.name else 0.0
        if said > 0:
            yield taken.seconds / said
