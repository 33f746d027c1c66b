"""An artifact's samples.jsonl -> the answers that somebody wants to see, and how they look on a terminal.

The file is read as a stream: of many answers only those that are shown are kept.
"""

import heapq
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from pipeline.errors import StoreError
from pipeline.report.rows import read_rows
from pipeline.report.tables import print_indented, print_line
from pipeline.store.artifact import Artifact
from pipeline.text import clean, count, format_number
from stages.spec import EXIT_MISSING, EXIT_USAGE, SAMPLES_FILE

Order = Literal["first", "worst", "best", "random"]

_SHOWN_CHARS = 2000  # of a prompt or an answer
_BY = {"judge": "judge_score", "kl": "kl", "length": "response_tokens"}  # what people say -> the row's own name
_LABELS = {"score": "score", "judge_score": "judge", "kl": "KL", "rank": "rank", "response_tokens": "tokens"}
_ORDERS: dict[Order, str] = {"first": "the first", "worst": "the worst", "best": "the best", "random": "some at random"}
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
    bad: dict[int, str] = {}
    total = matching = unordered = 0
    by = _BY.get(wanted.by, wanted.by) if wanted.by else None
    known: dict[str, dict[str, None]] = {"model": {}, "way": {}, "figure": {}}
    generator = random.Random(wanted.seed)

    def order() -> Iterator[tuple[float, dict[str, Any]]]:
        """Yield each answer that matches with its place: the lowest come first."""
        nonlocal total, matching, unordered, by
        for _, row in read_samples(artifact, bad):
            total += 1
            _note_names(row, known)
            if not _matches(row, wanted):
                continue
            matching += 1
            if wanted.order == "first":
                yield matching, row
            elif wanted.order == "random":
                yield generator.random(), row
            else:
                by = by or ("judge_score" if "judge_score" in row else "score")
                value = read_figure(row, by)
                if value is None:
                    unordered += 1
                else:
                    yield value if wanted.order == "worst" else -value, row

    chosen = heapq.nsmallest(wanted.count, order(), key=itemgetter(0))
    for name, value in (("model", wanted.model), ("way", wanted.way), ("figure", by if total else None)):
        if value is not None and value not in known[name]:
            there = ", ".join(known[name]) or "none are there"
            raise StoreError(f"{artifact.ref}: found no {name} {value}; needed one of: {there}", EXIT_USAGE)
    return Found([row for _, row in chosen], total, matching, unordered, _name_lines(bad), by)


def read_samples(artifact: Artifact, bad: dict[int, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read an artifact's samples one after the other, as `read_rows` does.

    Raises:
        StoreError: it has none (exit 4).
    """
    try:
        return read_rows(artifact.path / SAMPLES_FILE, bad)
    except ValueError as error:
        needed = f"an artifact whose stage answered prompts, or ranked answers, has some; see `rlhf show {artifact.ref}`"
        raise StoreError(f"{artifact.ref}: no {SAMPLES_FILE} ({error}); {needed}", EXIT_MISSING) from error


def read_first(artifact: Artifact, number: int) -> list[dict[str, Any]]:
    """Read the first samples; none where there are none. A line that is none says so in its place."""
    bad: dict[int, str] = {}
    lines: dict[int, dict[str, Any]] = {}
    with suppress(StoreError):
        lines.update(islice(read_samples(artifact, bad), number))
    lines |= {place: {"not shown": f"{SAMPLES_FILE}:{place}: {what}"} for place, what in bad.items()}
    return [lines[place] for place in sorted(lines)[:number]]


def pick_three(artifact: Artifact, model: str | None = None) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """Pick the worst answer, the best one and one between, the same each time; the first three where nothing tells them apart.

    Args:
        artifact: Whose answers.
        model: Of an evaluation: only of this one, where it has answers.

    Returns:
        (why it is shown, the answer) of each; and what to tell of lines that are none.

    Raises:
        StoreError: it has none (exit 4).
    """
    generator, num_valued = random.Random(0), 0
    bad: dict[int, str] = {}
    first: list[dict[str, Any]] = []
    ends: dict[str, tuple[float, dict[str, Any], str]] = {}
    between: dict[str, Any] = {}
    for _, row in read_samples(artifact, bad):
        if model is not None and row.get("model") != model:
            continue
        first += [row] if len(first) < 3 else []
        by = "judge_score" if "judge_score" in row else "score"
        value = read_figure(row, by)
        if value is None:
            continue
        num_valued += 1
        if "worst" not in ends or value < ends["worst"][0]:
            ends["worst"] = value, row, f"worst by {_LABELS[by]}"
        if "best" not in ends or value > ends["best"][0]:
            ends["best"] = value, row, f"best by {_LABELS[by]}"
        if generator.random() * num_valued < 1:
            between = row
    told = tell_damaged(_name_lines(bad))
    if not ends or ends["worst"][1] is ends["best"][1]:
        return [("", row) for row in first], told
    chosen = [(why, row) for _, row, why in (ends["worst"], ends["best"])]
    return [*chosen, *([("at random", between)] if all(row is not between for _, row in chosen) else [])], told


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
    order = _ORDERS[wanted.order] + (f" by {_LABELS.get(found.by, found.by)}" if found.by else "")
    print_line(console, f"{ref}: {count(found.total, 'answer')}{match}; {order}", "bold")
    told = [f"{found.unordered:,} without that figure are left out"] if found.unordered else []
    for line in told + tell_damaged(found.damaged):
        print_line(console, line, "yellow")
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


def tell_damaged(damaged: Sequence[str]) -> list[str]:
    """Tell the first lines that are no samples, and how many more there are."""
    more = len(damaged) - _DAMAGED_SHOWN
    return [f"not read: {line}" for line in [*damaged[:_DAMAGED_SHOWN], *([count(more, "more line")] if more > 0 else [])]]


def _note_names(row: dict[str, Any], known: dict[str, dict[str, None]]) -> None:
    """Note the models, ways and figures that there are, so that a name that nothing has can be told with those."""
    for name in ("model", "way"):
        if name in row:
            known[name][str(row[name])] = None
    known["figure"] |= dict.fromkeys(name for name, value in row.items() if isinstance(value, int | float) and name not in _NO_FIGURES)


def _matches(row: dict[str, Any], wanted: Wanted) -> bool:
    text = wanted.text.casefold() if wanted.text else ""
    same = all(value is None or row.get(name) == value for name, value in (("model", wanted.model), ("way", wanted.way)))
    return same and any(text in str(row.get(name, "")).casefold() for name in ("prompt", "response"))


def _name_lines(bad: dict[int, str]) -> list[str]:
    return [f"{SAMPLES_FILE}:{number}: {what}" for number, what in bad.items()]
