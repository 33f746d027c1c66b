"""The commands that messages name: pasted, they mean the recipe, the changes and the store of the command that said so.

A process is one command, so what it was given is kept here. Without it `rlhf rm ppo@v3` would be of another store, and
`rlhf round mine.yaml` of another recipe where this one had changes.
"""

import os
import re
import shlex
from collections.abc import Sequence

_RECIPE_VERBS = ("run", "plan", "check-data", "round")
# Behind "without" a command is what did not happen.
_COMMAND = re.compile(r"(?<!without )`rlhf (?P<verb>[a-z][a-z-]*)(?P<rest>(?: [^`]*)?)`")

_given: dict[str, list[str]] = {"recipe": [], "changes": [], "store": []}


def forget_given() -> None:
    """Begin a command."""
    _given.update(recipe=[], changes=[], store=[])


def keep_recipe(name: str, overrides: Sequence[str]) -> None:
    """Keep which recipe this command was given, with which changes."""
    named = f"./{name}" if name.startswith("-") else name  # no option
    _given["recipe"] = [] if name == "demo" else [named]  # the default
    _given["changes"] = [word for change in overrides for word in ("--set", change)]


def keep_store(path: str, default: str) -> None:
    """Keep which store this command works on, and which one it would without being told."""
    _given["store"] = [] if path == default else ["--store", path]


def pasted(command: str) -> str:
    """Complete a command, such as `rlhf show ppo@v1`."""
    verb, _, rest = command.removeprefix("rlhf ").partition(" ")
    words = [verb]
    named = bool(rest) and not rest.startswith("-")
    if verb in _RECIPE_VERBS and not named:
        words += map(_quote, _given["recipe"])
    words += [rest] if rest else []
    if verb in _RECIPE_VERBS and not named:
        words += map(_quote, _given["changes"])
    if verb != "config" and "--store" not in rest and not (verb == "ls" and "://" in rest):
        words += map(_quote, _given["store"])
    return " ".join(["rlhf", *words])


def complete(text: str) -> str:
    """Complete each command that stands in a message between backquotes."""
    return _COMMAND.sub(lambda found: f"`{pasted(found[0][1:-1])}`", text) if "`rlhf " in text else text


def _quote(word: str) -> str:
    """Quote a word for the shell; what a line does not show as it is, such as a newline or bytes that are no text, as `$'\\x0a'`."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(_escape(char) for char in word) + "'"


def _escape(char: str) -> str:
    if char in "\\'":
        return f"\\{char}"
    return char if char.isprintable() else "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))
