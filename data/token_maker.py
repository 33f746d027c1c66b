"""Records -> a directory with their token ids, made by all cores, whole or not at all.

records -> chunks -> worker processes under limits: encode -> batches, in order -> draft -> directory

    tokens.arrow   the rows; see `data.token_file`
    made.json      of which content they are, and a checksum: a damaged file is noticed, and made again
"""

import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from data.alike import Marks, find_alike, mark_prompts
from data.fingerprint import Fingerprint
from data.schema import DataError, Problem, Record, Text
from data.system.drafts import make_draft
from data.system.watched import Unfinished, work_in_children
from data.token_file import TokenFile, make_batch, make_schema
from data.tokens import EncodedRecord

TOKENS_FILE, MADE_FILE = "tokens.arrow", "made.json"
CHUNK_RECORDS = 512
CHUNK_CHARACTERS = 2**22  # one record more or less: of texts a few may be books
_STALE_DRAFT_S = 24 * 3600
_READ_BYTES = 2**24

Placed = tuple[str, Record]  # file:line, what stands there
Encode = Callable[[Sequence[Any]], list[EncodedRecord]]


def make_tokens(
    directory: Path,
    records: Callable[[], Iterable[Placed]],
    encode: Encode,
    *,
    expected: str,
    workers: int,
    progress: Callable[[int], None],
) -> bool:
    """Encode a record set into a directory, which then is there as a whole; one that another process made meanwhile is as good.

    Args:
        directory: Is made, or made anew.
        records: Reads them, in order.
        encode: Encodes some records, in any of the worker processes.
        expected: The fingerprint of the records.
        workers: Processes to share the work.
        progress: Is told how many records are done.

    Returns:
        Whether they were the expected records; of others nothing is left.

    Raises:
        DataError: Records cannot be read or encoded, or different prompts become the same; each is named by its place.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with make_draft(directory, stale_s=_STALE_DRAFT_S) as draft:
        content = Fingerprint()
        num_records = _write(draft / TOKENS_FILE, records, content, encode, workers, progress)
        if content.text != expected:
            return False
        made = {"fingerprint": content.text, "records": num_records, "crc32": _checksum(draft / TOKENS_FILE)}
        (draft / MADE_FILE).write_text(json.dumps(made), encoding="utf-8")
        shutil.rmtree(directory, ignore_errors=True)
        try:
            draft.rename(directory)
        except OSError:
            if not directory.is_dir():
                raise
    return True


def is_whole(directory: Path) -> bool:
    """Whether a directory holds what `make_tokens` left there, to the last byte."""
    try:
        made = json.loads((directory / MADE_FILE).read_text(encoding="utf-8"))
        return made["crc32"] == _checksum(directory / TOKENS_FILE)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def open_tokens(directory: Path) -> TokenFile:
    """Map the token ids that `make_tokens` left in a directory."""
    return TokenFile(directory / TOKENS_FILE)


def _write(
    path: Path, records: Callable[[], Iterable[Placed]], content: Fingerprint, encode: Encode, workers: int, progress: Callable[[int], None]
) -> int:
    arrow: Any = import_module("pyarrow")
    num_records = 0
    problems: list[Problem] = []
    marks: list[Marks] = []
    chunks = _split(_noting(records(), content))
    with arrow.OSFile(str(path), "wb") as sink, arrow.ipc.new_file(sink, make_schema()) as writer:
        try:
            for found in work_in_children(chunks, lambda chunk: _encode_chunk(chunk, encode), _count_characters, workers=workers):
                if isinstance(found, DataError):
                    problems += found.problems
                    continue
                batch: Any = arrow.ipc.read_record_batch(arrow.py_buffer(found[0]), make_schema())
                writer.write_batch(batch)
                marks.append(found[1])
                num_records += batch.num_rows
                progress(num_records)
        except Unfinished as error:
            problems.append(_describe_endless(error))
    if problems:
        raise DataError(problems)
    if alike := find_alike(marks):
        raise DataError(list(_describe_alike(alike, records)))
    return num_records


def _noting(records: Iterable[Placed], content: Fingerprint) -> Iterator[Placed]:
    for where, record in records:
        content.add(record)
        yield where, record


def _split(records: Iterable[Placed]) -> Iterator[list[Placed]]:
    chunk: list[Placed] = []
    characters = 0
    for placed in records:
        chunk.append(placed)
        characters += _count_characters(placed)
        if len(chunk) == CHUNK_RECORDS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _encode_chunk(chunk: Sequence[Placed], encode: Encode) -> tuple[bytes, Marks] | DataError:
    records = [record for _, record in chunk]
    try:
        encoded = encode(records)
    except DataError as error:
        return DataError([_place(problem, chunk) for problem in error.problems])
    return make_batch(records, encoded).serialize().to_pybytes(), mark_prompts(records, encoded)


def _place(problem: Problem, chunk: Sequence[Placed]) -> Problem:
    """Name a record by its line, which is known here, instead of its number in the chunk."""
    number = re.fullmatch(r"record (\d+)", problem.where)
    return replace(problem, where=chunk[int(number[1]) - 1][0]) if number else problem


def _count_characters(placed: Placed) -> int:
    _, record = placed
    if isinstance(record, Text):
        return len(record.text)
    return sum(len(message.content) for message in record.prompt) + sum(map(len, record.answers))


def _describe_endless(error: Unfinished) -> Problem:
    where, record = error.item
    found = f"found {_count_characters(error.item):,} characters, of which"
    if isinstance(record, Text):
        return Problem(where, "", f"{found} tokenising {error}; needed a tokenizer that ends; split the text")
    needed = "needed a chat template and a tokenizer that end; mend the line, or take another template"
    return Problem(where, "", f"{found} rendering and tokenising {error}; {needed}")


def _describe_alike(alike: list[tuple[int, int]], records: Callable[[], Iterable[Placed]]) -> Iterator[Problem]:
    """Name pairs of records, given by their numbers, by their lines."""
    wanted = {number for pair in alike for number in pair}
    places = {number: where for number, (where, _) in enumerate(records()) if number in wanted}
    for first, second in alike:
        found = f"found another prompt than {places[first]}, of which chat template and tokenizer make the same"
        yield Problem(places[second], "", f"{found}; needed a template that writes what they differ in; take another, or drop one line")


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_READ_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum
