"""Runs of a stage that were stopped before their end: the one that goes on, and those of other inputs, which are left as they are.

A run's directory is `runs/<stage>-<key>/`; see pipeline.rundir.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.spec import StageName

RUNS_DIR = "runs"
_DIFFERENCES_SHOWN = 3


def describe_unfinished(root: Path, stage: StageName, run_name: str, settings: Mapping[str, Any]) -> str:
    """Say whether a stage that runs goes on from a checkpoint, or why it does not go on with the newest unfinished run.

    Args:
        root: Of the store.
        stage: The stage.
        run_name: Name of the run's directory.
        settings: The stage's settings, those that change what it makes.

    Returns:
        A phrase; empty where no checkpoint of this stage is left.
    """
    steps = dict(sorted(_find_checkpoints(root, stage)))
    if run_name in steps:
        return f"its unfinished run goes on from checkpoint {steps[run_name]}"
    if not steps:
        return ""
    newest = max(steps, key=lambda name: (root / RUNS_DIR / name / "spec.json").stat().st_mtime)
    before = json.loads((root / RUNS_DIR / newest / "spec.json").read_text(encoding="utf-8"))["settings"]
    changes = [
        f"{stage}.{name} {json.dumps(before.get(name))} -> {json.dumps(value)}"
        for name, value in sorted(settings.items())
        if before.get(name) != value
    ]
    more = [f"and {len(changes) - _DIFFERENCES_SHOWN} more"] if len(changes) > _DIFFERENCES_SHOWN else []
    other = ", ".join(changes[:_DIFFERENCES_SHOWN] + more) or "its data, models, seed or tokens"
    return f"it begins anew, and leaves the unfinished run {newest} (checkpoint {steps[newest]}) as it is, of which differ: {other}"


def _find_checkpoints(root: Path, stage: StageName) -> Iterator[tuple[str, int]]:
    """Find the stage's runs that have a complete checkpoint: (name, step of the newest)."""
    for run_dir in (root / RUNS_DIR).glob(f"{stage}-*"):
        marked = (run_dir / "checkpoints").glob("checkpoint-*/COMPLETE.json")
        steps = [int(step) for step in (marker.parent.name.removeprefix("checkpoint-") for marker in marked) if step.isdigit()]
        if steps and (run_dir / "spec.json").is_file():
            yield run_dir.name, max(steps)
