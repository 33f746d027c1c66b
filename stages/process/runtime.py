"""Start and end of every stage process: spec in, signals, seeds, events, result out, exit code.

SPEC.json -> run_stage(main) -> main(context) -> StageResult -> result.json, exit code
"""

import argparse
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import huggingface_hub
import torch
import transformers
from accelerate.utils import set_seed  # that of transformers imports peft, and with it bitsandbytes

from data.schema import DataError
from data.secrets import redact_values
from data.system.limits import describe_exhausted
from stages.process.checkpoint import drop_unfinished
from stages.process.context import StageContext
from stages.process.disk import describe_refusal, find_refusal
from stages.process.distributed import join, leave
from stages.process.engine import choose_engine
from stages.process.errors import Interrupted, StageError, is_out_of_memory
from stages.process.gpu import explain_no_gpu, find_unused_gpu, finds_gpu, prepare_gpu, require_working_gpu
from stages.process.machine import measure_peak_memory, settle_precision
from stages.process.output import redact_streams
from stages.process.places import clear_leftovers, find_misplacement, find_missing_gpus, limit_threads, needs_launcher
from stages.result import StageResult
from stages.rules import find_refusals
from stages.spec import EXIT_FAILED, EXIT_OK, EXIT_RESOURCE, EXIT_USAGE, METRICS_FILE, RESULT_FILE, STAGES, read_spec
from stages.warnings.told import read_told


def run_stage(name: str, main: Callable[[StageContext], StageResult]) -> NoReturn:
    """Run one stage as a process: `python -P -m stages.<name> SPEC.json`."""
    redact_streams()
    parser = argparse.ArgumentParser(prog=f"python -P -m stages.{name}", description=f"Run the {name} stage by hand from its spec.")
    parser.add_argument("spec", type=Path, help="StageSpec as JSON; the pipeline writes one per run and prints its path")
    arguments = parser.parse_args()
    try:
        spec = read_spec(arguments.spec)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{arguments.spec}: not a stage spec: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    spec.output_dir.mkdir(parents=True, exist_ok=True)
    spec.checkpoint_dir.mkdir(parents=True, exist_ok=True)
    left_out = clear_leftovers(os.environ, launched=needs_launcher(spec.hardware))
    context = StageContext(spec)
    if left_out:
        context.note(f"ignored in the environment, which another launcher left there: {', '.join(left_out)}")
    context.install_signal_handlers()
    _exit(_run(context, main))


def _run(context: StageContext, main: Callable[[StageContext], StageResult]) -> int:
    try:
        start_process(context)
        result = main(context)
        if context.is_main:
            leave_result(context, result)
        leave()
        return EXIT_OK
    except Interrupted:
        print("interrupted; the same command goes on from the last checkpoint, or begins anew where there is none", file=sys.stderr)
        return context.interrupted_exit_code
    except StageError as error:
        return _fail(context, str(error), error.exit_code)
    except DataError as error:
        return _fail(context, str(error), EXIT_USAGE)
    except Exception as error:
        if (number := find_refusal(error)) is not None:
            message = describe_refusal(context, error, number)
            if context.is_main:
                drop_unfinished(context.spec.checkpoint_dir)
            return _fail(context, message, EXIT_RESOURCE)
        traceback.print_exc()
        if exhausted := describe_exhausted(error):
            return _fail(context, f"{error}: {exhausted}", EXIT_RESOURCE)
        out_of_memory = is_out_of_memory(error)
        row = STAGES[context.spec.stage]
        advice = f"; lower {row.memory_keys}{', or set gradient_checkpointing: true' if row.leaves_model else ''}" if out_of_memory else ""
        return _fail(context, f"{type(error).__name__}: {error}{advice}", EXIT_RESOURCE if out_of_memory else EXIT_FAILED)


def start_process(context: StageContext) -> None:
    """Seed every generator, set threads, quieten libraries, and join the other processes if there are any."""
    hardware = context.spec.hardware
    if threads := hardware.threads or limit_threads(os.environ):
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # without it, accelerate sets another number for several processes
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if missing := find_missing_gpus(hardware, num_gpus, os.environ):
        raise StageError(missing if num_gpus else f"{missing} ({explain_no_gpu()})", EXIT_USAGE)
    check_rules(context)
    if unused := find_unused_gpu(hardware):
        context.note(unused)
    if hardware.tf32 and not (finds_gpu(hardware) and torch.cuda.is_tf32_supported()):
        context.note("hardware.tf32 = true is not used: it is a GPU's, of compute capability 8.0 or newer")
    if finds_gpu(hardware) and torch.version.hip is not None:
        context.note("this GPU is AMD's, on which nothing of this was tried")
    prepare_gpu(hardware)
    if needs_launcher(hardware) and (misplaced := find_misplacement(hardware, os.environ)):
        raise StageError(misplaced, EXIT_USAGE)
    join(context)
    require_working_gpu(hardware)
    settle_precision(context)
    set_seed(context.spec.seed)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # read when TRL sends; a stage started by hand has no environment of ours


def check_rules(context: StageContext) -> None:
    """Refuse what the stage cannot do, before anything is loaded.

    Raises:
        StageError: with all that is refused; exit code 2.
    """
    spec = context.spec
    engine = choose_engine(context).name
    found = find_refusals(spec.stage, spec.settings, spec.hardware, engine=engine, num_processes=context.world_size, judge=spec.judge)
    if refused := [f"{key}: {message}" for key, message in found]:
        raise StageError(" | ".join(refused), EXIT_USAGE)


def leave_result(context: StageContext, result: StageResult) -> None:
    told = {"warnings": context.warnings, "notes": read_told(context.spec.events_path).notes}
    result = StageResult.model_validate(redact_values(result.model_copy(update=told).model_dump()))  # a judge names its figures
    result = result.model_copy(update={"metrics": result.metrics | {"peak_memory_bytes": float(measure_peak_memory())}})
    output_dir = context.spec.output_dir
    if context.spec.checkpoint_dir.joinpath(METRICS_FILE).exists():
        shutil.copyfile(context.spec.checkpoint_dir / METRICS_FILE, output_dir / METRICS_FILE)
    temporary = output_dir / (RESULT_FILE + ".tmp")
    temporary.write_text(result.model_dump_json(indent=2), encoding="utf-8")
    temporary.replace(output_dir / RESULT_FILE)
    context.event("end", metrics=result.metrics)


def _fail(context: StageContext, message: str, exit_code: int) -> int:
    message = message if context.is_main else f"rank {context.rank}: {message}"
    print(f"error: {message}", file=sys.stderr)
    try:
        context.event("error", message=message, exit_code=exit_code)
    except OSError:  # a full disk: the exit code and stderr still tell
        print("the error could not be written to the event log either", file=sys.stderr)
    return exit_code


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # A multi-process run may abort in a C++ destructor after all work is done; nothing is left to clean up here.
        os._exit(code)
    sys.exit(code)
