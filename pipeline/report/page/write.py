"""A page -> a file, into the store or where it was asked for; shown in a browser where there is a desktop."""

import os
import stat
import sys
import webbrowser
from collections.abc import Mapping
from pathlib import Path

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
