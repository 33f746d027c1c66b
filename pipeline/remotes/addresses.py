"""The address of another store -> the store there; what no address may hold."""

import re
from contextlib import suppress
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from data.secrets import redact
from pipeline.errors import StoreError
from pipeline.remotes.errors import asking
from pipeline.remotes.hub import open_files
from pipeline.remotes.remote import HUB, Remote
from stages.spec import EXIT_USAGE

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
_PLAIN = ("file", "memory")  # their addresses have no user, password or query; the second one is for tests
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def open_remote(url: str) -> Remote:
    """Open the store at an address.

    Raises:
        StoreError: it is no address that we know, holds a password, or needs a package that is not there (exit 2).
    """
    protocol, separator, rest = url.partition("://")
    shown = _show(url)
    if url.startswith("/") and url.isprintable():
        raise StoreError(f"{shown!r:.200}: a path, which is no address; write file://{shown:.200}", EXIT_USAGE)
    if not separator or protocol not in (*_PACKAGES, *_PLAIN, HUB) or not url.isprintable():
        raise StoreError(f"{shown!r:.200}: no remote; needed s3://, gs:// or hf:// with a name, or file:///DIR; write it so", EXIT_USAGE)
    if shown != url.rstrip("/"):
        found = f"{shown}: its address holds a user, password or query, which other people see"
        raise StoreError(f"{found}; a plain address needed; give credentials by the environment or their own file", EXIT_USAGE)
    if protocol == HUB:
        if not _HUB_NAME.fullmatch(rest.rstrip("/")):
            raise StoreError(f"{shown!r:.200}: no repository of the Hub; needed hf://OWNER/NAME; write it so", EXIT_USAGE)
        return Remote(shown, protocol, open_files(), rest.rstrip("/"))
    if ".." in rest.split("/") or not rest.strip("/") or (protocol == "file" and not rest.startswith("/")):
        raise StoreError(f"{shown!r:.200}: no place for a store; needed a whole path without `..`; write it so", EXIT_USAGE)
    return Remote(shown, protocol, _open_files(protocol), _strip(protocol, rest))


def _open_files(protocol: str) -> Any:
    library: Any = import_module("fsspec")

    # Another process writes there too: no listing is kept.
    options: dict[str, Any] = {} if protocol in _PLAIN else {"use_listings_cache": False, "skip_instance_cache": True}
    with asking(f"{protocol}://"):
        try:
            return library.filesystem(protocol, **options)
        except ImportError as error:
            package = _PACKAGES.get(protocol, protocol)
            message = f"{protocol}://: its package is not installed; {package} needed; `pip install '{package}'`"
            raise StoreError(message, EXIT_USAGE) from error


def _strip(protocol: str, rest: str) -> str:
    path = "/".join(part for part in rest.split("/") if part)
    return f"/{path}" if protocol in _PLAIN else path


def _show(url: str) -> str:
    """Leave user, password, query and fragment out of an address."""
    protocol, separator, rest = url.partition("://")
    if not separator or protocol in _PLAIN:
        return redact(url.rstrip("/"))
    with suppress(ValueError):
        parts = urlsplit(f"x://{rest}")
        return redact(f"{protocol}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/"))
    return f"{protocol}://"
