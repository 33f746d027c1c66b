"""How many records there are and how long they are: the first ones of each source are encoded, all are counted."""

from itertools import islice
from typing import Any

from data.load import stream_records
from data.reading import report_on
from data.schema import RecordKind
from data.texts import encode_texts
from data.tokens import encode_records
from stages.spec import DataSource, DataSplits
from stages.tracing.report import Lengths

_ENCODED = 256


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
    records = (record for _, record in stream_records(splits.train, kind, report_on(splits.train)))
    first: list[Any] = list(islice(records, _ENCODED))
    count = len(first) + sum(1 for _ in records)
    held_out = _count(splits.eval, kind) if splits.eval else 0
    if kind == "texts":
        documents = [ids for each in encode_texts(tokenizer, first) for ids in each.responses]
        mean = sum(map(len, documents)) / max(len(documents), 1)
        return Lengths(records=count, held_out=held_out, prompt=0.0, response=mean, answers=1.0, most_answers=1)
    encoded = [each for each in encode_records(tokenizer, first, limits) if each.used]
    responses = [len(ids) for each in encoded for ids in each.responses]
    return Lengths(
        records=round(count * len(encoded) / max(len(first), 1)),
        held_out=held_out,
        prompt=sum(len(each.prompt_ids) for each in encoded) / max(len(encoded), 1),
        response=sum(responses) / max(len(responses), 1),
        answers=len(responses) / max(len(encoded), 1),
        most_answers=max((len(each.responses) for each in encoded), default=1),
        quantiles=find_tenths(responses),
    )


def find_tenths(lengths: list[int]) -> list[int]:
    """Find how long the shortest is, that below which a tenth of them are, and so on to the longest."""
    in_order = sorted(lengths)
    return [in_order[round(tenth * (len(in_order) - 1) / 10)] for tenth in range(11)] if in_order else []


def _count(source: DataSource, kind: RecordKind) -> int:
    return sum(1 for _ in stream_records(source, kind, report_on(source)))
