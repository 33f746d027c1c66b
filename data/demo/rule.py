"""Prompt text + response text -> a judgement, 0-100. The reward model never sees this rule; it judges held-out answers at the end.

facts 50       the right item, and the right day, status or policy for the question
next step 25   exactly the step that helps; -10 for a wrong or second one
courtesy 25    greeting with the right name 12.5 (-25 for a wrong one); 12.5 for an apology where one is due, else for a
               closing (-5 for an apology that is not due)
minus          30 rude, 8 per filler, 15 per repeat, 1 per word over 45, 20 unfinished
"""

import re
from dataclasses import dataclass

from data.demo.helpdesk import CLOSINGS, COLOURS, DAYS, FILLERS, ITEMS, RUDE, STEP_MARKS, Case, Status, read_case, step_mark

MAX_WORDS = 45

_ITEM = re.compile(rf"\b(?:{'|'.join(COLOURS)}) (?:{'|'.join(ITEMS)})\b")
_GREETING = re.compile(r"(?:Hi|Hello|Dear) (\w+)[!,]")
_SENTENCE = re.compile(r"[^.!?]+[.!?]?")
_WHEREABOUTS: dict[Status, str] = {"packed": "is packed", "sent": "on its way", "delayed": "is delayed", "delivered": "was delivered"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rule says of one answer; `points` may leave 0-100, `score` does not."""

    points: float
    fact: bool
    step: bool
    polite: bool
    rude: bool
    filler: bool
    repeats: bool

    @property
    def score(self) -> float:
        """Points held to 0-100."""
        return max(0.0, min(100.0, self.points))


def judge(prompt: str, response: str, finished: bool = True) -> dict[str, float]:
    """Judge one response from texts alone.

    Args:
        prompt: A helpdesk prompt; the case is read out of it.
        response: The answer's text without control tokens.
        finished: Whether the answer ended by itself.

    Returns:
        `score` 0-100; `fact`, `step`, `polite`, `rude`, `filler`, `repeats` 0 or 1.

    Raises:
        ValueError: The prompt is not of this task.
    """
    verdict = assess(read_case(prompt), response, finished)
    flags = ("fact", "step", "polite", "rude", "filler", "repeats")
    return {"score": verdict.score} | {flag: float(getattr(verdict, flag)) for flag in flags}


def assess(case: Case, answer: str, finished: bool = True) -> Verdict:
    """Judge one answer to a known case."""
    steps = [mark for mark in STEP_MARKS if mark in answer]
    fact = _states_facts(case, answer)
    step = steps == [step_mark(case.kind, case.status)]
    courtesy = _courtesy_points(case, answer)
    rude = any(sentence in answer for sentence in RUDE)
    num_fillers = _count(answer, FILLERS)
    num_repeats = _count_repeats(answer)
    points = 50.0 * fact + (25 if step else -10 if steps else 0) + courtesy
    points -= 30 * rude + 8 * num_fillers + 15 * num_repeats + max(0, len(answer.split()) - MAX_WORDS)
    points -= 0 if finished else 20
    return Verdict(points, fact, step, polite=courtesy >= 25, rude=rude, filler=num_fillers > 0, repeats=num_repeats > 0)


def split_sentences(answer: str) -> list[str]:
    """Split an answer into its sentences; a greeting that ends in a comma belongs to the next one."""
    return [sentence.strip() for sentence in _SENTENCE.findall(answer) if sentence.strip()]


def find_greetings(answer: str) -> list[re.Match[str]]:
    """Find greetings; group 1 is the name."""
    return list(_GREETING.finditer(answer))


def _states_facts(case: Case, answer: str) -> bool:
    items = _ITEM.findall(answer)
    if not items or any(item != case.item for item in items):
        return False
    right_day = [day for day in DAYS if day in answer] == [case.day]
    if case.kind == "where":
        said = [status for status, words in _WHEREABOUTS.items() if words in answer]
        return right_day and said == [case.status]
    if case.kind == "when":
        told = any(word in answer for word in ("arrive", "expect", "due", "delivered", "reach"))
        return right_day and told and ("was delivered" in answer) == (case.status == "delivered")
    if case.kind == "broken":
        return f"new {case.item}" in answer and "money back" in answer
    if case.status == "packed":
        return "can still be cancelled" in answer and "cannot" not in answer
    return "cannot be cancelled" in answer and "can still" not in answer


def _courtesy_points(case: Case, answer: str) -> float:
    names = [greeting[1] for greeting in find_greetings(answer)]
    points = 12.5 if names == [case.name] else -25 if names else 0
    apologises = "sorry" in answer.lower()
    if case.needs_apology:
        return points + 12.5 * apologises
    return points - 5 * apologises + 12.5 * any(closing in answer for closing in CLOSINGS)


def _count_repeats(answer: str) -> int:
    """Sentences said again, closings after the first, and apologies after the first."""
    sentences = split_sentences(answer)
    again = len(sentences) - len(set(sentences))
    return again + max(0, _count(answer, CLOSINGS) - 1) + max(0, answer.lower().count("sorry") - 1)


def _count(answer: str, phrases: tuple[str, ...]) -> int:
    return sum(answer.count(phrase) for phrase in phrases)
