"""The token ids of a record set -> those to train on, and those that are held out, each with what is told of it."""

import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.holdout import Places, find_places, hold_out, too_few
from data.schema import DataError, RecordKind
from data.token_file import (
    RowNumbers,
    TokenFile,
    TokenRows,
    read_comparison,
    read_pair,
    read_prompt,
    read_prompt_ids,
)
from data.tokens import Counts, EncodedComparison, EncodedPair, EncodedPromptRecord, count_records


@dataclass(frozen=True)
class TokenSet:
    """The records of one kind on one side of the split.

    Args:
        kind: Of the records.
        file: Where they lie.
        rows: Which of the file's, in its order; those that cannot be used among them.
    """

    kind: RecordKind
    file: TokenFile
    rows: RowNumbers

    @property
    def used(self) -> RowNumbers:
        """The rows that can be trained and evaluated on."""
        is_used = self.file.used[self.rows]
        return self.rows if is_used.all() else self.rows[is_used]

    @property
    def pairs(self) -> TokenRows[EncodedPair]:
        """Its demonstrations."""
        return TokenRows(self.file, self.used, read_pair)

    @property
    def comparisons(self) -> TokenRows[EncodedComparison]:
        """Its comparisons."""
        return TokenRows(self.file, self.used, read_comparison)

    @property
    def prompts(self) -> TokenRows[EncodedPromptRecord]:
        """The prompts of all its records, whether these are used or not."""
        return TokenRows(self.file, self.rows, read_prompt)

    @property
    def prompt_ids(self) -> TokenRows[list[int]]:
        """The ids of these prompts alone."""
        return TokenRows(self.file, self.rows, read_prompt_ids)

    def count_answers(self) -> int:
        """Count the answers of all its records."""
        return int(self.file.answers[self.rows].sum())

    def count_repeated(self) -> int:
        """Count the answers that begin with what the prompt before them ends with."""
        return int(self.file.repeated[self.rows].sum())

    def count_altered(self) -> int:
        """Count the answers that are others when their ids are written out."""
        return int(self.file.altered[self.rows].sum())

    def count_control(self) -> int:
        """Count the records that hold the text of a control token."""
        return int(self.file.control[self.rows].sum())

    def first(self, counts_M: NDArray[np.int32] | NDArray[np.bool_]) -> int:
        """Return the number, from 0, of the first of its records of which the file counts some."""
        return int(self.rows[np.flatnonzero(counts_M[self.rows])[0]])

    def counts(self) -> Counts:
        """Say how many records are used, cut and dropped; see `count_records`."""
        used = self.used
        counts = count_records(
            self.kind,
            used=len(used),
            records=len(self.rows),
            prompts_cut=int(self.file.cut[used].sum()),
            responses_dropped=int(self.file.dropped[self.rows].sum()),
        )
        some = {"openings_repeated": self.count_repeated(), "answers_altered": self.count_altered(), "control_tokens": self.count_control()}
        some |= {f"{self.kind}_graded": int((self.file.count_grades()[used] > 0).sum())}
        return counts | {name: number for name, number in some.items() if number}


def take_all(kind: RecordKind, file: TokenFile) -> TokenSet:
    """Take all records of a file."""
    return TokenSet(kind, file, np.arange(len(file)))


def split_tokens(kind: RecordKind, file: TokenFile, places: Places, eval_fraction: float, where: str) -> tuple[TokenSet, TokenSet]:
    """Split the records of a file into those to train on and those that are held out; see `data.holdout`.

    Args:
        kind: Of the records.
        file: Where they lie.
        places: Of each, see `load_places`.
        eval_fraction: Share of conversations to hold out.
        where: Their source, for messages.

    Raises:
        DataError: Too few of them can be used.
    """
    sources = file.source_codes()
    held_out = hold_out(places, file.used & ~file.cut, sources, eval_fraction)  # a prompt that is cut is another question
    if held_out is None:
        held_out = hold_out(places, file.used, sources, eval_fraction)
    if held_out is None:
        raise DataError([too_few(where, kind, len(file), int((~file.used).sum()))])
    return TokenSet(kind, file, np.flatnonzero(~held_out)), TokenSet(kind, file, np.flatnonzero(held_out))


def load_places(directory: Path, file: TokenFile, seed: int, texts: Iterable[str] | None = None) -> Places:
    """Find the places of a file's records, and keep them beside it: hashing a million prompts takes seconds.

    Args:
        directory: Of the file.
        file: Whose prompts they are.
        seed: Another seed gives other places.
        texts: Where the file's records are texts, which it does not hold: their source.
    """
    kept = directory / f"places-{seed}.npy"
    with suppress(OSError, ValueError, EOFError):
        places: Places = np.load(kept, mmap_mode="r")
        if places.shape == (len(file),):
            return places
    places = find_places(file.prompts() if texts is None else texts, seed)
    draft = kept.with_name(f".{kept.name}-{uuid.uuid4().hex}")
    with suppress(OSError):  # a read-only store
        with draft.open("wb") as stream:
            np.save(stream, places)
        draft.replace(kept)
    return places
