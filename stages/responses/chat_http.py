"""One request to an OpenAI-compatible address, until it is answered: chat completions over HTTP. Torch-free.

Sent again after 429, 5xx and silence, after the pause that the server asks for, or a growing one; what it refuses is told at once.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, cast
from urllib.parse import urlsplit

import httpx2

from data.secrets import redact
from stages.blocks import EndpointSettings

_ROUTE = "/chat/completions"
_SHORTEST_S, _LONGEST_S = 0.5, 60.0  # between two tries, where the server names no pause
_MOST_ASKED_S = 900.0  # a server that asks for a longer pause will not serve today
_MAX_REPLY_BYTES = 8 * 2**20
_AGAIN = (408, 409, 425, 429)  # and all from 500 on
_EXHAUSTED = ("insufficient_quota", "billing_hard_limit_reached")  # says 429, and will say so tomorrow
_LOCAL = ("localhost", "127.0.0.1", "::1")


class ChatError(Exception):
    """The model cannot be asked; the message says found + needed + do."""


@dataclass(frozen=True)
class Reply:
    """What it said.

    Args:
        text: Of the reply; empty where it said nothing.
        whole: Whether it ended by itself.
        input_tokens: That it read, as the server counts.
        output_tokens: That it wrote.
        counted: Whether the server counted; otherwise the two are the most that they can be.
        cached: Whether it was asked before.
    """

    text: str
    whole: bool
    input_tokens: int
    output_tokens: int
    counted: bool = True
    cached: bool = False


class ChatServer:
    """Where requests go."""

    def __init__(self, settings: EndpointSettings, environment: Mapping[str, str] = os.environ) -> None:
        """Read the key; nothing is asked yet.

        Raises:
            ChatError: The key is not there.
        """
        self.url = settings.url.rstrip("/").removesuffix(_ROUTE)
        self._settings = settings
        self._headers = _authorize(settings, environment)
        self._resume_s = 0.0  # nobody asks before: a server that is asked too often says so to one of many

    def connect(self) -> httpx2.AsyncClient:
        """Make the connections of one event loop."""
        settings, local = self._settings, urlsplit(self.url).hostname in _LOCAL
        limits = httpx2.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency)
        # A proxy is for what lies outside. No redirect is followed: the key is for this address alone.
        return httpx2.AsyncClient(headers=self._headers, timeout=settings.timeout_s, limits=limits, trust_env=not local)

    async def send(self, http: httpx2.AsyncClient, body: Mapping[str, Any], bound: tuple[int, int], retries: int) -> Reply:
        """Send a request until it is answered.

        Args:
            http: Of this event loop.
            body: Of the request.
            bound: Most tokens that it reads and writes, which count where the server does not.
            retries: How often it is sent again at most.

        Raises:
            ChatError: It was refused, or was not answered by the last try.
        """
        failure, pause_s = "", 0.0
        for attempt in range(retries + 1):
            if attempt:
                await asyncio.sleep(pause_s)
            while (rest_s := self._resume_s - time.monotonic()) > 0:
                await asyncio.sleep(rest_s)
            pause_s = min(_LONGEST_S, _SHORTEST_S * 2**attempt) * random.uniform(0.5, 1.0)  # so that many do not come back at once
            try:
                async with asyncio.timeout(self._settings.timeout_s):
                    status, headers, content = await _post(http, f"{self.url}{_ROUTE}", body)
            except TimeoutError:
                failure = f"no answer within {self._settings.timeout_s:g} s"
                continue
            except (httpx2.TransportError, httpx2.DecodingError) as error:
                failure = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                continue
            if status == httpx2.codes.OK:
                if (reply := _read_reply(content, bound)) is not None:
                    return reply
                failure = f"found {_show(content)}, needed a chat completion"
                continue
            said = _read_error(content)
            failure = f"{status} {said}"
            if (status not in _AGAIN and status < 500) or any(word in content.decode(errors="replace") for word in _EXHAUSTED):
                raise self._refuse(failure, _advise(status, self._settings))
            asked_s = _read_pause(headers)
            if asked_s is not None and asked_s > _MOST_ASKED_S:
                raise self._refuse(f"{failure}; it asks for a pause of {asked_s:.0f} s", "run the same command then")
            pause_s = pause_s if asked_s is None else asked_s
            if status == httpx2.codes.TOO_MANY_REQUESTS:
                self._resume_s = max(self._resume_s, time.monotonic() + pause_s)
        tries = f"{retries + 1} tries" if retries else "1 try"
        raise self._refuse(f"{failure} (after {tries})", "check the address and whether its server runs; the same command then goes on")

    def _refuse(self, found: str, todo: str) -> ChatError:
        return ChatError(redact(f"{self._settings.model} at {self.url}: {found}; {todo}"))


def _authorize(settings: EndpointSettings, environment: Mapping[str, str]) -> dict[str, str]:
    if settings.api_key_env is None:
        return {}
    key = environment.get(settings.api_key_env, "").strip()
    if not key:
        raise ChatError(
            f"api_key_env: found nothing in the environment variable {settings.api_key_env}; put the key of {settings.url} there"
        )
    if not (key.isascii() and key.isprintable()):
        raise ChatError(f"api_key_env: {settings.api_key_env} holds what no key has, a line end perhaps; put the key alone there")
    return {"Authorization": f"Bearer {key}"}


async def _post(http: httpx2.AsyncClient, url: str, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
    """Post a request -> (status, headers, content); of a reply that is too long only the beginning."""
    content = bytearray()
    async with http.stream("POST", url, json=body) as response:
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > _MAX_REPLY_BYTES:
                break
        return response.status_code, response.headers, bytes(content)


def _read_reply(content: bytes, bound: tuple[int, int]) -> Reply | None:
    """Read a chat completion, which another program wrote; None: it is none."""
    try:
        reply: Any = json.loads(content)
        choice = reply["choices"][0]
        text, reason = choice["message"].get("content") or "", choice.get("finish_reason")
        usage = reply.get("usage") or {}
        counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    if not isinstance(text, str):
        return None
    whole = reason in (None, "stop")
    if all(type(count) is int and count >= 0 for count in counts):
        return Reply(text, whole, *cast("tuple[int, int]", counts))
    return Reply(text, whole, *bound, counted=False)


def _read_error(content: bytes) -> str:
    """Find what a server says is wrong, on one line."""
    try:
        said: Any = json.loads(content)
        said = said.get("error", said) if isinstance(said, dict) else said
        said = said.get("message", said) if isinstance(said, dict) else said
    except (ValueError, RecursionError):
        said = None
    return " ".join(said.split())[:300] if isinstance(said, str) else _show(content)


def _show(content: bytes) -> str:
    return repr(" ".join(content[:400].decode(errors="replace").split())[:200]) if content else "nothing"


def _read_pause(headers: Mapping[str, str]) -> float | None:
    """Read Retry-After: seconds, or a date; None: it is not there, or neither."""
    said = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(said)
        return max(0.0, (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _advise(status: int, settings: EndpointSettings) -> str:
    if status in (401, 403):
        given = f"what {settings.api_key_env} holds" if settings.api_key_env else "no key: name its variable by api_key_env"
        return f"it refuses {given}; give the key of this address"
    if status == httpx2.codes.NOT_FOUND:
        return "check url (up to /v1, as a rule) and model"
    if 300 <= status < 400:
        return "it points elsewhere, where the key is not sent; give the address itself"
    if status == httpx2.codes.TOO_MANY_REQUESTS:
        return "its quota is used up; raise it there"
    return "change what the request says by `request`"
