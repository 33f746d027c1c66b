"""The directory of token ids: a record set, and what makes ids of it -> a directory of `data.token_maker`, made once."""

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from data.fingerprint import fingerprint as hash_records
from data.load import stream_records
from data.reading import report_on
from data.schema import DataError, Problem, RecordKind
from data.texts import encode_texts
from data.token_maker import Encode, Placed, is_whole, make_tokens
from data.tokens import encode_records
from data.treatment import make_treatment
from data.turns import find_anchor
from stages.models.handoff import identify_tokenizer
from stages.spec import TOKENS_VERSION, DataSource, StageSpec, TokensSpec


class TokenStore:
    """Token files, and what they are made with."""

    def __init__(self, spec: StageSpec | TokensSpec, directory: Path, encode: Encode, identity: list[Any], *, workers: int) -> None:
        """Keep what all files are made with.

        Args:
            spec: Says which bad lines are skipped, and what is done to each record.
            directory: Where they lie.
            encode: Encodes some records.
            identity: All that its ids depend on, but for the records.
            workers: Processes to share the work.
        """
        self._directory, self._encode, self._identity, self._workers = directory, encode, [TOKENS_VERSION, *identity], workers
        self._skip_bad, self._treat = spec.skip_bad, make_treatment(spec.redact, spec.forgotten)

    def make(self, source: DataSource, kind: RecordKind, fingerprint: str | None, progress: Callable[[int], None]) -> Path:
        """Return the directory of a source's token ids, made if it is not there or damaged.

        Args:
            source: Where the records lie.
            kind: Of the records.
            fingerprint: Of what is expected there; None: whatever is there.
            progress: Is told how many records are done.
        """
        return self.make_of(lambda: self.stream(source, kind), kind, source.path, fingerprint, progress)

    def make_of(
        self, records: Callable[[], Iterable[Placed]], kind: RecordKind, path: str, fingerprint: str | None, progress: Callable[[int], None]
    ) -> Path:
        """Do the same with records from anywhere, which lie at `path` for messages."""
        fingerprint = fingerprint or hash_records(record for _, record in records())
        key = hashlib.sha256(json.dumps([kind, fingerprint, *self._identity]).encode()).hexdigest()
        directory = self._directory / f"{kind}-{key[:32]}"
        if is_whole(directory):
            return directory
        if not make_tokens(directory, records, self._encode, expected=fingerprint, workers=self._workers, progress=progress):
            raise DataError([describe_change(path)])
        return directory

    def stream(self, source: DataSource, kind: RecordKind) -> Iterable[Placed]:
        """Read the records of a source."""
        return stream_records(source, kind, report_on(source), self._skip_bad, self._treat)


def describe_change(path: str) -> Problem:
    """Say that a source is not as it was when it was checked."""
    return Problem(path, "", "changed while this ran; needed the records that were checked; run it again")


def open_conversation_store(spec: StageSpec | TokensSpec, tokenizer: Any, directory: Path, *, workers: int) -> TokenStore:
    """Open the store of a spec's demonstrations, comparisons and prompts, as the tokenizer and the limits make ids of them."""
    limits, anchor = (spec.tokens.max_prompt_tokens, spec.tokens.max_response_tokens), find_anchor(tokenizer)  # earlier versions had none
    identity = [identify_tokenizer(tokenizer), *limits, *([f"answers behind {anchor!r}"] if anchor else [])]
    return TokenStore(spec, directory, partial(encode_records, tokenizer, limits=limits), identity, workers=workers)


def open_text_store(spec: StageSpec | TokensSpec, tokenizer: Any, directory: Path, *, end: bool, workers: int) -> TokenStore:
    """Open the store of a spec's texts; with `end` each document ends with the end token."""
    return TokenStore(spec, directory, partial(encode_texts, tokenizer, end=end), [identify_tokenizer(tokenizer), end], workers=workers)
