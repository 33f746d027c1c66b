"""Refs: how people and recipes name artifacts. `ppo`, `ppo@latest`, `ppo@v3`, `ppo@best` (an alias), or a content-id prefix."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.errors import StoreError
from stages.spec import EXIT_USAGE, EXIT_VERIFICATION

LATEST = "latest"
MIN_PREFIX_CHARS = 6
MAX_VERSION = 999_999_999
SIGNATURE_SUFFIX = ".sig.json"  # v0003.sig.json, beside v0003/

# Names become directory and file names, so the patterns leave no way to `..`, `/`, a leading `-` or control characters.
KIND_PATTERN = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_VERSION = re.compile(r"v0{0,3}([1-9][0-9]{0,8})")
_ANY_VERSION = re.compile(r"v[0-9]+")  # also those that no store reaches: they are no alias either
_DIRECTORY = re.compile(r"v([0-9]{4,9})")
_PREFIX = re.compile(rf"[0-9a-f]{{{MIN_PREFIX_CHARS},64}}")


@dataclass(frozen=True)
class Ref:
    """An artifact by name; with neither version nor alias it is the latest of its kind."""

    kind: str
    version: int | None = None
    alias: str | None = None

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.kind}@v{self.version}"
        return f"{self.kind}@{self.alias or LATEST}"


@dataclass(frozen=True)
class ContentPrefix:
    """An artifact by the first characters of its content id."""

    digits: str

    def __str__(self) -> str:
        return self.digits


def parse_ref(text: str) -> Ref | ContentPrefix:
    """Read a ref.

    Raises:
        StoreError: the text is no ref (exit 2).
    """
    kind, at, selector = text.partition("@")
    if not at and _PREFIX.fullmatch(text):
        return ContentPrefix(text)
    if not KIND_PATTERN.fullmatch(kind) or (at and not selector):
        raise _bad("ref", text, "kind, kind@latest, kind@v3, kind@alias or 6 or more characters of a content id")
    if not at or selector == LATEST:
        return Ref(kind)
    if version := _VERSION.fullmatch(selector):
        return Ref(kind, version=int(version[1]))
    if _ANY_VERSION.fullmatch(selector):
        raise _bad("ref", text, f"a version from v1 to v{MAX_VERSION}")
    check_alias(selector)
    return Ref(kind, alias=selector)


def is_kind(name: str) -> bool:
    """Tell whether a name is a safe directory name and does not read like a content id."""
    return bool(KIND_PATTERN.fullmatch(name)) and not _PREFIX.fullmatch(name)


def check_kind(kind: str) -> None:
    """Refuse a kind that is no safe directory name, or that reads like a content id.

    Raises:
        StoreError: with what a kind looks like (exit 2).
    """
    if not is_kind(kind):
        raise _bad("kind", kind, "a lower-case letter, then up to 31 of a-z 0-9 _ -, and not only hex digits")


def is_alias(name: str) -> bool:
    """Tell whether a name is a safe file name and means nothing else."""
    return bool(_ALIAS.fullmatch(name)) and ".." not in name and name != LATEST and not _ANY_VERSION.fullmatch(name)


def check_alias(name: str) -> None:
    """Refuse an alias that is no safe file name, or that means something else.

    Raises:
        StoreError: with what an alias looks like (exit 2).
    """
    if name == LATEST or _ANY_VERSION.fullmatch(name):
        raise _bad("alias", name, "a name of its own, as `latest` and `v3` are computed, never stored")
    if not is_alias(name):
        raise _bad("alias", name, "a letter, then up to 63 of A-Z a-z 0-9 _ . -, without `..`")


def version_directory(version: int) -> str:
    """Name the directory of a version: 3 -> v0003."""
    return f"v{version:04d}"


def parse_version_directory(name: str) -> int | None:
    """Read a version directory's name; None for anything that `version_directory` does not write."""
    match = _DIRECTORY.fullmatch(name)
    if match is None or int(match[1]) == 0 or version_directory(int(match[1])) != name:
        return None
    return int(match[1])


def next_version(kind: str, names: Iterable[str]) -> int:
    """Return the number after the highest of a kind's version directories.

    Args:
        kind: The kind.
        names: What lies in its directory.

    Raises:
        StoreError: No number is left, which nobody comes to by publishing (exit 3).
    """
    highest = max((parse_version_directory(name) or 0 for name in names), default=0)
    if highest >= MAX_VERSION:
        found = f"{kind}@v{highest} is there, after which there is no number"
        raise StoreError(f"{found}; a lower one is needed; `rlhf rm {kind}@v{highest}`, or remove that directory", EXIT_VERIFICATION)
    return highest + 1


def _bad(what: str, found: str, needed: str) -> StoreError:
    shown = found if len(found) <= 80 else found[:80] + "..."
    return StoreError(f"{shown!r} is no {what}; needed: {needed}; `rlhf ls` shows what there is", EXIT_USAGE)
