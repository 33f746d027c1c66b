"""Complete checkpoints only: write, mark, find, prune.

A checkpoint `checkpoint-<step>/` counts when COMPLETE.json lies in it, written last, and every file it names has the
named size and hash. Anything else is the remains of a killed process.

COMPLETE.json also names the layout: a checkpoint that is shared out over ranks is of no use to another number of them.
"""

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import distributed

from stages.blocks import Closed
from stages.process.context import StageContext
from stages.process.distributed import decide_in_main
from stages.process.engine import choose_engine
from stages.process.errors import StageError
from stages.process.need import KEPT
from stages.spec import COMPLETE_FILE, EXIT_RESOURCE, EXIT_USAGE, checkpoint_name, parse_checkpoint

WHOLE = "whole"  # the layout that any number of processes can go on from
_THREADS = 8  # that hash: of a process, each 1 to 2 GB a second
_MAX_MARKER_BYTES = 8 * 1024 * 1024


class _File(Closed):
    size: int
    sha256: str


class _Marker(Closed):
    """What COMPLETE.json says."""

    step: int
    layout: str
    files: dict[str, _File] = Field(min_length=1, description="Relative path -> file.")


def save_checkpoint(
    directory: Path,
    step: int,
    write: Callable[[Path], None],
    *,
    layout: str = WHOLE,
    is_main: bool = True,
    wait_for_everyone: Callable[[], None] = lambda: None,
) -> Path:
    """Write a checkpoint of `step` below `directory`, mark it complete, and drop all but the newest few; every rank calls it.

    Args:
        directory: the stage's checkpoint directory.
        step: position of the run.
        write: writes the files into the directory that it is given; returns when every rank has.
        layout: see `latest_complete`.
        is_main: whether this rank does what one alone can do.
        wait_for_everyone: returns when every rank has called it.
    """
    path = directory / checkpoint_name(step)
    if is_main:
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)
    wait_for_everyone()
    write(path)
    mark_complete(path, step, layout=layout, is_main=is_main)
    if is_main:
        prune(directory)
    wait_for_everyone()
    return path


def mark_complete(path: Path, step: int, *, layout: str = WHOLE, is_main: bool = True) -> None:
    """Write COMPLETE.json (files, sizes, hashes, layout) after everything else is on the disk; every rank calls it.

    Each rank hashes its share of the bytes, several files at a time: by one thread, hundreds of gigabytes would take many minutes, in
    which all others wait.
    """
    sizes: dict[str, int] = {}
    if is_main:
        found = sorted(file for file in path.rglob("*") if file.is_file() and file.name != COMPLETE_FILE)
        sizes = {str(file.relative_to(path)): file.stat().st_size for file in found}
    sizes, rank, count = _share_with_all(sizes)
    parts = _gather_from_all(_settle_files(path, share_out(sizes, count)[rank]))
    if not is_main:
        return
    files = {name: file for part in parts for name, file in part.items()}
    files |= _settle_files(path, [name for name in sizes if name not in files])  # what another node does not see yet
    temporary = path / (COMPLETE_FILE + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(_Marker(step=step, layout=layout, files={name: files[name] for name in sizes}).model_dump_json())
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path / COMPLETE_FILE)


def share_out(sizes: Mapping[str, int], count: int) -> list[list[str]]:
    """Share files out into so many parts of about as many bytes: the largest file first, each to the part that has least."""
    parts: list[list[str]] = [[] for _ in range(count)]
    totals = [0] * count
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        least = totals.index(min(totals))
        parts[least].append(name)
        totals[least] += sizes[name]
    return parts


def _share_with_all(sizes: dict[str, int]) -> tuple[dict[str, int], int, int]:
    """Give every rank what the main one has seen; returns (that, this rank, number of ranks)."""
    if not distributed.is_initialized():
        return sizes, 0, 1
    shared = [sizes]
    distributed.broadcast_object_list(shared)
    return shared[0], distributed.get_rank(), distributed.get_world_size()


def _gather_from_all(part: dict[str, _File]) -> list[dict[str, _File]]:
    if not distributed.is_initialized():
        return [part]
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, part)
    return parts


def _settle_files(path: Path, names: Sequence[str]) -> dict[str, _File]:
    """See that files are on the disk, with the mode that the umask gives, and hash them; those that are not seen here are left out."""
    mode = stat.S_IMODE(path.stat().st_mode) & 0o666  # libraries write weights that only their owner may read

    def settle(name: str) -> _File | None:
        try:
            with (path / name).open("rb") as stream:
                with suppress(OSError):  # a file system without modes
                    os.fchmod(stream.fileno(), mode)
                os.fsync(stream.fileno())
                size = os.fstat(stream.fileno()).st_size
                return _File(size=size, sha256=hashlib.file_digest(stream, "sha256").hexdigest())
        except FileNotFoundError:
            return None

    with ThreadPoolExecutor(_THREADS) as pool:
        return {name: file for name, file in zip(names, pool.map(settle, names), strict=True) if file is not None}


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
        StageError: it has another layout (exit code 2); a file or a link has a checkpoint's name (exit code 5).
    """
    passed_over: list[str] = []
    _require_directories(directory)
    for step, path in _list_checkpoints(directory):
        problem = _find_problem(path, step)
        if problem is None:
            found = _read_marker(path).layout
            if found != layout:
                raise StageError(
                    f"{path.name} was written {_describe(found)}, this run is {_describe(layout)}; set the hardware block "
                    "as it was, or begin anew with --force",
                    EXIT_USAGE,
                )
            if passed_over:
                warn(f"passed over {', '.join(passed_over)}; going on from {path.name}")
            return path, step
        passed_over.append(f"{path.name} ({problem})")
    if passed_over:
        warn(f"passed over {', '.join(passed_over)}; no complete checkpoint is left, starting anew")
    return None


def prune(directory: Path) -> None:
    """Delete all but the newest `KEPT` checkpoints that are marked complete, and unfinished ones older than those."""
    found = _list_checkpoints(directory)
    marked = [step for step, path in found if _is_marked(path)]
    oldest_kept = marked[:KEPT][-1] if marked else 0
    for step, path in found:
        if step < oldest_kept:
            shutil.rmtree(path)


def drop_unfinished(directory: Path) -> None:
    """Delete checkpoints that were never finished: on a full disk they take the room of what comes."""
    for _, path in _list_checkpoints(directory):
        if not _is_marked(path):
            shutil.rmtree(path, ignore_errors=True)


def list_complete(directory: Path) -> list[int]:
    """List the steps of the checkpoints that are marked complete, newest first."""
    return [step for step, path in _list_checkpoints(directory) if _is_marked(path)]


def _list_checkpoints(directory: Path) -> list[tuple[int, Path]]:
    """List the checkpoints that are directories of their own, newest first; a file or a link of such a name is none."""
    entries = directory.iterdir() if directory.is_dir() else ()
    steps = [(step, path) for path in entries if (step := parse_checkpoint(path.name)) is not None]
    return sorted(((step, path) for step, path in steps if path.is_dir() and not path.is_symlink()), reverse=True)


def _require_directories(directory: Path) -> None:
    """Refuse what has a checkpoint's name and is none: it would be in the way when that step is saved."""
    for path in directory.iterdir() if directory.is_dir() else ():
        if parse_checkpoint(path.name) is not None and (path.is_symlink() or not path.is_dir()):
            what = "a link" if path.is_symlink() else "a file"
            raise StageError(f"{path}: found {what}, needed a directory or nothing; move it elsewhere", EXIT_RESOURCE)


def _is_marked(path: Path) -> bool:
    return (path / COMPLETE_FILE).is_file()


def _describe(layout: str) -> str:
    return "without ZeRO" if layout == WHOLE else f"with {layout}"


def _find_problem(path: Path, step: int) -> str | None:
    """Say why a checkpoint is of no use; None where every file is as its marker says."""
    try:
        marker = _read_marker(path)
    except FileNotFoundError:
        return "never finished"
    except (OSError, ValueError):
        return f"unreadable {COMPLETE_FILE}"
    if marker.step != step:
        return f"{COMPLETE_FILE} is that of step {marker.step}"
    with ThreadPoolExecutor(_THREADS) as pool:
        problems = pool.map(lambda item: _find_problem_of_file(path, *item), marker.files.items())
        return next(filter(None, problems), None)


def _find_problem_of_file(path: Path, name: str, recorded: _File) -> str | None:
    file = path / name
    try:
        if file.is_symlink() or not file.is_file() or ".." in file.parts or not file.is_relative_to(path):
            return f"{name} is missing"
        if file.stat().st_size != recorded.size or _sha256(file) != recorded.sha256:
            return f"{name} is damaged"
    except (OSError, ValueError) as error:  # it cannot be read, or such a name no file has
        return f"{name}: {error}"
    return None


def _read_marker(path: Path) -> _Marker:
    with (path / COMPLETE_FILE).open("rb") as stream:
        content = stream.read(_MAX_MARKER_BYTES + 1)
    if len(content) > _MAX_MARKER_BYTES:
        raise ValueError(f"more than {_MAX_MARKER_BYTES} bytes")
    return _Marker.model_validate_json(content)


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
