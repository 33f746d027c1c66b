"""Source -> records: every line read, every bad one reported at once."""

from collections.abc import Iterator

from data.reading import SourceReport, iter_records, report_on
from data.rows import SourceLike
from data.schema import DataError, Problem, Record, RecordKind
from data.treatment import Treat


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
        found = "no rows" if not report.counts else f"nothing to use ({'; '.join(report.told())})"
        raise DataError([Problem(source.path, "", f"found {found}; needed at least one of {kind}; check the export")])
