"""Tables of rankings -> rankings: a row for each answer (long), or for each set (wide). Separated by commas, semicolons or tabs.

    long   prompt, completion, rank, annotator    + judgement, item, place, outcome, grade, flags, note, reason, seconds, time, source
    wide   prompt, completion_1, ..., rank_1, ..., annotator   or, in place of ranks, ranking: `2=1>3`

An empty rank: the answer was not placed, and is worse than those that were.
"""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from data.fields import Columns, FieldError, check_text
from data.rows import MAX_LINE_BYTES
from data.schema import DataError, Problem
from pipeline.ranking.foreign import PROMPTS, Export, Ranking, read_grade, read_prompt, read_time
from pipeline.ranking.ranks import parse_levels, rank_levels

CSV_FILES = (".csv", ".tsv")
ANSWERS, RANKS, ANNOTATORS = ("completion", "answer", "response"), ("rank", "ranks"), ("annotator", "user", "labeler", "rater", "worker")
OUTCOMES = ("ranked", "cannot say", "skipped")
_NUMBERED = re.compile(r"(completion|answer|response|rank)[ _-]?([1-9])", re.IGNORECASE)

Row = tuple[str, dict[str, str]]


def read_table(path: Path) -> list[Row]:
    """Read a table's rows, each with the line on which it begins.

    Raises:
        DataError: It is none.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    rows: list[Row] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            head = stream.readline()
            stream.seek(0)
            separator = max(",;\t", key=head.count)
            reader = csv.reader(stream, delimiter=separator, strict=True)
            names = [name.strip().lower() for name in next(reader, list[str]())]
            if twice := [name for name in names if name and names.count(name) > 1]:
                raise DataError([Problem(f"{path}:1", twice[0], "found the column twice; needed it once; rename one of the two")])
            line = reader.line_num + 1
            for cells in reader:
                where, line = f"{path}:{line}", reader.line_num + 1
                if not any(cells):
                    continue
                if len(cells) != len(names):
                    found = f"found {len(cells)} cells under {len(names)} headings"
                    raise DataError(
                        [Problem(where, "", f"{found}; needed one for each; quote texts that hold {separator!r} or line breaks")]
                    )
                rows.append((where, dict(zip(names, cells, strict=True))))
    except UnicodeDecodeError as error:
        raise DataError(
            [Problem(str(path), "", f"byte 0x{error.object[error.start]:02x} is not UTF-8; needed UTF-8; save it so")]
        ) from error
    except csv.Error as error:
        raise DataError([Problem(f"{path}:{len(rows) + 2}", "", f"not CSV ({error}); needed quoted cells; write it anew")]) from error
    except OSError as error:
        raise DataError([Problem(str(path), "", f"cannot be read ({error.strerror}); needed a readable file; check it")]) from error
    return rows


def read_rankings(rows: Sequence[Row], path: Path, _export: Export) -> Iterator[Ranking | tuple[str, FieldError]]:
    """Yield what the rows of a table say, or what is wrong with one.

    Raises:
        DataError: It has no columns of rankings.
    """
    names = list(rows[0][1]) if rows else []
    numbered = {match[0]: (match[1].lower(), int(match[2])) for name in names if (match := _NUMBERED.fullmatch(name))}
    has_answers = any(kind != "rank" for kind, _ in numbered.values())
    has_ranks = any(kind == "rank" for kind, _ in numbered.values()) or "ranking" in names
    prompt = next((name for name in PROMPTS if name in names), None)
    answer, rank = (next((name for name in known if name in names), None) for known in (ANSWERS, RANKS))
    if prompt is not None and has_answers and has_ranks:
        for where, row in rows:
            yield _guard(where, lambda where=where, row=row: _read_wide(where, row, prompt, numbered))
    elif prompt is not None and answer is not None and rank is not None:
        for group in _group(rows, prompt):
            yield _guard(group[0][0], lambda group=group: _read_long(group, prompt, answer, rank))
    else:
        found = f"found the columns {', '.join(names)[:200]}" if rows else "found no rows"
        needed = "needed prompt, completion, rank, annotator; or prompt, completion_1, completion_2, rank_1, rank_2, annotator"
        raise DataError([Problem(f"{path}:1", "", f"{found}; {needed}; {'rename them' if rows else 'check the export'}")])


def _guard(where: str, read: Callable[[], Ranking]) -> Ranking | tuple[str, FieldError]:
    try:
        return read()
    except FieldError as error:
        return where, error


def _group(rows: Sequence[Row], prompt: str) -> list[list[Row]]:
    """Put rows of one judgement together, wherever they stand."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for where, row in rows:
        known = (
            (row["judgement"],) if row.get("judgement") else (row.get("item", ""), row[prompt], _find_annotator(row), row.get("repeat", ""))
        )
        groups.setdefault(known, []).append((where, row))
    return list(groups.values())


def _find_annotator(row: dict[str, str]) -> str:
    name = next((name for name in ANNOTATORS if name in row), "")
    return row.get(name, "").strip() or "unknown"


def _read_long(group: Sequence[Row], prompt: str, answer: str, rank: str) -> Ranking:
    texts = [_read_text(row, answer) for _, row in group]
    for place, (where, _) in enumerate(group):
        if texts[place] in texts[:place] and not group[place][1].get("judgement"):
            found = "found the answer twice for this prompt and annotator"
            raise FieldError(answer, f"{found} (again at {where}); needed each once; two rankings have each a name in a column `judgement`")
    flags: dict[str, tuple[int, ...]] = {}
    for place, (_, row) in enumerate(group):
        for flag in filter(None, (each.strip() for each in row.get("flags", "").split(","))):
            flags[flag] = (*flags.get(flag, ()), place)
    ranks = [_read_rank(row[rank], f"{rank} at {where}" if len(group) > 1 else rank) for where, row in group]
    shown = _read_shown([row.get("place", "") for _, row in group])
    made = _make(group[0][0], group[0][1], prompt, texts, ranks, flags, shown)
    grades = tuple(read_grade(row.get("answer_grade", "").strip(), "answer_grade") for _, row in group)
    return replace(made, grades=grades) if any(grades) else made


def _read_wide(where: str, row: dict[str, str], prompt: str, numbered: dict[str, tuple[str, int]]) -> Ranking:
    answers = {number: row[name] for name, (kind, number) in numbered.items() if kind != "rank"}
    ranks = {number: (name, row[name]) for name, (kind, number) in numbered.items() if kind == "rank"}
    used = [number for number in sorted(answers) if answers[number].strip() or ranks.get(number, ("", ""))[1].strip()]
    texts = [answers[number] for number in used]
    if row.get("ranking", "").strip():
        try:
            levels = parse_levels(row["ranking"].strip(), len(texts))
        except ValueError as error:
            raise FieldError("ranking", f"{error}, such as 2=1>3") from error
        read: list[float | None] = [None] * len(texts)
        for level, places in enumerate(levels):
            for place in places:
                read[place] = float(level)
    else:
        read = [_read_rank(cell, name) for name, cell in (ranks.get(number, ("", "")) for number in used)]
    return _make(where, row, prompt, texts, read, {}, ())


def _make(
    where: str,
    row: dict[str, str],
    prompt: str,
    texts: Sequence[str],
    ranks: Sequence[float | None],
    flags: dict[str, tuple[int, ...]],
    shown: tuple[int, ...],
) -> Ranking:
    levels = [
        [place for place, rank in enumerate(ranks) if rank == level] for level in sorted({rank for rank in ranks if rank is not None})
    ]
    outcome = row.get("outcome", "").strip() or ("ranked" if levels else "cannot say")
    if outcome not in OUTCOMES or (outcome == "ranked") != bool(levels):
        found = f"found {outcome!r:.40} {'with' if levels else 'without'} ranks"
        raise FieldError("outcome", f"{found}; needed ranked with ranks, or {' or '.join(OUTCOMES[1:])} without; correct it")
    settled, partial = rank_levels(levels, range(len(texts))) if levels else (None, False)
    columns: Columns = {**row}
    return Ranking(
        where=where,
        prompt=read_prompt(_read_text(row, prompt), prompt),
        completions=tuple(check_text(text, "completion", "an answer's text", may_be_empty=True) for text in texts),
        annotator=_find_annotator(row),
        outcome=outcome,
        ranks=settled,
        partial=partial or row.get("partial", "") == "1",
        shown=shown,
        key=row.get("judgement") or f"{row.get('item', '')} {row[prompt]} {_find_annotator(row)} {row.get('repeat', '')}",
        item=row.get("item", ""),
        grade=read_grade(row.get("grade", "").strip(), "grade"),
        flags=flags,
        reason=_read_text(row, "reason"),
        note=_read_text(row, "note"),
        seconds=_read_seconds(row.get("seconds", "")),
        time=_read_time(columns),
        repeat=row.get("repeat", "").strip().lower() in ("1", "true", "yes"),
        model=row.get("judge", "").strip(),
        source=row.get("source", ""),
    )


def _read_text(row: dict[str, str], name: str) -> str:
    """Read a text as it stands; in our own exports, without the mark."""
    return unquote(row.get(name, "")) if "judgement" in row else row.get(name, "")


def _read_rank(text: str, name: str) -> float | None:
    text = text.strip()
    if not text:
        return None
    try:
        rank = float(text)
    except ValueError:
        rank = 0.0
    if not 1 <= rank <= 1e6:
        raise FieldError(name, f"found {text!r:.40}; needed a rank: 1 is best, equal ones are ties, none is worse; correct it")
    return rank


def _read_shown(cells: Sequence[str]) -> tuple[int, ...]:
    """Read the places at which answers were shown, from 1; empty where they are not all told."""
    places = [int(cell) - 1 if cell.strip().isdecimal() else -1 for cell in cells]
    return tuple(sorted(range(len(places)), key=places.__getitem__)) if sorted(places) == list(range(len(places))) else ()


def _read_seconds(text: str) -> float:
    try:
        seconds = float(text or 0)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 1e6:
        raise FieldError("seconds", f"found {text!r:.40}; needed a number of seconds; correct it")
    return seconds


def _read_time(columns: Columns) -> float:
    text = str(columns.get("time") or "")
    return float(text) if re.fullmatch(r"\d{1,11}(\.\d{1,9})?", text) else read_time(text, "time")


def quote(text: str) -> str:
    """Mark a text that a spreadsheet would take for a formula; `unquote` takes the mark away."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "'")) else text


def unquote(text: str) -> str:
    """Take away the mark of `quote`."""
    return text[1:] if re.match(r"'[=+\-@\t\r']", text) else text
