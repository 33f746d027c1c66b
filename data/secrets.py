"""Secrets: what looks like one, and blotting it out of all that we write. Pure functions; the one home of the patterns.

Two kinds are known: texts of a known shape (a hub's token, a password in an address), and the values of environment variables whose
names say that they are secret, wherever those values appear, in base64 too; also values that stand under such a name in a variable, as in
JSON or `host=db password=...`. Of the values these are left alone, because they stand in ordinary text by
chance and a log would be unreadable without them:

    up to 3 characters                      `1`, `on`, `abc`
    up to 7 characters, one word            `true`, `demo`, `Train`
    up to 7 characters, one number          `4096`, `1e-5`
    paths                                   of a file or directory that exists; of variables called ..._PATH, _FILE, _DIR and the like

What is shorter than 12 characters, or a word, is blotted out where it stands alone: `hunter2`, not a part of `hunter2000`.
"""

import base64
import html
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, quote_plus, unquote

BLOT = "***"
_MIN_CHARS, _ORDINARY_CHARS, _ALONE_CHARS = 4, 8, 12
_PREFIX_CHARS = 24  # of a long value
_ENCODED_CHARS = 10  # of which base64 and hexadecimal digits are looked for

# Parts of names: MY_TOKEN, dbPassword, X-Api-Key.
_SECRET_PART = re.compile(
    r"(tokens?|secrets?|pass|pwd|passwords?|passwd|passcode|passphrase|keys?|pat|credentials?|creds?|dsn|auth|oauth|authorization|bearer|jwt"
    r"|sas|salt|mnemonic|cookie|webhook|connstr)\d*"
)
_SECRET_ENDS = ("token", "secret", "password", "passwd", "apikey", "accesskey", "privatekey", "secretkey", "credentials")
_SECRET_NAMES = re.compile(r"(database|db|redis|mongo(db)?|postgres(ql)?|mysql|amqp|broker|sqlalchemy|celery)_(url|uri)|connection_?string")
# Not the secret itself, but where it lies or how it is called.
_HARMLESS_END = re.compile(r"path|file|dir|directory|folder|sock|home|root|name|type|limit|count|length|size|expiry|ttl")
_HARMLESS_NAMES = re.compile(
    r"(old)?pwd|(bos|eos|pad|unk|sep|cls|mask|end|stop|image|audio|video|additional_special)_tokens?|git_config_key_\d+"
)

_PARAMETER = (
    r"(?:[\w.%-]*[-_.])?(?:token|sig|signature|key|keyid|apikey|accesskey|accountkey|sharedaccesskey|awsaccesskeyid|accesskeyid|pass|passwd"
    r"|password|pwd|secret|clientsecret|credentials?|auth|jwt|accesstoken)"
)
# (a text without any of which the pattern cannot match, pattern, what stands for it)
_SHAPES: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = tuple(
    (hints, re.compile(pattern), blot)
    for hints, pattern, blot in (
        (
            ("PRIVATE KEY",),
            r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----"
            r"(?:[\w+/=\s\\:,.-]*?-----END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----|[A-Za-z0-9+/=\s\\]*)",
            BLOT,
        ),
        (("hf_",), r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{16,}", BLOT),
        (("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"(?<![A-Za-z0-9])gh[pousr]_[A-Za-z0-9]{16,}", BLOT),
        (("github_pat_",), r"github_pat_[A-Za-z0-9_]{16,}", BLOT),
        (("gl",), r"(?<![A-Za-z0-9])gl(?:pat|dt|rt|ptt|cbt|soat|ft)-[\w.-]{12,}", BLOT),
        (("xox", "xapp-"), r"(?<![A-Za-z0-9])(?:xox[a-z]|xapp)-[A-Za-z0-9-]{10,}", BLOT),
        (("AKIA", "ASIA"), r"(?<![A-Za-z0-9])A(?:KI|SI)A[A-Z0-9]{16}(?![A-Za-z0-9])", BLOT),
        # With a digit: `sk-learn-like-estimators` has none.
        (("sk-", "sk_", "rk_"), r"(?<![A-Za-z0-9])[sr]k(?:-|_live_|_test_)(?=[\w-]*\d)[\w-]{16,}", BLOT),
        (("AIza",), r"(?<![A-Za-z0-9])AIza[\w-]{35}", BLOT),
        (("ya29.",), r"(?<![A-Za-z0-9])ya29\.[\w-]{16,}", BLOT),
        (("npm_",), r"(?<![A-Za-z0-9])npm_[A-Za-z0-9]{30,}", BLOT),
        (("pypi-",), r"(?<![A-Za-z0-9])pypi-(?=[\w-]*\d)[\w-]{32,}", BLOT),
        (("eyJ",), r"(?<![A-Za-z0-9])eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?", BLOT),
        (("uthorization", "UTHORIZATION"), r"(?i)(authorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic|token)\s+)[^\s\"',;]+", rf"\1{BLOT}"),
        (("earer ", "EARER "), r"(?i)\b(bearer\s+)(?=[\w.~+/-]*\d)[\w.~+/-]{16,}=*", rf"\1{BLOT}"),
        (("://",), r"(?<=://)(?:[^/\s@\"'<>\\]*:[^/\s\"'<>\\]+|[^/\s@:\"'<>\\]{16,})(?=@)", BLOT),
        (("?", "&", ";"), rf"(?i)((?:[?&]|(?<=\S);){_PARAMETER}=)[^&;#\s\"'<>\\]+", rf"\1{BLOT}"),
    )
)
# In an address the password, which may hold an @ or a slash that should have been written otherwise; or a token that stands alone.
_USERINFO = tuple(map(re.compile, (r"://[^/\s:@]*:([^\s@]+)@", r"://[^/\s:@]*:([^/\s]+)@", r"://([^/\s:@]{16,})@")))
_NAMED = re.compile(r"([\w.-]+)[\"']?\s*[:=]\s*[\"']?(?:(?:basic|bearer|token)\s+)?", re.IGNORECASE)  # in `host=db password=...`
_NAMED_VALUE = re.compile(r"[^\s\"',;&]+")


@lru_cache(maxsize=4096)
def names_secret(name: str) -> bool:
    """Tell whether the name of a variable or of a recipe's key reads as if its value were a secret."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").replace(".", "_").lower()
    parts = snake.split("_")
    if _HARMLESS_NAMES.fullmatch(snake) or _HARMLESS_END.fullmatch(parts[-1]):
        return False
    if _SECRET_NAMES.search(snake) or any(map(_SECRET_PART.fullmatch, parts)):
        return True
    return any(part.endswith(_SECRET_ENDS) for part in parts)


def holds_secret(text: str) -> bool:
    """Tell whether a text holds a secret of a known shape: a token of a hub, a password in an address."""
    return any(pattern.search(text) for hints, pattern, _ in _SHAPES if any(hint in text for hint in hints))


def blot_shapes(text: str, placeholder: str) -> tuple[str, int]:
    """Put a placeholder for secrets of a known shape; returns how many there were."""
    count = 0
    for hints, pattern, blot in _SHAPES:
        if any(hint in text for hint in hints):
            text, found = pattern.subn(blot.replace(BLOT, placeholder), text)
            count += found
    return text, count


def holds_environment_secret(text: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether a text holds a secret of the environment that is no ordinary word and not short."""
    values = [value for value in _secret_values(environment) if len(value) >= _ALONE_CHARS and not value.isalpha()]
    return any(value in text for value in values)


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Blot out of a text whatever is a secret, by its shape or because a variable of the environment has that value."""
    return _make_redactor(environment)(text, True)


def redact_values(value: Any, environment: Mapping[str, str] = os.environ) -> Any:
    """Blot secrets out of all texts in nested dictionaries and lists; numbers stay, and names that are ordinary words."""
    redact_text = _make_redactor(environment)
    everything = "\0".join(_texts(value))
    return value if redact_text(everything, True) == everything else _walk(value, redact_text)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in cast("dict[Any, Any]", value).items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in cast("list[Any]", value):
            yield from _texts(item)


def _walk(value: Any, redact_text: Callable[[str, bool], str]) -> Any:
    if isinstance(value, str):
        return redact_text(value, True)
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return {redact_text(key, False) if isinstance(key, str) else key: _walk(item, redact_text) for key, item in items}
    if isinstance(value, list | tuple):
        return [_walk(item, redact_text) for item in cast("list[Any]", value)]
    return value


def _make_redactor(environment: Mapping[str, str]) -> Callable[[str, bool], str]:
    """Make a function of a text, and whether a secret that is a plain word counts."""
    values = _compile(tuple(sorted(_secret_values(environment))))

    def redact_text(text: str, with_words: bool) -> str:
        for needle, pattern, is_word in values:  # first: a value may hold what looks like another secret
            if needle in text and (with_words or not is_word):
                text = pattern.sub(BLOT, text)
        for hints, pattern, blot in _SHAPES:
            for hint in hints:
                if hint in text:
                    text = pattern.sub(blot, text)
                    break
        return text

    return redact_text


def _secret_values(environment: Mapping[str, str]) -> frozenset[str]:
    """Collect the values that are secret: of variables called so, of names in any value that say so, and passwords in addresses."""
    return _find_secret_values(tuple(environment.items()))


@lru_cache(maxsize=8)
def _find_secret_values(variables: tuple[tuple[str, str], ...]) -> frozenset[str]:
    found: set[str] = set()
    for name, value in variables:
        if names_secret(name) and value and not _is_path(value):
            found.add(value)
        found |= _find_named(value)
        for pattern in _USERINFO if "://" in value else ():
            for password in pattern.findall(value):
                found |= {password, unquote(password)}
    return frozenset(line.strip() for value in found for line in (value, *value.splitlines()) if not _is_ordinary(line.strip()))


def _find_named(text: str) -> set[str]:
    """Find the secrets in a text of named values: JSON, a connection string, a query."""
    found: set[str] = set()
    if text.lstrip().startswith(("{", "[")):
        with suppress(ValueError, RecursionError):
            found.update(_find_in_json(json.loads(text)))
    for named in _NAMED.finditer(text):
        value = _NAMED_VALUE.match(text, named.end()) if names_secret(named[1].rpartition(".")[2]) else None
        if value and not _is_path(value[0]):
            found |= {value[0], unquote(value[0])}
    return found


def _find_in_json(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, str) and names_secret(name):
        yield value
    elif isinstance(value, dict):
        for key, item in cast("dict[str, Any]", value).items():
            yield from _find_in_json(item, key)
    elif isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from _find_in_json(item, name)


def _is_path(value: str) -> bool:
    if not value.startswith(("/", "~/", "./", "../")):
        return False
    try:
        return Path(value).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL character, nobody's home
        return False


def _is_ordinary(value: str) -> bool:
    if len(value) < _MIN_CHARS:
        return True
    return len(value) < _ORDINARY_CHARS and (_is_word(value) or _is_number(value))


def _is_word(value: str) -> bool:
    return value.isalpha() and (value.islower() or value.isupper() or value.istitle())


def _is_number(value: str) -> bool:
    try:
        float(value.replace(",", ""))
    except ValueError:
        return False
    return True


@lru_cache(maxsize=8)
def _compile(values: tuple[str, ...]) -> list[tuple[str, re.Pattern[str], bool]]:
    """Make patterns of values in every way in which we and the libraries write them, the longest first.

    Returns:
        (a text without which the pattern cannot match, pattern, whether it is a plain word).
    """
    forms = {form: _is_word(value) for value in values for form in _forms(value)}
    return [(form[:_PREFIX_CHARS], _match_value(form), forms[form]) for form in sorted(forms, key=lambda form: (-len(form), form))]


def _forms(value: str) -> set[str]:
    """List how a value is written: as it is, in JSON, in Python, in an address, in HTML, for a shell, in base64 and in hexadecimal."""
    quoted = json.dumps(value)[1:-1]
    forms = {value, quoted, json.dumps(quoted)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}
    forms |= {quote(value), quote(value, ""), quote_plus(value), quote(value, safe="").replace("%", "%25")}
    forms |= {re.sub("%..", lambda code: code[0].lower(), form) for form in forms if "%" in form}
    forms |= {html.escape(value), value.replace("'", "'\"'\"'")}
    return forms | _encodings(value.encode("utf-8", "surrogateescape")) if len(value) >= _ENCODED_CHARS else forms


def _encodings(content: bytes) -> set[str]:
    """List what of a text is the same in every base64 that holds it, whatever stands before and after it; and its hexadecimal digits."""
    forms = {content.hex(), content.hex().upper()}
    for before, first in enumerate((0, 2, 3)):  # bytes before it in a group of three, and the first character that is its own
        whole = base64.b64encode(bytes(before) + content)[first : (before + len(content)) * 8 // 6].decode()
        forms |= {whole, whole.translate(str.maketrans("+/", "-_"))}
    return forms


def _match_value(value: str) -> re.Pattern[str]:
    if len(value) < _ALONE_CHARS or _is_word(value):
        return re.compile(rf"(?<![A-Za-z0-9]){re.escape(value)}(?![A-Za-z0-9])")
    # A message that cuts what it shows leaves the beginning of a long value.
    begun = len(value) > _PREFIX_CHARS + 8 and "://" not in value and " " not in value[:_PREFIX_CHARS]
    return re.compile(re.escape(value) + (rf"|{re.escape(value[:_PREFIX_CHARS])}\w*" if begun else ""))
