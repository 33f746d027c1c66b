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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from data.schema import Problem
from data.secrets import redact, redact_values
from pipeline.recipe.schema import Recipe
from pipeline.runs.lock import LOCK_FILE, ToldOfWait, take_run_lock
from pipeline.runs.record import Attempt
from pipeline.store.directory import Directory, open_root
from pipeline.store.disk import reading, refuse_link, take_lock, writing
from pipeline.store.manifest import CONFIG_FILE, LOG_FILE, SKIPPED_FILE
from pipeline.store.parts import RUNS_DIR
from stages.lines import to_line


@dataclass(frozen=True)
class HeldRun:
    """A run's directory, for this process alone.

    Args:
        directory: The directory.
        lock: The descriptor that holds its lock.
        failed: The attempt of another process for which this one waited, and which failed.
    """

    directory: Directory
    lock: int
    failed: Attempt | None


@contextmanager
def open_run_directory(root: Path, name: str, *, private: bool = False, told: ToldOfWait | None = None) -> Generator[HeldRun]:
    """Open the run directory for one orchestrator at a time, and for its owner only if it is `private`.

    Args:
        root: Of the store.
        name: Of the run; an unfinished one of this name is found again.
        private: Let nobody else read it.
        told: Called while another orchestrator runs this stage; None: do not wait for it.

    Raises:
        ResourceError: It cannot be written, something in it is a link, or another orchestrator runs this stage and nobody waits.
    """
    run_dir = root / RUNS_DIR / name
    with ExitStack() as stack:
        with writing(run_dir):
            store = stack.enter_context(open_root(root, create=True))
            directory = stack.enter_context(store.enter(f"{RUNS_DIR}/{name}", create=True))
            _require_plain(directory)
            lock, failed = take_run_lock(directory, told)
            stack.callback(os.close, lock)
            if private:  # it may be there from a run that was not
                os.chmod(directory.fd, 0o700)  # noqa: PTH101
        yield HeldRun(directory, lock, failed)


def _require_plain(directory: Directory) -> None:
    """Refuse a run directory in which a stage would write, or remove, through a link."""
    for below in ("", "checkpoints"):
        with suppress(FileNotFoundError), directory.enter(below) as inner:
            if links := inner.links():
                raise refuse_link(inner.path / min(links))


def remove_checkpoints(run_dir: Directory) -> None:
    """Remove a run's checkpoints."""
    shutil.rmtree("checkpoints", ignore_errors=True, dir_fd=run_dir.fd)


def forget_checkpoints(root: Path, name: str) -> None:
    """Remove what a run left that was killed between publishing and tidying up.

    Raises:
        ResourceError: Its directory is a link.
    """
    below = f"{RUNS_DIR}/{name}"
    with suppress(FileNotFoundError), reading(root / below), open_root(root) as store, store.enter(below) as directory:
        if "checkpoints" in directory.directories():
            with suppress(OSError):  # it may not be ours to write
                lock = take_lock(LOCK_FILE, wait=False, dir_fd=directory.fd)
                if lock is not None:
                    remove_checkpoints(directory)
                    os.close(lock)


def leave_evidence(recipe: Recipe, skipped: Sequence[Problem], staging: Path, run_dir: Path) -> None:
    """Put the log, the resolved recipe and the bad lines that were skipped, where there are some, beside the model."""
    with writing(staging, need_bytes=(run_dir / LOG_FILE).stat().st_size):
        log = (run_dir / LOG_FILE).read_text(encoding="utf-8", errors="replace")
        (staging / LOG_FILE).write_text(redact(log), encoding="utf-8")
        # JSON is YAML; written so that the file can be given to `rlhf run` again.
        (staging / CONFIG_FILE).write_text(
            json.dumps(redact_values(recipe.model_dump(mode="json", exclude={"store"})), indent=2) + "\n", encoding="utf-8"
        )
        if skipped:
            lines = [to_line({"where": bad.where, "field": bad.field, "message": bad.message}) for bad in skipped]
            (staging / SKIPPED_FILE).write_text("".join(lines), encoding="utf-8")
