"""The kinds of records, and how bad data is told: `file:line: field: found; needed; do`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)
RecordKind = Literal["texts", "demonstrations", "comparisons", "prompts"]
KINDS: tuple[RecordKind, ...] = get_args(RecordKind)

MAX_PROBLEMS_SHOWN = 20
_LINES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt and the response that the policy shall imitate."""

    prompt: tuple[Message, ...]
    completion: str

    @property
    def answers(self) -> tuple[str, ...]:
        """The response."""
        return (self.completion,)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A prompt and K >= 2 answers with their ranks: 1 is best, equal ranks are ties and make no pair.

    `grades`: how good each answer is, 1 to 7 as people grade it; None for one without a grade, empty where none has one.
    """

    prompt: tuple[Message, ...]
    completions: tuple[str, ...]
    ranks: tuple[int, ...]
    source: str = ""
    grades: tuple[float | None, ...] = ()

    @property
    def answers(self) -> tuple[str, ...]:
        """The ranked answers."""
        return self.completions

    @property
    def has_pair(self) -> bool:
        """Whether at least two answers differ in rank."""
        return len(set(self.ranks)) > 1


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that the policy answers in PPO."""

    prompt: tuple[Message, ...]

    @property
    def answers(self) -> tuple[str, ...]:
        """None."""
        return ()


@dataclass(frozen=True, slots=True)
class Text:
    """A document for continued pre-training; an empty one teaches nothing."""

    text: str

    @property
    def answers(self) -> tuple[str, ...]:
        """None."""
        return ()


Conversation = Demonstration | Comparison | Prompt
Record = Conversation | Text


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the data.

    Args:
        where: `file:line`, or the file or record set when no single line is at fault.
        field: Column or path inside it, e.g. `messages[2].role`; empty when the whole line is at fault.
        message: What was found, what is needed, what to do.
        ends_file: Whether nothing after it could be read; such a problem is never skipped.
    """

    where: str
    field: str
    message: str
    ends_file: bool = False

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.field, self.message) if part)


class DataError(Exception):
    """Data that cannot be used, with every problem found; the text shows the first 20 of them, and of more those that are alike once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(dict.fromkeys(problems))  # what is wrong with each set alike is told once
        super().__init__(self.problems)

    def __str__(self) -> str:
        alike: dict[object, list[Problem]] = {}
        for problem in self.problems:
            key = problem if len(self.problems) <= MAX_PROBLEMS_SHOWN else _find_kind(problem)
            alike.setdefault(key, []).append(problem)
        shown = list(alike.values())[:MAX_PROBLEMS_SHOWN]
        hidden = len(self.problems) - sum(map(len, shown))
        lines = [f"{problems[0]}{_list_lines(problems[1:])}" for problems in shown]
        return "\n".join([*lines, f"and {hidden:,} more"] if hidden else lines)


def _find_kind(problem: Problem) -> object:
    """Say what problems of lines of one file share that are bad in the same way, whatever stands there."""
    file, colon, line = problem.where.rpartition(":")
    if not (colon and line.isdigit()):
        return problem
    return file, re.sub(r"[0-9]+", "", problem.field), re.sub(r"'[^']*'|\"[^\"]*\"|[0-9]+", "", problem.message)


def _list_lines(others: Sequence[Problem]) -> str:
    """List the lines of further problems, the first of them by their numbers: ` (alike: lines 3, 4, 7 and 196 more)`."""
    lines = list(dict.fromkeys(problem.where.rpartition(":")[2] for problem in others))
    more = len(lines) - _LINES_SHOWN
    numbers = ", ".join(lines[:_LINES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
    return f" (alike: line{'s' * (len(lines) > 1)} {numbers})" if lines else ""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, to quote in a message of one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
