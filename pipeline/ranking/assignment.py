"""Which answer set an annotator sees next, and in which order its answers stand: by hashes, so that a restart changes nothing.

- Each annotator goes through the sets in an order of its own.
- A share of the sets, the same for all, is ranked by everybody (agreement between people); the others by whoever comes first.
- A share of the judgements, every tenth unless set otherwise, is of a set that the annotator has ranked before (agreement with oneself),
  once, in another order.
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.ranking.journal import Judgement

_BETWEEN = 5  # judgements at least between a set and its repetition


@dataclass(frozen=True)
class Assignment:
    """What an annotator is shown."""

    item: str
    order: tuple[int, ...]  # of its answers
    repeat: bool


def draw(*parts: object) -> int:
    """Draw a number in [0, 2^64) that only depends on the parts."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8])


def shuffle_answers(seed: int, annotator: str, item: str, count: int, *, repeat: bool) -> tuple[int, ...]:
    """Order the answers of a set for an annotator; a repetition has another order."""
    return tuple(sorted(range(count), key=lambda answer: draw(seed, "answers", annotator, item, repeat, answer)))


def choose_overlap(seed: int, items: Iterable[str], share: float) -> frozenset[str]:
    """Choose the sets that everybody ranks: `share` of all, rounded."""
    ordered = sorted(items, key=lambda item: draw(seed, "overlap", item))
    return frozenset(ordered[: round(share * len(ordered))])


@dataclass
class Queue:
    """What is left for one annotator of a fixed list of sets.

    Args:
        seed: Of the study.
        annotator: Whose.
        sizes: Set -> number of its answers.
        overlap: The sets that everybody ranks.
        repeats: Share of the annotator's judgements that repeat a set.
    """

    seed: int
    annotator: str
    sizes: Mapping[str, int]
    overlap: Collection[str]
    repeats: float = 0.1
    _ordered: list[str] = field(init=False)

    def __post_init__(self) -> None:
        # What all rank comes evenly among the rest: people who stop early still share some.
        self._ordered = sorted(self.sizes, key=lambda item: draw(self.seed, "items", self.annotator, item))

    def next(self, own: Sequence[Judgement], taken: Collection[str]) -> Assignment | None:
        """Choose what comes next; None where all is done.

        Args:
            own: This annotator's judgements that stand, as they came.
            taken: Sets that others have judged, or are looking at.
        """
        if repeated := self._choose_repeat(own):
            return self._assign(repeated, repeat=True)
        done = {judgement.item for judgement in own}
        for item in self._ordered:
            if item not in done and (item in self.overlap or item not in taken):
                return self._assign(item, repeat=False)
        return None

    def count_left(self, own: Sequence[Judgement], taken: Collection[str]) -> int:
        """Count the sets that are left, repetitions left out."""
        done = {judgement.item for judgement in own}
        return sum(item not in done and (item in self.overlap or item not in taken) for item in self._ordered)

    def _choose_repeat(self, own: Sequence[Judgement]) -> str | None:
        due = [math.floor(round(count * self.repeats, 9)) for count in (len(own), len(own) + 1)]
        if due[0] == due[1]:
            return None
        again = {judgement.item for judgement in own if judgement.repeat}
        ranked = [judgement.item for judgement in own[:-_BETWEEN] if judgement.outcome == "ranked" and not judgement.repeat]
        candidates = [item for item in ranked if item not in again and item in self.sizes]
        return min(candidates, key=lambda item: draw(self.seed, "repeat", self.annotator, item), default=None)

    def _assign(self, item: str, *, repeat: bool) -> Assignment:
        return Assignment(item, shuffle_answers(self.seed, self.annotator, item, self.sizes[item], repeat=repeat), repeat)
