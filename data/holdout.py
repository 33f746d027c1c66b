"""Which records of a set are held out: whole conversations, something usable in each, every source alike, and not too many.

prompts -> places on [0, 1), alike for all that belong together -> those below the fraction

Of a single text, such as one book, the end is held out.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.schema import Message, Problem

# Enough for a standard error of 1 % on an accuracy of 70 %; 5 % of a million would be hours of evaluation.
MAX_HELD_OUT = 2000
_MAX_DEPTH = 8
_MAX_HELD_OUT_CHARS = MAX_HELD_OUT * 2000  # of a single text: about as long to evaluate as so many demonstrations of 500 tokens

Prompt = Sequence[Message] | str
Places = NDArray[np.float64]


def find_places(prompts: Iterable[Prompt], seed: int) -> Places:
    """Give each prompt a place on [0, 1) by a hash of how its conversation begins and the seed.

    A conversation begins with all up to its first user message. So its later turns, and answers to the same prompt, have one place. Where
    more than half of the prompts begin alike, and go on in several ways (an agent's standing greeting), more of their user messages count.

    Args:
        prompts: Of one record set, in order; read several times. A text has a place by itself.
        seed: Another seed gives other places.
    """
    places = _places_at(prompts, seed, 1)
    for depth in range(2, _MAX_DEPTH):
        found, sizes = np.unique(places, return_counts=True)
        if sizes.max(initial=0) * 2 <= len(places):
            break
        deeper = _places_at(prompts, seed, depth)
        largest = deeper[places == found[sizes.argmax()]]
        long = np.fromiter((_count_users(prompt) >= depth for prompt in prompts), np.bool_)[places == found[sizes.argmax()]]
        if len(np.unique(largest[long])) > 1:  # else it is one conversation with several answers, so far
            places = deeper
    return places


def _places_at(prompts: Iterable[Prompt], seed: int, depth: int) -> Places:
    return np.fromiter((_place(_opening(prompt, depth), seed) for prompt in prompts), np.float64)


def _opening(prompt: Prompt, depth: int) -> tuple[Message, ...] | str:
    if isinstance(prompt, str):
        return prompt
    users = [i for i, message in enumerate(prompt) if message.role == "user"]
    return tuple(prompt[: users[min(depth, len(users)) - 1] + 1])


def _count_users(prompt: Prompt) -> int:
    return 0 if isinstance(prompt, str) else sum(message.role == "user" for message in prompt)


def _place(opening: tuple[Message, ...] | str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}\n{opening!r}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def hold_out(places: Places, usable: NDArray[np.bool_], sources: NDArray[Any], fraction: float) -> NDArray[np.bool_] | None:
    """Choose the records to hold out: those whose place is below the fraction, so that records added later move no other.

    What has nothing usable is not held out: comparisons that only tie, records beyond the length limits. In a source of its own share
    half a conversation or more, at least one is. Nor are more than `MAX_HELD_OUT` records (one conversation more or less), or a
    conversation of more than half of all records.

    Args:
        places: Of each record, as `find_places` gives them; of equal ones all or none is held out.
        usable: Whether a record can be trained and evaluated on.
        sources: Where each record comes from.
        fraction: Share of conversations to hold out, between 0 and 1; at least one stays on each side.

    Returns:
        Whether each record is held out; None where fewer than two conversations are usable.
    """
    found, firsts, members, sizes = np.unique(places, return_index=True, return_inverse=True, return_counts=True)
    is_usable = np.zeros(len(found), np.bool_)
    is_usable[members[usable]] = True
    if is_usable.sum() < 2:
        return None
    candidates = np.flatnonzero(is_usable & (sizes * 2 <= len(places)))  # ordered by place
    within = np.searchsorted(np.cumsum(sizes[candidates]), MAX_HELD_OUT, side="right")
    below = min(fraction, found[candidates[within]] if within < len(candidates) else 1.0)
    is_chosen = found < below
    origins = sources[firsts[candidates]]
    for source in np.unique(origins):
        own = candidates[origins == source]
        if len(own) * below >= 0.5:
            is_chosen[own[0]] = True
    chosen = candidates[is_chosen[candidates]]
    chosen = chosen if len(chosen) else candidates[:1]
    return np.isin(members, chosen[: is_usable.sum() - 1])


def split_text(text: str, fraction: float) -> tuple[str, str] | None:
    """Split a text where its last `fraction` begins: between two paragraphs, or two lines where it has no paragraphs.

    Returns:
        (what is trained on, what is held out), which together are the text; None where it has one line.
    """
    wanted = len(text) - min(len(text) * fraction, _MAX_HELD_OUT_CHARS)
    first, last = len(text) - len(text.lstrip()), len(text.rstrip())
    for separator in (r"\n[^\S\n]*\n\s*", r"\n\s*"):
        places = [match.end() for match in re.finditer(separator, text) if first < match.start() and match.end() < last]
        if places:
            place = min(places, key=lambda place: abs(place - wanted))
            return text[:place], text[place:]
    return None


def too_few(where: str, kind: str, num_records: int, num_unusable: int = 0) -> Problem:
    """Say that nothing can be held out of a record set, whose prompts are fewer than two or have no usable answer.

    Args:
        where: The source.
        kind: Of the records.
        num_records: All of them.
        num_unusable: Those of which no answer is within the limits, or all tie.
    """
    what = "texts that can be used, and no single one of several lines" if kind == "texts" else "prompts that can be used"
    found = f"found fewer than two {what}, among {num_records} records"
    if num_unusable:
        ties = "tie, or " if kind == "comparisons" else ""
        found += f", of which {num_unusable} {ties}are longer than tokens.max_response_tokens"
    return Problem(where, f"data.{kind}.eval", f"{found}; needed one to train on and one to hold out; add records, or give an eval file")
