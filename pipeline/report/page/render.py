"""A page -> one HTML file: no script, nothing loaded, every text shown and never read as markup."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report.markup import show
from pipeline.report.page.blocks import Page

_HERE = Path(__file__).parent
_STYLES = (_HERE.parent / "report.css", _HERE / "page.css")
_TEMPLATE = "page.html.j2"
_CODE = re.compile(r"`([^`]+)`")
_LONGEST = 2_000  # characters of a sentence
_PERCENT = re.compile(r"(?<=\d) %")
_NEWS = {"good": "Good news", "bad": "Look into this", "open": "Not decided"}


def render(page: Page) -> str:
    """Write a page as HTML."""
    style = "".join(path.read_text(encoding="utf-8") for path in _STYLES)
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, finalize=_show)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template(_TEMPLATE).render(
        page=page, words=_mark_code, style=Markup(style), style_hash=Markup(digest), news=_NEWS
    )


def _mark_code(sentence: str) -> Markup:
    """Set what stands between backticks of a sentence of ours as code, and keep a number and its % on one line."""
    return Markup(_PERCENT.sub("\u00a0%", _CODE.sub(r"<code>\1</code>", show(sentence, _LONGEST))))


def _show(value: Any) -> Any:
    """Have control characters and turns of direction shown by their codes, in all texts that are not ours."""
    return value if isinstance(value, Markup) else Markup(show(str(value)))
