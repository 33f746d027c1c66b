"""Start and end of every stage process: spec in, signals, seeds, events, result out, exit code.

SPEC.json -> run_stage(main) -> main(context) -> StageResult -> result.json, exit code
"""

import argparse
import errno
import json
import logging
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from data.schema import DataError
from stages.spec import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_RESOURCE,
    EXIT_USAGE,
    METRICS_FILE,
    RESULT_FILE,
    SAME_WISH_S,
    STAGES,
    EventName,
    StageResult,
    StageSpec,
    append_event,
    read_spec,
)

# peft opens bitsandbytes wherever it is installed, which then misses a kernel that it would download: a line in every log.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


class StageError(Exception):
    """A stage cannot go on; the message says found + needed + do, the exit code says of which kind (stages.spec)."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(BaseException):
    """A stop signal was honoured; what could be saved is saved. Not an Exception: no `except Exception` may swallow it."""


class StageContext:
    """What a stage uses of the process around it: its spec, its voice (events, metrics) and the wish to stop."""

    def __init__(self, spec: StageSpec) -> None:
        self.spec = spec
        self.rank = int(os.environ.get("RANK", "0"))
        self.is_main = self.rank == 0
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self._stop_signal: int | None = None
        self._stop_s = 0.0
        self._stopping_at_step_end = False
        self._metrics_path = spec.checkpoint_dir / METRICS_FILE

    def event(self, name: EventName, **fields: Any) -> None:
        """Append one event; only the main process speaks, but for an error, which may be of one rank alone."""
        if self.is_main or name == "error":
            append_event(self.spec.events_path, name, **fields)

    def note(self, message: str) -> None:
        """Say something that the user should see: in the log, on the terminal and in the events."""
        if self.is_main:
            print(f"note: {message}", file=sys.stderr, flush=True)
        self.event("note", message=message)

    def write_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Append one row to metrics.jsonl; kept beside the checkpoints, so that rows survive a resume."""
        if self.is_main:
            with self._metrics_path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": step, **metrics}) + "\n")

    def progress(self, phase: str, step: int, total: int, metrics: dict[str, float]) -> None:
        """Report how far the stage is, with the figures of the moment."""
        self.event("progress", phase=phase, step=step, total=total, metrics=metrics)

    def rewind_metrics(self, step: int) -> None:
        """Drop the metric rows after `step`: the resumed run writes them again."""
        if not self.is_main or not self._metrics_path.exists():
            return
        kept: list[str] = []
        for line in self._metrics_path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except ValueError:  # the torn last line of a killed process
                continue
        temporary = self._metrics_path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self._metrics_path)

    @property
    def stop_requested(self) -> bool:
        """True once SIGTERM or SIGINT came: save at the end of this step and raise `Interrupted`."""
        return self._stop_signal is not None

    @contextmanager
    def stops_at_step_end(self) -> Iterator[None]:
        """Inside, a stop signal only sets `stop_requested`; outside, it ends the process at once."""
        self._stopping_at_step_end = True
        try:
            yield
        finally:
            self._stopping_at_step_end = False
        if self.stop_requested:
            raise Interrupted

    def install_signal_handlers(self) -> None:
        """First SIGTERM / SIGINT: graceful; second: leave at once."""

        def handle(number: int, _frame: FrameType | None) -> None:
            if self._stop_signal is not None:
                if number == signal.SIGTERM and time.monotonic() - self._stop_s < SAME_WISH_S:
                    return
                os._exit(128 + number)
            self._stop_signal, self._stop_s = number, time.monotonic()
            if not self._stopping_at_step_end:
                raise Interrupted

        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)

    @property
    def interrupted_exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM."""
        return 128 + (self._stop_signal or signal.SIGTERM)


def run_stage(name: str, main: Callable[[StageContext], StageResult]) -> NoReturn:
    """Run one stage as a process: `python -P -m stages.<name> SPEC.json`."""
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
    context = StageContext(spec)
    context.install_signal_handlers()
    _exit(_run(context, main))


def _run(context: StageContext, main: Callable[[StageContext], StageResult]) -> int:
    from stages.distributed import leave

    try:
        start_process(context)
        result = main(context)
        if context.is_main:
            _leave_result(context, result)
        leave()
        return EXIT_OK
    except Interrupted:
        print("interrupted: saved; run the same command to go on", file=sys.stderr)
        return context.interrupted_exit_code
    except StageError as error:
        return _fail(context, str(error), error.exit_code)
    except DataError as error:
        return _fail(context, str(error), EXIT_USAGE)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            return _fail(context, _describe_disk_error(context, error), EXIT_RESOURCE)
        traceback.print_exc()
        return _fail(context, f"{type(error).__name__}: {error}", EXIT_FAILED)
    except Exception as error:
        traceback.print_exc()
        out_of_memory = is_out_of_memory(error)
        advice = f"; lower {STAGES[context.spec.stage].memory_keys}, or set gradient_checkpointing: true" if out_of_memory else ""
        return _fail(context, f"{type(error).__name__}: {error}{advice}", EXIT_RESOURCE if out_of_memory else EXIT_FAILED)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the memory of the machine or of the GPU did not suffice."""
    cpu_allocator = isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or cpu_allocator


def start_process(context: StageContext) -> None:
    """Seed every generator, set threads, quieten libraries, and join the other processes if there are any."""
    import torch
    import transformers
    from accelerate.utils import set_seed  # that of transformers imports peft, and with it bitsandbytes

    from stages.distributed import join
    from stages.precision import note_slow_bfloat16

    hardware = context.spec.hardware
    if hardware.threads:
        torch.set_num_threads(hardware.threads)
        os.environ["OMP_NUM_THREADS"] = str(hardware.threads)  # without it, accelerate sets another number for several processes
    if hardware.device == "cuda" and not torch.cuda.is_available():
        raise StageError("hardware.device = cuda, but torch finds no GPU here; set hardware.device: auto", EXIT_USAGE)
    check_rules(context)
    join(context)
    set_seed(context.spec.seed)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    note_slow_bfloat16(context)


def check_rules(context: StageContext) -> None:
    """Refuse what the stage cannot do, before anything is loaded.

    Raises:
        StageError: with all that is refused; exit code 2.
    """
    from stages.distributed import choose_engine
    from stages.rules import find_refusals

    spec = context.spec
    found = find_refusals(spec.stage, spec.settings, spec.hardware, engine=choose_engine(context), num_processes=context.world_size)
    if refused := [f"{key}: {message}" for key, message in found]:
        raise StageError(" | ".join(refused), EXIT_USAGE)


def uses_gpu(context: StageContext) -> bool:
    """Whether this stage computes on a GPU."""
    import torch

    return context.spec.hardware.device != "cpu" and torch.cuda.is_available()


def device_name(context: StageContext) -> str:
    """Name the device for people: the GPU's model or `cpu`."""
    import torch

    return torch.cuda.get_device_name() if uses_gpu(context) else f"cpu ({torch.get_num_threads()} threads)"


def _leave_result(context: StageContext, result: StageResult) -> None:
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


def _describe_disk_error(context: StageContext, error: OSError) -> str:
    free = shutil.disk_usage(context.spec.output_dir).free
    return (
        f"{error.filename or context.spec.output_dir}: {error.strerror}; {free:,} bytes are free there; free some space or change `store`"
    )


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # A multi-process run may abort in a C++ destructor after all work is done; nothing is left to clean up here.
        os._exit(code)
    sys.exit(code)
