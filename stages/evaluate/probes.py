"""A good answer -> copies of it, each with one named flaw: does the reward model see it? Pure text, torch-free.

Those here are for every task; `evaluate.probes` names a function of the user's that knows the task's own.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

_SENTENCE = re.compile(r"[^.!?]+[.!?]*\s*")
_NUMBER = re.compile(r"\d+")
_NAME = re.compile(r"(?<=[a-z0-9,;:] )[A-Z][a-z]+\b|(?<=\b(?:Hi|Mr|Ms) )[A-Z][a-z]+\b")  # not what merely begins a sentence
_FILLERS = (
    "I hope that this is of help to you.",
    "There are many things that could be said about this.",
    "Thank you for reading this answer to the end.",
)


@dataclass(frozen=True)
class Edit:
    """A copy of an answer with one flaw."""

    text: str
    description: str


class ProbeError(Exception):
    """The user's function raised, or returned something else than edits; the message names it."""


def edit_answer(prompt: str, answer: str, names: Sequence[str]) -> dict[str, Edit]:
    """Make the copies that can be made of any answer; one that would be the answer itself is left out.

    Args:
        prompt: With the answer it decides what is drawn: the same copies each time.
        answer: The text.
        names: Of which one takes the place of a name in the answer; see `find_names`.
    """
    draw = int.from_bytes(hashlib.sha256(f"{prompt}\n{answer}".encode()).digest()[:8], "big")
    sentences = [sentence.strip() for sentence in _SENTENCE.findall(answer) if sentence.strip()]
    words = answer.split()
    edits = {
        "truncated": Edit(" ".join(words[: (len(words) + 1) // 2]), "stops in the middle"),
        "repeated sentence": Edit(f"{answer} {sentences[draw % len(sentences)]}" if sentences else answer, "says one sentence again"),
        "swapped number": Edit(_swap_number(answer, draw), "swaps a number"),
        "swapped name": Edit(_swap_name(answer, names, draw), "swaps a name"),
        "added filler": Edit(f"{answer} {_FILLERS[draw % len(_FILLERS)]}", "adds a sentence that says nothing"),
        "empty": Edit("", "says nothing"),
    }
    return {name: edit for name, edit in edits.items() if edit.text.split() != words}


def find_names(answer: str) -> list[str]:
    """Find what looks like a name: a capital letter that begins no sentence."""
    return _NAME.findall(answer)


def ask_function(function: Callable[..., Any], name: str, prompt: str, answer: str) -> dict[str, Edit]:
    """Ask the user's function for its copies; one that is the answer itself is left out.

    Raises:
        ProbeError: It raised, or returned something else than texts by name.
    """
    try:
        found = function(prompt, answer)
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())[:200]
        raise ProbeError(f"evaluate.probes: {name} raised {type(error).__name__}: {said}; mend it, or leave it out") from error
    edits = _read_edits(found)
    if edits is None:
        needed = "needed texts by name, such as {'rude': 'Go away.'}, or {'rude': {'text': 'Go away.', 'description': 'is rude'}}"
        raise ProbeError(f"evaluate.probes: {name} returned {found!r:.80}, {needed}; mend it, or leave it out")
    return {key: edit for key, edit in edits.items() if edit.text != answer}


def _read_edits(found: object) -> dict[str, Edit] | None:
    if not isinstance(found, Mapping):
        return None
    edits: dict[str, Edit] = {}
    for key, value in cast("Mapping[object, object]", found).items():
        block: Mapping[Any, Any] = cast("Mapping[Any, Any]", value) if isinstance(value, Mapping) else {"text": value}
        text, description = block.get("text"), block.get("description", key)
        if not (isinstance(key, str) and isinstance(text, str) and isinstance(description, str)):
            return None
        edits[key] = Edit(text, description)
    return edits


def _swap_number(answer: str, draw: int) -> str:
    numbers = list(_NUMBER.finditer(answer))
    if not numbers:
        return answer
    found = numbers[draw % len(numbers)]
    # Each digit another one, the first never 0: as long as it was, and wrong in every place.
    digits = "".join(str((int(digit) + 1 + draw % 8) % 10) for digit in found[0])
    digits = f"{'9' if found[0][0] != '9' else '1'}{digits[1:]}" if digits[0] == "0" else digits
    return answer[: found.start()] + digits + answer[found.end() :]


def _swap_name(answer: str, names: Sequence[str], draw: int) -> str:
    own = find_names(answer)
    if not own:
        return answer
    others = sorted(set(names) - set(own))
    swapped = own[draw % len(own)]
    return re.sub(rf"\b{swapped}\b", others[draw % len(others)], answer) if others else answer
