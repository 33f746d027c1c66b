"""Stop signals that are kept for a while, instead of ending this process where it stands. A closed terminal counts as SIGTERM."""

import signal
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from stages.spec import SAME_WISH_S


@contextmanager
def keep_signals(most: int | None = None) -> Generator[list[int]]:
    """Inside, SIGTERM, SIGINT and SIGHUP are collected; SIGTERMs within a second, and what a terminal sends as it closes, are one wish.

    Args:
        most: So many are kept; one more ends this process. None: all are.

    Yields:
        The signals that came; none in another thread than the main one, which alone can collect them.
    """
    received: list[int] = []
    first_s = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def keep(number: int, _frame: FrameType | None) -> None:
        nonlocal first_s
        wish = signal.SIGTERM if number == signal.SIGHUP else number
        if wish == signal.SIGTERM and received and time.monotonic() - first_s < SAME_WISH_S:
            return
        if len(received) == most:
            sys.exit(128 + wish)
        first_s = time.monotonic()
        received.append(wish)

    before = {number: signal.signal(number, keep) for number in stop_signals()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_signals() -> list[signal.Signals]:
    """List the signals that ask this process to stop; under nohup a closed terminal does not."""
    return [signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else [])]
