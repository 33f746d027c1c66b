"""The directory of one stage's run, named by its inputs: `runs/<stage>-<key>/`.

    lock           held by the orchestrator that runs the stage
    spec.json      what the stage is given
    log.txt        what it printed, in all attempts
    events.jsonl   what it said
    checkpoints/   gone when the artifact is published

An unfinished run of the same inputs is found again and goes on; log and recipe go into the artifact as evidence.
"""

import json
import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from data.schema import Problem
from pipeline.errors import ConfigError, ResourceError
from pipeline.plan import Decision, name_run
from pipeline.recipe.schema import Recipe
from pipeline.secrets import redact
from pipeline.store.disk import is_utf8, make_directories, take_lock, writing
from pipeline.unfinished import RUNS_DIR

SKIPPED_FILE = "skipped.jsonl"


def run_id(decision: Decision) -> str:
    """Name the run of a stage by its cache key, so that an unfinished run of the same inputs is found again."""
    assert decision.key is not None
    return name_run(decision.stage, decision.key)


def require_utf8(root: Path) -> None:
    """Refuse a store that the libraries cannot open.

    Raises:
        ConfigError: Its path is no UTF-8.
    """
    if not is_utf8(root.absolute()):
        raise ConfigError([f"--store: found {root.absolute()}, needed a path in UTF-8, as the libraries open no other; rename it"])


@contextmanager
def open_run_directory(root: Path, decision: Decision) -> Generator[Path]:
    """Open the run directory for one orchestrator at a time.

    Raises:
        ResourceError: It cannot be written, or another orchestrator runs this stage.
    """
    run_dir = root / RUNS_DIR / run_id(decision)
    with writing(run_dir):
        make_directories(run_dir)
        lock = take_lock(run_dir / "lock", wait=False)
        if lock is None:
            holder = (run_dir / "lock").read_text(encoding="utf-8").strip() or "another process"
            raise ResourceError(f"{run_dir}: {holder} is running this stage with the same inputs; wait for it, then run again to reuse it")
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()}\n".encode())
    try:
        yield run_dir
    finally:
        os.close(lock)


def forget_checkpoints(root: Path, decision: Decision) -> None:
    """Remove what a run left that was killed between publishing and tidying up."""
    leftover = root / RUNS_DIR / run_id(decision) / "checkpoints"
    if leftover.is_dir():
        lock = take_lock(leftover.parent / "lock", wait=False)
        if lock is not None:
            shutil.rmtree(leftover, ignore_errors=True)
            os.close(lock)


def leave_evidence(recipe: Recipe, skipped: Sequence[Problem], staging: Path, run_dir: Path) -> None:
    """Put the log, the resolved recipe and the bad lines that were skipped, where there are some, beside the model."""
    with writing(staging, need_bytes=(run_dir / "log.txt").stat().st_size):
        log = (run_dir / "log.txt").read_text(encoding="utf-8", errors="replace")
        (staging / "log.txt").write_text(redact(log, os.environ), encoding="utf-8")
        # JSON is YAML; written so that the file can be given to `rlhf run` again.
        (staging / "config.yaml").write_text(
            json.dumps(recipe.model_dump(mode="json", exclude={"store"}), indent=2) + "\n", encoding="utf-8"
        )
        if skipped:
            lines = [json.dumps({"where": bad.where, "field": bad.field, "message": bad.message}) + "\n" for bad in skipped]
            (staging / SKIPPED_FILE).write_text("".join(lines), encoding="utf-8")
