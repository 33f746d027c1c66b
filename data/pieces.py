"""The mapped token ids of texts -> those to train on, those that are held out, and pieces of them that fit into a row.

A piece is a pair like a demonstration: its first token, which nothing in its row precedes, and the tokens that are learnt. The next piece
of a long document begins with the last token of the one before, so each token but the document's first is learnt once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from data.holdout import Places, hold_out, too_few
from data.schema import DataError
from data.token_file import RowNumbers, TokenFile
from data.tokens import Counts, EncodedPair


@dataclass(frozen=True)
class TextSet:
    """The texts on one side of the split.

    Args:
        file: Where their ids lie.
        rows: Which of the file's, in its order; those of which nothing can be learnt among them.
    """

    file: TokenFile
    rows: RowNumbers

    @property
    def used(self) -> RowNumbers:
        """The rows of which something can be learnt."""
        return self.rows[self.file.used[self.rows]]

    def beginning(self, number: int, most: int) -> list[int]:
        """Return at most so many ids of the begin of a text that is used, and at most half of all its ids."""
        ids = self.file.ids(int(self.used[number]))
        return ids[: min(-(-len(ids) // 2), most)].tolist()

    def pieces(self, max_tokens: int) -> "Pieces":
        """Split them into pieces of at most `max_tokens` (2 or more), in order."""
        return Pieces(self.file, self.used, max_tokens)

    def counts(self) -> Counts:
        """Say how many there are, `texts_used`, `texts_with_control_tokens` (in their text), and `text_tokens` to learn."""
        lengths = self.file.count_tokens()[self.used]
        return {
            "texts": len(self.rows),
            "texts_used": len(self.used),
            "texts_with_control_tokens": int(self.file.control[self.rows].sum()),
            "text_tokens": int(lengths.sum()) - len(lengths),
        }


class Pieces(Sequence[EncodedPair]):
    """Pieces of some texts of a token file, each made when it is asked for: nothing is held of them."""

    def __init__(self, file: TokenFile, rows: RowNumbers, max_tokens: int) -> None:
        self._file, self._rows, self._max_tokens = file, rows, max_tokens
        self._lengths = file.count_tokens()[rows]
        self._ends = np.cumsum(-(-(self._lengths - 1) // (max_tokens - 1)))  # of each text's pieces

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, index: int) -> EncodedPair: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedPair]: ...
    def __getitem__(self, index: int | slice) -> "EncodedPair | list[EncodedPair]":
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        text = int(np.searchsorted(self._ends, index, side="right"))
        start = (index - int(self._ends[text - 1] if text else 0)) * (self._max_tokens - 1)
        first, *others = self._file.ids(int(self._rows[text]))[start : start + self._max_tokens].tolist()
        return EncodedPair([first], others)

    def count_tokens(self) -> NDArray[np.int64]:
        """Count the tokens of each piece."""
        step = self._max_tokens - 1
        counts = np.diff(self._ends, prepend=0)
        number = np.arange(len(self)) - np.repeat(self._ends - counts, counts)  # of each piece within its text
        return np.minimum(np.repeat(self._lengths, counts) - number * step, self._max_tokens)


def take_all_texts(file: TokenFile) -> TextSet:
    """Take all texts of a file."""
    return TextSet(file, np.arange(len(file)))


def split_texts(file: TokenFile, places: Places, eval_fraction: float, where: str) -> tuple[TextSet, TextSet]:
    """Split the texts of a file into those to train on and those that are held out; see `data.holdout`.

    What can be held out does not hang on the tokenizer: what pre-training held out PPO must not mix in.

    Args:
        file: Where they lie.
        places: Of each.
        eval_fraction: Share of different texts to hold out.
        where: Their source, for messages.

    Raises:
        DataError: Fewer than two different texts are there.
    """
    held_out = hold_out(places, file.answers > 0, file.source_codes(), eval_fraction)
    if held_out is None:
        raise DataError([too_few(where, "texts", len(file))])
    return TextSet(file, np.flatnonzero(~held_out)), TextSet(file, np.flatnonzero(held_out))
