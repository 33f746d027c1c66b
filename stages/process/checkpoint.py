"""Complete checkpoints only: write, mark, find, prune.

A checkpoint `checkpoint-<step>/` counts when COMPLETE.json lies in it, written last, and every file it names has the
named size and hash. Anything else is the remains of a killed process.

COMPLETE.json also names the layout: a checkpoint that is shared out over ranks is of no use to another number of them.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.process.context import StageContext
from stages.process.distributed import decide_in_main
from stages.process.engine import choose_engine
from stages.process.errors import StageError
from stages.spec import EXIT_USAGE

COMPLETE_FILE = "COMPLETE.json"
WHOLE = "whole"  # the layout that any number of processes can go on from
_PREFIX = "checkpoint-"


def save_checkpoint(
    directory: Path,
    step: int,
    write: Callable[[Path], None],
    *,
    layout: str = WHOLE,
    is_main: bool = True,
    wait_for_everyone: Callable[[], None] = lambda: None,
    keep: int = 2,
) -> Path:
    """Write a checkpoint of `step` below `directory`, mark it complete, and drop all but the newest `keep`; every rank calls it.

    Args:
        directory: the stage's checkpoint directory.
        step: position of the run.
        write: writes the files into the directory that it is given; returns when every rank has.
        layout: see `latest_complete`.
        is_main: whether this rank does what one alone can do.
        wait_for_everyone: returns when every rank has called it.
        keep: complete checkpoints to keep, at least 2.
    """
    path = directory / f"{_PREFIX}{step}"
    if is_main:
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)
    wait_for_everyone()
    write(path)
    if is_main:
        mark_complete(path, step, layout=layout)
        prune(directory, keep=keep)
    wait_for_everyone()
    return path


def mark_complete(path: Path, step: int, *, layout: str = WHOLE) -> None:
    """Write COMPLETE.json (files, sizes, hashes, layout) after everything else is on the disk."""
    files = {}
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != COMPLETE_FILE:
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
            files[str(file.relative_to(path))] = {"size": file.stat().st_size, "sha256": _sha256(file)}
    temporary = path / (COMPLETE_FILE + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump({"step": step, "layout": layout, "files": files}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path / COMPLETE_FILE)


def latest_complete(directory: Path, *, layout: str = WHOLE, warn: Callable[[str], None] = print) -> tuple[Path, int] | None:
    """Find the newest complete checkpoint.

    Args:
        directory: the stage's checkpoint directory.
        layout: of this run: WHOLE, or how its ranks share a checkpoint out.
        warn: tells the user.

    Returns:
        (path, step), or None where there is none. A newer one that is damaged or was never finished is passed over
        with one warning.

    Raises:
        StageError: it has another layout; exit code 2.
    """
    passed_over: list[str] = []
    for path in sorted(directory.glob(f"{_PREFIX}*"), key=_step_of, reverse=True):
        problem = _find_problem(path)
        if problem is None:
            found = _read_marker(path)["layout"]
            if found != layout:
                raise StageError(
                    f"{path.name} was written {_describe(found)}, this run is {_describe(layout)}; set the hardware block "
                    "as it was, or begin anew with --force",
                    EXIT_USAGE,
                )
            if passed_over:
                warn(f"passed over {', '.join(passed_over)}; going on from {path.name}")
            return path, _step_of(path)
        passed_over.append(f"{path.name} ({problem})")
    if passed_over:
        warn(f"passed over {', '.join(passed_over)}; no complete checkpoint is left, starting anew")
    return None


def prune(directory: Path, *, keep: int = 2) -> None:
    """Delete all but the newest `keep` checkpoints that are marked complete, and unfinished ones older than those."""
    marked = [path for path in sorted(directory.glob(f"{_PREFIX}*"), key=_step_of, reverse=True) if (path / COMPLETE_FILE).exists()]
    oldest_kept = _step_of(marked[:keep][-1]) if marked else 0
    for path in directory.glob(f"{_PREFIX}*"):
        if _step_of(path) < oldest_kept:
            shutil.rmtree(path)


def drop_unfinished(directory: Path) -> None:
    """Delete checkpoints that were never finished: on a full disk they take the room of what comes."""
    for path in directory.glob(f"{_PREFIX}*"):
        if not (path / COMPLETE_FILE).exists():
            shutil.rmtree(path, ignore_errors=True)


def measure_newest(directory: Path) -> int:
    """Add up the bytes of the newest checkpoint that is marked complete; 0 where there is none."""
    marked = [path for path in directory.glob(f"{_PREFIX}*") if (path / COMPLETE_FILE).exists()]
    newest = max(marked, key=_step_of, default=None)
    return sum(file.stat().st_size for file in newest.rglob("*") if file.is_file()) if newest else 0


def _step_of(path: Path) -> int:
    suffix = path.name.removeprefix(_PREFIX)
    return int(suffix) if suffix.isdigit() else -1


def _describe(layout: str) -> str:
    return "without ZeRO" if layout == WHOLE else f"with {layout}"


def _read_marker(path: Path) -> dict[str, Any]:
    return json.loads((path / COMPLETE_FILE).read_text(encoding="utf-8"))


def _find_problem(path: Path) -> str | None:
    try:
        marker = _read_marker(path)
        files, _ = marker["files"].items(), marker["layout"]
    except FileNotFoundError:
        return "never finished"
    except (ValueError, KeyError, AttributeError):
        return f"unreadable {COMPLETE_FILE}"
    for name, recorded in files:
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != recorded["size"] or _sha256(file) != recorded["sha256"]:
            return f"{name} is damaged"
    return None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe_layout(context: StageContext) -> str:
    """Name how the stage's checkpoints are laid out: one can be resumed only where this is the same."""
    if choose_engine(context).name == "deepspeed":
        return f"ZeRO stage {context.spec.hardware.zero_stage} on {context.world_size} processes"
    return WHOLE


def find_checkpoint(context: StageContext) -> tuple[Path, int] | None:
    """Find the checkpoint that the stage goes on from; every process gets the same. See `stages.process.checkpoint.latest_complete`."""
    directory, layout = context.spec.checkpoint_dir, describe_layout(context)
    return decide_in_main(context, lambda: latest_complete(directory, layout=layout, warn=context.note))
