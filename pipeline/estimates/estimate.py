"""A recipe and a machine -> what each stage needs of memory and disk, how long it takes, what that costs; nothing is run.

recipe -> stages.tracing, a process -> bytes and operations of each phase -> pipeline.cost, equations -> Estimate
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from data.schema import KINDS, RecordKind
from data.system.limits import count_cores
from pipeline.cost.amounts import Amount, Lengths
from pipeline.cost.calibration import Calibration
from pipeline.cost.machines import GPU, TRAINER_STEP_S
from pipeline.cost.memory import PhaseMemory, Verdict, add_overhead, find_peak, judge, measure_holes, measure_phases, sum_host
from pipeline.cost.money import price_labels, price_storage
from pipeline.cost.plan import count_kept, count_opened, list_parts
from pipeline.cost.serving import Serving, find_serving
from pipeline.cost.setup import Setup
from pipeline.cost.times import Spent, time_measured, time_models, time_on_gpus, time_served
from pipeline.cost.traced import extrapolate
from pipeline.estimates.machine import Machine
from pipeline.estimates.traces import ask_trace, count_turns, find_lengths, make_setup
from pipeline.recipe.schema import Recipe
from pipeline.text import format_bytes
from stages.process.need import KEPT, count_saves, measure_most
from stages.settings import PPOSettings, SFTSettings, StageSettings, TrainingSettings
from stages.spec import STAGES, StageName, data_inputs
from stages.tracing.report import Depth, StageTrace, TraceReport

_CROWDED = 0.2  # cores that were not there, of which nobody is told: a tick of the clock, a logger


@dataclass(frozen=True)
class StageEstimate:
    """What one stage needs.

    Args:
        need: The stage at the model's depth.
        phases: Memory of each phase, of the process that needs most.
        verdict: Of the device's memory.
        parts: Time of each part; empty where it is not known.
        disk: Bytes at the most, while it runs.
        held: Of them, those of models beside the checkpoints.
        serving: The vLLM server that answers for it.
        calibration: What past runs say of such times.
    """

    stage: StageName
    need: Depth
    setup: Setup
    phases: list[PhaseMemory]
    verdict: Verdict
    parts: list[Spent]
    disk: int
    held: int = 0
    serving: Serving | None = None
    calibration: Calibration | None = None

    @property
    def peak(self) -> PhaseMemory:
        """The phase that needs most."""
        return find_peak(self.phases)

    @property
    def factor(self) -> float:
        """By which past runs correct what is counted."""
        return self.calibration.factor if self.calibration else 1.0

    @property
    def seconds(self) -> float:
        """Of all its parts, as past runs correct them."""
        return sum(part.seconds for part in self.parts) * self.factor

    @property
    def gpus(self) -> int:
        """That are paid for: of its processes, and of a server that has its own."""
        return self.setup.processes + (self.serving.own if self.serving else 0)


@dataclass(frozen=True)
class Estimate:
    """Of all stages of a recipe."""

    machine: Machine
    processes: int
    stages: list[StageEstimate]
    lengths: dict[RecordKind, Lengths]
    notes: list[str]
    report: TraceReport

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def gpu_seconds(self) -> float:
        """Of all GPUs that are paid for."""
        return sum(stage.seconds * stage.gpus for stage in self.stages)


def make_estimate(
    recipe: Recipe,
    stages: Iterable[StageName],
    store_root: Path,
    machine: Machine,
    *,
    records: Mapping[str, int] | None = None,
    told: Callable[[str], None] = lambda message: None,
    with_time: bool = True,
) -> Estimate:
    """Say what the stages of a recipe need on a machine.

    Args:
        recipe: Resolved recipe.
        stages: Of it.
        store_root: Of the store.
        machine: That they will run on.
        records: Kind -> how many records, where no source on this machine tells.
        told: Hears what is done.
        with_time: Whether times are wanted; on a CPU they are measured, which takes a while.

    Raises:
        StoreError: see `ask_trace`.
    """
    wanted = set(stages)
    chosen: list[StageName] = [stage for stage in STAGES if stage in wanted]
    setup = make_setup(recipe, machine.gpu)
    timed = with_time and machine.gpu is None
    doing = "tracing what the stages need" + (", and measuring how fast this machine is" if timed else "")
    told(doing)
    report = ask_trace(recipe, chosen, store_root, gpu=machine.gpu, timed=timed, told=lambda line: told(line or doing))
    lengths = find_lengths(recipe, report, records or {})
    made = [_estimate_stage(recipe, stage, report, lengths, machine, setup, with_time=with_time) for stage in chosen]
    notes = [*_list_notes(recipe, made, lengths, machine), *_tell_crowding(report)]
    return Estimate(machine, setup.processes, made, lengths, notes, report)


def estimate_again(recipe: Recipe, estimate: Estimate, stage: StageName) -> StageEstimate:
    """Say what a stage needs with more GPUs, by the trace that was made with fewer: micro-batches are never larger with more.

    Past runs correct it as they correct the estimate.
    """
    setup = make_setup(recipe, estimate.machine.gpu)
    made = _estimate_stage(recipe, stage, estimate.report, estimate.lengths, estimate.machine, setup, with_time=True)
    calibration = next(each.calibration for each in estimate.stages if each.stage == stage)
    return dataclasses.replace(made, calibration=calibration)


def _estimate_stage(
    recipe: Recipe,
    stage: StageName,
    report: TraceReport,
    lengths: Mapping[RecordKind, Lengths],
    machine: Machine,
    setup: Setup,
    *,
    with_time: bool,
) -> StageEstimate:
    trace, timed = report.stages[stage], report.timed.get(stage)
    need = extrapolate(trace)
    phases = measure_phases(need, setup, machine.memory if machine.gpu else None)
    worst = find_peak(phases)
    taken = add_overhead(
        worst,
        on_gpu=machine.gpu is not None,
        processes=setup.processes,
        resident=report.resident,
        holes=measure_holes(phases, takes_turns=stage == "ppo"),
    )
    taken *= 1 if machine.gpu else setup.per_node  # processes of one machine share its memory
    settings = recipe.settings(stage)
    serving = find_serving(settings.rollout) if isinstance(settings, PPOSettings) else None
    if machine.gpu is not None and serving is not None:
        least = serving.measure_least(need.parameters) if serving.known else 0.0
        taken = taken + max(serving.share * machine.memory, least) if serving.share else max(taken, least)
    limits = (recipe.tokens.max_prompt_tokens, recipe.tokens.max_response_tokens)
    amounts = list_parts(settings, lengths, limits, setup.processes, count_kept(recipe.ppo))
    saves = _count_saves(settings, amounts["train"].steps["optimizer"] if "train" in amounts else 0.0)
    parts: list[Spent] = []
    if with_time and machine.gpu is not None:
        parts = [_time_part(name, amount, need, trace, machine.gpu, setup, settings, serving) for name, amount in amounts.items()]
    elif with_time and timed is not None:
        step_s, measured = 0.0 if stage == "ppo" else TRAINER_STEP_S, extrapolate(timed, trace)
        own = {name: amount for name, amount in amounts.items() if not (serving and "decode" in amount.steps)}
        parts = [time_measured(name, amount, measured, timed.tokens, setup.processes, step_s) for name, amount in own.items()]
        if timed.intervals_s:
            parts.append(Spent("intervals", timed.intervals_s, "measured, of figures of as many answers"))
        opened = count_opened(settings, count_kept(recipe.ppo), reward_adapter="rm" in recipe.stages and recipe.rm.lora is not None)
        written = saves * need.checkpoint + need.output + count_kept(settings) * need.kept
        parts.append(time_models(opened, 4.0 * need.parameters, written, report.read_s, report.write_s))
        parts.append(Spent("start", report.import_s + report.tried_s, "importing libraries, and trying what the family can do"))
        turns = count_turns(setup, recipe.hardware.threads)
        parts = [dataclasses.replace(part, seconds=part.seconds * turns) for part in parts]
    held = _measure_held(settings, need)
    disk = measure_most(need.checkpoint, need.output, saves) + held
    return StageEstimate(stage, need, setup, phases, judge(taken, machine.memory), parts, disk, held, serving)


def _time_part(
    name: str,
    amount: Amount,
    need: Depth,
    trace: StageTrace,
    gpu: GPU,
    setup: Setup,
    settings: StageSettings,
    serving: Serving | None,
) -> Spent:
    if serving is None or "decode" not in amount.steps or not isinstance(settings, PPOSettings):
        return time_on_gpus(name, amount, need, trace.tokens, gpu, setup)
    handed = 4.0 * need.learning[0] if settings.lora else 2.0 * need.parameters  # an adapter, or all weights in bfloat16
    return time_served(name, amount, need, gpu, serving.gpus, handed, settings.iterations if name == "rollout" else 1.0)


def _measure_held(settings: StageSettings, need: Depth) -> int:
    """Say what models beside the checkpoints take: those that PPO keeps, and those that may be the best."""
    chooses = isinstance(settings, SFTSettings | PPOSettings) and settings.publish == "best"
    looks = (settings.iterations - 1) // settings.eval_every if isinstance(settings, PPOSettings) else KEPT + 1
    return count_kept(settings) * need.kept + chooses * min(looks, KEPT + 1) * need.best


def _count_saves(settings: StageSettings, steps: float) -> int:
    """Say how many checkpoints there will be; of records that nobody counted, as many as are kept."""
    if not isinstance(settings, TrainingSettings):
        return 0
    if isinstance(settings, PPOSettings):
        return count_saves(settings.iterations // settings.save_every, settings.iterations, settings.save_minutes)
    by_steps = math.ceil(steps / settings.save_every)
    return count_saves(by_steps, math.ceil(steps), settings.save_minutes) if steps else KEPT + 1


def _list_notes(recipe: Recipe, made: list[StageEstimate], lengths: Mapping[RecordKind, Lengths], machine: Machine) -> Iterator[str]:
    kinds = {kind for each in made for kind in data_inputs(each.stage, recipe.settings(each.stage))}
    if machine.gpu is not None:
        most, stage = max((sum_host(phase, recipe.hardware.processes), each.stage) for each in made for phase in each.phases)
        yield f"each machine needs {format_bytes(most)} of main memory, most in {stage}"
    if machine.gpu is None and made[0].parts and (turns := count_turns(made[0].setup, recipe.hardware.threads)) > 1:
        yield f"processes take turns on {count_cores()} cores: {turns:.2g} times as long; lower hardware.processes or hardware.threads"
    yield from _tell_serving(made, machine)
    yield from _tell_prices(recipe, made, lengths)
    if machine.gpu is not None and not machine.gpu.has_bfloat16:
        asked = recipe.hardware.precision
        how = {"auto": "so all is planned in float32", "bfloat16": "but the recipe asks for it: it is emulated, slower than float32"}
        if asked in how:
            yield f"{machine.name} has no bfloat16, {how[asked]}"
    unread: list[RecordKind] = [kind for kind in KINDS if kind in kinds and not lengths[kind].known]
    if unread:
        uncounted = [kind for kind in unread if lengths[kind].records is None and kind != "prompts"]
        yield f"{', '.join(unread)} are not on this machine: taken as long as `tokens` allows"
        if uncounted:
            missing = f"how many {' and '.join(uncounted)} there are is not known, and so no time of what reads them"
            yield f"{missing}; give --records {uncounted[0]}=NUMBER"
    if machine.gpu is not None and machine.price is None:
        yield "no price is known; give hardware.price_per_gpu_hour"


def _tell_crowding(report: TraceReport) -> Iterator[str]:
    if report.crowded > _CROWDED:
        yield f"other programs kept {report.crowded:.1f} cores busy that were needed to measure: times are as long as they are beside those"


def _tell_prices(recipe: Recipe, made: list[StageEstimate], lengths: Mapping[RecordKind, Lengths]) -> Iterator[str]:
    """Say what is paid for beside GPUs, where the recipe says what it costs."""
    if (price := recipe.hardware.price_per_gb_month) is not None:
        size = sum(each.need.output + count_kept(recipe.settings(each.stage)) * each.need.kept for each in made)
        yield f"artifacts: {format_bytes(size)} stay in the store, ${price_storage(size, price):,.2f} a month"
    if recipe.rounds is not None and (price := recipe.rounds.price_per_ranking) is not None:
        prompts = recipe.sample.prompts or lengths["prompts"].records
        if prompts is None:
            yield "labels: how many prompts there are is not known; give --records prompts=NUMBER, or sample.prompts"
            return
        labels = price_labels(prompts, recipe.ranking.overlap, recipe.ranking.repeats, price)
        yield f"labels: {prompts:,} prompts are {labels.rankings:,} rankings, ${labels.dollars:,.2f} a round, if two people rank"


def _tell_serving(made: list[StageEstimate], machine: Machine) -> Iterator[str]:
    found = next(((each.serving, each.need.parameters) for each in made if each.serving), None)
    if found is None:
        return
    serving, parameters = found
    if machine.gpu is None:
        yield "ppo's responses come from vLLM: the time in which it makes them is not in this estimate"
    elif not serving.known:
        yield (
            f"ppo's responses come from a vLLM server elsewhere: taken as {serving.gpus} x {machine.name}, in its time and price; where it "
            f"has more, give ppo.rollout.options [--tensor-parallel-size, N]"
        )
    elif serving.own:
        yield f"ppo's responses come from vLLM on {serving.own} x {machine.name} of its own, in its time and price"
    else:
        rest = "; counted beside training too, where it sleeps: an upper bound" if serving.sleeps else ""
        yield f"ppo's responses come from vLLM on the stage's GPUs, of which it takes {serving.share:.0%} of the memory{rest}"
    if machine.gpu is not None and serving.lacks_room(parameters, machine.memory):
        least, room = (format_bytes(int(size)) for size in (serving.measure_least(parameters), (serving.share or 1.0) * machine.memory))
        yield f"vLLM will not start: {least} of weights on each of its GPUs, where it may take {room}; raise --tensor-parallel-size"
