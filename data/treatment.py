"""What is done to a record before anything else sees it: one that was forgotten is left out, personal details are blotted out."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from data.identity import find_digests, read_forgotten
from data.redact import RedactKind, redact_record
from data.schema import DataError, Problem, Record

FORGOTTEN = "records left out, as they were forgotten"

# A record, and counts for people -> the record as it is learnt from; None: it is left out.
Treat = Callable[[Record, Counter[str]], Record | None]
Collect = Callable[[list[bytes]], None]


def make_treatment(
    redact: Sequence[RedactKind], records_dir: Path | None, *, secret: bytes | None = None, collect: Collect | None = None
) -> Treat | None:
    """Make the function that treats records; None where nothing is done to them.

    Args:
        redact: What to blot out.
        records_dir: The store's `records/`, where what was forgotten is kept; None: nothing was.
        secret: Of the store, for `collect`.
        collect: Is given the hashes of each record that stays, as it was before.

    Raises:
        DataError: What was forgotten cannot be read.
    """
    try:
        forgotten = read_forgotten(records_dir) if records_dir else None
    except ValueError as error:
        raise DataError([Problem("", "", str(error))]) from None
    except OSError as error:
        raise DataError(
            [Problem(str(records_dir), "", f"found {error.strerror}; needed to know what was forgotten; make it readable")]
        ) from None
    if not redact and forgotten is None and collect is None:
        return None

    key = forgotten.secret if forgotten else secret  # which are the same, of one store

    def treat(record: Record, counts: Counter[str]) -> Record | None:
        digests = find_digests(record, key) if key is not None else []
        if forgotten and not forgotten.digests.isdisjoint(digests):
            counts[FORGOTTEN] += 1
            return None
        if collect is not None:
            collect(digests)
        return redact_record(record, redact, counts) if redact else record

    return treat
