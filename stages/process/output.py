"""Where a process's words go: its streams, and a log that what it starts writes into. No secret gets there. Torch-free."""

import os
import select
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data.secrets import redact

_PIECE_BYTES = 65_536
_WHOLE_AFTER_S = 0.5  # a line that has not ended by then is written all the same
_MAX_LINE_BYTES = 1_000_000
_LEFT_S = 5.0  # within which what was written last arrives, once all writers are gone
_KEY_BEGINS, _KEY_ENDS = b"-----BEGIN ", b"-----END "


def redact_streams() -> None:
    """Blot secrets out of all that this process's Python prints from now on, tracebacks too."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        _redact_stream(stream)


def _open_closed_streams() -> None:
    """Have a stream that was closed before this process began (`>&-`, a daemon) be one that refuses what is written to it.

    Its number would go to the first file that is opened, of the store maybe, into which children and C code then print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free
            os.set_inheritable(null, True)
            setattr(sys, name, os.fdopen(null, mode, encoding="utf-8", errors="backslashreplace"))


def _redact_stream(stream: Any) -> None:
    write = stream.write

    def write_redacted(text: str) -> int:
        write(redact(text))
        return len(text)

    with suppress(AttributeError):  # a stream of somebody else's making
        stream.write = write_redacted


@contextmanager
def open_log(path: Path, tell: Callable[[str], None]) -> Generator[int]:
    """Open a log that processes write into by a pipe, from which a thread takes it, line by line and without secrets.

    Args:
        path: Is appended to.
        tell: Is told, at the end, that the disk took not all of it.

    Yields:
        The descriptor to give them as standard output and error. At the end they must be gone: what they wrote last is in the log then.

    Raises:
        OSError: It cannot be opened.
    """
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    read_end, write_end = os.pipe()
    refusals: list[OSError] = []
    thread = threading.Thread(target=_copy, args=(read_end, log, refusals), name="log", daemon=True)
    thread.start()
    try:
        yield write_end
    finally:
        os.close(write_end)
        thread.join(_LEFT_S)
    if refusals:
        tell(f"{path}: {refusals[0].strerror}; what was printed since then is not in it")


def _copy(read_end: int, log: int, refusals: list[OSError]) -> None:
    """Copy until nobody can write any more; a full disk must not block who writes."""
    held, ended = b"", False
    while not ended:
        idle = bool(held) and not select.select([read_end], [], [], _WHOLE_AFTER_S)[0]
        piece = b"" if idle else os.read(read_end, _PIECE_BYTES)
        ended = not idle and not piece
        held += piece
        cut = len(held) if ended else _find_cut(held, idle=idle)
        if cut and not refusals:
            text = redact(held[:cut].decode("utf-8", "surrogateescape"))
            try:
                _write(log, text.encode("utf-8", "surrogateescape"))
            except OSError as error:
                refusals.append(error)
        held = held[cut:]
    os.close(read_end)
    os.close(log)


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _find_cut(held: bytes, *, idle: bool) -> int:
    """Find how much of what came can be written: whole lines, but no private key of which the end is still to come."""
    if len(held) > _MAX_LINE_BYTES:
        return len(held)
    cut = len(held) if idle else max(held.rfind(b"\n"), held.rfind(b"\r")) + 1
    begun = held.rfind(_KEY_BEGINS)
    is_open = begun >= 0 and b"PRIVATE KEY" in held[begun : begun + 64] and _KEY_ENDS not in held[begun:]
    return min(cut, begun) if is_open else cut
