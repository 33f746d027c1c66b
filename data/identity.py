"""What makes two records the same person's: keyed hashes of their texts, normalised; and which were to be forgotten.

A record leaves a hash of its prompt, and one of the prompt with each of its answers; of a prompt to answer, one that says so too. Texts
count without case, runs of space and the form of their characters (NFKC), and without the system's message, which is the operator's.

    asked for                           is found in
    a prompt alone                      all records with this prompt: demonstrations, comparisons, prompts
    a prompt with an answer             demonstrations and comparisons with this answer to it; prompts with this prompt
    a text                              texts

The key is of the store: whoever has the hashes without it cannot try out texts.
"""

import hashlib
import secrets
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data.schema import Comparison, Demonstration, Prompt, Record, Text

SECRET_FILE, FORGOTTEN_FILE = "secret", "forgotten"
DIGEST_BYTES = 16
_SECRET_BYTES = 32


def normalise(text: str) -> str:
    """Take out of a text what people do not see as a difference."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def find_digests(record: Record, secret: bytes) -> list[bytes]:
    """Hash a record for the list of what was learnt from; see above."""
    if isinstance(record, Text):
        return [_hash(secret, "text", record.text)]
    prompt = _prompt_of(record)
    digests = [_hash(secret, "prompt", *prompt)]
    if isinstance(record, Prompt):
        return [*digests, _hash(secret, "asked", *prompt)]
    return digests + [_hash(secret, "answer", answer, *prompt) for answer in record.answers]


def ask_for(record: Record, secret: bytes) -> set[bytes]:
    """Hash a record to look for it, and for what is of the same person; see above."""
    if isinstance(record, Text):
        return {_hash(secret, "text", record.text)}
    prompt = _prompt_of(record)
    if isinstance(record, Demonstration | Comparison):
        return {_hash(secret, "answer", answer, *prompt) for answer in record.answers} | {_hash(secret, "asked", *prompt)}
    return {_hash(secret, "prompt", *prompt)}


def _prompt_of(record: Demonstration | Comparison | Prompt) -> list[str]:
    return [message.content for message in record.prompt if message.role != "system"]


def _hash(secret: bytes, what: str, *texts: str) -> bytes:
    content = "\0".join([what, *map(normalise, texts)])
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES, key=secret).digest()


def name_secret(secret: bytes) -> bytes:
    """Tell one secret from another, without it."""
    return hashlib.blake2b(b"which secret", digest_size=DIGEST_BYTES, key=secret).digest()


def make_secret() -> bytes:
    """Draw a store's secret."""
    return secrets.token_bytes(_SECRET_BYTES)


@dataclass(frozen=True)
class Forgotten:
    """The records that were to be forgotten, by their hashes."""

    secret: bytes
    digests: frozenset[bytes]


def read_forgotten(directory: Path) -> Forgotten | None:
    """Read what was to be forgotten, of a store's `records/`; None where nothing was.

    Raises:
        ValueError: It was cut or changed, or belongs to another secret, so that nothing could be left out by it.
        OSError: It cannot be read.
    """
    content = b""
    with suppress(FileNotFoundError):
        content = (directory / FORGOTTEN_FILE).read_bytes()
    if not content:
        return None
    found = f"{directory / FORGOTTEN_FILE}: found"
    secret = (directory / SECRET_FILE).read_bytes() if (directory / SECRET_FILE).exists() else b""
    seal, body = content[: hashlib.sha256().digest_size], content[hashlib.sha256().digest_size :]
    if hashlib.sha256(body).digest() != seal:
        raise ValueError(f"{found} it cut or changed; needed as `rlhf forget` writes it; restore it, or what was forgotten comes back")
    if len(secret) != _SECRET_BYTES or body[:DIGEST_BYTES] != name_secret(secret):
        raise ValueError(f"{found} it of another {SECRET_FILE} than the one beside it; needed that one; restore it")
    rest = body[DIGEST_BYTES:]
    return Forgotten(secret, frozenset(rest[start : start + DIGEST_BYTES] for start in range(0, len(rest), DIGEST_BYTES)))


def render_forgotten(forgotten: Forgotten) -> bytes:
    """Write what `read_forgotten` reads."""
    body = name_secret(forgotten.secret) + b"".join(sorted(forgotten.digests))
    return hashlib.sha256(body).digest() + body
