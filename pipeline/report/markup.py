"""Text that anyone may have written -> text that XML and HTML show and never read as markup."""

import re
from collections.abc import Iterable
from html import escape

from markupsafe import Markup

from pipeline.errors import escape_character

# What XML cannot hold, what moves a terminal, and what turns the direction of the text around it.
_UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def show(text: str, limit: int | None = None) -> str:
    """Escape a text for an element or an attribute; control characters are shown by their codes.

    Args:
        text: by anyone.
        limit: characters after which it is cut and ends in an ellipsis.
    """
    shown = _UNSAFE.sub(lambda match: escape_character(match[0]), text if limit is None else text[: limit + 1])
    if limit is not None and len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    return escape(shown)


def make_id(prefix: str, name: str) -> str:
    """Make an id that is unique where the caller's prefix is.

    Raises:
        ValueError: a prefix that is no name.
    """
    if not _NAME.fullmatch(prefix):
        raise ValueError(f"found the prefix {prefix!r}; needed a letter, then letters, digits, - or _")
    return f"{prefix}-{name}"


def table(caption: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> Markup:
    """Write a table; the first cell of each row is its heading. All texts are escaped here."""
    body = "".join(
        "<tr>"
        + "".join(f'<th scope="row">{show(cell)}</th>' if place == 0 else f"<td>{show(cell)}</td>" for place, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    columns = "".join(f'<th scope="col">{show(cell)}</th>' for cell in head)
    return Markup(f"<table><caption>{show(caption)}</caption><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>")
