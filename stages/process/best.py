"""The best model so far by held-out figures, for `publish: best` of sft and ppo: it lies beside the checkpoints as `best/<step>/`.

Each is there as a whole or not at all. A checkpoint names the best of before it, which stays until no checkpoint does: a resumed run goes
on from what was best then, and makes later ones anew. It is kept as in training, and loads to the last bit.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.process.checkpoint import list_complete
from stages.process.context import StageContext
from stages.process.distributed import decide_in_main
from stages.process.errors import StageError
from stages.process.need import KEPT
from stages.spec import BEST_DIR, EXIT_RESOURCE

_DRAFT = ".draft"


@dataclass(frozen=True)
class Candidate:
    """A step (PPO: iteration) that may be published, and its figure of `publish_by`: the higher, the better."""

    step: int
    value: float


def choose(best: Candidate | None, candidate: Candidate | None) -> Candidate | None:
    """Choose the higher of two; where they are equal the earlier, which is nearer to where training began."""
    if best is None or candidate is None:
        return best or candidate
    return candidate if candidate.value > best.value else best


def hold(context: StageContext, step: int, write: Callable[[Path], None]) -> None:
    """Hold the model as it is after this step; every rank calls it.

    Args:
        context: Of the stage.
        step: After which it is held.
        write: Writes it into the directory that it is given; returns when every rank has.
    """
    directory = context.spec.checkpoint_dir / BEST_DIR
    draft = directory / _DRAFT

    def begin() -> None:
        shutil.rmtree(draft, ignore_errors=True)
        _drop_superseded(context.spec.checkpoint_dir)
        draft.mkdir(parents=True)

    def end() -> None:
        sync_files(draft)
        draft.replace(directory / str(step))

    decide_in_main(context, begin)
    write(draft)
    decide_in_main(context, end)


def place_held(context: StageContext, best: Candidate) -> Path:
    """Say where the best model lies."""
    return context.spec.checkpoint_dir / BEST_DIR / str(best.step)


def require_held(context: StageContext, best: Candidate | None) -> None:
    """Refuse to go on from a checkpoint whose best is gone.

    Raises:
        StageError: Its directory is not there; exit code 5.
    """
    if best and not place_held(context, best).is_dir():
        needed = "the model that was best so far, which the checkpoint names"
        raise StageError(
            f"{place_held(context, best)}: found nothing, needed {needed}; put it back, or begin anew with --force", EXIT_RESOURCE
        )


def drop_after(directory: Path, step: int) -> None:
    """Drop what a directory holds of steps after one: a resumed run makes it anew."""
    for path in directory.iterdir() if directory.is_dir() else ():
        if not path.name.isdecimal() or int(path.name) > step:
            shutil.rmtree(path)


def count_room(checkpoint_dir: Path, to_come: int) -> int:
    """Count how many more can lie there at once, of so many that may still be held: those of two checkpoints, and one more."""
    held = len(_list_held(checkpoint_dir))
    return max(min(held + to_come, KEPT + 1) - held, 0)


def sync_files(directory: Path) -> None:
    """Have all files of a draft on the disk before its name says that it is whole."""
    for file in directory.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def to_state(best: Candidate | None) -> dict[str, Any] | None:
    """Make plain data of it, for a checkpoint."""
    return vars(best).copy() if best else None


def from_state(state: dict[str, Any] | None) -> Candidate | None:
    """Read what `to_state` made."""
    # `iteration` stands in checkpoints of PPO that an earlier version left.
    return Candidate(state["step"] if "step" in state else state["iteration"], state["value"]) if state else None


def _list_held(checkpoint_dir: Path) -> list[int]:
    directory = checkpoint_dir / BEST_DIR
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal()) if directory.is_dir() else []


def _drop_superseded(checkpoint_dir: Path) -> None:
    """Drop what no checkpoint names: each names the newest of before it, since a later one was held because it was better."""
    held = _list_held(checkpoint_dir)
    named = {max((each for each in held if each <= step), default=None) for step in list_complete(checkpoint_dir)}
    for step in held:
        if step not in named:
            shutil.rmtree(checkpoint_dir / BEST_DIR / str(step))
