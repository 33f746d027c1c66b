"""Simulated people who answer a case, each with mixed care: some greet, some skip the next step, some ramble, some are curt."""

from dataclasses import dataclass
from random import Random

from data.demo.helpdesk import (
    APOLOGIES,
    CLOSINGS,
    DAYS,
    EVASIONS,
    FILLERS,
    GREETINGS,
    KINDS,
    NAMES,
    RUDE,
    STATUSES,
    Case,
    Kind,
    Status,
    draw_item,
    write_fact,
    write_step,
)


@dataclass(frozen=True, slots=True)
class Care:
    """How a group of labelers works, as probabilities per answer.

    Args:
        slip: The stated fact is wrong.
        greet: The answer greets the customer by name.
        garble: The finished answer is spoiled as a weak model would: repeats, shuffled or broken-off sentences, rambling.
    """

    slip: float
    greet: float
    garble: float = 0.0


DEMONSTRATORS = Care(slip=0.12, greet=0.45)
RANKED = Care(slip=0.10, greet=0.70, garble=0.15)


def write_answer(case: Case, rng: Random, care: Care) -> str:
    """Write one answer to a case."""
    said: list[str] = []
    if rng.random() < care.greet:
        greeting = rng.choice(GREETINGS)
        said.append(greeting.format(name=case.name if rng.random() < 0.95 else rng.choice(NAMES)))
    if rng.random() < (0.45 if case.needs_apology else 0.06):
        said.append(rng.choice(APOLOGIES))
    if rng.random() < 0.18:
        said.append(rng.choice(FILLERS))
    said.append(_say_something_to_the_point(case, rng, care))
    if rng.random() < 0.12:
        said.append(rng.choice(RUDE))
    draw = rng.random()
    if draw < 0.30:
        said.append(write_step(case.kind, case.status))
    elif draw < 0.36:
        said.append(write_step(rng.choice(KINDS), rng.choice(STATUSES)))
    if rng.random() < 0.15:
        said.append(rng.choice(FILLERS))
    if rng.random() < 0.30:
        said.append(rng.choice(CLOSINGS))
    if rng.random() < care.garble:
        said = _garble(said, case, rng)
    return " ".join(sentence for sentence in said if sentence) or rng.choice(EVASIONS)


def right_fact(case: Case, rng: Random) -> str:
    """State the fact that answers the case."""
    return write_fact(rng, case.kind, case.status, case.item, case.day)


def wrong_status_fact(case: Case, rng: Random) -> str:
    """State the fact of another status; for a cancellation, the opposite policy."""
    status: Status
    if case.kind == "cancel":
        status = "sent" if case.status == "packed" else "packed"
    else:
        status = rng.choice([status for status in STATUSES if status != case.status])
    return write_fact(rng, case.kind, status, case.item, case.day)


def _say_something_to_the_point(case: Case, rng: Random, care: Care) -> str:
    draw = rng.random()
    if draw < 0.08:
        return rng.choice(EVASIONS)
    return _slip(case, rng) if draw < 0.08 + care.slip else right_fact(case, rng)


def _slip(case: Case, rng: Random) -> str:
    """State a fact with one careless mistake: the day, the item, the status, or the answer to another question."""
    draw = rng.random()
    if draw < 0.10 and case.kind in ("where", "when"):
        day = rng.choice([day for day in DAYS if day != case.day])
        return write_fact(rng, case.kind, case.status, case.item, day)
    if draw < 0.20:
        return write_fact(rng, case.kind, case.status, draw_item(rng), case.day)
    if case.kind in ("cancel", "where"):
        return wrong_status_fact(case, rng)
    kind: Kind = rng.choice([kind for kind in KINDS if kind != case.kind])
    return write_fact(rng, kind, rng.choice(STATUSES), case.item, case.day)


def _garble(said: list[str], case: Case, rng: Random) -> list[str]:
    """Spoil a finished answer: say a sentence again, pile up courtesies, shuffle, break off, or ramble on."""
    draw = rng.random()
    if draw < 0.35:
        place = rng.randrange(len(said))
        return said[:place] + [said[place]] * rng.choice((1, 1, 2)) + said[place:]
    if draw < 0.55:
        pool = [*CLOSINGS, *APOLOGIES, write_step(case.kind, case.status)]
        return said + rng.choices(pool, k=rng.choice((2, 3)))
    if draw < 0.75:
        rng.shuffle(said)
        return said
    if draw < 0.90:
        return [*said[:-1], " ".join(said[-1].split()[:-2])]
    return said + rng.choices((*FILLERS, *RUDE), k=2)
