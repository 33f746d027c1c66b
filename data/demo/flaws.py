"""An answer -> a copy with ONE more flaw, so that a ranked list shows what each mistake costs.

What the flaws cover decides what the reward model can learn: without `question` the policy learned to answer another
question, without `manners` it dropped greetings, with `status` half as often it treated packed orders as delayed or gone (facts right in
0.79 of the answers on data 202, now in 0.89). Slips in what is copied from the prompt (item, day, name) are rarer than they were: this
tiny model learns late or never to compare them.
"""

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

from data.demo.helpdesk import (
    APOLOGIES,
    CLOSINGS,
    COLOURS,
    DAYS,
    FILLERS,
    ITEMS,
    KINDS,
    NAMES,
    RUDE,
    STATUSES,
    STEP_MARKS,
    Case,
    write_fact,
    write_step,
)
from data.demo.labelers import wrong_status_fact
from data.demo.rule import find_greetings, split_sentences

Choice = TypeVar("Choice")

# How often each flaw is drawn, before those that do not apply are left out.
WEIGHTS = {
    "order": 4,  # another customer's order: item, day and name differ
    "item": 3,
    "day": 3,
    "name": 2,
    "status": 8,
    "question": 4,  # the answer to another question
    "repeat": 2,
    "rude": 1,
    "filler": 1,
    "step": 3,
    "manners": 6,
}


def add_flaw(case: Case, answer: str, rng: Random) -> str:
    """Copy an answer with one more flaw; now and then the draw changes nothing and the copy is equal."""
    sentences = split_sentences(answer)
    weights = {flaw: weight for flaw, weight in WEIGHTS.items() if _applies(flaw, case, answer)}
    flaw = rng.choices(list(weights), list(weights.values()))[0]
    flawed = _FLAWS[flaw](case, answer, sentences, rng)
    if flawed is None:  # nothing to change in this answer
        flaw = "rude" if flaw == "manners" else "repeat"
        flawed = _FLAWS[flaw](case, answer, sentences, rng)
    return answer if flawed is None else flawed


def copy_with_each_flaw(case: Case, answer: str, rng: Random) -> dict[str, str]:
    """Copy an answer once with each flaw that applies to it and changes it: flaw -> copy."""
    sentences = split_sentences(answer)
    if not sentences:
        return {}
    copies = {flaw: make(case, answer, sentences, rng) for flaw, make in _FLAWS.items() if _applies(flaw, case, answer)}
    return {flaw: copy for flaw, copy in copies.items() if copy is not None and copy != answer}


def _applies(flaw: str, case: Case, answer: str) -> bool:
    if flaw in ("item", "order"):
        return case.item in answer
    if flaw == "day":
        return case.day in answer
    if flaw == "name":
        return _greets_by_name(case, answer)
    if flaw == "step":
        return any(mark in answer for mark in STEP_MARKS)
    return flaw != "status" or case.kind not in ("when", "broken")


def _another(rng: Random, pool: Sequence[Choice], than: object) -> Choice:
    return rng.choice([choice for choice in pool if choice != than])


def _greets_by_name(case: Case, answer: str) -> bool:
    greetings = find_greetings(answer)
    return bool(greetings) and greetings[0][1] == case.name


def _fact_place(case: Case, sentences: list[str]) -> int | None:
    """The sentence that states the fact: the first with the item or the day."""
    return next((i for i, sentence in enumerate(sentences) if case.item in sentence or case.day in sentence), None)


def _swap_order(case: Case, answer: str, sentences: list[str], rng: Random) -> str:
    colour, thing = case.item.split()
    other_item = f"{_another(rng, COLOURS, colour)} {_another(rng, ITEMS, thing)}"
    answer = answer.replace(case.item, other_item).replace(case.day, _another(rng, DAYS, case.day))
    return _swap_name(case, answer, sentences, rng) if _greets_by_name(case, answer) else answer


def _swap_item(case: Case, answer: str, _sentences: list[str], rng: Random) -> str:
    colour, thing = case.item.split()
    draw = rng.random()
    if draw < 0.35:
        other_item = f"{_another(rng, COLOURS, colour)} {thing}"
    elif draw < 0.70:
        other_item = f"{colour} {_another(rng, ITEMS, thing)}"
    else:
        other_item = f"{_another(rng, COLOURS, colour)} {_another(rng, ITEMS, thing)}"
    return answer.replace(case.item, other_item)


def _swap_day(case: Case, answer: str, _sentences: list[str], rng: Random) -> str:
    return answer.replace(case.day, _another(rng, DAYS, case.day))


def _swap_name(case: Case, answer: str, _sentences: list[str], rng: Random) -> str:
    greeting = find_greetings(answer)[0][0]
    return answer.replace(greeting, greeting.replace(case.name, _another(rng, NAMES, case.name)))


def _swap_status(case: Case, _answer: str, sentences: list[str], rng: Random) -> str | None:
    place = _fact_place(case, sentences)
    if place is None:
        return None
    return " ".join([*sentences[:place], wrong_status_fact(case, rng), *sentences[place + 1 :]])


def _answer_another_question(case: Case, _answer: str, sentences: list[str], rng: Random) -> str | None:
    """Answer another question: the fact belongs to it, and half the time the next step, where there is one."""
    kind, status = _another(rng, KINDS, case.kind), rng.choice(STATUSES)
    place = _fact_place(case, sentences)
    if place is None:
        return None
    sentences = [*sentences[:place], write_fact(rng, kind, status, case.item, case.day), *sentences[place + 1 :]]
    return " ".join(write_step(kind, status) if _is_step(sentence) and rng.random() < 0.5 else sentence for sentence in sentences)


def _drop_manners(_case: Case, answer: str, sentences: list[str], rng: Random) -> str | None:
    """Drop the greeting, the apology or the closing."""
    courtesies = [
        i for i, sentence in enumerate(sentences) if sentence in APOLOGIES or sentence in CLOSINGS or re.match(r"(Hi|Hello) \w+!", sentence)
    ]
    greeting = next((match[0] for match in find_greetings(answer)), "")
    if greeting.endswith(",") and (not courtesies or rng.random() < 0.4):
        return answer.replace(f"{greeting} ", "", 1)
    if not courtesies or len(sentences) == 1:
        return None
    dropped = courtesies[-1]
    return " ".join(sentences[:dropped] + sentences[dropped + 1 :])


def _repeat(_case: Case, answer: str, sentences: list[str], rng: Random) -> str:
    if len(sentences) == 1 or rng.random() < 0.25:
        return f"{answer} {answer}"
    said = rng.randrange(len(sentences))
    behind = rng.choice((said, len(sentences) - 1))
    return _insert(sentences, behind + 1, sentences[said])


def _be_rude(_case: Case, _answer: str, sentences: list[str], rng: Random) -> str:
    place = rng.randint(min(1, len(sentences)), len(sentences))
    return _insert(sentences, place, rng.choice(RUDE))


def _ramble(_case: Case, _answer: str, sentences: list[str], rng: Random) -> str:
    place = rng.randrange(len(sentences) + 1)
    return _insert(sentences, place, rng.choice(FILLERS))


def _spoil_step(_case: Case, _answer: str, sentences: list[str], rng: Random) -> str:
    """Drop the next step, or name a random one in its place."""
    place = next(i for i, sentence in enumerate(sentences) if _is_step(sentence))
    if len(sentences) > 1 and rng.random() < 0.5:
        return " ".join(sentences[:place] + sentences[place + 1 :])
    return " ".join([*sentences[:place], write_step(rng.choice(KINDS), rng.choice(STATUSES)), *sentences[place + 1 :]])


def _is_step(sentence: str) -> bool:
    return any(mark in sentence for mark in STEP_MARKS)


def _insert(sentences: list[str], place: int, sentence: str) -> str:
    return " ".join([*sentences[:place], sentence, *sentences[place:]])


_FLAWS: dict[str, Callable[[Case, str, list[str], Random], str | None]] = {
    "order": _swap_order,
    "item": _swap_item,
    "day": _swap_day,
    "name": _swap_name,
    "status": _swap_status,
    "question": _answer_another_question,
    "repeat": _repeat,
    "rude": _be_rude,
    "filler": _ramble,
    "step": _spoil_step,
    "manners": _drop_manners,
}
