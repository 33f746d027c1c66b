"""`run.json` in a run's directory: who ran a stage with which command, when, and how that ended; one entry for each attempt."""

import errno
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field, ValidationError

from data.secrets import redact
from pipeline.errors import StoreError, escape_controls
from pipeline.launch.failure import StageFailed, name_signal
from pipeline.store.aliases import user_name
from pipeline.store.directory import Directory
from pipeline.store.disk import read_bounded, replace_durably, writing
from pipeline.store.manifest import VersionRef
from pipeline.text import clean
from stages.blocks import Closed
from stages.spec import EXIT_FAILED

RECORD_FILE = "run.json"
_MAX_RECORD_BYTES = 8 * 1024 * 1024
_ATTEMPTS_KEPT = 100
_STAT_BLOCK = 512  # bytes of each of `st_blocks`
_TEXT_CHARS = 20_000  # of a command line, or a reason

AttemptOutcome = Literal["running", "published", "failed", "stopped", "killed"]


class Attempt(Closed):
    """One start of a stage."""

    user: str
    host: str
    process: int = Field(description="Number of the orchestrator's process.")
    command: str = Field(description="Its command line, without secrets.")
    start: str = Field(description="ISO 8601, UTC.")
    end: str | None = Field(default=None, description="ISO 8601, UTC.")
    duration_s: float | None = Field(default=None, ge=0, description="Seconds, by the monotonic clock.")
    outcome: AttemptOutcome = Field(default="running", description="`killed` is written by the attempt after it.")
    reason: str = Field(default="", description="Why it failed or stopped.")
    exit_code: int | None = None
    ref: VersionRef | None = Field(default=None, description="What it published.")


class RunRecord(Closed):
    """All attempts of a run."""

    began: int = Field(gt=0, description="How many attempts there were.")
    attempts: list[Attempt] = Field(min_length=1, description=f"The last {_ATTEMPTS_KEPT} of them, oldest first.")

    @property
    def last(self) -> Attempt:
        return self.attempts[-1]


def read_record(run_dir: Directory) -> RunRecord | None:
    """Read a run's record; None where there is none.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be read.
    """
    try:
        return RunRecord.model_validate_json(read_bounded(RECORD_FILE, _MAX_RECORD_BYTES, dir_fd=run_dir.fd))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ValueError(f"{error.error_count()} fields are wrong") from error


@contextmanager
def record_attempt(run_dir: Directory) -> Generator[Callable[[str], None]]:
    """Write that an attempt begins, and at the end of the block how it ended; the lock is held.

    Yields:
        A function to be called with the ref of what was published.
    """
    started_s = time.monotonic()
    record = _begin(run_dir)

    def end(outcome: AttemptOutcome, reason: str, exit_code: int, ref: str | None = None) -> None:
        nonlocal record
        fields = {"end": _now(), "duration_s": time.monotonic() - started_s, "outcome": outcome, "reason": reason, "exit_code": exit_code}
        record = record.model_copy(update={"attempts": [*record.attempts[:-1], record.last.model_copy(update={**fields, "ref": ref})]})
        with suppress(OSError):  # a full disk must neither hide why a stage failed, nor lose what it published
            try:
                _write(run_dir, record)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                _write_in_place(run_dir, record)

    try:
        yield lambda ref: end("published", "", 0, ref)
    except BaseException as error:
        if record.last.outcome == "running":
            end(*_describe(error))
        raise


def _begin(run_dir: Directory) -> RunRecord:
    before = None
    with suppress(OSError, ValueError):  # what is damaged says nothing
        before = read_record(run_dir)
    earlier = before.attempts if before else []
    if earlier and earlier[-1].outcome == "running":  # it has not the lock any more
        earlier = [*earlier[:-1], earlier[-1].model_copy(update={"outcome": "killed"})]
    attempt = Attempt(
        user=escape_controls(user_name()),
        host=escape_controls(socket.gethostname()),
        process=os.getpid(),
        command=_shorten(redact(shlex.join(sys.argv))),
        start=_now(),
    )
    record = RunRecord(began=(before.began if before else 0) + 1, attempts=[*earlier, attempt][-_ATTEMPTS_KEPT:])
    with writing(run_dir.path / RECORD_FILE):
        _write(run_dir, record)
    return record


def _write(run_dir: Directory, record: RunRecord) -> None:
    replace_durably(RECORD_FILE, _dump(record), dir_fd=run_dir.fd)


def _write_in_place(run_dir: Directory, record: RunRecord) -> None:
    """Write a record on a full disk: into the blocks that it has already, where it fits. Otherwise the attempt would count as killed."""
    content = _dump(record)
    descriptor = os.open(RECORD_FILE, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=run_dir.fd)
    try:
        if len(content) <= os.fstat(descriptor).st_blocks * _STAT_BLOCK:
            os.pwrite(descriptor, content, 0)
            os.ftruncate(descriptor, len(content))
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _dump(record: RunRecord) -> bytes:
    return record.model_dump_json(indent=1).encode() + b"\n"


def _describe(error: BaseException) -> tuple[AttemptOutcome, str, int]:
    """Say how an attempt ended that published nothing: outcome, reason, exit code."""
    if isinstance(error, SystemExit | KeyboardInterrupt):
        code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 130
        return "stopped", f"by {name_signal(code - 128)}", code
    if isinstance(error, StageFailed):
        return "stopped" if error.interrupted else "failed", _shorten(redact(str(error))), error.exit_code
    if isinstance(error, StoreError):
        return "failed", _shorten(redact(error.message)), error.exit_code
    return "failed", _shorten(redact(f"{type(error).__name__}: {error}")), EXIT_FAILED


def _shorten(text: str) -> str:
    line = escape_controls(clean(text))
    return line if len(line) <= _TEXT_CHARS else f"{line[:_TEXT_CHARS]}... ({len(line):,} characters)"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
