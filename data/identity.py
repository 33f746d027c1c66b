"""What makes two records the same person's: keyed hashes of their texts, normalised; and which were to be forgotten.

A record leaves a hash of its prompt, and one of the prompt with each of its answers; of a prompt to answer, one that says so too. So does
each exchange of a longer conversation, alone and with all before it. Texts count without case, runs of space, the form of their characters
(NFKC), quotes and dashes, and what nobody sees (zero width, soft hyphens), and without the system's message, which is the operator's.

    asked for                           is found in
    a prompt alone                      all records with this prompt, or a turn that is it: demonstrations, comparisons, prompts
    a prompt with an answer             all records with this answer to it, in an earlier turn too; prompts that end with this prompt
    a text                              texts

The key is of the store: whoever has the hashes without it cannot try out texts.
"""

import hashlib
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data.schema import Conversation, Message, Prompt, Record, Text

SECRET_FILE, FORGOTTEN_FILE = "secret", "forgotten"
DIGEST_BYTES = 16
_SECRET_BYTES = 32


_SAME = str.maketrans(
    "\u2018\u2019\u201a\u201b\u02bc\u201c\u201d\u201e\u201f\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "'" * 5 + '"' * 4 + "-" * 7
)
_UNSEEN = re.compile("[\u034f\u180b-\u180d\ufe00-\ufe0f]")  # joiners and selectors of a character's form; others are of the category Cf

Normalise = Callable[[str], str]


def normalise(text: str) -> str:
    """Take out of a text what people do not see as a difference."""
    if text.isascii():
        return " ".join(text.casefold().split())
    return _normalise_earlier("".join(char for char in _UNSEEN.sub("", text).translate(_SAME) if unicodedata.category(char) != "Cf"))


def _normalise_earlier(text: str) -> str:
    """The same as it was when quotes, dashes and what nobody sees made a difference: what was listed and forgotten then still holds."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def find_digests(record: Record, secret: bytes) -> list[bytes]:
    """Hash a record for the list of what was learnt from; see above."""
    found: list[bytes] = []
    for normalised in _variants(record):
        if isinstance(record, Text):
            found.append(_hash(secret, "text", normalised(record.text)))
            continue
        prompt, answers = [normalised(turn.content) for turn in _turns_of(record)], list(map(normalised, record.answers))
        found += _hash_exchange(secret, prompt, answers, asked=isinstance(record, Prompt))
        if len(prompt) > 1:
            found += _hash_within(secret, _turns_of(record), prompt, answers, asked=isinstance(record, Prompt))
    return found


def _hash_exchange(secret: bytes, prompt: Sequence[str], answers: Iterable[str], *, asked: bool) -> list[bytes]:
    digests = [_hash(secret, "prompt", *prompt), *(_hash(secret, "answer", answer, *prompt) for answer in answers)]
    return [*digests, _hash(secret, "asked", *prompt)] if asked else digests


def _hash_within(secret: bytes, turns: list[Message], texts: list[str], answers: list[str], *, asked: bool) -> list[bytes]:
    """Hash the exchanges of which a longer conversation is made: each turn with its reply, alone and after all before it."""
    found = _hash_exchange(secret, texts[-1:], answers, asked=asked) if turns[-1].role != "assistant" else []
    for place, turn in enumerate(turns[1:], start=1):
        if turn.role == "assistant" and turns[place - 1].role != "assistant":
            found += _hash_exchange(secret, texts[place - 1 : place], texts[place : place + 1], asked=False)
            if place > 1:
                found += _hash_exchange(secret, texts[:place], texts[place : place + 1], asked=False)
    return found


def ask_for(record: Record, secret: bytes) -> set[bytes]:
    """Hash a record to look for it, and for what is of the same person; see above."""
    found: set[bytes] = set()
    for normalised in _variants(record):
        if isinstance(record, Text):
            found.add(_hash(secret, "text", normalised(record.text)))
            continue
        prompt = [normalised(turn.content) for turn in _turns_of(record)]
        if isinstance(record, Prompt):
            found.add(_hash(secret, "prompt", *prompt))
        else:
            found |= {_hash(secret, "answer", normalised(answer), *prompt) for answer in record.answers} | {_hash(secret, "asked", *prompt)}
    return found


def _variants(record: Record) -> list[Normalise]:
    texts = [record.text] if isinstance(record, Text) else [*(turn.content for turn in record.prompt), *record.answers]
    is_same = all(text.isascii() or normalise(text) == _normalise_earlier(text) for text in texts)
    return [normalise] if is_same else [normalise, _normalise_earlier]


def _turns_of(record: Conversation) -> list[Message]:
    return [message for message in record.prompt if message.role != "system"]


def _hash(secret: bytes, what: str, *texts: str) -> bytes:
    content = "\0".join([what, *texts])
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
