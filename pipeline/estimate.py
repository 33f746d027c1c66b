"""A recipe and a machine -> what each stage needs of memory and disk, how long it takes, what that costs; nothing is run.

recipe -> stages.tracing, a process -> bytes and operations of each phase -> pipeline.cost, equations -> Estimate
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from data.schema import KINDS, RecordKind
from pipeline.cost.amounts import Lengths
from pipeline.cost.machines import GPU, GPUS
from pipeline.cost.memory import PhaseMemory, find_peak, measure_phases
from pipeline.cost.plan import list_parts
from pipeline.cost.setup import Setup
from pipeline.cost.times import Spent, time_measured, time_on_gpus
from pipeline.cost.traced import extrapolate
from pipeline.cost.verdict import Verdict, add_overhead, judge
from pipeline.errors import ConfigError, StoreError
from pipeline.inputs.demo import demo_seeds, locate, locate_splits, make_demo
from pipeline.launch.environment import stage_environment
from pipeline.recipe.schema import Recipe
from stages.blocks import HardwareSettings
from stages.spec import EXIT_FAILED, STAGES, DataSplits, StageName, data_inputs
from stages.tracing.report import Depth, StageTrace, TraceReport, TraceSpec

_LIMIT_S = 900


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
        checkpoint: Bytes of one on the disk.
        output: Bytes of the artifact.
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


def make_setup(recipe: Recipe, *, on_gpu: bool) -> Setup:
    """Say what computes together, as `stages.process.engine.choose_engine` will."""
    hardware = recipe.hardware
    processes = hardware.processes * hardware.nodes
    wants_zero = hardware.engine == "deepspeed" or (hardware.engine == "auto" and processes > 1 and on_gpu)
    engine: Literal["none", "ddp", "deepspeed"]
    engine = "deepspeed" if wants_zero and hardware.zero_stage > 0 else "ddp" if processes > 1 else "none"
    return Setup(
        engine, processes, hardware.processes, hardware.zero_stage, hardware.offload_optimizer, hardware.offload_parameters, on_gpu
    )


def ask_trace(
    recipe: Recipe,
    stages: Iterable[StageName],
    store_root: Path,
    *,
    on_gpu: bool,
    measure: bool = False,
    lengths: Mapping[RecordKind, Lengths] | None = None,
) -> TraceReport:
    """Have the stages traced in a process of their own.

    Args:
        recipe: Resolved recipe.
        stages: That are traced.
        store_root: Where its demo lies, or will.
        on_gpu: Whether a GPU's kernels will run.
        measure: Take times with real weights instead of counting bytes; records are then as long as `lengths` says.
        lengths: Of the record sets.

    Raises:
        StoreError: It cannot, in one line and with the exit code of why.
    """
    setup = make_setup(recipe, on_gpu=on_gpu)
    hardware, tokens = recipe.hardware, recipe.tokens
    precision = hardware.precision if hardware.precision != "auto" else "bfloat16" if on_gpu else _settle_precision()
    if measure and lengths:
        demonstrations = lengths.get("demonstrations")
        if demonstrations:
            tokens = tokens.model_copy(
                update={
                    "max_prompt_tokens": max(round(demonstrations.prompt), 1),
                    "max_response_tokens": max(round(demonstrations.response), 1),
                }
            )
    with tempfile.TemporaryDirectory(prefix="rlhf-cost-") as directory:
        place = Path(directory)
        root = _find_demo(recipe, store_root, place)
        path = place / "report.json"
        spec = TraceSpec(
            base_model=locate(recipe.base_model, root),
            revision=recipe.revision,
            tokens=tokens,
            hardware=hardware.model_copy(update={"precision": precision, "engine": setup.engine}),
            stages={stage: recipe.settings(stage).model_dump(mode="json") for stage in stages},
            processes=setup.processes,
            shares=setup.engine == "deepspeed",
            on_gpu=on_gpu,
            data={} if measure else _find_local(recipe, stages, root),
            answers=round(lengths["comparisons"].answers) if lengths and "comparisons" in lengths and lengths["comparisons"].known else 2,
            measure=measure,
            report_path=path,
        )
        (place / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "stages.tracing", str(place / "spec.json")]
        environment, _ = stage_environment("", offline=Path(spec.base_model).is_absolute())
        try:
            done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", errors="replace", timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise StoreError(f"plan --cost: the trace took more than {_LIMIT_S} s; give fewer stages with --only", EXIT_FAILED) from None
        if not path.exists():
            last = (done.stderr.strip().splitlines() or ["it left no report"])[-1]
            raise StoreError(f"plan --cost: the trace failed: {last:.300}", EXIT_FAILED)
        report = TraceReport.model_validate_json(path.read_text(encoding="utf-8"))
    if report.error:
        raise StoreError(f"plan --cost: {report.error}", done.returncode or EXIT_FAILED)
    return report


def _settle_precision() -> Literal["float32", "bfloat16"]:
    """Say what `auto` will be on this CPU, by the flags that the kernel tells; see `stages.process.machine`."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "float32"
    return "bfloat16" if any(name in flags for name in ("avx512_bf16", "amx_bf16", " bf16")) else "float32"


def _find_demo(recipe: Recipe, store_root: Path, place: Path) -> Path:
    """Find the demo of a store, or make it in a temporary place: planning leaves a store as it is."""
    seeds = demo_seeds(recipe)
    if all(make_demo(store_root, seed, may_write=False).is_dir() for seed in seeds):
        return store_root
    for seed in seeds:
        make_demo(place, seed)
    return place


def _find_local(recipe: Recipe, stages: Iterable[StageName], root: Path) -> dict[RecordKind, DataSplits]:
    """List the sources that lie on this machine; those of a hub are not fetched to be counted."""
    kinds = {kind for stage in stages for kind in data_inputs(stage, recipe.settings(stage))} | {"demonstrations"}
    found: dict[RecordKind, DataSplits] = {}
    for kind in KINDS:
        splits = cast("DataSplits | None", getattr(recipe.data, kind))
        if kind not in kinds or splits is None:
            continue
        located = locate_splits(splits, root)
        if all(Path(source.path).is_absolute() and Path(source.path).exists() for source in (located.train, located.eval) if source):
            found[kind] = located
    return found


def find_lengths(recipe: Recipe, report: TraceReport, counts: Mapping[str, int]) -> dict[RecordKind, Lengths]:
    """Say how long records are: as they were read; else as long as the limits allow.

    Args:
        recipe: Resolved recipe.
        report: That read them.
        counts: Kind -> how many records to train on, as the user says (`--records`).
    """
    found: dict[RecordKind, Lengths] = {}
    limits = recipe.tokens
    for kind in KINDS:
        read = report.lengths.get(kind)
        count = counts.get(kind)
        if read is None:
            answers = 2.0 if kind == "comparisons" else 1.0
            found[kind] = Lengths(count, limits.max_prompt_tokens, 0 if kind == "prompts" else limits.max_response_tokens, answers)
        else:
            left = read.records if read.held_out else read.records - min(2000, round(read.records * recipe.data.eval_fraction))
            found[kind] = Lengths(count or left, read.prompt, read.response, read.answers, known=True)
    return found


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
    return Estimate(machine, setup.processes, made, lengths, list(_list_notes(recipe, chosen, lengths, machine)))


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
    taken = add_overhead(worst, on_gpu=machine.gpu is not None, processes=setup.processes, resident=report.resident)
    taken *= 1 if machine.gpu else setup.per_node  # processes of one machine share its memory
    parts: list[Spent] = []
    if with_time:
        limits = (recipe.tokens.max_prompt_tokens, recipe.tokens.max_response_tokens)
        for name, amount in list_parts(recipe.settings(stage), lengths, limits, setup.processes).items():
            if machine.gpu is not None:
                parts.append(time_on_gpus(name, amount, need, trace.tokens, machine.gpu, setup, _count_kv(need, trace)))
            elif timed is not None:
                parts.append(time_measured(name, amount, extrapolate(timed), timed.tokens, setup.processes))
        if timed is not None:
            parts.append(Spent("start", 2 * report.import_s, f"importing libraries twice as long as {report.import_s:.1f} s of computing"))
    return StageEstimate(stage, need, setup, phases, judge(taken, machine.memory), parts, _count_disk(need))


def _count_kv(need: Depth, trace: StageTrace) -> float:
    """Bytes of keys and values of one token: what a rollout's cache grows by, as it was traced."""
    for prefix in ("rollout/", "answers/"):
        if f"{prefix}prefill" in need.phases:
            first, later = need.phases[f"{prefix}prefill"], need.phases.get(f"{prefix}widen")
            if later is not None:
                return max(later.start - first.start, 0) / max(trace.tokens[f"{prefix}prefill"], 1)
    return 0.0


def _count_disk(need: Depth) -> int:
    """Bytes at the most while a stage runs: three checkpoints at once, or two and the artifact; see `stages.process.room`."""
    return max(3 * need.checkpoint, 2 * need.checkpoint + need.output)


def _list_notes(recipe: Recipe, stages: Iterable[StageName], lengths: Mapping[RecordKind, Lengths], machine: Machine) -> Iterable[str]:
    kinds = {kind for stage in stages for kind in data_inputs(stage, recipe.settings(stage))}
    unread: list[RecordKind] = [kind for kind in KINDS if kind in kinds and not lengths[kind].known]
    if unread:
        uncounted = [kind for kind in unread if lengths[kind].records is None and kind != "prompts"]
        limits = "tokens.max_prompt_tokens and max_response_tokens"
        yield f"{', '.join(unread)} are not on this machine: records are taken to be as long as {limits} allow"
        if uncounted:
            missing = f"how many {' and '.join(uncounted)} there are is not known, and so no time of what reads them"
            yield f"{missing}; give --records {uncounted[0]}=NUMBER"
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
