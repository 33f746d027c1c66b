"""What one annotator said of one answer set, as another tool exports it, and what all tools' exports have in common."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from data.fields import Columns, FieldError, as_list, as_object, check_text, describe
from data.records import parse_row
from data.schema import Message, Prompt
from pipeline.ranking.journal import Outcome

Tool = Literal["label-studio", "argilla", "csv"]
# What people call the column or field of the prompt, the likeliest first.
PROMPTS = ("prompt", "instruction", "question", "query", "request", "input", "messages", "conversation", "chat", "context", "text")
TEXTS = ("body", "text", "content", "completion", "response", "answer", "html", "title")  # of an answer that is an object
MAX_GRADE = 7


@dataclass(frozen=True)
class Ranking:
    """What was said of a set.

    Args:
        where: `file:line` of it.
        prompt: Of the set.
        completions: The answers, in the tool's order.
        annotator: As the tool names them.
        outcome: As in a journal.
        ranks: Of the completions, 1 is best; None where nothing was ranked.
        partial: Whether answers that were not placed share the last rank.
        shown: The completions' places in the order in which they were shown; empty where that is not known.
        key: By what the tool knows it; the same one again is the same judgement.
        item: The set's id, where the export is one of ours.
        flags: Flag -> places of completions.
        repeat: Whether the annotator has ranked the set before.
        model: The language model that judged; empty: a person did.
    """

    where: str
    prompt: tuple[Message, ...]
    completions: tuple[str, ...]
    annotator: str
    outcome: Outcome
    ranks: tuple[int, ...] | None
    partial: bool = False
    shown: tuple[int, ...] = ()
    key: str = ""
    item: str = ""
    grade: int | None = None
    grades: tuple[int | None, ...] | None = None
    flags: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    reason: str = ""
    note: str = ""
    seconds: float = 0.0
    time: float = 0.0
    repeat: bool = False
    model: str = ""
    source: str = ""


@dataclass(frozen=True)
class Options:
    """What a person says of an export, where it does not say so itself.

    Args:
        question: Which question is the ranking.
        buckets: Label Studio's buckets, best first.
    """

    question: str | None = None
    buckets: tuple[str, ...] = ()


@dataclass
class Export:
    """What was read of a file, and what was left out."""

    tool: Tool
    rankings: list[Ranking] = field(default_factory=list[Ranking])
    left_out: Counter[str] = field(default_factory=Counter[str])


def read_prompt(value: object, name: str) -> tuple[Message, ...]:
    """Read a prompt: text, a list of messages, or that list as JSON text.

    Raises:
        FieldError: It is none.
    """
    if isinstance(value, str) and value.lstrip().startswith(("[{", "[ {")):
        try:
            decoded: object = json.loads(value)
        except ValueError:
            decoded = None
        messages = as_list(decoded) or []
        value = messages if messages and all("role" in (as_object(message) or {}) for message in messages) else value
    try:
        (record,) = parse_row({"prompt": value}, "prompts")
    except FieldError as error:
        raise FieldError(name + error.field.removeprefix("prompt"), error.message) from error
    assert isinstance(record, Prompt)
    return record.prompt


def find_prompt(columns: Columns, others: Sequence[str]) -> str:
    """Name the column of the prompt: one that is called so, else the only one that is none of `others`.

    Raises:
        FieldError: There is none, or more than one could be it.
    """
    rest = [name for name in columns if name not in others]
    called = next((name for name in PROMPTS if name in rest), None)
    if called is not None:
        return called
    if len(rest) != 1:
        found = f"found {', '.join(rest)[:200] or 'no other field'} beside the answers"
        raise FieldError("", f"{found}; needed one that is the prompt; call it prompt")
    return rest[0]


def read_answer(value: object, name: str) -> str:
    """Read an answer: text, or an object that has one.

    Raises:
        FieldError: It is none.
    """
    fields = as_object(value)
    if fields is None:
        return check_text(value, name, "an answer's text", may_be_empty=True)
    text = next((key for key in TEXTS if fields.get(key) is not None), None)
    if text is None:
        raise FieldError(name, f"found no text in {', '.join(fields)[:100] or 'it'}; needed one of {', '.join(TEXTS)}; add it")
    return check_text(fields[text], f"{name}.{text}", "an answer's text", may_be_empty=True)


def read_time(value: object, name: str) -> float:
    """Read a time: seconds since 1970, or ISO 8601; 0 where there is none.

    Raises:
        FieldError: It is neither.
    """
    if value is None or value == "":
        return 0.0
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        return datetime.fromisoformat(str(value)).timestamp()
    except (ValueError, OverflowError) as error:
        raise FieldError(name, f"found {describe(value)}; needed a time such as 2026-11-26T14:00:00Z; correct it") from error


def read_grade(value: object, name: str) -> int | None:
    """Read a grade of 1 to 7.

    Raises:
        FieldError: It is none.
    """
    if value is None or value == "":
        return None
    text = str(value).removesuffix(".0")
    if isinstance(value, bool) or text not in map(str, range(1, MAX_GRADE + 1)):
        raise FieldError(name, f"found {describe(value)}; needed a grade of 1 to {MAX_GRADE}; correct it, or leave it away")
    return int(text)
