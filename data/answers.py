"""Answers of one or several models to a prompt, before people have ranked them.

    {"prompt": "...", "completions": ["a", "b", "c", "d"], "models": ["ppo@v1", "ppo@v1", "sft@v1", "sft@v1"]}

is a comparison without ranks; `prompt` may be a list of messages, `models` (which model said it) and `source` may be left away, and so may
`arm`: whether these answers were chosen, or left to chance (stages.sample_choice). Who ranks sees neither models nor arm.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from data.fields import FieldError, as_list, check_text, describe, present_columns
from data.records import parse_row
from data.rows import SourceLike, read_rows
from data.schema import Comparison, DataError, Message, Problem

CHOSEN, AT_RANDOM = "chosen", "random"  # arms
MAX_ANSWERS = 9  # that one person ranks at once (InstructGPT 2022, 3.5)
_COLUMNS = ("prompt", "system", "completions", "models", "source", "arm")


@dataclass(frozen=True, slots=True)
class AnswerSet:
    """A prompt and its 2 to 9 answers."""

    prompt: tuple[Message, ...]
    completions: tuple[str, ...]
    models: tuple[str, ...] = ()
    source: str = ""
    arm: str = ""

    @property
    def id(self) -> str:
        """What it is known by: a hash of prompt and answers, so that a ranking finds its answers in any copy of the file."""
        content = [[(message.role, message.content) for message in self.prompt], self.completions]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def to_row(self) -> dict[str, object]:
        """Write it as a line of a file of answers."""
        row: dict[str, object] = {"prompt": [{"role": message.role, "content": message.content} for message in self.prompt]}
        row["completions"] = list(self.completions)
        row |= {"models": list(self.models)} if self.models else {}
        return row | {name: text for name, text in (("source", self.source), ("arm", self.arm)) if text}


def iter_answer_sets(source: SourceLike) -> Iterator[AnswerSet]:
    """Yield the answer sets of a file or dataset.

    Raises:
        DataError: with every line that is none, that has more than 9 answers, or that stands there twice.
    """
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for where, row in read_rows(source, _COLUMNS, problems.append):
        try:
            answers = parse_answer_set(row)
            if answers.id in seen:
                raise FieldError("", f"found the prompt and answers of {seen[answers.id]} again; needed each once; remove the line")
        except FieldError as error:
            problems.append(Problem(where, error.field, error.message))
            continue
        seen[answers.id] = where
        yield answers
    if not problems and not seen:
        problems.append(Problem(source.path, "", "found no answers; needed at least one line; check the file"))
    if problems:
        raise DataError(problems)


def parse_answer_set(row: object) -> AnswerSet:
    """Turn a row into an answer set.

    Raises:
        FieldError: It is none.
    """
    columns = present_columns(row)
    completions = as_list(columns.get("completions"))
    if completions is None:
        raise FieldError("completions", f"found {describe(columns.get('completions'))}; needed a list of answers; write it so")
    if len(completions) > MAX_ANSWERS:
        found = f"found {len(completions)} answers"
        raise FieldError("completions", f"{found}; needed {MAX_ANSWERS} at most, which a person can rank at once; split the line")
    (record,) = parse_row({**columns, "ranks": list(range(1, len(completions) + 1))}, "comparisons")
    assert isinstance(record, Comparison)
    models = [check_text(model, f"models[{place}]") for place, model in enumerate(as_list(columns.get("models")) or ())]
    if models and len(models) != len(completions):
        raise FieldError("models", f"found {len(models)} for {len(completions)} answers; needed one for each; correct it")
    arm = check_text(columns["arm"], "arm") if columns.get("arm") is not None else ""
    return AnswerSet(record.prompt, record.completions, tuple(models), record.source, arm)
