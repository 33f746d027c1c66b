"""`ppo.publish: best`: which iterations may be published, and the policy of the best (see stages.process.best), held and gone back to.

It is held with the optimizer's moments, as in a checkpoint.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from stages.ppo.state import read_state, write_state
from stages.ppo.trainer import ACTOR_FILE, PPOTrainer
from stages.process import best
from stages.process.best import Candidate
from stages.process.context import StageContext
from stages.process.errors import StageError
from stages.settings import PPOSettings
from stages.spec import EXIT_USAGE

_NAMES = {"score": "reward model", "judge": "judge"}
_STATE = 8 * 1024  # bytes of state.pt, without averages


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


def hold(context: StageContext, trainer: PPOTrainer) -> None:
    """Hold the policy as it is after this iteration; every rank calls it."""

    def write(draft: Path) -> None:
        trainer.actor.save(draft / ACTOR_FILE)
        if context.is_main:
            write_state({"averages": trainer.average.averages if trainer.average else {}}, draft)
        trainer.ranks.wait()

    best.hold(context, trainer.iteration, write)


def _load(trainer: PPOTrainer, iteration: int, directory: Path) -> None:
    """Go back to the policy of an iteration, to answer and to publish and not to train on: the critic stays."""
    trainer.actor.load(directory / ACTOR_FILE)
    if trainer.average:
        trainer.average.load(read_state(directory)["averages"])
    trainer.iteration = iteration


def go_back(context: StageContext, trainer: PPOTrainer, before: Candidate | None, figures: Mapping[str, float]) -> bool:
    """Go back to the policy that is published, once the last iteration was evaluated too; every rank calls it.

    Args:
        context: Of the stage.
        trainer: After the last iteration.
        before: Best of the iterations before.
        figures: Held-out ones of the last.

    Returns:
        Whether it is another than the last.
    """
    settings = trainer.settings
    chosen = best.choose(before, find_candidate(settings, trainer.iteration, figures))
    if chosen is None and settings.publish == "best":
        _, kl = read_figures(settings, figures)
        bound = "" if settings.publish_max_kl is None else f" at a KL within ppo.publish_max_kl = {settings.publish_max_kl:g}"
        found = f"found no evaluated iteration with a figure of the {_NAMES[settings.publish_by]}{bound}"
        todo = "raise ppo.publish_max_kl or ppo.kl_coef, or lower ppo.eval_every" if bound else "see why it has none"
        context.warn("publish", f"ppo.publish = best: {found}: the last, {trainer.iteration} (KL {kl:.3g} nats), is published; {todo}")
    if chosen is None or chosen.step == trainer.iteration:
        return False
    _load(trainer, chosen.step, best.place_held(context, chosen))
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
    return best.count_room(context.spec.checkpoint_dir, to_come) * (policy + _STATE)
