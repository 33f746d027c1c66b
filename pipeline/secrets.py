"""Secrets: a recipe must hold none, since it is copied into every artifact; what a library printed is blotted out of the log."""

import re
from collections.abc import Mapping

_KEY = re.compile(r"(?i)(^|_)(token|password|passwd|secret|api_?key|access_key|credentials?)$")
_VALUE = re.compile(r"://[^/\s]*:[^/\s]*@|[?&](token|sig|key|password)=|\bhf_[A-Za-z0-9]{16,}|\bsk-[A-Za-z0-9_-]{16,}")
_VARIABLES = ("TOKEN", "SECRET", "PASSWORD", "API_KEY")
_MIN_CHARS = 8  # what is shorter stands in a log by chance


def names_secret(key: str) -> bool:
    """Tell whether a key of a recipe reads as if its value were a secret."""
    return _KEY.search(key) is not None


def holds_secret(value: str) -> bool:
    """Tell whether a text looks like a secret: a password in an address, a token of a hub."""
    return _VALUE.search(value) is not None


def hide_secrets(text: str) -> str:
    """Blot out what looks like a secret, for a message."""
    return _VALUE.sub("***", text)


def redact(text: str, environment: Mapping[str, str]) -> str:
    """Blot out the environment's secrets, should a library have printed one."""
    for name, value in environment.items():
        if any(part in name.upper() for part in _VARIABLES) and len(value) >= _MIN_CHARS:
            text = text.replace(value, "***")
    return text
