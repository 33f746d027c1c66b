"""What can be told before the first stage trains: records that are lost, what an evaluation will not be able to say."""

import math
import os
import socket
from collections.abc import Iterator, Mapping, Sequence

from data.schema import RecordKind
from data.shortfall import warn_of_dropped_answers, warn_of_shortfall
from data.system.limits import count_allowed, count_cores
from pipeline.errors import ConfigError
from pipeline.launch.environment import read_threads
from pipeline.recipe.schema import Recipe
from pipeline.recipe.sources import ComparisonSource
from pipeline.text import count
from pipeline.tokens import Counts, add_splits
from stages.blocks import MAX_THREADS
from stages.process.places import has_gpu, needs_launcher
from stages.rules import find_missing_server
from stages.sample_settings import SampleSettings
from stages.settings import PPOSettings, PretrainSettings, RMSettings, SFTSettings
from stages.spec import StageName
from stages.statistics.intervals import smallest_difference

_COIN = 0.5  # standard deviation of wins and losses at even odds
_LEARN_FROM: dict[RecordKind, StageName] = {"texts": "pretrain", "demonstrations": "sft", "comparisons": "rm", "prompts": "ppo"}
_CONNECT_S = 5.0
_COARSE = 0.25  # a win rate that shows only this far from 0.5, as with 31 prompts, rarely shows anything


def foresee(recipe: Recipe, counts: Counts) -> dict[RecordKind, list[str]]:
    """Say of which record sets more than 5 % is left out or cut, and what they are too few for; by kind.

    Args:
        recipe: Resolved recipe.
        counts: As `make_tokens` returns them.

    Raises:
        ConfigError: `rm.margin` asks for grades, and no comparison has one.
    """
    if recipe.rm.margin == "grade" and "comparisons" in counts and not counts["comparisons"].get("train", {}).get("comparisons_graded"):
        found = "found grade, but no comparison to train on has grades"
        needed = "needed the column grades, 1 to 7 for each answer, in some; give them, or set none"
        raise ConfigError([f"{recipe.place('rm.margin')}: rm.margin: {found}; {needed}"])
    limits = (recipe.tokens.max_prompt_tokens, recipe.tokens.max_response_tokens)
    warnings: dict[RecordKind, list[str]] = {}
    for kind, splits in counts.items():
        total = add_splits(splits)
        # Of texts the empty ones are told by those who read them.
        warnings[kind] = [] if kind == "texts" else warn_of_shortfall(kind, total, limits)
        if "answers" in total:  # not noted by earlier versions
            warnings[kind] += warn_of_dropped_answers(kind, total, total["answers"], limits)
        warnings[kind] += warn_of_warmup(recipe, kind, splits.get("train", {}))
    if "prompts" in counts and recipe.evaluate is not None:
        held_out = counts["prompts"].get("eval", {}).get("prompts", 0)
        warnings["prompts"] += foresee_evaluation(
            min(held_out, recipe.evaluate.prompts), has_judge=recipe.judge is not None or recipe.evaluate.judge is not None
        )
    return warnings


def warn_of_warmup(recipe: Recipe, kind: RecordKind, counts: Mapping[str, int]) -> Iterator[str]:
    """Say that a stage ends before its learning rate is what the recipe says: recipes are copied to data of other sizes.

    How many steps it takes is exact, but where rows are packed or records weighted: then it is the most.

    Args:
        recipe: Resolved recipe.
        kind: Of the records that the stage trains on.
        counts: Of those to train on.
    """
    stage = _LEARN_FROM[kind]
    settings = recipe.settings(stage)
    used = counts.get(f"{kind}_used", counts.get(kind, 0))
    if isinstance(settings, PPOSettings):
        steps, name, first = settings.iterations, "iteration", 1  # see `ppo.warmup_steps`: where the first step stands
    elif isinstance(settings, PretrainSettings | SFTSettings | RMSettings) and used:
        if isinstance(settings, PretrainSettings):
            used += counts.get("text_tokens", 0) // (settings.sequence_length - 1)  # no text makes more pieces
        source = recipe.data.comparisons.train if kind == "comparisons" and recipe.data.comparisons else None
        weights = [part.weight for part in source.parts] if isinstance(source, ComparisonSource) else []
        an_epoch = math.ceil(used * max([1.0, *weights]) / settings.batch_size)
        steps, name, first = math.ceil(settings.epochs * an_epoch), "optimizer step", 0
        given = settings.trainer_args.get("max_steps", -1)
        steps = given if isinstance(given, int) and given > 0 else steps
    else:
        return
    if (reached := steps - 1 + first) < settings.warmup_steps:
        found = f"found {settings.warmup_steps:,}, needed at most {reached:,} in a stage of {steps:,} {name}{'s' * (steps != 1)}"
        share = f"{reached / settings.warmup_steps:.1%} of {stage}.learning_rate"
        place = f"{recipe.place(f'{stage}.warmup_steps')}: {stage}.warmup_steps"
        yield f"{place}: {found}: the learning rate gets no further than {share}; lower it"


def require_server(recipe: Recipe, stages: Sequence[StageName]) -> None:
    """See that what stages would start as their vLLM server is there; of several nodes it is another's matter.

    Raises:
        ConfigError: It is no program on this machine.
    """
    for stage in stages:
        settings = recipe.settings(stage)
        if not isinstance(settings, PPOSettings | SampleSettings) or recipe.hardware.nodes > 1:
            continue
        if missing := find_missing_server(stage, settings.rollout):
            raise ConfigError([f"{recipe.place(f'{stage}.rollout.command')}: {missing}"])


def require_meeting(recipe: Recipe) -> None:
    """See that processes of this machine can meet, which torchrun has them do at localhost; of several nodes it is another's matter.

    Raises:
        ConfigError: They cannot, as in a sandbox whose loopback network is down: torchrun would try for minutes.
    """
    hardware = recipe.hardware
    if hardware.nodes > 1 or not needs_launcher(hardware) or (reason := _try_localhost()) is None:
        return
    key, found = ("hardware.processes", hardware.processes) if hardware.processes > 1 else ("hardware.engine", hardware.engine)
    needed = f"needed localhost to be reached, where processes meet, which failed: {reason}"
    ways = "have `ip link set lo up` run and localhost in /etc/hosts, or set hardware.processes: 1 and hardware.engine: none"
    raise ConfigError([f"{recipe.place(key)}: {key}: found {found}, {needed}; {ways}"])


def _try_localhost() -> OSError | None:
    """Listen at localhost and connect, by either version of IP; returns what is in the way."""
    try:
        places = socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)
    except OSError as error:
        return error
    reason = OSError("it has no address")
    for family, kind, protocol, _, place in places:
        try:
            with socket.socket(family, kind, protocol) as listener:
                listener.bind(place)
                listener.listen(1)
                with socket.create_connection(listener.getsockname()[:2], timeout=_CONNECT_S):
                    return None
        except OSError as error:
            reason = error
    return reason


def warn_of_threads(recipe: Recipe) -> Iterator[str]:
    """Say that processes and their threads are more than the cores here; of several nodes it is another's matter.

    Raises:
        ConfigError: OMP_NUM_THREADS, which counts where the recipe names no threads, is one with which a stage dies.
    """
    hardware, cores = recipe.hardware, count_cores()
    given = read_threads(os.environ)
    if not hardware.threads and given > MAX_THREADS:
        found = f"found {given:,} in the environment, needed at most {MAX_THREADS:,}"
        raise ConfigError([f"OMP_NUM_THREADS: {found}: a stage dies of so many; unset it, or give hardware.threads"])
    threads = hardware.threads or given or (1 if hardware.processes > 1 else 0)  # torchrun gives each of several one
    if hardware.nodes > 1 or hardware.processes * threads <= cores:
        return
    by_threads = threads > 1
    if not by_threads and has_gpu():
        return  # as many processes as GPUs, whose work is not the cores'
    each = f", {hardware.processes * threads:,} in all {hardware.processes:,} processes" if hardware.processes > 1 else ""
    needed = f"this machine's {cores} core{'s' * (cores != 1)} or fewer"
    if cores < (allowed := count_allowed()):
        needed = f"{cores} or fewer, the cores whose time a limit (of a container, a job) leaves it of this machine's {allowed}"
    if not by_threads:
        key, found = "hardware.processes", f"found {hardware.processes:,}"
    elif hardware.threads:
        key, found = "hardware.threads", f"found {threads:,}{each}"
    else:
        key, found = "OMP_NUM_THREADS", f"found {threads:,} in the environment{each}"
    place = "" if key == "OMP_NUM_THREADS" else f"{recipe.place(key)}: "
    yield f"{place}{key}: {found}, needed {needed}: they take turns and wait for each other, which can take many times as long; lower it"


def foresee_evaluation(num_prompts: int, *, has_judge: bool) -> list[str]:
    """Say what an evaluation on so many held-out prompts, with or without a judge, cannot tell.

    Told is the worst case, each prompt won or lost whole: several answers to a prompt, and ties, make the spread smaller.

    Example: 6 prompts show a win rate only if it is 50 ± 57 %, which is none.
    """
    warnings: list[str] = []
    if num_prompts > 0 and (smallest := smallest_difference(_COIN, num_prompts)) > _COARSE:
        shown = f"only one of {_COIN + smallest:.0%} or more" if smallest < _COIN else "none at all"
        found = f"{count(num_prompts, 'held-out prompt')} may be too few to show a win rate of PPO over SFT: at worst {shown}"
        ways = "give more in data.prompts.eval, or raise data.eval_fraction"
        warnings.append(f"{found}, where 100 prompts show one of {_COIN + smallest_difference(_COIN, 100):.0%}; {ways}")
    if not has_judge:
        lost = "which answers score higher, not whether they are better, nor where PPO begins to fool the reward model"
        warnings.append(f"no judge is named, so the evaluation will tell {lost}; give judge: module:function")
    return warnings
