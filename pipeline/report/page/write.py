"""A page -> one HTML file: no script, nothing loaded, every text shown and never read as markup; where it goes."""

import base64
import hashlib
import os
import re
import stat
import sys
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report.markup import show
from pipeline.report.page.blocks import Page
from pipeline.store.artifact import Artifact
from pipeline.store.directory import open_root
from pipeline.store.disk import replace_durably, writing
from pipeline.store.parts import REPORTS_DIR


def name_report(*artifacts: Artifact | None) -> str:
    """Name a report's file: ppo-v3.html, ppo-v1-ppo-v2.html."""
    return (
        "-".join(artifact.ref.replace("@", "-") for artifact in artifacts if artifact is not None) + ".html"
        if any(artifacts)
        else "runs.html"
    )


def write_report(html: str, name: str, store_root: Path, output: Path | None, *, private: bool, option: str = "") -> Path:
    """Write a report in one step and return where it lies: a file for `....html`, else a directory, else `reports/` of the store.

    Args:
        html: What to write.
        name: The file's name in a directory.
        store_root: The store, in which a link in place of `reports/` is refused.
        output: What was asked for.
        private: Let nobody else read it.
        option: Of the command: names another place; empty: it has none.

    Raises:
        ResourceError: the file system refused (exit 5).
    """
    if output is not None and output.suffix.lower() in (".html", ".htm"):
        place, name, below = output.parent, output.name, ""
    else:
        place, below = (output, "") if output is not None else (store_root, REPORTS_DIR)
    elsewhere = f"give {'another ' * (output is not None)}{option}" if option else ""
    before = os.umask(0o077) if private else None
    try:
        with (
            writing(place / below, elsewhere=elsewhere),
            open_root(place, create=True) as root,
            root.enter(below, create=True) as directory,
        ):
            replace_durably(name, html.encode(), dir_fd=directory.fd)
    finally:
        if before is not None:
            os.umask(before)
    return place / below / name


def is_private(artifact: Artifact | None) -> bool:
    """Tell whether nobody but the owner may read an artifact, so that its report must not tell others."""
    return artifact is not None and not stat.S_IMODE(artifact.path.stat().st_mode) & 0o077


def has_desktop(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> bool:
    """Tell whether a browser would open before whoever gave the command: a display, and no connection by SSH."""
    if environment.get("SSH_CONNECTION") or environment.get("SSH_TTY"):
        return False
    return platform == "darwin" or bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))


def open_in_browser(path: Path) -> bool:
    """Open a report; tells whether a browser took it."""
    try:
        return webbrowser.open(path.absolute().as_uri())
    except (OSError, webbrowser.Error):
        return False


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
