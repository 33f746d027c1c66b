"""Trackers that the recipe names follow a stage's rows, each in a process of its own beside the stage's (`stages.track`).

Beside, and not inside: a tracker's threads, its network and its faults then touch no process that trains, on whatever node that runs;
and metrics.jsonl, which they read, stays the truth.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data.secrets import redact_values
from pipeline.launch.environment import stage_environment
from pipeline.recipe.schema import Recipe
from pipeline.store.compare import flatten
from pipeline.store.parts import TRACKING_DIR
from stages.events import append_event
from stages.spec import METRICS_FILE, RESULT_FILE, StageSpec
from stages.track_spec import Tracker, TrackingSpec
from stages.warnings.told import read_told

_END_S = 60.0  # to send what is left, over a network
# Nothing tells the trackers' makers that they are used, and a tracker gets rows and configuration only: no code, git state or output.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_CONSOLE": "off",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_X_DISABLE_META": "true",
    "WANDB_X_DISABLE_STATS": "true",
}


def find_missing_trackers(recipe: Recipe) -> list[str]:
    """Say of each tracker that is not installed what to do; looked at before the first stage trains."""
    return [
        f"{recipe.place('tracking')}: tracking: {name} is not installed, so it gets no rows; pip install 'rlhf[{name}]'"
        for name in recipe.tracking
        if not _is_installed(name)
    ]


@contextmanager
def tracked(
    recipe: Recipe, spec: StageSpec, config: Mapping[str, Any], run_dir: Path, root: Path, told: Callable[[str], None]
) -> Generator[None]:
    """Have the recipe's trackers follow the stage inside; what they have not sent a minute after its end, they lose.

    Args:
        recipe: Names them.
        spec: Of the stage.
        config: Of the stage, as it stands in the manifest.
        run_dir: Of its run.
        root: Of the store.
        told: Is told, at the end, which tracker failed; those that failed before are in the stage's events, too.
    """
    before = read_told(spec.events_path).notes
    followers = {name: _start(name, recipe, spec, config, run_dir, root) for name in recipe.tracking if _is_installed(name)}
    try:
        yield
    finally:
        for follower in followers.values():
            assert follower.stdin is not None
            with suppress(OSError):
                follower.stdin.close()
        for name, follower in followers.items():
            _wait(name, follower, spec)
        for message in read_told(spec.events_path).notes if followers else []:
            if message.startswith("tracking: ") and message not in before:
                told(message)


def _is_installed(name: Tracker) -> bool:
    found = importlib.util.find_spec(name)
    return found is not None and found.origin is not None  # a directory of that name, as wandb makes one, is no package


def _start(
    name: Tracker, recipe: Recipe, spec: StageSpec, config: Mapping[str, Any], run_dir: Path, root: Path
) -> "subprocess.Popen[bytes]":
    plain = {key: value if isinstance(value, str | int | float | bool | None) else str(value) for key, value in flatten(config)}
    tracking = TrackingSpec(
        tracker=name,
        project=recipe.name,
        run=run_dir.name,
        config=redact_values({"stage": spec.stage, **plain}),
        directory=root / TRACKING_DIR,
        metrics_path=spec.checkpoint_dir / METRICS_FILE,
        result_path=spec.output_dir / RESULT_FILE,
        events_path=spec.events_path,
        state_path=run_dir / f"{name}.json",
    )
    path = run_dir / f"{name}.spec.json"
    path.write_text(tracking.model_dump_json(indent=2), encoding="utf-8")
    (root / TRACKING_DIR).mkdir(mode=0o700 if recipe.private else 0o777, exist_ok=True)
    environment, _ = stage_environment("", offline=False)
    with (run_dir / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "stages.track", str(path)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment | _QUIET,
            start_new_session=True,  # Ctrl-C is for the stage: what it logs until it has stopped is sent
        )


def _wait(name: str, follower: "subprocess.Popen[bytes]", spec: StageSpec) -> None:
    try:
        follower.wait(_END_S)
    except subprocess.TimeoutExpired:
        follower.kill()
        follower.wait()
        message = f"tracking: {name} did not end within {_END_S:.0f} s after the stage and was ended; metrics.jsonl has all rows"
        append_event(spec.events_path, "note", message=message)
