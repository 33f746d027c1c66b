"""What `rlhf plan --cost` said, kept in the store for as long as what was said of has not run: `show` and the next plan compare.

<store>/estimates/<stage>-<digest of what the stage reads of the recipe>.json
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from data.secrets import redact_values
from pipeline.estimate import Estimate, StageEstimate
from pipeline.recipe.schema import Recipe
from pipeline.store.directory import open_root
from pipeline.store.disk import read_bounded, replace_durably, writing
from pipeline.store.parts import ESTIMATES_DIR
from stages.blocks import Closed
from stages.spec import StageName

_MAX_BYTES = 1 << 20
_ALWAYS = ("base_model", "revision", "data", "tokens")
_READ_TOO: dict[str, tuple[str, ...]] = {"evaluate": ("ppo",), "ppo": ("rm",)}  # blocks of other stages that change what one costs
_NO_COST = ("price_per_gpu_hour", "price_per_gb_month")


class KeptEstimate(Closed):
    """What was said of one stage."""

    machine: str = Field(description="`cpu`, or the name of a GPU in the table.")
    processes: int
    seconds: dict[str, float] = Field(description="Part -> seconds, before past runs are taken into account; empty: not known.")
    factor: float = Field(1.0, description="By which they were then multiplied.")
    memory: float = Field(description="Bytes of each process at its peak.")
    made_utc: str


def make_digest(stage: StageName, recipe: Mapping[str, Any]) -> str:
    """Name what a stage costs by: all of a recipe (as plain data) that decides it, with the hardware."""
    names = (*_ALWAYS, stage, *_READ_TOO.get(stage, ()))
    given: dict[str, Any] = recipe.get("hardware") or {}
    hardware = {key: value for key, value in given.items() if key not in _NO_COST}
    read: dict[str, Any] = {name: recipe.get(name) for name in names} | {"hardware": hardware}
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()[:16]


def dump_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as it stands in an artifact's config.yaml."""
    return redact_values(recipe.model_dump(mode="json", exclude={"store"}))


def keep_estimate(root: Path, recipe: Recipe, estimate: Estimate) -> None:
    """Keep what was said of each stage.

    Raises:
        ResourceError: the store cannot be written (exit 5).
    """
    data = dump_recipe(recipe)
    with writing(root / ESTIMATES_DIR), open_root(root, create=True) as store, store.enter(ESTIMATES_DIR, create=True) as directory:
        for stage in estimate.stages:
            kept = _make(stage, estimate)
            name = f"{stage.stage}-{make_digest(stage.stage, data)}.json"
            replace_durably(name, kept.model_dump_json(indent=1).encode() + b"\n", dir_fd=directory.fd)


def recall_estimate(root: Path, stage: StageName, recipe: Mapping[str, Any]) -> KeptEstimate | None:
    """Recall what was said of a stage of a recipe, as plain data; None: nothing was, or it cannot be read any more."""
    with suppress(OSError, ValueError), open_root(root) as store, store.enter(ESTIMATES_DIR) as directory:
        content = read_bounded(f"{stage}-{make_digest(stage, recipe)}.json", _MAX_BYTES, dir_fd=directory.fd)
        return KeptEstimate.model_validate_json(content)
    return None


def _make(stage: StageEstimate, estimate: Estimate) -> KeptEstimate:
    on_gpu = estimate.machine.gpu is not None
    return KeptEstimate(
        machine=estimate.machine.name,
        processes=estimate.processes,
        seconds={part.name: part.seconds for part in stage.parts},
        factor=stage.calibration.factor if stage.calibration else 1.0,
        memory=stage.verdict.need / (1 if on_gpu else stage.setup.per_node),
        made_utc=datetime.now(UTC).isoformat(timespec="seconds"),
    )
