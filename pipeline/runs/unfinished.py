"""Runs of a stage that were stopped before their end: the one that goes on, and those of other inputs, which are left as they are.

A run's directory is `runs/<stage>-<key>/`; see pipeline.runs.directory.
"""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from pipeline.store.directory import Directory, open_root
from pipeline.store.disk import read_bounded, reading
from pipeline.store.parts import RUNS_DIR
from stages.spec import COMPLETE_FILE, STAGES, StageName, checkpoint_name, parse_checkpoint

_DIFFERENCES_SHOWN = 3
_MAX_SPEC_BYTES = 8 * 1024 * 1024


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
    newest = max(steps, key=lambda name: _read_settings(root, name)[0])
    before = _read_settings(root, newest)[1]
    changes = [
        f"{stage}.{name} {json.dumps(before.get(name))} -> {json.dumps(value)}"
        for name, value in sorted(settings.items())
        if before.get(name) != value
    ]
    more = [f"and {len(changes) - _DIFFERENCES_SHOWN} more"] if len(changes) > _DIFFERENCES_SHOWN else []
    other = ", ".join(changes[:_DIFFERENCES_SHOWN] + more) or "its data, models, seed or tokens"
    return f"it begins anew, and leaves the unfinished run {newest} (checkpoint {steps[newest]}) as it is, of which differ: {other}"


def describe_next(run_dir: Directory, stage: StageName, *, fresh: bool) -> str:
    """Say what is kept of a run that was interrupted, and what the same command does.

    Args:
        run_dir: Of the run.
        stage: Its stage.
        fresh: Whether that command begins it anew whatever is there (`--force`).
    """
    step, anew = newest_checkpoint(run_dir), "the same command begins it anew"
    if step is not None:
        kept = f"from the last checkpoint ({step})"
    elif not STAGES[stage].leaves_model and _has_answers(run_dir, stage):
        kept = "with the answers that it has"
    else:
        missing = "checkpoint" if STAGES[stage].leaves_model else "answers"
        return f"{stage} had no {missing} yet, so {anew}; what was finished before it is kept"
    return f"with --force {anew}; without, it goes on {kept}" if fresh else f"the same command goes on {kept}"


def _has_answers(run_dir: Directory, stage: StageName) -> bool:
    """Whether a stage that asks models keeps whole parts of that beside its checkpoints' place, as `stages.evaluate.answers` does."""
    with suppress(OSError), run_dir.enter(f"checkpoints/{stage}") as parts:
        return any(name.endswith(".npz") and not name.startswith(".") for name in parts.names())
    return False


def _find_checkpoints(root: Path, stage: StageName) -> Iterator[tuple[str, int]]:
    """Find the stage's runs that have a complete checkpoint: (name, step of the newest)."""
    with suppress(FileNotFoundError), reading(root), open_root(root) as store, store.enter(RUNS_DIR) as runs:
        for name in runs.directories():
            with suppress(OSError), runs.enter(name) as run_dir:
                step = newest_checkpoint(run_dir)
                if name.startswith(f"{stage}-") and step is not None and _is_file("spec.json", run_dir):
                    yield name, step


def newest_checkpoint(run_dir: Directory) -> int | None:
    """Find the step of a run's newest complete checkpoint."""
    with suppress(FileNotFoundError), run_dir.enter("checkpoints") as checkpoints:
        steps = [step for entry in checkpoints.directories() if (step := parse_checkpoint(entry)) is not None]
        return max((step for step in steps if _is_file(f"{checkpoint_name(step)}/{COMPLETE_FILE}", checkpoints)), default=None)
    return None


def _is_file(path: str, directory: Directory) -> bool:
    with suppress(OSError):
        return stat.S_ISREG(os.stat(path, dir_fd=directory.fd, follow_symlinks=False).st_mode)
    return False


def _read_settings(root: Path, run_name: str) -> tuple[float, dict[str, Any]]:
    """Read when a run was begun, and the stage's settings; none where its spec is damaged, which then differs in all."""
    path = root / RUNS_DIR / run_name / "spec.json"
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        settings = json.loads(read_bounded(path, _MAX_SPEC_BYTES))["settings"]
        if isinstance(settings, dict):
            return path.stat().st_mtime, cast("dict[str, Any]", settings)
    return 0.0, {}
