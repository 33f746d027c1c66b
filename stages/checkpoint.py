"""Complete checkpoints only: write, mark, find, prune.

A checkpoint `checkpoint-<step>/` counts when COMPLETE.json lies in it, written last, and every file it names has the
named size and hash. Anything else is the remains of a killed process.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

COMPLETE_FILE = "COMPLETE.json"
_PREFIX = "checkpoint-"


def save_checkpoint(directory: Path, step: int, write: Callable[[Path], None], *, world_size: int = 1, keep: int = 2) -> Path:
    """Write a checkpoint of `step` below `directory`, mark it complete, and drop all but the newest `keep`.

    Args:
        directory: the stage's checkpoint directory.
        step: position of the run.
        write: writes the files into the directory that it is given.
        world_size: number of processes that wrote it.
        keep: complete checkpoints to keep, at least 2.
    """
    path = directory / f"{_PREFIX}{step}"
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    write(path)
    mark_complete(path, step, world_size=world_size)
    prune(directory, keep=keep)
    return path


def mark_complete(path: Path, step: int, *, world_size: int = 1) -> None:
    """Write COMPLETE.json (files, sizes, hashes, world size) after everything else is on the disk."""
    files = {}
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != COMPLETE_FILE:
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
            files[str(file.relative_to(path))] = {"size": file.stat().st_size, "sha256": _sha256(file)}
    temporary = path / (COMPLETE_FILE + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump({"step": step, "world_size": world_size, "files": files}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path / COMPLETE_FILE)


def latest_complete(directory: Path, *, world_size: int = 1, warn: Callable[[str], None] = print) -> tuple[Path, int] | None:
    """Find the newest complete checkpoint.

    Returns:
        (path, step), or None where there is none. A newer one that is damaged or was never finished is passed over
        with one warning.
    """
    passed_over: list[str] = []
    for path in sorted(directory.glob(f"{_PREFIX}*"), key=_step_of, reverse=True):
        problem = _find_problem(path, world_size)
        if problem is None:
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


def _step_of(path: Path) -> int:
    suffix = path.name.removeprefix(_PREFIX)
    return int(suffix) if suffix.isdigit() else -1


def _find_problem(path: Path, world_size: int) -> str | None:
    try:
        marker = json.loads((path / COMPLETE_FILE).read_text(encoding="utf-8"))
        files = marker["files"].items()
    except FileNotFoundError:
        return "never finished"
    except (ValueError, KeyError, AttributeError):
        return f"unreadable {COMPLETE_FILE}"
    if marker.get("world_size") != world_size:
        return f"written by {marker.get('world_size')} processes, now {world_size}"
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
