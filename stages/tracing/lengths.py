"""How many records there are and how long they are: the first ones of each source are encoded, all are counted.

Of not too many the longest is found too: it is what memory is planned for, where others are as long as the limits allow.
"""

from dataclasses import dataclass
from itertools import islice
from typing import Any

from data.load import stream_records
from data.reading import report_on
from data.schema import RecordKind
from data.texts import encode_texts
from data.tokens import encode_records
from stages.spec import DataSource, DataSplits
from stages.tracing.report import Lengths

_ENCODED = 256  # whose lengths are averaged
_ALL = 4096  # of a split; more are not encoded to find the longest, which would take longer than all else
_LARGEST = 64  # records of a micro-batch, of which memory is planned


def read_lengths(tokenizer: Any, kind: RecordKind, splits: DataSplits, limits: tuple[int, int]) -> Lengths:
    """Read how long the records of a kind are.

    Args:
        tokenizer: Of the base model, settled.
        kind: Of the records.
        splits: On this machine.
        limits: Tokens of a prompt and of a response, at most.

    Raises:
        DataError: a record cannot be read.
    """
    read, count = _read(splits.train, kind)
    looked_at, held_out = _read(splits.eval, kind) if splits.eval else ([], 0)
    first = read[:_ENCODED]
    if kind == "texts":
        documents = [ids for each in encode_texts(tokenizer, first) for ids in each.responses]
        mean = sum(map(len, documents)) / max(len(documents), 1)
        return Lengths(records=count, held_out=held_out, prompt=0.0, response=mean, answers=1.0, most_answers=1)
    encoded = [each for each in encode_records(tokenizer, first, limits) if each.used]
    whole = max(count, held_out) <= _ALL
    longest = find_longest(tokenizer, read + looked_at if whole else first, limits)
    responses = [len(ids) for each in encoded for ids in each.responses]
    return Lengths(
        records=round(count * len(encoded) / max(len(first), 1)),
        held_out=held_out,
        prompt=sum(len(each.prompt_ids) for each in encoded) / max(len(encoded), 1),
        response=sum(responses) / max(len(responses), 1),
        answers=len(responses) / max(len(encoded), 1),
        most_answers=longest.answers,
        longest=(longest.prompt, longest.response) if whole else None,
        largest=list(longest.records) if whole else [],
        quantiles=find_tenths(responses),
    )


def find_tenths(lengths: list[int]) -> list[int]:
    """Find how long the shortest is, that below which a tenth of them are, and so on to the longest."""
    in_order = sorted(lengths)
    return [in_order[round(tenth * (len(in_order) - 1) / 10)] for tenth in range(11)] if in_order else []


@dataclass(frozen=True)
class Longest:
    """The longest of records, in tokens: a prompt, as it is cut, an answer that is used, how many answers one has, the largest records."""

    prompt: int = 1
    response: int = 1
    answers: int = 1
    records: tuple[int, ...] = ()


def find_longest(tokenizer: Any, records: list[Any], limits: tuple[int, int]) -> Longest:
    """Encode records, and find the longest."""
    found = Longest()
    for start in range(0, len(records), _ENCODED):
        encoded = encode_records(tokenizer, records[start : start + _ENCODED], limits)
        sizes = [len(each.prompt_ids) + sum(map(len, each.responses)) for each in encoded]
        found = Longest(
            max(found.prompt, *(len(each.prompt_ids) for each in encoded)),
            max(found.response, *(len(ids) for each in encoded for ids in each.responses), 1),
            max(found.answers, *(len(each.responses) for each in encoded)),
            tuple(sorted((*found.records, *sizes), reverse=True)[:_LARGEST]),
        )
    return found


def _read(source: DataSource, kind: RecordKind) -> tuple[list[Any], int]:
    """Read the first records, and count all."""
    records = (record for _, record in stream_records(source, kind, report_on(source)))
    first = list(islice(records, _ALL))
    return first, len(first) + sum(1 for _ in records)
