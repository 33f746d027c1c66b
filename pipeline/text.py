"""Values -> short text for a terminal; nothing that a model or a file says can steer it."""

import re
import unicodedata

from pipeline.errors import escape_character

# CSI, OSC and two-character escape sequences.
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-_])")


def clean(text: str) -> str:
    """Drop terminal escapes and control characters; a newline becomes a space, so that a line stays one; bytes are shown."""
    if text.isprintable():  # nearly all is
        return text
    kept = _ESCAPES.sub("", text).replace("\n", " ").replace("\t", " ")
    return "".join(char if char.isprintable() else escape_character(char) if "\ud800" <= char <= "\udfff" else "" for char in kept)


def show_controls(text: str) -> str:
    """Keep lines, tabs, blanks, what joins letters (ZWJ, ZWNJ) and marks of direction; what else could steer is shown as its code."""
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(char if _is_harmless(char) else escape_character(char) for char in text)


def _is_harmless(char: str) -> bool:
    return char.isprintable() or char in "\n\t\u200c\u200d\u200e\u200f\u061c" or unicodedata.category(char) == "Zs"


def format_duration(seconds: float) -> str:
    """Write a duration: 42 s, 3:07, 1:02:09."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def format_bytes(count: int) -> str:
    """Write a size in the largest unit that keeps it above 1."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def count(number: int, one: str) -> str:
    """Count in words: 1 prompt, 2,000 prompts."""
    return f"{number:,} {one}{'' if number == 1 else 's'}"


def format_number(value: float) -> str:
    """Write a metric with four significant digits."""
    return f"{value:.4g}"
