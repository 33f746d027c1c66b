"""Source -> records: every line read, every bad one reported at once; and the split that holds prompts out."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

from data.reading import SourceReport, iter_records, report_on
from data.rows import SourceLike
from data.schema import Comparison, DataError, Demonstration, Message, Problem, Prompt, Record, RecordKind, Text

AnyRecord = TypeVar("AnyRecord", Demonstration, Comparison, Prompt, Text, Record)


def load_records(source: SourceLike, kind: RecordKind, skip_bad: int = 0, reports: list[SourceReport] | None = None) -> list[Record]:
    """Read all records of one source, in order.

    Args:
        source: A JSONL (also `.gz`), JSON or Parquet file, a saved dataset directory, or a Hugging Face dataset id; of texts also a
            `.txt` file, which is one document, or a directory of them.
        kind: What each row must give.
        skip_bad: Most bad lines to skip.
        reports: Gets the report on the source.

    Returns:
        At least one record.

    Raises:
        DataError: The source cannot be read, is empty, or has more bad rows; all bad rows are in it.
    """
    report = report_on(source)
    if reports is not None:
        reports.append(report)
    return [record for _, record in stream_records(source, kind, report, skip_bad)]


def stream_records(source: SourceLike, kind: RecordKind, report: SourceReport, skip_bad: int = 0) -> Iterator[tuple[str, Record]]:
    """Yield the records of one source, in order, each with its place (`file:line`); otherwise as `load_records`."""
    is_empty = True
    for record in iter_records(source, kind, report, skip_bad):
        is_empty = False
        yield record
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
) -> tuple[list[Record], list[Record]]:
    """Load the training and held-out records of one kind, as the cache key counts them and the stages train on them.

    Args:
        train: Source of the training records.
        held_out: Source of the held-out records; None: they are split from the training records, by prompt.
        kind: What each row must hold.
        eval_fraction: Share of prompts to hold out, where `held_out` is None.
        seed: Another seed holds out other prompts.
        skip_bad: Most bad lines to skip, of each source.
        reports: Gets the report on each source.

    Raises:
        DataError: As `load_records` and `split_records`.
    """
    records = load_records(train, kind, skip_bad, reports)
    if held_out is None:
        return split_records(records, eval_fraction, seed)
    return records, load_records(held_out, kind, skip_bad, reports)


def split_records(records: Sequence[AnyRecord], eval_fraction: float, seed: int) -> tuple[list[AnyRecord], list[AnyRecord]]:
    """Hold out about `eval_fraction` of the prompts with all their records; one prompt (of texts: one text) is never on both sides.

    A prompt's side follows from a hash of its text and the seed, so records added later move no other prompt. An empty text is left to
    training, which leaves it out.

    Args:
        records: All records of one kind.
        eval_fraction: Share of prompts to hold out, between 0 and 1; at least one prompt goes to each side.
        seed: Another seed holds out other prompts.

    Returns:
        Training records and held-out records, each in their old order.

    Raises:
        DataError: There are fewer than two different prompts.
    """
    # A 64-bit hash is a place on [0, 1): those below the fraction are held out.
    places = {prompt: _place(repr(prompt), seed) for prompt in dict.fromkeys(map(_split_by, records)) if prompt}
    if len(places) < 2:
        what = "text" if any(isinstance(record, Text) for record in records) else "prompt"
        message = f"found {len(places)} different {what}; needed two or more to hold one out; add records or an eval file"
        raise DataError([Problem("", "eval_fraction", message)])
    ordered = sorted(places, key=places.__getitem__)
    num_below = sum(place < eval_fraction for place in places.values())
    held_out = set(ordered[: min(max(num_below, 1), len(ordered) - 1)])
    train = [record for record in records if _split_by(record) not in held_out]
    return train, [record for record in records if _split_by(record) in held_out]


def _split_by(record: Record) -> tuple[Message, ...] | str:
    return record.text if isinstance(record, Text) else record.prompt


def _place(text: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
