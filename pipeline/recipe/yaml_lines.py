"""YAML text -> plain values and the line of every key. Nothing in the text can execute, expand or hide.

Differs from YAML 1.1 on purpose: `1e-5` is a number; only `true` and `false` are booleans (`no`, `on` and dates stay text); anchors,
aliases, tags, merge keys, duplicate keys and several documents are refused. Strings, numbers, lists and blocks are all a recipe needs.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml

Keys = tuple[str | int, ...]

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
_SHOWN_CHARS = 60
_INT = re.compile(r"[-+]?[0-9][0-9_]{0,29}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WHOLE = re.compile(r"[-+]?[0-9]{1,9}[eE]\+?[0-9]")
_WORDS: dict[str, Any] = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}


@dataclass
class Document:
    """Values as read, and where each key stands: `recipe.yaml:12`, or the option by which it was typed, `--set`."""

    values: dict[str, Any]
    places: dict[Keys, str]
    problems: list[str] = field(default_factory=list[str])
    broken: bool = False  # not read to its end: what is missing here may stand in the file

    def place(self, keys: Keys) -> str:
        """Say where a key stands; a key that is not there stands where its block does."""
        while keys and keys not in self.places:
            keys = keys[:-1]
        return self.places.get(keys, "recipe")


def names_option(place: str) -> bool:
    """Whether a place is no line of a file but an option of the command line."""
    return place.startswith("--")


def show_keys(keys: Keys) -> str:
    """Write a key with its blocks, `sft.lora.rank`, each on a short piece of a line."""
    return ".".join(key if len(key) <= _SHOWN_CHARS else key[: _SHOWN_CHARS - 3] + "..." for key in map(str, keys))


def read_document(path: Path) -> Document:
    """Read a YAML file; what is wrong with it is collected in `problems`, never raised."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        return _unreadable(path, f"{path}: {error.strerror or error}; give the path of a recipe")
    if len(raw) > MAX_BYTES:
        return _unreadable(path, f"{path}: found {len(raw)} bytes, needed at most {MAX_BYTES}; a recipe is a short YAML file")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        return _unreadable(path, f"{path}:{line}: found a byte that is not UTF-8; save the file as UTF-8")
    return parse_document(text, str(path))


def _unreadable(path: Path, problem: str) -> Document:
    return Document({}, {(): str(path)}, [problem], broken=True)


def parse_document(text: str, name: str) -> Document:
    """Parse YAML text whose root is a block of keys; `name` begins every place."""
    builder = _Builder(text, name)
    value = builder.read()
    if not isinstance(value, dict) and value is not None:
        builder.broken = True
        builder.problems.append(f"{name}:1: found {_kind(value)}, needed a block of keys such as `name: demo`; see `rlhf config --schema`")
    values = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    return Document(values, {(): f"{name}:1", **builder.places}, builder.problems, builder.broken)


def parse_scalar(text: str) -> Any:
    """Read a plain (unquoted) YAML scalar."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text.replace("_", ""))
    if _WHOLE.fullmatch(text):  # 1e3 is a whole number, wherever one is needed
        return int(float(text))
    if _FLOAT.fullmatch(text) and len(text) < 40 and math.isfinite(number := float(text.replace("_", ""))):
        return number
    return text


def parse_value(text: str) -> Any:
    """Read the value of `--set key=value` as YAML.

    Raises:
        ValueError: The text is no YAML value.
    """
    builder = _Builder(text, "value")
    value = builder.read()
    if builder.problems:
        raise ValueError(builder.problems[0].removeprefix("value:1: "))
    return value


def _parse(text: str) -> Iterator[yaml.Event]:
    """Parse by libyaml, which is twenty times as fast, where it is there and takes the text; Python's parser says better what is wrong."""
    try:
        return iter(list(yaml.parse(text, Loader=yaml.CSafeLoader)))
    except (AttributeError, UnicodeEncodeError, yaml.YAMLError):
        return iter(yaml.parse(text, Loader=yaml.SafeLoader))


class _Stop(Exception):
    """The text cannot be read further."""


class _Builder:
    """Turns the parser's events into values; one problem about structure ends it, duplicate keys do not."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self.places: dict[Keys, str] = {}
        self.problems: list[str] = []
        self.broken = False
        self._events = _parse(text)

    def read(self) -> Any:
        value: Any = None
        self.broken = True
        try:
            event = self._next()
            while not isinstance(event, yaml.StreamEndEvent):
                if isinstance(event, yaml.DocumentStartEvent):
                    if value is not None:
                        self._stop(event, "found a second document (`---`), needed one; keep one recipe per file")
                    value = self._value(self._next(), (), 0)
                event = self._next()
            self.broken = False
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            todo = "write valid YAML: `key: value`, indented with spaces"
            if "escape" in str(error.problem):
                todo = "a backslash in double quotes begins an escape: write the text without quotes or in single ones"
            self.problems.append(f"{self.name}:{line}: {error.problem or error}; {todo}")
        except yaml.YAMLError as error:
            self.problems.append(f"{self.name}:1: {str(error).splitlines()[0]}; write valid YAML")
        except _Stop:
            pass
        return value

    def _next(self) -> yaml.Event:
        return next(self._events)

    def _value(self, event: yaml.Event, keys: Keys, depth: int) -> Any:
        if depth > MAX_DEPTH:
            self._stop(event, f"found more than {MAX_DEPTH} levels, needed fewer; a recipe has at most five")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            self._stop(event, "found an anchor or alias (`&`, `*`), needed plain values; write the value out, or quote the text")
        if getattr(event, "tag", None):
            self._stop(event, f"found the tag {getattr(event, 'tag', ''):.60}, needed a plain value; leave the tag away")
        if isinstance(event, yaml.ScalarEvent):
            return event.value if event.style else parse_scalar(event.value)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._list(keys, depth)
        return self._block(keys, depth)

    def _list(self, keys: Keys, depth: int) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            self.places[(*keys, len(values))] = self._place(event)
            values.append(self._value(event, (*keys, len(values)), depth + 1))
        return values

    def _block(self, keys: Keys, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent) or event.tag or event.anchor:
                self._stop(event, "found a key that is not plain text; write `key: value`")
            key, place = event.value, self._place(event)
            value = self._value(self._next(), (*keys, key), depth + 1)
            if key in values:
                self.problems.append(f"{place}: {show_keys((*keys, key))}: duplicate key, first at {self.places[(*keys, key)]}; keep one")
                continue
            self.places[(*keys, key)] = place
            values[key] = value
        return values

    def _place(self, event: yaml.Event) -> str:
        return f"{self.name}:{event.start_mark.line + 1 if event.start_mark else 1}"

    def _stop(self, event: yaml.Event, message: str) -> NoReturn:
        self.problems.append(f"{self._place(event)}: {message}")
        raise _Stop


def _kind(value: object) -> str:
    return "a list" if isinstance(value, list) else f"{value!r:.40}"
