"""What each stage of a recipe needs, known from the base model's configuration alone: no weights, no data.

    python -P -m stages.tracing SPEC.json

config.json -> models of a few layers without content -> the stages' own code on them -> bytes and operations, linear in depth
and, where times are wanted -> the same with real weights -> seconds, as deep as their time allows
"""

import argparse
import gc
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoConfig

from data.system.death import die_with_parent
from stages.internals import fakes, silent_transformers
from stages.models.kernels import as_on_a_gpu
from stages.models.tokenizer import settle_tokenizer
from stages.models.weights import find_base, open_pretrained
from stages.process.errors import StageError
from stages.process.output import redact_streams
from stages.spec import EXIT_FAILED, EXIT_MISSING, EXIT_OK, STAGES, StageName
from stages.tracing.crowding import count_crowded, read_load
from stages.tracing.depths import find_depths, find_next
from stages.tracing.figures import measure_intervals
from stages.tracing.files import measure_files
from stages.tracing.job import Job, try_family
from stages.tracing.lengths import read_lengths
from stages.tracing.live import Live
from stages.tracing.peers import Peers, run_together
from stages.tracing.report import Depth, StageTrace, TraceReport, TraceSpec
from stages.tracing.resident import measure_resident
from stages.tracing.work import trace
from stages.trl.tiles import head_by_triton


def make_report(spec: TraceSpec, peers: Peers | None = None) -> TraceReport:
    """Trace all stages of a spec.

    Args:
        spec: What is traced.
        peers: Processes that measure the same at once.

    Raises:
        StageError: the base model cannot be opened, or its family cannot go through the stages.
    """
    path, revision = find_base(spec.base_model, spec.revision)
    config = _open_config(path, revision)
    vars(config).pop("quantization_config", None)
    begun_s = time.process_time()
    tried = try_family(config)
    tried_s = time.process_time() - begun_s
    mixed = "bf16" if spec.hardware.computes_in_bfloat16 else "no"
    if peers:
        peers.join()
    accelerator = Accelerator(mixed_precision=mixed, cpu=True)
    small, larger, total = find_depths(config)
    report = TraceReport(resident=0, import_s=0.0, tried_s=tried_s)
    if spec.data:
        tokenizer, _ = settle_tokenizer(spec.base_model, spec.tokens, spec.revision)
        limits = (spec.tokens.max_prompt_tokens, spec.tokens.max_response_tokens)
        report.lengths.update({kind: read_lengths(tokenizer, kind, splits, limits) for kind, splits in spec.data.items()})
        most = max(2, *(lengths.most_answers for lengths in report.lengths.values()))
        longest = {kind: lengths.longest for kind, lengths in report.lengths.items() if lengths.longest}
        largest = {kind: lengths.largest for kind, lengths in report.lengths.items() if lengths.largest}
        spec = spec.model_copy(update={"answers": most, "longest": longest, "largest": largest})
    stages: list[StageName] = [name for name in STAGES if name in spec.stages]
    for stage in stages:
        depths, tokens, took_s, clock_s = list[Depth](), dict[str, int](), list[float](), 0.0
        layers: int | None = small
        while layers:
            if peers is None or not peers.rank:
                print(f"{'measuring' if spec.measure else 'tracing'} {stage} with {layers} of {total} layers", flush=True)
            start_s, computed_s = time.perf_counter(), time.thread_time()
            job = Job(spec, stage, config, tried, layers, Live(), accelerator, peers, deepest=layers == total or len(depths) > 1)
            with (
                nullcontext() if spec.measure else fakes(),
                nullcontext() if spec.measure else job.live,
                as_on_a_gpu() if spec.on_gpu else nullcontext(),
                head_by_triton() if spec.on_gpu else nullcontext(),
            ):
                depths.append(trace(job))
            tokens = job.tokens
            took = time.thread_time() - computed_s, time.perf_counter() - start_s
            if peers:  # what they go on with must be the same for all
                took = peers.average(took[0]), peers.average(took[1])
            took_s.append(took[0])
            clock_s += took[1]
            if stage in spec.peaks:
                done, grown = [depth.layers for depth in depths], (spec.peaks[stage], spec.flops[stage])
                layers = find_next((small, larger), done, took_s, clock_s, *grown, total, spec.memory)
            else:
                layers = larger if len(depths) == 1 and larger > small else None
        intervals_s = measure_intervals(spec) if spec.measure and stage == "evaluate" else 0.0
        report.stages[stage] = StageTrace(layers=total, depths=depths, tokens=tokens, intervals_s=intervals_s)
    return report


def _open_config(path: str, revision: str | None) -> Any:
    try:
        return open_pretrained(AutoConfig, path, revision=revision)
    except StageError as error:
        if error.exit_code != EXIT_MISSING or Path(path).exists():
            raise
        needed = f"`hf download {path} config.json` where there is a network, or base_model: a directory that holds it"
        raise StageError(f"{error!s:.160}...; needed its config.json alone: {needed}", EXIT_MISSING) from error


def _failed(error: str) -> TraceReport:
    return TraceReport(resident=0, import_s=0.0, error=error)


def _answer(spec: TraceSpec) -> tuple[int, TraceReport]:
    """Trace, or measure; returns the exit code and what is reported, an error too."""
    try:
        with warnings.catch_warnings(action="ignore"), silent_transformers():
            if not spec.measure:
                return EXIT_OK, make_report(spec)
            before = read_load()
            report = run_together(spec.at_once, lambda peers: make_report(spec, peers)) if spec.at_once > 1 else make_report(spec)
            crowded = count_crowded(before, read_load(), spec.at_once * torch.get_num_threads())
            return EXIT_OK, report.model_copy(update={"crowded": crowded})
    except StageError as error:
        return error.exit_code, _failed(str(error))
    except Exception as error:
        traceback.print_exc()
        return EXIT_FAILED, _failed(f"{type(error).__name__}: {error}")


def _answer_in_a_fork(spec: TraceSpec) -> tuple[int, TraceReport]:
    """Answer in a copy of this process, which stays as it is: what measures then finds no threads, and a heap without holes."""
    fork = multiprocessing.get_context("fork")
    found, told = fork.Pipe(duplex=False)

    def work() -> None:
        die_with_parent()
        told.send(_answer(spec))

    process = fork.Process(target=work)
    process.start()
    told.close()
    try:
        return found.recv()
    except EOFError:  # so do we: whoever started us tells how it ended
        process.join()
        if (code := process.exitcode or EXIT_FAILED) < 0:
            os.kill(os.getpid(), -code)
        return code, _failed("the trace ended without a word")
    finally:
        process.join()


def main() -> int:
    """Trace what a `TraceSpec` names; returns the exit code."""
    redact_streams()
    parser = argparse.ArgumentParser(prog="python -P -m stages.tracing", description="Trace what the stages of a recipe need.")
    parser.add_argument("spec", type=Path, help="TraceSpec as JSON; the pipeline writes it")
    spec = TraceSpec.model_validate_json(parser.parse_args().spec.read_text(encoding="utf-8"))
    libraries = {"resident": measure_resident(), "import_s": time.process_time()}
    gc.freeze()  # a collection in a copy of this process would copy every page of what was imported
    if spec.hardware.threads:
        torch.set_num_threads(spec.hardware.threads)
    code, report = (_answer_in_a_fork if spec.timed else _answer)(spec)
    if spec.timed and not report.error:
        read_s, write_s = measure_files()
        code, measured = _answer(spec.to_measure(report))
        found = {"timed": measured.stages, "crowded": measured.crowded, "error": measured.error, "read_s": read_s, "write_s": write_s}
        report = report.model_copy(update=found)
    report = report.model_copy(update=libraries)
    spec.report_path.write_text(report.model_dump_json(), encoding="utf-8")
    if report.error:
        print(f"error: {report.error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
