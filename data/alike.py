"""Different prompts of which a chat template or a tokenizer makes the same: the model would be taught several answers to one prompt.

records, encoded records -> hashes of each: of its prompt's ids, of what its messages say -> records with equal ids that say otherwise
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.schema import Message, Record, Text
from data.tokens import EncodedRecord

MOST_TOLD = 20  # pairs: of a template that leaves all messages out
# A row for each record: hashes of its ids, of what it says, of that without a system message; zeros for one that is not compared.
Marks = NDArray[np.uint64]

# What templates and tokenizers leave out of messages on purpose: blanks, letters' case and form, thoughts of earlier turns.
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)


def mark_prompts(records: Sequence[Record], encoded: Sequence[EncodedRecord]) -> Marks:
    """Mark records by their prompts; one whose prompt was cut is not compared, since what differs may be gone, nor is a text."""
    marks = np.zeros((len(records), 3), np.uint64)
    for row, (record, item) in enumerate(zip(records, encoded, strict=True)):
        if not item.cut and not isinstance(record, Text):
            asked = record.prompt[record.prompt[0].role == "system" :]
            marks[row] = _hash(np.array(item.prompt_ids, np.int64).tobytes()), _hash(_condense(record.prompt)), _hash(_condense(asked))
    return marks


def find_alike(marks: Sequence[Marks]) -> list[tuple[int, int]]:
    """Find records with equal ids that say otherwise.

    One that begins with a system message says what another does without it: a template that leaves such messages out is refused before, so
    it is the one that the template writes by itself where there is none.

    Args:
        marks: Of all records, in order.

    Returns:
        Pairs of their numbers, from 0: the first record with these ids, and the first that says otherwise; the first 20 pairs.
    """
    if not marks:
        return []
    all_marks = np.concatenate(marks)
    order = np.argsort(all_marks[:, 0], kind="stable")
    ids, said, asked = all_marks[order].T
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
    first = np.repeat(starts, np.diff(np.r_[starts, len(ids)]))
    by_default = (asked == asked[first]) & ((asked == said) != (asked == said)[first])
    others = np.flatnonzero((said != said[first]) & ~by_default & (ids != 0))
    pairs = {int(order[first[other]]): int(order[other]) for other in others[::-1]}  # of each group the first one counts
    return sorted(pairs.items(), key=lambda pair: pair[1])[:MOST_TOLD]


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


def _condense(prompt: Sequence[Message]) -> bytes:
    """Write what messages say, without what may be left out."""
    said = [[message.role, "".join(_THOUGHTS.sub("", message.content).split())] for message in prompt]
    return unicodedata.normalize("NFKC", json.dumps(said, ensure_ascii=False)).casefold().encode("utf-8", "surrogatepass")
