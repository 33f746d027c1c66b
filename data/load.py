"""Source -> records: every line read, every bad one reported at once; and the split that holds prompts out."""

from collections.abc import Iterator, Sequence
from typing import TypeVar, cast

import numpy as np

from data.holdout import find_places, hold_out, split_text
from data.reading import SourceReport, iter_records, report_on
from data.rows import SourceLike
from data.schema import Comparison, DataError, Demonstration, Message, Problem, Prompt, Record, RecordKind, Text
from data.treatment import Treat

AnyRecord = TypeVar("AnyRecord", Demonstration, Comparison, Prompt, Text, Record)


def load_records(
    source: SourceLike, kind: RecordKind, skip_bad: int = 0, reports: list[SourceReport] | None = None, treat: Treat | None = None
) -> list[Record]:
    """Read all records of one source, in order.

    Args:
        source: A JSONL (also `.gz`), JSON or Parquet file, a saved dataset directory, or a Hugging Face dataset id; of texts also a
            `.txt` file, which is one document, or a directory of them.
        kind: What each row must give.
        skip_bad: Most bad lines to skip.
        reports: Gets the report on the source.
        treat: What is done to each record, see `data.treatment`.

    Returns:
        At least one record, unless all were forgotten.

    Raises:
        DataError: The source cannot be read, is empty, or has more bad rows; all bad rows are in it.
    """
    report = report_on(source)
    if reports is not None:
        reports.append(report)
    return [record for _, record in stream_records(source, kind, report, skip_bad, treat)]


def stream_records(
    source: SourceLike, kind: RecordKind, report: SourceReport, skip_bad: int = 0, treat: Treat | None = None
) -> Iterator[tuple[str, Record]]:
    """Yield the records of one source, in order, each with its place (`file:line`); otherwise as `load_records`."""
    is_empty = True
    for where, record in iter_records(source, kind, report, skip_bad):
        is_empty = False
        treated = record if treat is None else treat(record, report.counts)
        if treated is not None:
            yield where, treated
    if is_empty:
        raise DataError([Problem(source.path, "", f"found no rows; needed at least one of {kind}; check the export")])


def load_and_split(
    train: SourceLike,
    held_out: SourceLike | None,
    kind: RecordKind,
    *,
    eval_fraction: float,
    seed: int,
    skip_bad: int = 0,
    reports: list[SourceReport] | None = None,
    treat: Treat | None = None,
) -> tuple[list[Record], list[Record]]:
    """Load the training and held-out records of one kind, as the cache key counts them and the stages train on them.

    Args:
        train: Source of the training records.
        held_out: Source of the held-out records; None: they are split from the training records, by conversation.
        kind: What each row must hold.
        eval_fraction: Share of conversations to hold out, where `held_out` is None.
        seed: Another seed holds out other prompts.
        skip_bad: Most bad lines to skip, of each source.
        reports: Gets the report on each source.
        treat: What is done to each record, see `data.treatment`.

    Raises:
        DataError: As `load_records` and `split_records`.
    """
    records = load_records(train, kind, skip_bad, reports, treat)
    if held_out is None:
        return split_records(records, eval_fraction, seed, where=train.path, kind=kind)
    return records, load_records(held_out, kind, skip_bad, reports, treat)


def split_records(
    records: Sequence[AnyRecord], eval_fraction: float, seed: int, *, where: str = "", kind: str = ""
) -> tuple[list[AnyRecord], list[AnyRecord]]:
    """Hold out about `eval_fraction` of the conversations (of texts: of different texts) with all their records; see `data.holdout`.

    Of a single text it is the end.

    Args:
        records: All records of one kind.
        eval_fraction: Share of conversations to hold out, between 0 and 1; at least one goes to each side.
        seed: Another seed holds out other ones.
        where: The source, for messages.
        kind: Of the records, for messages.

    Returns:
        Training records and held-out records, each in their old order.

    Raises:
        DataError: There are fewer than two conversations that can be used.
    """
    if parts := _split_only_text(records, eval_fraction):
        return parts
    usable = np.array([_is_usable(record) for record in records])
    sources = np.array([record.source if isinstance(record, Comparison) else "" for record in records])
    held_out = hold_out(find_places([_split_by(record) for record in records], seed), usable, sources, eval_fraction)
    if held_out is None:
        raise DataError([too_few(where, kind, len(records))])
    train = [record for record, is_held_out in zip(records, held_out, strict=True) if not is_held_out]
    return train, [record for record, is_held_out in zip(records, held_out, strict=True) if is_held_out]


def _split_only_text(records: Sequence[AnyRecord], fraction: float) -> tuple[list[AnyRecord], list[AnyRecord]] | None:
    """Split the one text of a set that has a single one, where it has parts."""
    texts = [record.text for record in records if isinstance(record, Text) and record.text]
    parts = split_text(texts[0], fraction) if len(texts) == 1 else None
    return None if parts is None else ([cast("AnyRecord", Text(parts[0]))], [cast("AnyRecord", Text(parts[1]))])


def _split_by(record: Record) -> tuple[Message, ...] | str:
    return record.text if isinstance(record, Text) else record.prompt


def _is_usable(record: Record) -> bool:
    if isinstance(record, Text):
        return bool(record.text)
    return not isinstance(record, Comparison) or record.has_pair


def too_few(where: str, kind: str, num_records: int, num_unusable: int = 0) -> Problem:
    """Say that nothing can be held out of a record set, whose prompts are fewer than two or have no usable answer.

    Args:
        where: The source.
        kind: Of the records.
        num_records: All of them.
        num_unusable: Those of which no answer is within the limits, or all tie.
    """
    what = "texts that can be used, and no single one of several lines" if kind == "texts" else "prompts that can be used"
    found = f"found fewer than two {what}, among {num_records} records"
    if num_unusable:
        ties = "tie, or " if kind == "comparisons" else ""
        found += f", of which {num_unusable} {ties}are longer than tokens.max_response_tokens"
    return Problem(where, f"data.{kind}.eval", f"{found}; needed one to train on and one to hold out; add records, or give an eval file")
