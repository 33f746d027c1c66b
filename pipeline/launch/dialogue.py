"""Programs of `stages` beside the stages, started like one: run to its end, or asked by lines of JSON and ended with whoever asks."""

import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import IO, Any

from data.secrets import redact
from data.system.death import die_with_parent
from pipeline.errors import StoreError
from pipeline.launch.environment import stage_environment
from pipeline.launch.failure import blame_environment
from pipeline.text import clean
from stages.lines import read_line
from stages.spec import EXIT_FAILED, EXIT_USAGE

_END_S = 5.0
_TOLD_EVERY_S = 1.0


def run_program(
    module: str,
    *arguments: str,
    offline: bool,
    asked: str | None = None,
    limit_s: float | None = None,
    told: Callable[[str], None] = lambda line: None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, or to ours.

    Args:
        module: Such as `stages.merge`.
        arguments: Of its command line.
        offline: Forbid the Hugging Face libraries to ask the network.
        asked: Its standard input; None: ours.
        limit_s: Seconds that it may take.
        told: Hears every second, while it runs, the last line that it printed.

    Raises:
        subprocess.TimeoutExpired: It took longer.
    """
    environment, _ = stage_environment("", offline=offline)
    command = [sys.executable, "-P", "-m", module, *arguments]
    end_s = time.monotonic() + (limit_s or math.inf)
    with subprocess.Popen(
        command,
        stdin=None if asked is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        encoding="utf-8",
        errors="replace",
        preexec_fn=die_with_parent,
    ) as process:
        try:
            while True:
                try:
                    said = process.communicate(asked, timeout=min(_TOLD_EVERY_S, end_s - time.monotonic()))
                except subprocess.TimeoutExpired as still:
                    if time.monotonic() >= end_s:
                        raise
                    asked = None  # it is on its way
                    lines = (still.output or b"").decode("utf-8", "replace").rpartition("\n")[0].splitlines()
                    told(clean(redact(lines[-1]))[:200] if lines else "")
                else:
                    return subprocess.CompletedProcess(command, process.returncode, *said)
        except BaseException:
            process.kill()
            raise


def last_said(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line that a program printed on standard error; empty where it said nothing."""
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return clean(said[-1]) if said else ""


def ask_all(module: str, questions: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Ask a program all at once, and yield what it answers.

    Raises:
        StoreError: it cannot go on, with its exit code.
    """
    with tempfile.TemporaryFile() as asked:
        asked.writelines(json.dumps(question).encode() + b"\n" for question in questions)
        asked.seek(0)
        with Dialogue(module, asked) as program:
            yield from program.hear()


class Dialogue:
    """A running program; a context manager that ends it.

    Args:
        module: Such as `stages.chat`.
        questions: A file with all that it is asked; None: it is asked by `ask`.
    """

    def __init__(self, module: str, questions: IO[bytes] | None = None) -> None:
        self._module = module
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (what it prints apart from answers; closed at the end)
        environment, _ = stage_environment("", offline=True)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE if questions is None else questions,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environment,
            start_new_session=True,  # Ctrl-C is for us: it is passed on where it is meant for the program
            preexec_fn=die_with_parent,
        )

    def __enter__(self) -> "Dialogue":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._said.close()

    def ask(self, **question: Any) -> None:
        """Ask something.

        Raises:
            StoreError: the program has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._failure() from error

    def hear(self) -> Iterator[Mapping[str, Any]]:
        """Yield what it answers, as it comes, until it ends.

        Raises:
            StoreError: it cannot go on, with its exit code.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = read_line(line)
            if "error" in told:
                raise StoreError(str(told["error"]), int(told.get("exit_code") or EXIT_FAILED))
            yield told
        if self._process.wait() != 0:
            raise self._failure()

    def interrupt(self) -> None:
        """Have it end the answer that it is giving."""
        self._process.send_signal(signal.SIGINT)

    def _failure(self) -> StoreError:
        code = self._process.wait()
        self._said.seek(0)
        said = self._said.read().decode("utf-8", "replace")
        if code > 0 and (blamed := blame_environment(said)):
            return StoreError(f"{self._module}: {blamed}", EXIT_USAGE)
        lines = [line for line in said.splitlines() if line.strip()]
        last = f": {clean(redact(lines[-1]))[:500]}" if lines else ""
        why = f"signal {-code}" if code < 0 else f"exit code {code}"
        return StoreError(f"{self._module} ended with {why}{last}; less memory may help: one model alone, a smaller file", EXIT_FAILED)
