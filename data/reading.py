"""Source -> rows -> rows in our own columns -> records, as a stream; and what was told of the source on the way.

The format is that of the source's first rows (`formats/table.py`); a row of another format is a bad line. Bad lines are told together, at
the end; up to `skip_bad` of them are skipped instead.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from data.fields import Columns, FieldError, as_list, as_object, is_false, present_columns
from data.formats.format import Format, Row, rename_root
from data.formats.table import ALL_COLUMNS, DOCUMENT, OWN, choose_format, recognise
from data.formats.transcript import TRANSCRIPT
from data.formats.turns import unwrap
from data.records import LEARNING, count_opening, is_learnt, parse_row
from data.rows import SourceLike, read_rows
from data.schema import KINDS, Comparison, DataError, Problem, Record, RecordKind, Text

PROBED_ROWS = 100
CONVERSATIONS = ("messages", "prompt", "completion", "chosen", "rejected")
MEDIA = ("images", "image", "videos", "audios")
READ_KEYS = ("role", "content")
PARTS = "records whose typed parts of text were joined"
ANSWERED = "conversations read as prompts up to their last answer"
UNREAD: dict[str, tuple[RecordKind, ...]] = {"tools": KINDS, "margin": ("comparisons",)}  # columns that others' trainers read
LABELS = ("label", "kto_tag")  # false: the answer is a bad one (TRL's unpaired preferences, LLaMA-Factory's KTO)
BAD = "rows whose label says that the answer is a bad one, left out"
CONTEXT = "answers marked as not to be learnt (weight: 0, train: false)"
OPENING = "answers before the user's first message, which are context alone"
UNANSWERED = "conversations of which what follows the last answer is not read"
REPEATED = "records whose answers begin with their whole prompt, and are learnt so"
IDENTICAL = "comparisons with identical answers, which make no pair"


@dataclass
class SourceReport:
    """What was told of one source while it was read.

    Args:
        name: The file's name, or the dataset's id and split.
        looks: The format that was recognised; empty until it is.
        counts: What was joined or left out of records, for people, and how many.
        skipped: The bad lines that were skipped.
    """

    name: str
    looks: str = ""
    counts: Counter[str] = field(default_factory=Counter[str])
    skipped: list[Problem] = field(default_factory=list[Problem])

    @property
    def is_plain(self) -> bool:
        """Whether the source is in our own columns, and nothing of it was changed or left out."""
        return self.looks in (OWN.looks, DOCUMENT.looks) and not self.counts and not self.skipped

    def line(self) -> str:
        """Tell it in one line."""
        skipped = [f"{len({problem.where for problem in self.skipped}):,} bad lines skipped"] if self.skipped else []
        return "; ".join([f"{self.name}: read as {self.looks}", *self.told(), *skipped])

    def told(self) -> list[str]:
        """Say what was joined or left out."""
        return [f"{number:,} {text}" for text, number in self.counts.items()]


def report_on(source: SourceLike) -> SourceReport:
    """Begin the report on a source."""
    name = Path(source.path).name if Path(source.path).is_file() else source.path
    return SourceReport(f"{name}[{source.split}]" if source.split else name)


def iter_records(source: SourceLike, kind: RecordKind, report: SourceReport, skip_bad: int = 0) -> Iterator[tuple[str, Record]]:
    """Yield the records of a source in order, each with its place (`file:line`): a row may give none, or several.

    After one bad row too many no more are yielded, but all are read: the end tells every one.

    Args:
        source: What to read.
        kind: What each row must give.
        report: Is told what was recognised, joined, left out and skipped.
        skip_bad: Most bad lines to skip.

    Raises:
        DataError: The source cannot be read or cannot give this kind; or, at its end, with all bad lines where there are more.
    """
    problems: list[Problem] = []
    rows = _rows_in_order(source, kind)
    head = list(islice(rows, PROBED_ROWS))
    form = choose_format((row[1] for row in head if not isinstance(row, Problem)), kind, source.format)
    report.looks = form.looks
    if kind not in form.kinds:
        found = f"found {form.looks}, which gives {' and '.join(form.kinds)}"
        raise DataError([Problem(report.name, "", f"{found}; needed {kind}; give another file, or say by columns: which is which")])
    rows = chain(head, rows)
    for row in form.gather(_refuse_others(rows, form, kind)) if form.gather else _refuse_others(rows, form, kind):
        if isinstance(row, Problem):
            problems.append(row)
            continue
        where, value = row
        try:
            records = _read_row(value, form, kind, report)
        except FieldError as error:
            problems.append(Problem(where, _name_field(error.field, source), error.message))
            continue
        if len(problems) <= skip_bad:
            yield from ((where, record) for record in records)
    lines = {problem.where for problem in problems}
    if len(lines) > skip_bad or any(problem.ends_file for problem in problems):
        raise DataError(problems)
    report.skipped = problems


def _rows_in_order(source: SourceLike, kind: RecordKind) -> Iterator[Row | Problem]:
    """Yield rows under the names that we know them by, and what could not be read, in the order of the source."""
    waiting: list[Problem] = []
    wanted = tuple(dict.fromkeys((*source.columns.values(), *ALL_COLUMNS)))
    for where, row in read_rows(source, wanted, waiting.append, whole_texts=kind == "texts"):
        yield from waiting
        waiting.clear()
        yield where, _map_columns(unwrap(row), source)
    yield from waiting


def _map_columns(row: object, source: SourceLike) -> object:
    """Give the columns that a recipe maps our names; a column that had such a name already is read no more."""
    if as_object(row) is None:
        return row
    columns = present_columns(row)
    if not source.columns:
        return columns
    theirs = source.columns.values()
    kept = {name: value for name, value in columns.items() if name not in theirs and name not in source.columns}
    return kept | {ours: columns[name] for ours, name in source.columns.items() if name in columns}


def _name_field(field: str, source: SourceLike) -> str:
    return rename_root(field, dict(source.columns))


def _refuse_others(rows: Iterable[Row | Problem], form: Format, kind: RecordKind) -> Iterator[Row | Problem]:
    """Turn rows of another format than the file's into problems."""
    known: set[frozenset[str]] = set()  # sets of columns that were of this format: what else they may hold, its own checks tell
    for row in rows:
        columns = None if isinstance(row, Problem) else as_object(row[1])
        if isinstance(row, Problem) or columns is None:
            yield row
            continue
        names = frozenset(columns)
        if names in known and not (form is OWN and TRANSCRIPT.matches(columns)):
            yield row
            continue
        other = None if form is not OWN and form.matches(columns) else recognise(columns, kind)
        if other and other is not form and not (other.name == form.name and form.gather is None):
            needed = f"needed {form.looks}, as most of the first lines are; write it alike, or move it to a file of its own"
            yield Problem(row[0], "", f"found {other.looks}; {needed}")
        else:
            known.add(names)
            yield row


def _read_row(value: object, form: Format, kind: RecordKind, report: SourceReport) -> list[Record]:
    columns = present_columns(value)
    if not columns.keys().isdisjoint(MEDIA):
        _refuse_media(columns)
    if kind == "demonstrations" and any(is_false(columns.get(name)) for name in LABELS):
        report.counts[BAD] += 1
        return []
    records: list[Record] = []
    counts = form.count(columns, kind)
    counts |= {f"records whose column {name} is not read": 1 for name, kinds in UNREAD.items() if kind in kinds and columns.get(name)}
    for row in form.convert(columns, kind):
        try:
            made = parse_row(row, kind)
        except FieldError as error:
            raise FieldError(form.rename(error.field, columns), error.message) from None
        records += made
        counts |= _count(row, kind)
        if made and isinstance(made[0], Comparison) and _has_identical(made[0]):
            counts[IDENTICAL] = counts.get(IDENTICAL, 0) + 1
        counts[REPEATED] = counts.get(REPEATED, 0) + sum(map(_repeats_prompt, made))
    if counts:
        report.counts += Counter(counts)  # without those that are 0
    return records


def _refuse_media(columns: Columns) -> None:
    for name in MEDIA:
        if columns.get(name):
            raise FieldError(name, "found images, video or audio; needed text only; remove the line")


def _has_identical(comparison: Comparison) -> bool:
    """Whether a comparison has a text twice, of which neither copy is better."""
    return len(set(comparison.completions)) < len(comparison.completions)


def _repeats_prompt(record: Record) -> bool:
    """Whether each answer of a record begins with all of its prompt: some exports write both into one text, the prompt beside it."""
    if isinstance(record, Text) or not record.answers:
        return False
    prompt = record.prompt[-1].content.strip()
    return len(prompt.split()) > 1 and all(answer.lstrip().startswith(prompt) for answer in record.answers)


def _count(row: Columns, kind: RecordKind) -> dict[str, int]:
    """Count what is joined or not read of a row in our own columns."""
    conversations = [items for name in CONVERSATIONS if (items := as_list(row.get(name)))]
    if not conversations:
        return {}
    turns = [turn for turns in conversations for item in turns if (turn := as_object(item)) is not None]
    unread = sorted({key for turn in turns for key, value in turn.items() if not _is_read(key, value)})
    own = [turn for item in as_list(row.get("messages")) or () if (turn := as_object(item)) is not None and kind == "demonstrations"]
    context = sum(turn.get("role") == "assistant" and not is_learnt(turn) for turn in own)
    opening = sum(turn.get("role") == "assistant" for turn in own[: count_opening(list(own))])
    answered = kind == "prompts" and "prompt" not in row and turns and turns[-1].get("role") == "assistant"
    return {
        **({PARTS: 1} if any(isinstance(turn.get("content"), list) for turn in turns) else {}),
        **({ANSWERED: 1} if answered else {}),
        **({CONTEXT: context} if context else {}),
        **({OPENING: opening} if opening else {}),
        **({UNANSWERED: 1} if own and own[-1].get("role") != "assistant" else {}),
        **({f"records with fields of messages that are not read ({', '.join(unread)[:60]})": 1} if unread else {}),
    }


def _is_read(key: str, value: object) -> bool:
    said = str(value).strip().lower()
    return key in READ_KEYS or value is None or (key in LEARNING and said in ("0", "1", "0.0", "1.0", "false", "true"))
