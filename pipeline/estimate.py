"""A recipe and a machine -> what each stage needs of memory and disk, how long it takes, what that costs; nothing is run.

recipe -> stages.tracing, a process -> bytes and operations of each phase -> pipeline.cost, equations -> Estimate
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from data.schema import KINDS, RecordKind
from pipeline.cost.amounts import Lengths
from pipeline.cost.machines import GPU, GPUS, SPREAD_MEASURED, SPREAD_TABLE, TRAINER_STEP_S
from pipeline.cost.memory import PhaseMemory, find_peak, measure_phases
from pipeline.cost.plan import list_parts
from pipeline.cost.setup import Setup
from pipeline.cost.times import Spent, time_measured, time_on_gpus
from pipeline.cost.traced import extrapolate
from pipeline.cost.verdict import Verdict, add_overhead, judge
from pipeline.errors import ConfigError
from pipeline.recipe.schema import Recipe
from pipeline.text import format_bytes
from pipeline.traces import ask_trace, find_lengths, make_setup, settle_precision
from stages.blocks import HardwareSettings
from stages.process.need import KEPT, count_saves, measure_most
from stages.settings import PPOSettings, StageSettings, TrainingSettings
from stages.spec import STAGES, StageName, data_inputs
from stages.tracing.report import Depth, StageTrace, TraceReport


@dataclass(frozen=True)
class Machine:
    """What stages will run on.

    Args:
        name: Of the GPU, or `cpu`.
        gpu: Of the table; None: this machine's CPU.
        memory: Bytes of a GPU, or of this machine.
        price: Dollars an hour of one GPU, (least, most); None: not known.
        own_price: Whether that is the user's.
    """

    name: str
    gpu: GPU | None
    memory: float
    price: tuple[float, float] | None
    own_price: bool = False


@dataclass(frozen=True)
class StageEstimate:
    """What one stage needs.

    Args:
        need: The stage at the model's depth.
        phases: Memory of each phase, of the process that needs most.
        verdict: Of the device's memory.
        parts: Time of each part; empty where it is not known.
        disk: Bytes at the most, while it runs.
    """

    stage: StageName
    need: Depth
    setup: Setup
    phases: list[PhaseMemory]
    verdict: Verdict
    parts: list[Spent]
    disk: int

    @property
    def peak(self) -> PhaseMemory:
        """The phase that needs most."""
        return find_peak(self.phases)

    @property
    def seconds(self) -> float:
        """Of all its parts."""
        return sum(part.seconds for part in self.parts)


@dataclass(frozen=True)
class Estimate:
    """Of all stages of a recipe."""

    machine: Machine
    processes: int
    stages: list[StageEstimate]
    lengths: dict[RecordKind, Lengths]
    notes: list[str]


def choose_machine(hardware: HardwareSettings, name: str | None) -> Machine:
    """Say what stages run on: the GPU that is named, the one of a recipe for GPUs, else this machine's CPU.

    Raises:
        ConfigError: The table does not have it, or the recipe needs a GPU and none is named.
    """
    own = hardware.price_per_gpu_hour
    price = None if own is None else (own, own)
    if name is None and hardware.device == "cuda":
        raise ConfigError([f"--gpu: not given, but hardware.device is cuda; needed one of {', '.join(GPUS)}; give --gpu h100"])
    if name is None:
        return Machine("cpu", None, find_memory(), price, own is not None)
    gpu = GPUS.get(name.lower())
    if gpu is None:
        raise ConfigError([f"--gpu: found {name!r:.40}, needed one of {', '.join(GPUS)}; give the nearest"])
    return Machine(name.lower(), gpu, gpu.memory, price or gpu.price, own is not None)


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
    on_gpu = machine.gpu is not None
    setup = make_setup(recipe, on_gpu=on_gpu)
    told("tracing what the stages need")
    report = ask_trace(recipe, chosen, store_root, on_gpu=on_gpu)
    lengths = find_lengths(recipe, report, records or {})
    timed: dict[StageName, StageTrace] = {}
    if with_time and not on_gpu:
        told("measuring how fast this machine is")
        timed = dict(ask_trace(recipe, chosen, store_root, on_gpu=False, measure=True, lengths=lengths).stages)
    made = [_estimate_stage(recipe, stage, report, timed.get(stage), lengths, machine, setup, with_time=with_time) for stage in chosen]
    return Estimate(machine, setup.processes, made, lengths, list(_list_notes(recipe, made, lengths, machine)))


def _estimate_stage(
    recipe: Recipe,
    stage: StageName,
    report: TraceReport,
    timed: StageTrace | None,
    lengths: Mapping[RecordKind, Lengths],
    machine: Machine,
    setup: Setup,
    *,
    with_time: bool,
) -> StageEstimate:
    trace = report.stages[stage]
    need = extrapolate(trace)
    phases = measure_phases(need, setup)
    worst = find_peak(phases)
    taken = add_overhead(
        worst,
        on_gpu=machine.gpu is not None,
        processes=setup.processes,
        resident=report.resident,
        in_bfloat16=settle_precision(recipe, on_gpu=machine.gpu is not None) == "bfloat16",
    )
    taken *= 1 if machine.gpu else setup.per_node  # processes of one machine share its memory
    parts: list[Spent] = []
    limits = (recipe.tokens.max_prompt_tokens, recipe.tokens.max_response_tokens)
    amounts = list_parts(recipe.settings(stage), lengths, limits, setup.processes)
    saves = _count_saves(recipe.settings(stage), amounts["train"].steps["optimizer"] if "train" in amounts else 0.0)
    if with_time:
        step_s = 0.0 if stage == "ppo" else TRAINER_STEP_S
        for name, amount in amounts.items():
            if machine.gpu is not None:
                parts.append(time_on_gpus(name, amount, need, trace.tokens, machine.gpu, setup, _count_kv(need, trace)))
            elif timed is not None:
                parts.append(time_measured(name, amount, extrapolate(timed), timed.tokens, setup.processes, step_s))
        if timed is not None:
            parts.append(Spent("start", report.import_s, "importing libraries"))
    return StageEstimate(stage, need, setup, phases, judge(taken, machine.memory), parts, measure_most(need.checkpoint, need.output, saves))


def _count_kv(need: Depth, trace: StageTrace) -> float:
    """Bytes of keys and values of one token: what a rollout's cache grows by, as it was traced."""
    for prefix in ("rollout/", "answers/"):
        if f"{prefix}prefill" in need.phases:
            first, later = need.phases[f"{prefix}prefill"], need.phases.get(f"{prefix}widen")
            if later is not None:
                return max(later.start - first.start, 0) / max(trace.tokens[f"{prefix}prefill"], 1)
    return 0.0


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
        most, stage = max((sum(phase.host.values()), each.stage) for each in made for phase in each.phases)
        yield f"each machine needs {format_bytes(most * recipe.hardware.processes)} of main memory, most in {stage}"
    if any(each.stage == "ppo" for each in made) and recipe.ppo.rollout.engine == "vllm":
        yield "ppo's responses come from vLLM: the time in which it makes them, its GPUs' memory and their price are not in this estimate"
    unread: list[RecordKind] = [kind for kind in KINDS if kind in kinds and not lengths[kind].known]
    if unread:
        uncounted = [kind for kind in unread if lengths[kind].records is None and kind != "prompts"]
        yield f"{', '.join(unread)} are not on this machine: taken as long as `tokens` allows"
        if uncounted:
            missing = f"how many {' and '.join(uncounted)} there are is not known, and so no time of what reads them"
            yield f"{missing}; give --records {uncounted[0]}=NUMBER"
    if machine.gpu is None:
        yield f"times are by what this machine takes now: all within a factor of {SPREAD_MEASURED:g}, one stage within {SPREAD_TABLE:g}"
    else:
        yield f"times are by the data sheet and a stated share of it: within a factor of {SPREAD_TABLE:g}"
    if machine.gpu is not None and machine.price is None:
        yield "no price is known; give hardware.price_per_gpu_hour"


def parse_records(given: Iterable[str]) -> dict[str, int]:
    """Read `--records demonstrations=200000`.

    Raises:
        ConfigError: It is something else.
    """
    counts: dict[str, int] = {}
    for text in given:
        kind, _, number = text.partition("=")
        if kind not in KINDS or not number.replace("_", "").isdigit():
            raise ConfigError([f"--records: found {text!r:.60}, needed {' or '.join(KINDS)} = a number, such as demonstrations=200000"])
        counts[kind] = int(number)
    return counts


def find_memory() -> float:
    """Bytes of this machine's memory."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
