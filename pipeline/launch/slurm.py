"""`rlhf run --slurm`: a job for each stage, each after the one before, and their output as it comes.

recipe -> one batch script per stage -> sbatch, in a chain -> follow -> the exit code of the first job that failed

A job is `rlhf run --only STAGE` inside an allocation: it launches, resumes and publishes as anywhere else, so the jobs go on when whoever
submitted them leaves, and a job that is preempted, requeued or out of time goes on from its last checkpoint.
"""

import hashlib
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.errors import ConfigError, SlurmError
from pipeline.store.disk import make_directories, writing
from pipeline.store.parts import SLURM_DIR
from stages.blocks import HardwareSettings
from stages.spec import EXIT_FAILED, EXIT_OK, StageName

_GENERATED = "# Written by rlhf run --slurm, and written anew each time; delete this line to keep what you change."
_SAVE_S = 120  # before the end of a job's time: it saves, and is queued again
_POLL_S = 2.0
_OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")

_SCRIPT = """#!/bin/bash
{generated}
{options}
# Out of time: save and queue again. A preempted job gets SIGTERM, which is passed on; SLURM queues it again by itself.
again=no
trap 'again=yes; kill -TERM "$child"' USR1
trap 'kill -TERM "$child"' TERM
cd {directory} || exit 1
{command} &
child=$!
wait "$child"; code=$?
while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
if [ "$again" = yes ] && [ "$code" = 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""


def run_by_slurm(
    hardware: HardwareSettings, store_root: Path, stages: Sequence[StageName], arguments: Sequence[str], say: Callable[[str], None]
) -> int:
    """Submit the stages, or find the jobs of an earlier call, and follow them to their end.

    Args:
        hardware: the recipe's block.
        store_root: where the scripts and the output of the jobs are kept, under `slurm/`.
        stages: to run, in order.
        arguments: of `rlhf run` for each of them, but for the stage.
        say: prints a line.

    Returns:
        The exit code of the first job that failed, or 0.

    Raises:
        ConfigError: the store's path is none that a batch script can hold.
        SlurmError: SLURM's commands are not here (exit 2), or refuse (exit 5).
    """
    directory = (store_root / SLURM_DIR).resolve()
    if not str(directory).isprintable() or "\\" in str(directory):
        found = (
            f"--store: found {str(store_root)!r}, needed a path without line breaks, control characters and backslashes, which SLURM reads"
        )
        raise ConfigError([f"{found} otherwise; choose another store, or run without --slurm"])
    with writing(directory):
        make_directories(directory)
    jobs: dict[str, Path] = {}
    before: str | None = None
    for stage in stages:
        name = _job_name(stage, store_root, arguments)
        output = directory / f"{name}.out"
        job = _find_job(name)
        if job is None:
            script = write_script(hardware, stage, directory, output, name, arguments)
            after = [f"--dependency=afterok:{before}", "--kill-on-invalid-dep=yes"] if before else []
            output.unlink(missing_ok=True)
            job = read_job("sbatch", _call("sbatch", "--parsable", *after, str(script)).strip().split(";")[0])
            say(f"{stage}: job {job}, script {script}")
        else:
            say(f"{stage}: job {job}, submitted earlier")
        jobs[job], before = output, job
    return _follow(jobs, say)


def write_script(hardware: HardwareSettings, stage: StageName, directory: Path, output: Path, name: str, arguments: Sequence[str]) -> Path:
    """Write a job's batch script; one that somebody made their own is left as it is."""
    path = directory / f"{name}.sbatch"
    if not path.exists() or _GENERATED in path.read_text(encoding="utf-8"):
        path.write_text(render_script(hardware, stage, output, name, arguments), encoding="utf-8")
    return path


def render_script(hardware: HardwareSettings, stage: StageName, output: Path, name: str, arguments: Sequence[str]) -> str:
    """Render a stage's batch script: what the hardware block asks for, then `hardware.sbatch`."""
    options = [
        f"--job-name={name}",
        f"--output={_escape(str(output).replace('%', '%%'))}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{_SAVE_S}",
    ]
    options += [f"--nodes={hardware.nodes}", "--ntasks-per-node=1"]
    options += [f"--cpus-per-task={hardware.threads * hardware.processes}"] if hardware.threads else []
    options += [f"--gpus-per-node={hardware.processes}"] if hardware.device == "cuda" else []
    options += hardware.sbatch
    command = [sys.executable, "-P", "-m", "pipeline.cli", "run", *arguments, "--only", stage]
    return _SCRIPT.format(
        generated=_GENERATED,
        options="\n".join(f"#SBATCH {option}" for option in options),
        directory=shlex.quote(str(Path.cwd())),
        command=shlex.join(command),
    )


def _escape(option: str) -> str:
    """Write a value as sbatch reads it in a script, where quotes, blanks and `#` mean something."""
    return re.sub(r"[^\w./:=@%+,-]", r"\\\g<0>", option)


def _job_name(stage: StageName, store_root: Path, arguments: Sequence[str]) -> str:
    """Name a job by what it does, so that a second call finds it."""
    what = repr((str(store_root.resolve()), list(arguments)))
    return f"rlhf-{stage}-{hashlib.sha256(what.encode()).hexdigest()[:10]}"


def _find_job(name: str) -> str | None:
    """Find a job of this name that waits or runs."""
    found = _call("squeue", "--noheader", "--name", name, "--format", "%i").split()
    return read_job("squeue", found[-1]) if found else None


def read_job(command: str, text: str) -> str:
    """Take a job's number from what a command printed."""
    if re.fullmatch(r"[0-9]{1,18}", text) is None:
        raise SlurmError(f"{command}: found {text!r:.60}, needed the number of a job; see what it prints on this machine", is_here=True)
    return text


def _follow(jobs: dict[str, Path], say: Callable[[str], None]) -> int:
    """Print what the jobs write until all are over."""
    read = dict.fromkeys(jobs, 0)
    states: dict[str, str] = {}
    while any(states.get(job) not in _OVER for job in jobs):
        for job, output in jobs.items():
            if states.get(job) in _OVER:
                continue
            fields = _describe_job(job)  # before its output is read: when it is over, all of that is there
            read[job] = _print_news(output, read[job], say)
            state = fields.get("JobState")
            if state is None:
                raise SlurmError(f"scontrol: found no JobState of job {job}, needed its state; see `scontrol show job {job}`", is_here=True)
            if state != states.get(job):
                say(f"job {job}: {state.lower()}{_why(fields) if state == 'PENDING' else ''}")
            states[job] = state
            if state in _OVER and state != "COMPLETED":
                return read_exit_code(fields)
        time.sleep(_POLL_S)
    return EXIT_OK


def _describe_job(job: str) -> dict[str, str]:
    return read_fields(_call("scontrol", "--oneliner", "show", "job", job))


def read_fields(text: str) -> dict[str, str]:
    """Read what scontrol says of a job: words such as `JobState=RUNNING`."""
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def read_exit_code(fields: Mapping[str, str]) -> int:
    """Find the exit code of a job that failed: of `ExitCode=3:0`, 3; 1 where it says none."""
    code = re.match(r"[0-9]{1,3}\b", fields.get("ExitCode", ""))
    return int(code[0]) if code is not None and EXIT_OK < int(code[0]) < 256 else EXIT_FAILED


def _why(fields: dict[str, str]) -> str:
    reason = fields.get("Reason", "None")
    return f" ({reason})" if reason != "None" else ""


def _print_news(output: Path, position: int, say: Callable[[str], None]) -> int:
    """Print the whole lines after a position; returns the position after them."""
    if not output.exists():
        return position
    with output.open("rb") as stream:
        stream.seek(position)
        whole, newline, _ = stream.read().rpartition(b"\n")
    for line in whole.decode("utf-8", "replace").split("\n") if newline else []:
        say(line)
    return position + len(whole) + len(newline)


def _call(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True)
    except OSError as error:
        message = f"{command[0]}: found no such command, needed SLURM's; run on a login node, or without --slurm"
        raise SlurmError(message, is_here=False) from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip().splitlines()
        message = f"{command[0]}: {said[-1] if said else error}; mend it, perhaps by hardware.sbatch"
        raise SlurmError(message, is_here=True) from error
    return done.stdout
