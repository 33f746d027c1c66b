"""What `rlhf plan --cost` said last, kept in the store: `show` and the next plan compare it with what the stage took.

<store>/estimates/<stage>-<digest of what the stage reads of the recipe>-<machine>.json     may be removed at any time
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from data.secrets import redact_values
from pipeline.estimates.estimate import Estimate, StageEstimate
from pipeline.recipe.schema import Recipe
from pipeline.store.directory import Directory, open_root
from pipeline.store.disk import locked, read_bounded, replace_durably, writing
from pipeline.store.parts import ESTIMATES_DIR
from stages.blocks import Closed
from stages.spec import StageName

_MAX_BYTES = 1 << 20
_ALWAYS = ("base_model", "revision", "data", "tokens")
_READ_TOO: dict[str, tuple[str, ...]] = {"evaluate": ("ppo",), "ppo": ("rm",)}  # blocks of other stages that change what one costs
_NO_COST = {
    *("price_per_gpu_hour", "price_per_gb_month"),
    *("learning_rate", "critic_learning_rate", "lr_schedule", "min_lr_ratio", "warmup_steps", "weight_decay"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "kl_coef", "kl_target", "kl_horizon", "gamma", "gae_lambda"),
    *("clip_range", "value_clip_range", "value_coef", "score_clip", "missing_eos_score", "margin_scale"),
}
_LOCK_FILE = ".lock"
_Amount = Annotated[float, Field(ge=0, lt=1e30, allow_inf_nan=False)]  # what is damaged may hold any number


class KeptEstimate(Closed):
    """What was said of one stage."""

    machine: str = Field(description="`cpu`, or the name of a GPU in the table.")
    processes: int
    seconds: dict[str, _Amount] = Field(description="Part -> seconds, before past runs are taken into account; empty: not known.")
    factor: _Amount = Field(1.0, description="By which they were then multiplied.")
    memory: _Amount = Field(description="Bytes of each process at its peak.")
    made_utc: str


def make_digest(stage: StageName, recipe: Mapping[str, Any]) -> str:
    """Name what a stage costs by: all of a recipe (as plain data) that decides it, with the hardware."""
    names = (*_ALWAYS, stage, *_READ_TOO.get(stage, ()))
    read: dict[str, Any] = {name: recipe.get(name) for name in names}
    for block in (stage, *_READ_TOO.get(stage, ()), "hardware"):
        given: dict[str, Any] = recipe.get(block) or {}
        read[block] = {key: value for key, value in given.items() if key not in _NO_COST}
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
    with writing(root / ESTIMATES_DIR), ExitStack() as stack:
        store = stack.enter_context(open_root(root, create=True))
        directory = stack.enter_context(store.enter(ESTIMATES_DIR, create=True))
        stack.enter_context(locked(_LOCK_FILE, dir_fd=directory.fd))
        for stage in estimate.stages:
            name = f"{_begin_name(stage.stage, data)}{estimate.machine.name}.json"
            content = _make(stage, estimate).model_dump_json(indent=1).encode() + b"\n"
            replace_durably(name, content, dir_fd=directory.fd)


def recall_estimate(
    root: Path, stage: StageName, recipe: Mapping[str, Any], is_machine: Callable[[str], bool] = lambda machine: False
) -> KeptEstimate | None:
    """Recall what was said of a stage of a recipe.

    Args:
        root: Of the store.
        stage: Which one.
        recipe: As plain data.
        is_machine: Whether a machine is the one that is asked of; where nothing was said of it, what was said last counts.

    Returns:
        None: nothing was said, or it cannot be read any more.
    """
    found: list[KeptEstimate] = []
    with suppress(OSError), open_root(root) as store, store.enter(ESTIMATES_DIR) as directory:
        beginning = _begin_name(stage, recipe)
        found += [kept for name in directory.names() if name.startswith(beginning) and (kept := _read(directory, name))]
    return max(found, key=lambda kept: (is_machine(kept.machine), kept.made_utc), default=None)


def _begin_name(stage: StageName, recipe: Mapping[str, Any]) -> str:
    return f"{stage}-{make_digest(stage, recipe)}-"


def _read(directory: Directory, name: str) -> KeptEstimate | None:
    with suppress(OSError, ValueError):
        return KeptEstimate.model_validate_json(read_bounded(name, _MAX_BYTES, dir_fd=directory.fd))
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
