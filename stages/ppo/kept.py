"""Models of some iterations, kept for evaluation: beside the checkpoints until they go into the artifact as `kept/<iteration>/`.

Each is there as a whole or not at all, and loads as model/ does; with LoRA it is the adapter. Where weights are averaged it is the average:
what would have been published then.
"""

import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from stages.models.adapters import is_adapter
from stages.models.save import save_model
from stages.ppo.trainer import PPOTrainer
from stages.process.best import drop_after, sync_files
from stages.process.context import StageContext
from stages.process.distributed import decide_in_main
from stages.settings import PPOSettings
from stages.spec import BEST_DIR, KEPT_DIR, MODEL_DIR

_DRAFT = ".draft"


def count_kept(settings: PPOSettings, iteration: int | None = None) -> int:
    """Count the iterations up to one (default: all) whose models are kept; the last not, where it is published anyway."""
    last = settings.iterations - (settings.publish == "last")
    up_to = last if iteration is None else min(iteration, last)
    return up_to // settings.keep_every if settings.keep_every else 0


def keep_model(context: StageContext, trainer: PPOTrainer, tokenizer: Any) -> None:
    """Keep the policy as it is after this iteration; every rank calls it."""
    average = trainer.average.in_use() if trainer.average else nullcontext()
    with trainer.actor.whole_weights(frozen=not is_adapter(trainer.policy)), average:
        if context.is_main:
            directory = context.spec.checkpoint_dir / KEPT_DIR
            draft = directory / _DRAFT
            shutil.rmtree(draft, ignore_errors=True)
            save_model(trainer.policy, tokenizer, draft)
            sync_files(draft)
            (draft / MODEL_DIR).replace(directory / str(trainer.iteration))
            draft.rmdir()
    trainer.ranks.wait()


def drop_kept_after(context: StageContext, iteration: int) -> None:
    """Drop the models of iterations after one, the best so far too: a resumed run makes them anew. Every rank calls it."""

    def drop() -> None:
        for directory in (context.spec.checkpoint_dir / KEPT_DIR, context.spec.checkpoint_dir / BEST_DIR):
            drop_after(directory, iteration)

    decide_in_main(context, drop)


def publish_kept(checkpoint_dir: Path, output_dir: Path) -> None:
    """Put the models that were kept into the output: as second names of the same files, or copied where the file system has none."""
    shutil.rmtree(output_dir / KEPT_DIR, ignore_errors=True)  # of an attempt that was killed
    if (checkpoint_dir / KEPT_DIR).is_dir():
        shutil.copytree(checkpoint_dir / KEPT_DIR, output_dir / KEPT_DIR, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
