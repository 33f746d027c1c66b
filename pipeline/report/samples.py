"""An artifact's samples.jsonl -> the answers that somebody wants to see, and how they look on a terminal.

The file is read as a stream: of many answers only those that are shown are kept.
"""

import heapq
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from pipeline.errors import StoreError
from pipeline.report.tables import MAX_SAMPLE_BYTES, print_indented
from pipeline.store.artifact import Artifact
from pipeline.text import clean, count, format_number
from stages.lines import read_line
from stages.spec import EXIT_MISSING, EXIT_USAGE, SAMPLES_FILE

Order = Literal["first", "worst", "best", "random"]

_SHOWN_CHARS = 2000  # of a prompt or an answer
_BY = {"judge": "judge_score", "kl": "kl", "length": "response_tokens"}  # what people say -> the row's own name
_LABELS = {"score": "score", "judge_score": "judge", "kl": "KL", "rank": "rank", "response_tokens": "tokens"}
_ORDERS: dict[Order, str] = {"first": "the first", "random": "some at random"}
_DAMAGED_SHOWN = 3
_NO_FIGURES = ("prompt_id", "sample_id", "finished")


@dataclass(frozen=True)
class Wanted:
    """Which answers, in which order.

    Args:
        count: How many at most.
        order: `worst` and `best` by a figure; `random`: drawn anew each time.
        by: The figure: `judge`, `score`, or any name in the file; None: the judge's where there is one, else the score.
        text: Only where the prompt or the answer holds it, in either case.
        model: Only of this one, in an evaluation.
        way: Only those, such as `sampled`.
        seed: Of `random`.
    """

    count: int
    order: Order = "first"
    by: str | None = None
    text: str | None = None
    model: str | None = None
    way: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Found:
    """The answers, and out of how many: `total` in the file, `matching` after the filters, `unordered` of those without the figure."""

    rows: list[dict[str, Any]]
    total: int
    matching: int
    unordered: int
    damaged: list[str]
    by: str | None


def find_samples(artifact: Artifact, wanted: Wanted) -> Found:
    """Find the answers that are wanted.

    Raises:
        StoreError: the artifact has no samples (exit 4); or a filter or figure that none of them has (exit 2).
    """
    damaged: list[str] = []
    seen = {"total": 0, "matching": 0, "unordered": 0}
    known: dict[str, dict[str, None]] = {"model": {}, "way": {}, "figure": {}}
    rows = _match(_count(read_samples(artifact, damaged), seen, known), wanted, seen)
    by = None
    if wanted.order in ("worst", "best"):
        first = next(rows, None)
        by = _BY.get(wanted.by, wanted.by) if wanted.by else "score" if first and "judge_score" not in first else "judge_score"
        rows = chain([] if first is None else [first], rows)
        rows = _with_figure(rows, by, seen)
    chosen = _take(rows, wanted, by)
    for _ in rows:  # what `first` did not need is counted all the same
        pass
    _require_known(artifact.ref, wanted, by, known, seen)
    return Found(chosen, seen["total"], seen["matching"], seen["unordered"], damaged, by)


def read_samples(artifact: Artifact, damaged: list[str]) -> Iterator[dict[str, Any]]:
    """Read an artifact's samples one after the other; a line that is none is told in `damaged`.

    Raises:
        StoreError: it has none (exit 4).
    """
    try:
        stream = (artifact.path / SAMPLES_FILE).open("rb")
    except OSError as error:
        needed = "an artifact whose stage answered prompts, or ranked answers, has some; see `rlhf show`"
        raise StoreError(f"{artifact.ref}: no {SAMPLES_FILE} ({error.strerror}); {needed}", EXIT_MISSING) from error
    with stream:
        number = 0
        while line := stream.readline(MAX_SAMPLE_BYTES):
            number += 1
            try:
                if not line.endswith(b"\n") and stream.readline(1):
                    raise ValueError(f"found more than {MAX_SAMPLE_BYTES:,} bytes; needed a shorter line")
                yield read_line(line)
            except ValueError as error:
                damaged.append(f"{SAMPLES_FILE}:{number}: {error}")
                while not line.endswith(b"\n") and (line := stream.readline(MAX_SAMPLE_BYTES)):
                    pass


def read_figure(row: dict[str, Any], name: str) -> float | None:
    """Read a figure of an answer; None where it has none, or one that is no number."""
    value = row.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def samples_data(found: Found) -> dict[str, Any]:
    """Return what was found as plain data."""
    counts = {"total": found.total, "matching": found.matching, "without_figure": found.unordered}
    return {"by": found.by, **counts, "damaged": found.damaged, "samples": found.rows}


def print_samples(console: Console, ref: str, wanted: Wanted, found: Found) -> None:
    """Print answers, each with its figures and its prompt."""
    match = f", {found.matching:,} of them match" if found.matching != found.total else ""
    order = f"the {wanted.order} by {_LABELS.get(str(found.by), found.by)}" if found.by else _ORDERS[wanted.order]
    console.print(Text(clean(f"{ref}: {count(found.total, 'answer')}{match}; {order}"), style="bold"), soft_wrap=True)
    told = [f"{found.unordered:,} without that figure are left out"] if found.unordered else []
    told += [f"not read: {line}" for line in found.damaged[:_DAMAGED_SHOWN]]
    told += [f"not read: {count(len(found.damaged) - _DAMAGED_SHOWN, 'more line')}"] if len(found.damaged) > _DAMAGED_SHOWN else []
    for line in told:
        console.print(Text(clean(line), style="yellow"), soft_wrap=True)
    for row in found.rows:
        console.print()
        print_sample(console, row)


def print_sample(console: Console, row: dict[str, Any], title: str = "") -> None:
    """Print one answer: a line of figures, the prompt after `>`, what was said after `<`."""
    console.print(Text(clean(", ".join(filter(None, (title, describe_sample(row))))), style="bold"), soft_wrap=not console.is_terminal)
    for mark, name, style in ((">", "prompt", "dim"), ("<", "response", "")):
        text = clean(str(row.get(name, "")))
        shown = text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}... ({len(text):,} characters; --json has them all)"
        print_indented(console, Text(shown, style=style), f"  {mark} ")


def describe_sample(row: dict[str, Any]) -> str:
    """Write who answered in which way, and all figures of the answer."""
    words = [str(row[name]) for name in ("model", "way") if name in row]
    figures = {name: value for name, value in row.items() if name not in _NO_FIGURES and isinstance(value, int | float)}
    ordered = [*(name for name in _LABELS if name in figures), *(name for name in figures if name not in _LABELS)]
    words += [f"{_LABELS.get(name, name.removeprefix('judge_'))} {format_number(figures[name])}" for name in ordered]
    return ", ".join([*words, *(["not finished"] if row.get("finished") is False else [])])


def _count(rows: Iterable[dict[str, Any]], seen: dict[str, int], known: dict[str, dict[str, None]]) -> Iterator[dict[str, Any]]:
    """Count what is there, so that a name that nothing has can be told with those that there are."""
    for row in rows:
        seen["total"] += 1
        for name in ("model", "way"):
            if name in row:
                known[name][str(row[name])] = None
        known["figure"] |= {name: None for name, value in row.items() if isinstance(value, int | float) and name not in _NO_FIGURES}
        yield row


def _match(rows: Iterable[dict[str, Any]], wanted: Wanted, seen: dict[str, int]) -> Iterator[dict[str, Any]]:
    text = wanted.text.casefold() if wanted.text else ""
    for row in rows:
        same = all(value is None or row.get(name) == value for name, value in (("model", wanted.model), ("way", wanted.way)))
        if same and any(text in str(row.get(name, "")).casefold() for name in ("prompt", "response")):
            seen["matching"] += 1
            yield row


def _with_figure(rows: Iterable[dict[str, Any]], by: str, seen: dict[str, int]) -> Iterator[dict[str, Any]]:
    for row in rows:
        if read_figure(row, by) is None:
            seen["unordered"] += 1
        else:
            yield row


def _take(rows: Iterator[dict[str, Any]], wanted: Wanted, by: str | None) -> list[dict[str, Any]]:
    if wanted.order == "first":
        return list(islice(rows, wanted.count))
    key: Callable[[dict[str, Any]], float]
    if wanted.order == "random":
        generator = random.Random(wanted.seed)
        key = lambda row: generator.random()  # noqa: E731
    else:
        sign = -1.0 if wanted.order == "best" else 1.0
        key = lambda row: sign * (read_figure(row, str(by)) or 0.0)  # noqa: E731
    return heapq.nsmallest(wanted.count, rows, key=key)


def _require_known(ref: str, wanted: Wanted, by: str | None, known: dict[str, dict[str, None]], seen: dict[str, int]) -> None:
    for name, value in (("model", wanted.model), ("way", wanted.way), ("figure", by if seen["total"] else None)):
        if value is not None and value not in known[name]:
            raise StoreError(f"{ref}: found no {name} {value}; needed one of: {_list(known[name])}", EXIT_USAGE)


def _list(names: Sequence[str] | dict[str, None]) -> str:
    return ", ".join(names) or "none are there"


def pick_three(artifact: Artifact, damaged: list[str], model: str | None = None) -> list[tuple[str, dict[str, Any]]]:
    """Pick the worst answer, the best one and one between, the same each time; the first three where nothing tells them apart.

    Args:
        artifact: Whose answers.
        damaged: Gets a line for each that is none.
        model: Of an evaluation: only of this one, where it has answers.

    Raises:
        StoreError: it has none (exit 4).
    """
    generator, count = random.Random(0), 0
    first: list[dict[str, Any]] = []
    ends: dict[str, tuple[float, dict[str, Any]]] = {}
    between: dict[str, Any] = {}
    for row in read_samples(artifact, damaged):
        if model is not None and row.get("model") != model:
            continue
        first += [row] if len(first) < 3 else []
        value = read_figure(row, "judge_score" if "judge_score" in row else "score")
        if value is None:
            continue
        count += 1
        if "worst" not in ends or value < ends["worst"][0]:
            ends["worst"] = value, row
        if "best" not in ends or value > ends["best"][0]:
            ends["best"] = value, row
        if generator.random() * count < 1:
            between = row
    if len({id(row) for _, row in ends.values()}) < 2:
        return [("", row) for row in first]
    chosen = [("worst", ends["worst"][1]), ("best", ends["best"][1])]
    return [*chosen, *([("at random", between)] if all(row is not between for _, row in chosen) else [])]
