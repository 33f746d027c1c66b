"""Room on the disk for all that a stage will write, asked for before it trains; how much that is, says stages.process.need."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from stages.process.checkpoint import drop_unfinished, list_complete
from stages.process.context import StageContext
from stages.process.distributed import decide_in_main
from stages.process.errors import StageError
from stages.process.need import KEPT, measure_checkpoints
from stages.spec import EXIT_RESOURCE

_RECORDS = 32 * 1024  # of the run: events, log, result


def require_room(
    context: StageContext, checkpoint: int, output: int, *, saves: int, rows: int, rows_in_checkpoints: bool, kept: tuple[int, int] = (0, 0)
) -> None:
    """Refuse to train where the disk cannot hold the checkpoints and the output; every rank calls it.

    Args:
        context: Of the stage.
        checkpoint: Bytes of a checkpoint, without rows of figures.
        output: Bytes of what is published.
        saves: How many checkpoints are still to come.
        rows: Bytes of all rows of figures, which the output holds too.
        rows_in_checkpoints: Whether checkpoints hold them as well.
        kept: Bytes of models that are kept beside the checkpoints: those still to come, and all of them, which the output links to.

    Raises:
        StageError: It cannot; exit code 5.
    """
    checkpoint += rows if rows_in_checkpoints else 0
    output += rows
    context.planned_bytes = {context.spec.checkpoint_dir: checkpoint, context.spec.output_dir: output}

    def check() -> None:
        directory, output_dir = context.spec.checkpoint_dir, context.spec.output_dir
        drop_unfinished(directory)
        most, at_end = measure_checkpoints(checkpoint, saves, len(list_complete(directory)))
        if directory.stat().st_dev == output_dir.stat().st_dev:
            needs = {directory: max(most, at_end + output) + kept[0] + rows + _RECORDS}
        else:
            needs = {directory: most + kept[0] + rows + _RECORDS, output_dir: output + kept[1]}
        parts = f"checkpoints of {checkpoint:,} each, up to {KEPT + 1} at once, and an output of {output:,}"
        refuse_full(needs, parts + (f", and {kept[0]:,} for models that are kept" if kept[0] else ""))

    decide_in_main(context, check)


def refuse_full(needs: Mapping[Path, int], parts: str) -> None:
    """Refuse to begin where a disk has not the room.

    Args:
        needs: Where something will be written -> how many bytes.
        parts: What they are for.

    Raises:
        StageError: It has not; exit code 5.
    """
    for path, need in needs.items():
        free = shutil.disk_usage(path).free
        if free < need:
            found = f"found {free:,} bytes free, needed {need:,}"
            raise StageError(f"{path}: {found} for {parts}; free space, or choose another store", EXIT_RESOURCE)
