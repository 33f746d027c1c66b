"""A file of answers -> a reward model's score of each: read and checked here, computed by `stages.score`."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from data.fields import FieldError, as_list, as_object
from data.file_kinds import find_other_content
from data.records import parse_row
from data.schema import DataError, Demonstration, Problem
from pipeline.errors import StoreError
from pipeline.launch.dialogue import ask_all
from pipeline.store.artifact import Artifact
from stages.lines import read_line
from stages.result import Interval
from stages.result_intervals import find_interval
from stages.spec import EXIT_MISSING

PRECISION = "float32"  # of artifacts of earlier versions, which do not say


@dataclass(frozen=True)
class ScoredRows:
    """Rows as they were, with `score`; what of them cannot be scored, and why; what else is told."""

    rows: list[dict[str, Any]]
    problems: list[str]
    mean: float | None
    interval: Interval | None
    notes: list[str]


def read_answers(stream: IO[bytes], name: str) -> list[tuple[dict[str, Any], Demonstration]]:
    """Read rows of `prompt` (text, or messages) and `response` (or `completion`); or of `messages` that end with the assistant's.

    Raises:
        DataError: with every bad line.
    """
    answers: list[tuple[dict[str, Any], Demonstration]] = []
    problems: list[Problem] = []
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = read_line(line)
            _require_json(row)
            answers.append((row, _parse(row)))
        except FieldError as error:
            problems.append(Problem(f"{name}:{number}", error.field, error.message))
        except ValueError as error:
            problems.append(Problem(f"{name}:{number}", "", f"{error}; correct the line"))
    if problems or not answers:
        raise DataError(problems or [Problem(name, "", 'found no rows; needed rows such as {"prompt": ..., "response": ...}; give some')])
    return answers


def _require_json(row: dict[str, Any]) -> None:
    """Refuse a row that could not be given back as it was: Python reads numbers and texts that JSON does not have."""
    for name, value in row.items():
        try:
            json.dumps({name: value}, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            raise FieldError(name, "found half a surrogate pair; needed Unicode text; repair the export") from None
        except ValueError:
            raise FieldError(name, "found NaN or Infinity, which JSON does not have; needed a finite number or null; correct it") from None


def _parse(row: dict[str, Any]) -> Demonstration:
    if "response" in row and "completion" in row:
        raise FieldError("response", "found it beside completion; needed one of them; leave one away")
    named = {("completion" if name == "response" else name): value for name, value in row.items()}
    if "messages" in named and "completion" not in named:
        last = as_object((as_list(named["messages"]) or [None])[-1]) or {}
        if last.get("role") != "assistant":
            raise FieldError("messages", "found another last message than the assistant's; needed the answer there; add it")
    if named.get("completion") == "":
        raise FieldError("response", "found an empty text; needed text; fill it or remove the line")
    record = parse_row(named, "demonstrations")[-1]
    assert isinstance(record, Demonstration)
    return record


def score(model: Artifact, answers: Sequence[tuple[dict[str, Any], Demonstration]], told: Callable[[int, int], None]) -> ScoredRows:
    """Score answers by a reward model; a score that a row has already goes to `score_before`.

    Args:
        model: The reward model.
        answers: As `read_answers` returns them.
        told: Hears how many are done.

    Raises:
        StoreError: the program cannot go on.
    """
    scores: list[float | str] = []
    notes: list[str] = []
    for heard in ask_all("stages.score", _ask(model, answers)):
        if "note" in heard:
            notes.append(f"{model.ref} {heard['note']}")
        scores += heard["scores"]
        told(len(scores), len(answers))
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for number, ((row, _), found) in enumerate(zip(answers, scores, strict=True), start=1):
        before = {"score_before": row["score"]} if "score" in row else {}
        rows.append({**row, **before, "score": None if isinstance(found, str) else found})
        problems += [f"answer {number}: no score: {found}"] if isinstance(found, str) else []
    known = [(value, record.prompt) for value, (_, record) in zip(scores, answers, strict=True) if not isinstance(value, str)]
    values = [value for value, _ in known]
    mean = sum(values) / len(values) if values else None
    return ScoredRows(rows, problems, mean, find_interval(values, [prompt for _, prompt in known]), notes)


def _ask(model: Artifact, answers: Sequence[tuple[dict[str, Any], Demonstration]]) -> Iterator[dict[str, Any]]:
    yield {"model": str(model.opened_path), "precision": model.manifest.precision or PRECISION}
    for row, record in answers:
        prompt = [{"role": message.role, "content": message.content} for message in record.prompt]
        yield {"prompt": prompt, "response": record.completion, "finished": row.get("finished") is not False}


def open_answers(path: Path) -> IO[bytes]:
    """Open a file of answers.

    Raises:
        DataError: its bytes are not of text.
        StoreError: it cannot be read (exit 4).
    """
    try:
        if content := find_other_content(path):
            found = f"found {content.partition(';')[0]}; needed JSON lines of prompt and response; write it so"
            raise DataError([Problem(str(path), "", found)])
        return path.open("rb")
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}; a readable file of answers is needed; give one", EXIT_MISSING) from error
