"""Records -> one hash of their content: part of a stage's cache key."""

import hashlib
import json
from collections.abc import Iterable

from data.schema import Comparison, Demonstration, Record, Text


def fingerprint(records: Iterable[Record]) -> str:
    """Hash a record set by content and order, whatever file, format or place it came from.

    Order counts, because the shuffles of training start from it. Extra columns do not.

    Returns:
        `sha256:` and 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(_fields(record), ensure_ascii=False, separators=(",", ":")).encode("utf-8"))
        digest.update(b"\n")  # never inside a line: JSON escapes it
    return f"sha256:{digest.hexdigest()}"


def _fields(record: Record) -> list[object]:
    if isinstance(record, Text):
        return ["text", record.text]
    prompt = [(message.role, message.content) for message in record.prompt]
    if isinstance(record, Demonstration):
        return ["demonstration", prompt, record.completion]
    if isinstance(record, Comparison):
        return ["comparison", prompt, record.completions, record.ranks, record.source]
    return ["prompt", prompt]
