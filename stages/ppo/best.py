"""The best iteration so far by held-out evaluation, for `ppo.publish: best`: its policy lies beside the checkpoints as `best/<iteration>/`.

Each is there as a whole or not at all. A checkpoint names the best of before it, which stays until no checkpoint does: a resumed run goes
on from what was best then, and makes later ones anew. It is kept as in training (with the optimizer's moments), and loads to the last bit.
"""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.ppo.kept import sync_files
from stages.ppo.state import read_state, write_state
from stages.ppo.trainer import PPOTrainer
from stages.process.checkpoint import KEPT, list_complete
from stages.process.context import StageContext
from stages.process.distributed import decide_in_main
from stages.process.errors import StageError
from stages.settings import PPOSettings
from stages.spec import BEST_DIR, EXIT_RESOURCE, EXIT_USAGE

_DRAFT, _ACTOR_FILE = ".draft", "actor"
_NAMES = {"score": "reward model", "judge": "judge"}
_STATE = 8 * 1024  # bytes of state.pt, without averages


@dataclass(frozen=True)
class Candidate:
    """An iteration that may be published, and its figure of `ppo.publish_by`."""

    iteration: int
    value: float


def check_publish(context: StageContext, settings: PPOSettings, num_held_out: int) -> None:
    """Tell what is not used, and refuse to choose by answers to prompts that are not there.

    Raises:
        StageError: There are none; exit code 2.
    """
    if settings.publish == "best" and not num_held_out:
        found = "ppo.publish: found best and no held-out prompt, needed at least one to choose by"
        raise StageError(f"{found}; give data.prompts.eval or raise data.eval_fraction, or set publish: last", EXIT_USAGE)
    if settings.publish == "last":
        if settings.publish_by != "score":
            context.note(f"ppo.publish_by = {settings.publish_by} is not used: ppo.publish is last")
        if settings.publish_max_kl is not None:
            context.note(f"ppo.publish_max_kl = {settings.publish_max_kl:g} is not used: ppo.publish is last")


def find_candidate(settings: PPOSettings, iteration: int, figures: Mapping[str, float]) -> Candidate | None:
    """Read of an iteration's held-out figures whether it may be published; where weights are averaged, of those of the average.

    Returns:
        None: its KL is not within the bound, or it has no such figure.
    """
    if settings.publish == "last":
        return None
    value, kl = read_figures(settings, figures)
    bound = math.inf if settings.publish_max_kl is None else settings.publish_max_kl
    return Candidate(iteration, value) if math.isfinite(value) and kl <= bound else None


def read_figures(settings: PPOSettings, figures: Mapping[str, float]) -> tuple[float, float]:
    """Read (what `ppo.publish_by` goes by, KL) of what would be published; NaN: not there."""
    way = "sampled" if settings.ema_decay is None else "ema_sampled"
    name = "score" if settings.publish_by == "score" else "judge_score"
    return figures.get(f"eval/{way}/{name}", math.nan), figures.get(f"eval/{way}/kl", math.nan)


def choose(best: Candidate | None, candidate: Candidate | None) -> Candidate | None:
    """Choose the higher of two; where they are equal the earlier, which is nearer to the SFT model."""
    if best is None or candidate is None:
        return best or candidate
    return candidate if candidate.value > best.value else best


def hold(context: StageContext, trainer: PPOTrainer) -> None:
    """Hold the policy as it is after this iteration; every rank calls it."""
    directory = context.spec.checkpoint_dir / BEST_DIR
    draft = directory / _DRAFT

    def begin() -> None:
        shutil.rmtree(draft, ignore_errors=True)
        _drop_superseded(context.spec.checkpoint_dir)
        draft.mkdir(parents=True)

    def end() -> None:
        sync_files(draft)
        draft.replace(directory / str(trainer.iteration))

    decide_in_main(context, begin)
    trainer.actor.save(draft / _ACTOR_FILE)
    if context.is_main:
        write_state({"averages": trainer.average.averages if trainer.average else {}}, draft)
    trainer.ranks.wait()
    decide_in_main(context, end)


def _load(trainer: PPOTrainer, iteration: int, directory: Path) -> None:
    """Go back to the policy of an iteration, to answer and to publish and not to train on: the critic stays."""
    trainer.actor.load(directory / _ACTOR_FILE)
    if trainer.average:
        trainer.average.load(read_state(directory)["averages"])
    trainer.iteration = iteration


def require_held(context: StageContext, best: Candidate | None) -> None:
    """Refuse to go on from a checkpoint whose best is gone.

    Raises:
        StageError: Its directory is not there; exit code 5.
    """
    path = context.spec.checkpoint_dir / BEST_DIR / str(best.iteration if best else "")
    if best and not path.is_dir():
        needed = "the policy that was best so far, which the checkpoint names"
        raise StageError(f"{path}: found nothing, needed {needed}; put it back, or begin anew with --force", EXIT_RESOURCE)


def go_back(context: StageContext, trainer: PPOTrainer, best: Candidate | None, figures: Mapping[str, float]) -> bool:
    """Go back to the policy that is published, once the last iteration was evaluated too; every rank calls it.

    Args:
        context: Of the stage.
        trainer: After the last iteration.
        best: Of the iterations before.
        figures: Held-out ones of the last.

    Returns:
        Whether it is another than the last.
    """
    settings = trainer.settings
    best = choose(best, find_candidate(settings, trainer.iteration, figures))
    if best is None and settings.publish == "best":
        _, kl = read_figures(settings, figures)
        bound = "" if settings.publish_max_kl is None else f" at a KL within ppo.publish_max_kl = {settings.publish_max_kl:g}"
        found = f"found no evaluated iteration with a figure of the {_NAMES[settings.publish_by]}{bound}"
        todo = "raise ppo.publish_max_kl or ppo.kl_coef, or lower ppo.eval_every" if bound else "see why it has none"
        context.warn("publish", f"ppo.publish = best: {found}: the last, {trainer.iteration} (KL {kl:.3g} nats), is published; {todo}")
    if best is None or best.iteration == trainer.iteration:
        return False
    _load(trainer, best.iteration, context.spec.checkpoint_dir / BEST_DIR / str(best.iteration))
    return True


def measure(context: StageContext, trainer: PPOTrainer, policy: int) -> int:
    """Say how many bytes policies that are still to be held take at most beside those that are: those of two checkpoints, and one more.

    Args:
        context: Of the stage.
        trainer: Where it starts.
        policy: Bytes of what is trained of the policy, its moments and its average.
    """
    settings = trainer.settings
    if settings.publish == "last":
        return 0
    before_last = settings.iterations - 1
    to_come = before_last // settings.eval_every - min(trainer.iteration, before_last) // settings.eval_every
    held = len(_list_held(context.spec.checkpoint_dir))
    return max(min(held + to_come, KEPT + 1) - held, 0) * (policy + _STATE)


def _list_held(checkpoint_dir: Path) -> list[int]:
    directory = checkpoint_dir / BEST_DIR
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal()) if directory.is_dir() else []


def _drop_superseded(checkpoint_dir: Path) -> None:
    """Drop what no checkpoint names: each names the newest of before it, since a later one was held because it was better."""
    held = _list_held(checkpoint_dir)
    named = {max((each for each in held if each <= step), default=None) for step in list_complete(checkpoint_dir)}
    for iteration in held:
        if iteration not in named:
            shutil.rmtree(checkpoint_dir / BEST_DIR / str(iteration))


def to_state(best: Candidate | None) -> dict[str, Any] | None:
    """Make plain data of it, for a checkpoint."""
    return vars(best).copy() if best else None


def from_state(state: dict[str, Any] | None) -> Candidate | None:
    """Read what `to_state` made."""
    return Candidate(**state) if state else None
