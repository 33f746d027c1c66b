"""A recipe's stages -> what they need, traced by a process of its own: the pipeline itself knows no tensors."""

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal, cast

from data.schema import KINDS, RecordKind
from data.system.limits import count_cores, find_memory
from pipeline.cost.amounts import Lengths
from pipeline.cost.machines import GPU
from pipeline.cost.plan import count_kept
from pipeline.cost.setup import Setup
from pipeline.errors import ConfigError, StoreError
from pipeline.inputs.demo import demo_seeds, locate, locate_splits, make_demo
from pipeline.launch.dialogue import last_said, run_program
from pipeline.launch.environment import read_threads
from pipeline.launch.failure import describe_kill
from pipeline.recipe.schema import Recipe
from stages.process.places import hides_bfloat16
from stages.spec import EXIT_FAILED, DataSplits, StageName, data_inputs
from stages.tracing.report import TraceReport, TraceSpec

_LIMIT_S = 900


def make_setup(recipe: Recipe, gpu: GPU | None) -> Setup:
    """Say what computes together, as `stages.process.engine.choose_engine` will."""
    hardware = recipe.hardware
    processes = hardware.processes * hardware.nodes
    wants_zero = hardware.engine == "deepspeed" or (hardware.engine == "auto" and processes > 1 and gpu is not None)
    engine: Literal["none", "ddp", "deepspeed"]
    engine = "deepspeed" if wants_zero and hardware.zero_stage > 0 else "ddp" if processes > 1 else "none"
    return Setup(
        engine,
        processes,
        hardware.processes,
        hardware.zero_stage,
        hardware.offload_optimizer,
        hardware.offload_parameters,
        gpu is not None,
        settle_precision(recipe, gpu),
        hardware.tf32,
    )


def ask_trace(
    recipe: Recipe,
    stages: Iterable[StageName],
    store_root: Path,
    *,
    gpu: GPU | None,
    timed: bool = False,
    told: Callable[[str], None] = lambda line: None,
) -> TraceReport:
    """Have the stages traced in a process of their own.

    Args:
        recipe: Resolved recipe.
        stages: That are traced.
        store_root: Where its demo lies, or will.
        gpu: Whose kernels will run; None: this machine's CPU.
        timed: Whether they are run with real weights too, to see how many seconds they take on this machine's CPU.
        told: Hears every second how far it is; empty: it has not begun.

    Raises:
        StoreError: It cannot, in one line and with the exit code of why.
    """

    def hear(line: str) -> None:
        told(line if line.startswith(("tracing ", "measuring ")) else "")  # libraries print too

    setup = make_setup(recipe, gpu)
    hardware = recipe.hardware
    with tempfile.TemporaryDirectory(prefix="rlhf-cost-") as directory:
        place = Path(directory)
        root = _find_demo(recipe, store_root, place)
        path = place / "report.json"
        at_once, threads = _count_at_once(setup, hardware.threads) if timed else (1, hardware.threads)
        spec = TraceSpec(
            base_model=locate(recipe.base_model, root),
            revision=recipe.revision,
            tokens=recipe.tokens,
            hardware=hardware.model_copy(update={"precision": setup.precision, "engine": setup.engine, "threads": threads}),
            stages={stage: recipe.settings(stage).model_dump(mode="json") for stage in stages},
            reward_lora=recipe.rm.lora if "rm" in recipe.stages else None,
            processes=setup.processes,
            kept=count_kept(recipe.ppo),
            shares=setup.engine == "deepspeed",
            on_gpu=gpu is not None,
            data=_find_local(recipe, stages, root),
            timed=timed,
            at_once=at_once,
            memory=int(find_memory()) // at_once,
            report_path=path,
        )
        limit_s = 2 * _LIMIT_S if timed else _LIMIT_S
        (place / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
        try:
            offline = Path(spec.base_model).is_absolute()
            done = run_program("stages.tracing", str(place / "spec.json"), offline=offline, limit_s=limit_s, told=hear)
        except subprocess.TimeoutExpired:
            raise StoreError(f"plan --cost: the trace took more than {limit_s} s; give fewer stages with --only", EXIT_FAILED) from None
        if not path.exists():
            raise StoreError(f"plan --cost: the trace failed: {_describe_end(done)}", EXIT_FAILED)
        report = TraceReport.model_validate_json(path.read_text(encoding="utf-8"))
    if report.error:
        raise StoreError(f"plan --cost: {report.error}", done.returncode or EXIT_FAILED)
    return report


def _describe_end(done: "subprocess.CompletedProcess[str]") -> str:
    """Say in one line why a trace left no report."""
    return describe_kill(-done.returncode) if done.returncode < 0 else last_said(done)[:300] or "it left no report"


def count_turns(setup: Setup, threads: int) -> float:
    """Say how many processes take turns on a core of this machine, where they are more than it has cores for."""
    return max(setup.per_node * _settle_threads(setup, threads) / count_cores(), 1.0)


def _count_at_once(setup: Setup, threads: int) -> tuple[int, int]:
    """Say how many processes measure at once, as will compute at once on this machine, and by how many threads each."""
    threads = _settle_threads(setup, threads)
    return max(min(setup.per_node, count_cores() // max(threads, 1)), 1), threads


def _settle_threads(setup: Setup, threads: int) -> int:
    """Say by how many threads each process computes on a CPU, as torchrun starts several; 0: one process, by torch's default."""
    if threads or setup.per_node == 1:
        return threads
    return read_threads(os.environ) or 1


def settle_precision(recipe: Recipe, gpu: GPU | None, cpu: Path = Path("/proc/cpuinfo")) -> Literal["float32", "bfloat16"]:
    """Say what `hardware.precision: auto` will be: on this CPU by the flags that the kernel tells; see `stages.process.machine`."""
    if recipe.hardware.precision != "auto":
        return recipe.hardware.precision
    if gpu is not None:
        return "bfloat16" if gpu.has_bfloat16 else "float32"
    try:
        flags = cpu.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "float32"
    has_instructions = any(name in flags for name in ("avx512_bf16", "amx_bf16", " bf16"))
    return "bfloat16" if has_instructions and not hides_bfloat16(os.environ) else "float32"


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
            split_off = 0 if read.held_out else min(2000, round(read.records * recipe.data.eval_fraction))
            held_out = float(read.held_out or split_off)
            found[kind] = Lengths(
                count or read.records - split_off, read.prompt, read.response, read.answers, held_out, True, tuple(read.quantiles)
            )
    return found


def parse_records(given: Iterable[str]) -> dict[str, int]:
    """Read `--records demonstrations=200000`.

    Raises:
        ConfigError: It is something else.
    """
    counts: dict[str, int] = {}
    for text in given:
        kind, _, number = text.partition("=")
        digits = number.replace("_", "")
        if kind not in KINDS or not re.fullmatch(r"[1-9][0-9]{0,14}", digits):
            raise ConfigError([f"--records: found {text!r:.60}, needed {' or '.join(KINDS)} = a number, such as demonstrations=200000"])
        if counts.get(kind, int(digits)) != int(digits):
            raise ConfigError([f"--records: found {kind} = {counts[kind]} and {digits}, needed one number; leave one out"])
        counts[kind] = int(digits)
    return counts
