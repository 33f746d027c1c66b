"""The terminal, or what stands in its place: what it cannot show is escaped, secrets are blotted out, and names of files are bytes."""

import io
import os
import sys
from pathlib import Path

from stages.process.output import redact_streams
from stages.spec import EXIT_USAGE


def prepare_terminal() -> None:
    """Have what standard output and error cannot encode written as escapes, no secret written there, and names of files read as UTF-8.

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
    try:
        Path.cwd()
    except FileNotFoundError:
        print("the working directory is gone; change to another one", file=sys.stderr)
        sys.exit(EXIT_USAGE)
