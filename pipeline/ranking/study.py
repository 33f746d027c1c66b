"""Answer sets, who ranks them and the journal, as one thing that several people at once may ask what comes next.

A set that somebody looks at is theirs for a quarter of an hour: nobody else is given it, unless everybody ranks it.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data.answers import AnswerSet
from pipeline.ranking.assignment import Assignment, Queue, choose_overlap, shuffle_answers
from pipeline.ranking.journal import Journal, Judgement, Undo
from pipeline.ranking.ranks import list_levels, rank_levels
from pipeline.ranking.settings import Settings

HELD_S = 900.0


@dataclass(frozen=True)
class Progress:
    """How far an annotator is."""

    done: int
    left: int


@dataclass
class Study:
    """What is ranked, by whom.

    Args:
        answers: By id.
        journal: What has been said.
        settings: Of the study.
    """

    answers: Mapping[str, AnswerSet]
    journal: Journal
    settings: Settings = field(default_factory=lambda: Settings.model_validate({}))

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._sizes = {item: len(answers.completions) for item, answers in self.answers.items()}
        self._overlap = choose_overlap(self.settings.seed, self._sizes, self.settings.overlap)
        self._queues: dict[str, Queue] = {}
        self._held: dict[str, tuple[str, float]] = {}  # set -> who looks at it, until when

    def next(self, annotator: str) -> Assignment | None:
        """Choose what an annotator sees, and hold it for them; the same until it is judged."""
        with self._lock:
            self.journal.read()
            assignment = self._queue(annotator).next(self.own(annotator), self._taken(annotator))
            if assignment is not None:
                self._held[assignment.item] = (annotator, time.monotonic() + HELD_S)
            return assignment

    def read_judgement(self, annotator: str, sent: Mapping[str, Any]) -> Judgement:
        """Turn what a page or a terminal sends into a judgement.

        Args:
            annotator: Who says it.
            sent: Of a set (`item`) with its answers in the `order` shown: `id`, `outcome`, `levels` of places as shown, `flags` of places,
                `grade`, `grades` by place (if the study asks for them), `reason`, `note`, `seconds`, `repeat`.

        Raises:
            ValueError, TypeError, LookupError, AttributeError: It is none of this study.
        """
        order = tuple(sent["order"])
        if sorted(order) != list(range(self._sizes[sent["item"]])):
            raise ValueError("the order is not of these answers")
        ranks, partial = rank_levels(sent["levels"], order) if sent["outcome"] == "ranked" else (None, False)
        num_named = sum(len(level) for level in sent["levels"])
        if ranks is not None and not self.settings.partial and num_named < len(order):
            raise ValueError(f"{num_named} of {len(order)} answers are placed; each must be")
        flags = {flag: tuple(order[_read_index(place)] for place in places) for flag, places in sent["flags"].items() if places}
        if twice := next((flag for flag, marked in flags.items() if len(set(marked)) < len(marked)), None):
            raise ValueError(f"the flag {twice} marks an answer twice")
        if not set(flags) <= set(self.settings.flags):
            raise ValueError("a flag is none of this study")
        if sent["grade"] is not None and (not self.settings.grade or self.settings.grade_each):
            raise ValueError("this study asks for no grade of the best answer")
        by_place: Mapping[Any, Any] = sent.get("grades") or {}
        given = {order[_read_index(place)]: grade for place, grade in by_place.items() if grade is not None}
        if given and not self.settings.grade_each:
            raise ValueError("this study asks for no grade of each answer")
        grades = tuple(given.get(answer) for answer in range(len(order))) if given else None
        fields = {name: sent[name] for name in ("id", "item", "outcome", "grade", "reason", "note", "seconds", "repeat")}
        said: dict[str, Any] = {"order": order, "ranks": ranks, "partial": partial, "flags": flags, "grades": grades}
        return Judgement(**fields, **said, annotator=annotator, time=time.time())

    def judge(self, judgement: Judgement) -> bool:
        """Write a judgement; false where this annotator has judged that set already, in another tab or by sending it twice."""
        with self._lock:

            def is_there() -> bool:
                same = (each for each in self.own(judgement.annotator) if each.item == judgement.item)
                return any(each.repeat == judgement.repeat for each in same)

            if self._held.get(judgement.item, ("", 0.0))[0] == judgement.annotator:
                del self._held[judgement.item]  # what was skipped is for others now
            return self.journal.add(judgement, refuse=is_there)

    def undo(self, annotator: str) -> Judgement | None:
        """Take an annotator's last judgement back; returns it, None where there is none."""
        with self._lock:
            self.journal.read()
            own = self.own(annotator)
            if not own or not self.journal.add(Undo(id=own[-1].id, annotator=annotator, time=time.time())):
                return None
            return own[-1]

    def list_said(self, undone: Judgement) -> dict[str, Any]:
        """Say by places what `read_judgement` was given, for who took it back and sees the set again: `order`, `levels`, `flags` ...

        That is another order than before where the study's seed is another, or what was said was imported.
        """
        size, ranks = self._sizes.get(undone.item, 0), undone.ranks
        order = shuffle_answers(self.settings.seed, undone.annotator, undone.item, size, repeat=undone.repeat) if size else undone.order
        said: dict[str, Any] = {"order": order, "levels": list_levels(ranks, order, partial=undone.partial) if ranks and order else []}
        said |= {"flags": {flag: [order.index(each) for each in marked] for flag, marked in undone.flags.items() if order}}
        grades = {order.index(answer): grade for answer, grade in enumerate(undone.grades or ()) if grade and order}
        return said | {"grade": undone.grade, "grades": grades, "note": undone.note, "reason": undone.reason}

    def own(self, annotator: str) -> list[Judgement]:
        """List an annotator's judgements that stand, as they came."""
        return [judgement for judgement in self.journal.judgements.values() if judgement.annotator == annotator]

    def progress(self, annotator: str) -> Progress:
        """Count what an annotator has done and has left."""
        with self._lock:
            own = self.own(annotator)
            return Progress(len(own), self._queue(annotator).count_left(own, self._taken(annotator)))

    def _queue(self, annotator: str) -> Queue:
        if annotator not in self._queues:
            self._queues[annotator] = Queue(self.settings.seed, annotator, self._sizes, self._overlap, self.settings.repeats)
        return self._queues[annotator]

    def _taken(self, annotator: str) -> set[str]:
        # What a model has judged is still there for people: that is how the two are compared. So is what somebody skipped, for others.
        others = (
            each
            for each in self.journal.judgements.values()
            if each.annotator != annotator and not each.model and each.outcome != "skipped"
        )
        judged = {judgement.item for judgement in others}
        now = time.monotonic()
        return judged | {item for item, (holder, until) in self._held.items() if holder != annotator and until > now}


def _read_index(place: object) -> int:
    """Read a place, which JSON holds as a text where it is a key."""
    if not str(place).isdecimal():
        raise ValueError(f"{str(place)[:20]!r} is no place of an answer")
    return int(str(place))
