"""A program that is asked by lines of JSON and answers by them: standard input -> standard output, a line each."""

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from data.schema import DataError
from stages.lines import read_line
from stages.process.errors import StageError
from stages.process.output import redact_streams
from stages.spec import EXIT_OK, EXIT_USAGE

Lines = Iterator[dict[str, Any]]
Say = Callable[..., None]  # writes one line, of its keyword arguments


def hold_dialogue(answer: Callable[[Lines, Say], None]) -> int:
    """Answer until the lines end; what makes it impossible to go on is the last line: {"error": text, "exit_code": number}.

    Args:
        answer: Is given the lines as they come, and what says one.

    Returns:
        The exit code.
    """
    redact_streams()
    output, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer

    def say(**fields: Any) -> None:
        output.write(json.dumps(fields) + "\n")
        output.flush()

    try:
        answer(map(read_line, sys.stdin.buffer), say)
    except StageError as error:
        say(error=str(error), exit_code=error.exit_code)
        return error.exit_code
    except DataError as error:
        say(error=str(error), exit_code=EXIT_USAGE)
        return EXIT_USAGE
    return EXIT_OK
