"""The terminal, or what stands in its place: what it cannot show is escaped, secrets are blotted out, and names of files are bytes."""

import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

from stages.process.output import redact_streams
from stages.spec import EXIT_RESOURCE, EXIT_USAGE


class ReaderGone(SystemExit):
    """What is printed reaches nobody any more: the end of a command that does nothing else. Others pass over it, and over no other end."""


def prepare_terminal() -> None:
    """Have what standard output and error cannot encode written as escapes, no secret written there, and names of files read as UTF-8.

    Once whoever reads them is gone (`rlhf ls | head -1`), the command ends quietly, with the exit code of SIGPIPE; where standard output
    cannot be written otherwise, such as a file on a full disk, it says so on standard error, which is no fault of the store's. What is
    written to a terminal that was closed is lost: SIGHUP tells of that; so is what standard error does not take.

    Where the language settings say another encoding for names, this starts the command anew in Python's UTF-8 mode: in it every name,
    text or not, becomes a string and the same bytes again, for us and for the stages.
    """
    if sys.getfilesystemencoding() != "utf-8" and "RLHF_RESTARTED" not in os.environ:
        encoding = getattr(sys.stdout, "encoding", None) or "ascii"
        changed = {"PYTHONUTF8": "1", "PYTHONIOENCODING": f"{encoding}:backslashreplace", "RLHF_RESTARTED": "1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | changed)
    os.environ.pop("RLHF_RESTARTED", None)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    redact_streams()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a stream of somebody else's making
            stream.write, stream.flush = _end_with_reader(stream, stream.write), _end_with_reader(stream, stream.flush)
    try:
        Path.cwd()
    except FileNotFoundError:
        print("the working directory is gone; change to another one", file=sys.stderr)
        sys.exit(EXIT_USAGE)


def _end_with_reader(stream: Any, call: Callable[..., Any]) -> Callable[..., Any]:
    is_terminal = stream.isatty()  # one that was closed does not say so any more

    @wraps(call)
    def ending(*args: Any) -> Any:
        try:
            return call(*args)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # for what is still held back
            if error.errno == errno.EPIPE:
                raise ReaderGone(128 + signal.SIGPIPE) from None
            if (error.errno == errno.EIO and is_terminal) or stream is not sys.stdout:
                return None
            needed = "a place that takes what is printed is needed; free space there, or print elsewhere"
            print(f"standard output could not be written: {error.strerror}; {needed}", file=sys.stderr)
            raise ReaderGone(EXIT_RESOURCE) from None

    return ending
