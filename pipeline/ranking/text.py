"""What a model said -> pieces to show: prose and code. Guidelines -> HTML."""

import re
from functools import cache

from markdown_it import MarkdownIt

_FENCE = re.compile(r"^```[^\n`]*\n(.*?)(?:^```[ \t]*$\n?|\Z)", re.DOTALL | re.MULTILINE)


def split_code(text: str) -> list[tuple[bool, str]]:
    """Split a text at its fenced blocks of code; returns (is code, piece). The text itself stays as it is, but for the fences.

    Example: "so:\\n```py\\nx = 1\\n```\\n" -> [(False, "so:\\n"), (True, "x = 1\\n")].
    """
    pieces: list[tuple[bool, str]] = []
    end = 0
    for match in _FENCE.finditer(text):
        pieces += [(False, text[end : match.start()]), (True, match[1])]
        end = match.end()
    return [piece for piece in [*pieces, (False, text[end:])] if piece[1].strip()]


@cache
def render_guidelines(text: str) -> str:
    """Render Markdown for the page: HTML in it is shown as text, images become links, links open beside the page."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = markdown.parse(text)
    for token in (inner for outer in tokens for inner in outer.children or ()):
        if token.type == "link_open":
            token.attrs |= {"target": "_blank", "rel": "noopener noreferrer"}
    return str(markdown.renderer.render(tokens, markdown.options, {}))
