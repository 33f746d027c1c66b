"""pydantic's errors -> `file:line: key: found ..., needed ...; do ...`, with a suggestion for a mistyped key."""

import difflib
import json
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

from pydantic_core import ErrorDetails

from pipeline.errors import SHOWN_PROBLEMS
from pipeline.recipe.schema import Recipe
from pipeline.recipe.yaml_lines import Document, Keys, names_option, parse_scalar, show_keys
from stages.trainer_args import recipe_keys

_COMPARED_CHARS = 100  # of a key: to compare long ones takes minutes
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212"), "-")
_BOOLEANS = {"yes": "true", "on": "true", "1": "true", "no": "false", "off": "false", "0": "false"}  # YAML 1.1's, and text of them


def explain(errors: Sequence[ErrorDetails], document: Document) -> list[str]:
    """Turn pydantic's errors into our lines, in the order of the file; those that are too many to be shown come without a suggestion."""
    found: list[tuple[str, Keys, ErrorDetails]] = []
    for error in errors:
        keys = known_prefix(error["loc"], document.values) if error["type"] != "missing" else tuple(error["loc"])
        typed = _find_options(keys, error["msg"], document) if error["type"] == "value_error" else ""
        place = typed or document.place(keys)
        found.append((f"{place}: {show_keys(keys) or 'recipe'}", keys, error))
    lines: dict[str, None] = {}
    for place, keys, error in sorted(found, key=lambda item: natural_order(item[0])):
        lines[f"{place}: {_reason(error, keys, document.values) if len(lines) < SHOWN_PROBLEMS else error['msg']}"] = None
    return list(lines)


def _find_options(block: Keys, message: str, document: Document) -> str:
    """Find the options by which keys of a block were typed that a message on the whole block names; empty where none was."""
    named = set(re.findall(r"\w+(?= = |: | needs )", message))
    places = document.places.items()
    typed = [place for keys, place in places if keys[:-1] == block and keys[-1:] and keys[-1] in named and names_option(place)]
    return ", ".join(dict.fromkeys(typed))


def natural_order(line: str) -> tuple[str, int]:
    """Order lines `recipe.yaml:12: ...` by file and number."""
    place, _, rest = line.partition(":")
    number = rest.partition(":")[0]
    return place, int(number) if number.isdigit() else 0


def known_prefix(keys: Sequence[str | int], values: Any) -> Keys:
    """Cut off what pydantic adds to a location (union members), which stands nowhere in the file."""
    prefix: list[str | int] = []
    for key in keys:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            break
        prefix.append(key)
    return tuple(prefix)


def _reason(error: ErrorDetails, keys: Keys, values: dict[str, Any]) -> str:
    kind, found, context = error["type"], error.get("input"), error.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key{_suggest(keys)}"
    if kind == "missing":
        return f"missing; add it: {_description(keys)}"
    if kind == "value_error":
        return str(context.get("error", error["msg"]))
    needs = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "bool_type": "true or false",
        "string_type": "text",
        "list_type": "a list",
        "model_type": "a block of keys",
        "dict_type": "a block of keys",
        "greater_than": f"more than {context.get('gt')}",
        "greater_than_equal": f"at least {context.get('ge')}",
        "less_than": f"less than {context.get('lt')}",
        "less_than_equal": f"at most {context.get('le')}",
        "string_pattern_mismatch": "letters, digits, dots, dashes or underscores, at most 64, beginning with a letter or digit",
        "literal_error": f"one of {context.get('expected', '')}",
    }
    needed = needs.get(kind, error["msg"])
    return f"found {show(found)}, needed {needed}{_remedy(keys, kind, found, context)}"


def _remedy(keys: Keys, kind: str, found: object, context: dict[str, Any]) -> str:
    if kind == "literal_error" and isinstance(found, str):
        expected = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        near = difflib.get_close_matches(found[:_COMPARED_CHARS], expected, n=1, cutoff=0.7)  # who writes gpu does not mean cpu
        if near:
            return f"; did you mean {near[0]}?"
    if (meant := _guess_meant(kind, found)) is not None:
        return f"; write {meant}"
    default = declared_keys().get(tuple(key for key in keys if isinstance(key, str)), ("", None))[1]
    return f"; the default is {show(default)}" if default is not None else "; change it"


def _guess_meant(kind: str, found: object) -> str | None:
    """Guess what a value of the wrong type was meant to be: `None`, `"1e-5"`, `1,5`, `a,b`, or a number where text belongs."""
    if kind == "string_type" and isinstance(found, int | float):
        return f"'{found}' in quotes"
    if kind == "model_type" and found is None:
        return "{} for its defaults, or leave it away"
    if kind == "model_type" and found is False:
        return "null"
    if not isinstance(found, str):
        return None
    if found.lower() in ("none", "nil", "nothing", "undefined"):
        return "null"
    if kind in ("int_type", "int_from_float", "float_type"):
        text = unicodedata.normalize("NFKC", found).translate(_DASHES).strip().strip("'\"")
        thousands = kind != "float_type" and re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+", text)
        number = text.replace(",", "" if thousands else ".")
        quotes = " without quotes" if number == found else ""
        return f"{number}{quotes}" if isinstance(parse_scalar(number), int | float) else None
    if kind == "bool_type" and found.lower() in _BOOLEANS:
        return _BOOLEANS[found.lower()]
    names = ", ".join(re.split(r"[,;\s]+", found.strip()))
    return f"[{names}]" if kind == "list_type" else None


def show(value: object) -> str:
    """Write a found value on one short line, escapes neutralised."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _suggest(keys: Keys) -> str:
    """Suggest the nearest key of the same block, else the same key in another block, or what TRL's name for it is here."""
    declared = declared_keys()
    name = re.sub(r"[^a-z0-9_]", "_", str(keys[-1])[:_COMPARED_CHARS].lower())
    block = tuple(key for key in keys[:-1] if isinstance(key, str))  # all entries of a list have the same keys
    siblings = {str(known[-1]): known for known in declared if known[:-1] == block}
    elsewhere = {known[-1]: known for known in declared if known[-1] == name}
    if here := recipe_keys(str(block[0]), name) if block else None:
        return f"; did you mean {here}?"
    near = difflib.get_close_matches(name, siblings, n=1, cutoff=0.7)
    if near:
        return f"; did you mean {'.'.join(siblings[near[0]])}?"
    if name in elsewhere:
        return f"; did you mean {'.'.join(elsewhere[name])}?"
    begun = [sibling for sibling in siblings if sibling.startswith(name)]
    near = begun or difflib.get_close_matches(name, siblings, n=1, cutoff=0.5)
    return f"; did you mean {'.'.join(siblings[near[0]])}?" if near else f"; known here: {', '.join(sorted(siblings))}"


def suggest_key(text: str) -> str | None:
    """Find the key that a malformed one was meant to be: `sft.learning-rate`, `SFT.epochs`, `sft/epochs`."""
    keys = tuple(re.sub(r"[\s-]+", "_", part) for part in re.split(r"[./]", text.strip().strip("-").lower()))
    return ".".join(keys) if keys in declared_keys() else None


def _description(keys: Keys) -> str:
    return (declared_keys().get(tuple(str(key) for key in keys)) or ("see `rlhf config --schema`", None))[0]


@cache
def declared_keys() -> dict[tuple[str, ...], tuple[str, Any]]:
    """Return every key that a recipe can have, with its description and default."""
    schema = Recipe.model_json_schema()
    declared: dict[tuple[str, ...], tuple[str, Any]] = {}
    _collect_keys(schema, schema["$defs"], (), declared)
    return declared


def _collect_keys(node: dict[str, Any], defs: dict[str, Any], keys: tuple[str, ...], into: dict[tuple[str, ...], tuple[str, Any]]) -> None:
    for name, field in node.get("properties", {}).items():
        into[(*keys, name)] = (field.get("description", "see `rlhf config --schema`"), field.get("default"))
        for option in [field, *field.get("anyOf", []), field.get("items", {})]:
            if "$ref" in option:
                _collect_keys(defs[option["$ref"].rpartition("/")[2]], defs, (*keys, name), into)
