"""What `rlhf` imports first: while it imports the rest, Ctrl-C ends it without a traceback. Later it has handlers of its own."""

import signal
import sys
from pathlib import Path


def _end_quietly() -> None:
    is_command = Path(sys.argv[0]).name in ("rlhf", "-m")  # and not a program that imports us
    if is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


_end_quietly()
