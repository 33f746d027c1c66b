"""Records -> a directory with their token ids, made by all cores, whole or not at all.

records -> chunks -> worker processes: encode -> batches, in order -> draft -> directory

    tokens.arrow   the rows; see `data.token_file`
    made.json      of which content they are, and a checksum: a damaged file is noticed, and made again
"""

import json
import multiprocessing
import os
import re
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import Any

from data.drafts import make_draft
from data.fingerprint import Fingerprint
from data.schema import Conversation, DataError, Problem
from data.token_file import TokenFile, make_batch, make_schema
from data.tokens import EncodedRecord

TOKENS_FILE, MADE_FILE = "tokens.arrow", "made.json"
CHUNK_RECORDS = 512
_STALE_DRAFT_S = 24 * 3600
_READ_BYTES = 2**24

Placed = tuple[str, Conversation]  # file:line, what stands there
Encode = Callable[[Sequence[Conversation]], list[EncodedRecord]]


def make_tokens(
    directory: Path, records: Iterable[Placed], encode: Encode, *, expected: str, workers: int, progress: Callable[[int], None]
) -> bool:
    """Encode a record set into a directory, which then is there as a whole; one that another process made meanwhile is as good.

    Args:
        directory: Is made, or made anew.
        records: In order.
        encode: Encodes some records, in any of the worker processes.
        expected: The fingerprint of the records.
        workers: Processes to share the work; 1: this one alone.
        progress: Is told how many records are done.

    Returns:
        Whether they were the expected records; of others nothing is left.

    Raises:
        DataError: Records cannot be read or encoded; each is named by its place.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with make_draft(directory, stale_s=_STALE_DRAFT_S) as draft:
        content = Fingerprint()
        num_records = _write(draft / TOKENS_FILE, _noting(records, content), encode, workers, progress)
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


def _noting(records: Iterable[Placed], content: Fingerprint) -> Iterator[Placed]:
    for where, record in records:
        content.add(record)
        yield where, record


def _write(path: Path, records: Iterator[Placed], encode: Encode, workers: int, progress: Callable[[int], None]) -> int:
    arrow: Any = import_module("pyarrow")
    num_records = 0
    problems: list[Problem] = []
    with arrow.OSFile(str(path), "wb") as sink, arrow.ipc.new_file(sink, make_schema()) as writer:
        for found in _encode_chunks(records, encode, workers):
            if isinstance(found, DataError):
                problems += found.problems
                continue
            batch: Any = arrow.ipc.read_record_batch(arrow.py_buffer(found), make_schema())
            writer.write_batch(batch)
            num_records += batch.num_rows
            progress(num_records)
    if problems:
        raise DataError(problems)
    return num_records


def _encode_chunks(records: Iterator[Placed], encode: Encode, workers: int) -> Iterator[bytes | DataError]:
    """Yield the batch of each chunk, in order; no more chunks are waiting than keep the workers at work."""
    chunks = _split(records)
    first = list(islice(chunks, 2))
    if workers == 1 or len(first) < 2:
        yield from (_encode_chunk(chunk, encode) for chunk in chain(first, chunks))
        return
    waiting: deque[Future[bytes | DataError]] = deque()
    with _worker_pool(encode, workers) as pool:
        for chunk in chain(first, chunks):
            waiting.append(pool.submit(_encode_in_worker, chunk))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _split(records: Iterator[Placed]) -> Iterator[list[Placed]]:
    while chunk := list(islice(records, CHUNK_RECORDS)):
        yield chunk


def _encode_chunk(chunk: Sequence[Placed], encode: Encode) -> bytes | DataError:
    records = [record for _, record in chunk]
    try:
        return make_batch(records, encode(records)).serialize().to_pybytes()
    except DataError as error:
        return DataError([_place(problem, chunk) for problem in error.problems])


def _place(problem: Problem, chunk: Sequence[Placed]) -> Problem:
    """Name a record by its line, which is known here, instead of its number in the chunk."""
    number = re.fullmatch(r"record (\d+)", problem.where)
    return replace(problem, where=chunk[int(number[1]) - 1][0]) if number else problem


_worker_encode: Encode  # of a worker process, which inherits it: a tokenizer takes long to send


@contextmanager
def _worker_pool(encode: Encode, workers: int) -> Generator[ProcessPoolExecutor]:
    global _worker_encode
    _worker_encode = encode
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _encode_in_worker(chunk: Sequence[Placed]) -> bytes | DataError:
    return _encode_chunk(chunk, _worker_encode)


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_READ_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum


def count_workers() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0))
