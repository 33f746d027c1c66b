"""A helpdesk answer -> copies with one flaw each: what the demo's reward model is tried on (`evaluate.probes`)."""

from random import Random

from data.demo.flaws import copy_with_each_flaw
from data.demo.helpdesk import read_case

_DESCRIPTIONS = {
    "order": "speaks of another customer's order",
    "item": "names another item",
    "day": "names another day",
    "name": "greets by another name",
    "status": "states another status",
    "question": "answers another question",
    "repeat": "says a sentence again",
    "rude": "is rude",
    "filler": "adds a sentence that says nothing",
    "step": "leaves the next step out, or names another",
    "manners": "leaves the greeting, the apology or the closing out",
}


def edit(prompt: str, answer: str) -> dict[str, dict[str, str]]:
    """Copy an answer with each flaw that can be put into it; the same copies each time.

    Raises:
        ValueError: The prompt is not of this task.
    """
    flawed = copy_with_each_flaw(read_case(prompt), answer, Random(f"{prompt}\n{answer}"))
    return {name: {"text": text, "description": _DESCRIPTIONS[name]} for name, text in flawed.items()}
