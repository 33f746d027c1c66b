"""Records -> one hash of their content: part of a stage's cache key."""

import hashlib
import json
from collections.abc import Iterable

from data.schema import Comparison, Demonstration, Record, Text


class Fingerprint:
    """The hash of a record set that is read one by one: of content and order, whatever file, format or place it came from.

    Order counts, because the shuffles of training start from it. Extra columns do not.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, record: Record) -> None:
        """Take the next record into the hash."""
        self._digest.update(json.dumps(_fields(record), ensure_ascii=False, separators=(",", ":")).encode("utf-8"))
        self._digest.update(b"\n")  # never inside a line: JSON escapes it

    @property
    def text(self) -> str:
        """`sha256:` and 64 hexadecimal digits."""
        return f"sha256:{self._digest.hexdigest()}"


def fingerprint(records: Iterable[Record]) -> str:
    """Hash a record set; see `Fingerprint`."""
    found = Fingerprint()
    for record in records:
        found.add(record)
    return found.text


def _fields(record: Record) -> list[object]:
    if isinstance(record, Text):
        return ["text", record.text]
    prompt = [(message.role, message.content) for message in record.prompt]
    if isinstance(record, Demonstration):
        return ["demonstration", prompt, record.completion]
    if isinstance(record, Comparison):
        grades = [record.grades] if record.grades else []  # hashes of records without grades stay what they were
        return ["comparison", prompt, record.completions, record.ranks, record.source, *grades]
    return ["prompt", prompt]
