"""Errors of the pipeline: one line that says what was found, what is needed and what to do, and the exit code that goes with it."""

from collections.abc import Sequence

from stages.spec import EXIT_RESOURCE, EXIT_USAGE

SHOWN_PROBLEMS = 40


class ConfigError(Exception):
    """A recipe that cannot be used; `problems` holds one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = [escape_controls(problem) for problem in problems]

    def __str__(self) -> str:
        shown = self.problems[:SHOWN_PROBLEMS]
        rest = len(self.problems) - len(shown)
        return "\n".join([*shown, f"and {rest} more"] if rest else shown)


class StoreError(Exception):
    """The artifact store cannot do what was asked.

    Args:
        message: Found; needed; what to do. Control characters (a newline in a path, a terminal escape in a name) are escaped.
        exit_code: 2 bad ref, 3 verification failed, 4 no such artifact, 5 disk or permission (`stages.spec`).
    """

    def __init__(self, message: str, exit_code: int) -> None:
        self.message = escape_controls(message)
        self.exit_code = exit_code
        super().__init__(self.message)


class ResourceError(StoreError):
    """The file system refused: disk full, quota, permission, read-only."""

    def __init__(self, message: str) -> None:
        super().__init__(message, EXIT_RESOURCE)


class SlurmError(Exception):
    """SLURM is not here (exit 2: `--slurm` belongs on a login node), or refuses (exit 5: what it grants is its own)."""

    def __init__(self, message: str, *, is_here: bool) -> None:
        super().__init__(message)
        self.exit_code = EXIT_RESOURCE if is_here else EXIT_USAGE


class StoppedAfterStage(Exception):
    """A signal came while a stage ran to its end all the same: it is published, the next one is not begun."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.exit_code = 128 + signal_number


def escape_controls(text: str) -> str:
    """Escape what could break a line or steer a terminal, and bytes in names of files that are no text."""
    return text if text.isprintable() else "".join(char if char.isprintable() else escape_character(char) for char in text)


def escape_character(char: str) -> str:
    r"""Write a character as an escape: `\n`, `\u202e`, and a byte that Python holds as a surrogate as that byte, `\xff`."""
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")
