"""A model behind an OpenAI-compatible address: conversations in, replies out. Torch-free.

conversations -> replies of the cache -> the others from the server, several at once -> replies, tokens, cost

A reply is cached by all that it depends on (address, model, conversation, what else the request says), as soon as it is there: a run
that was killed, or is repeated, asks nothing twice. `max_cost` counts what all replies cost when they were asked, cached ones too, so that
the same replies come out however often a run began.
"""

import asyncio
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from stages.blocks import EndpointSettings
from stages.responses.chat_http import ChatServer, Reply

Messages = Sequence[Mapping[str, str]]  # {role, content} each
Told = Callable[[int, int], None]
Result = TypeVar("Result")

_TOKENS_OF_A_MESSAGE = 32  # at most, of a template around it
_CHECK_RETRIES = 2


@dataclass
class Usage:
    """What all replies so far took, those of the cache too."""

    replies: int = 0
    cached: int = 0
    uncounted: int = 0  # replies whose tokens the server did not count: the most that they can be is taken
    input_tokens: int = 0
    output_tokens: int = 0


class ChatClient:
    """Asks one model."""

    def __init__(self, settings: EndpointSettings, cache_dir: Path | None, *, environment: Mapping[str, str] = os.environ) -> None:
        """Read the key; nothing is asked yet.

        Args:
            settings: Which model, and how.
            cache_dir: Where replies are kept; need not be there. None: nowhere.
            environment: Holds the key.

        Raises:
            ChatError: The key is not there.
        """
        self.settings = settings
        self.usage = Usage()
        self._cache_dir = cache_dir
        self._server = ChatServer(settings, environment)

    @property
    def cost(self) -> float | None:
        """What all replies so far cost when they were asked; None without prices."""
        return self._price(self.usage.input_tokens, self.usage.output_tokens)

    def check(self) -> None:
        """Ask something tiny, of which nothing is kept: whether the address, the model and the key are right.

        Raises:
            ChatError: They are not.
        """

        async def ask() -> None:
            async with self._server.connect() as http:
                body = self._make_body([{"role": "user", "content": "Reply with the word OK."}])
                await self._server.send(http, body, self._bound(body), min(_CHECK_RETRIES, self.settings.retries))

        _run(ask())

    def bound_cost(self, conversations: Sequence[Messages]) -> float | None:
        """Say what replies to all of them cost at most; None without prices."""
        return self._price(*map(sum, zip(*(self._bound(self._make_body(messages)) for messages in conversations), strict=True)))

    def ask(self, conversations: Sequence[Messages], told: Told | None = None) -> list[Reply | None]:
        """Ask for a reply to each conversation; equal ones are asked once.

        Returns:
            Replies in order; None from the first one on that could have gone beyond `max_cost`.

        Raises:
            ChatError: The model cannot be asked, or no more; the replies so far are cached.
        """
        bodies = [self._make_body(messages) for messages in conversations]
        keys = [self._identify(body) for body in bodies]
        found = _run(self._ask(dict(zip(keys, bodies, strict=True)), told or (lambda done, total: None)))
        return [found.get(key) for key in keys]

    async def _ask(self, bodies: Mapping[str, dict[str, Any]], told: Told) -> dict[str, Reply]:
        found: dict[str, Reply] = {}
        waiting: dict[asyncio.Task[Reply], tuple[str, tuple[int, int]]] = {}  # -> key, most tokens

        async def settle() -> None:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                key, _ = waiting.pop(task)
                found[key] = self._count(task.result())
            told(len(found), len(bodies))

        async with self._server.connect() as http:
            try:
                for key, body in bodies.items():
                    most = self._bound(body)
                    while waiting and not (len(waiting) < self.settings.concurrency and self._affords(most, waiting.values())):
                        await settle()
                    # With nothing in flight this depends on the replies before alone, whichever of them were cached.
                    if not self._affords(most, waiting.values()):
                        break
                    if cached := self._read_cached(key):
                        found[key] = self._count(cached)
                        told(len(found), len(bodies))
                    else:
                        waiting[asyncio.ensure_future(self._ask_anew(http, key, body))] = key, most
                while waiting:
                    await settle()
            finally:
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
        return found

    async def _ask_anew(self, http: httpx2.AsyncClient, key: str, body: dict[str, Any]) -> Reply:
        reply = await self._server.send(http, body, self._bound(body), self.settings.retries)
        self._write_cached(key, reply)
        return reply

    def _count(self, reply: Reply) -> Reply:
        self.usage.replies += 1
        self.usage.cached += reply.cached
        self.usage.uncounted += not reply.counted
        self.usage.input_tokens += reply.input_tokens
        self.usage.output_tokens += reply.output_tokens
        return reply

    def _affords(self, most: tuple[int, int], in_flight: Iterable[tuple[str, tuple[int, int]]]) -> bool:
        """Whether `max_cost` allows one more, if all that are in flight are as long as can be."""
        if self.settings.max_cost is None:
            return True
        counts = [(self.usage.input_tokens, self.usage.output_tokens), most, *(tokens for _, tokens in in_flight)]
        return (self._price(*map(sum, zip(*counts, strict=True))) or 0.0) <= self.settings.max_cost

    def _price(self, input_tokens: int = 0, output_tokens: int = 0) -> float | None:
        prices = self.settings.price_per_1m_input, self.settings.price_per_1m_output
        if prices[0] is None or prices[1] is None:
            return None
        return (input_tokens * prices[0] + output_tokens * prices[1]) / 1e6

    def _bound(self, body: Mapping[str, Any]) -> tuple[int, int]:
        """Say how many tokens a request reads and writes at most: one is at least a byte."""
        messages: Messages = body["messages"]
        num_input = sum(len(message["content"].encode()) + _TOKENS_OF_A_MESSAGE for message in messages)
        named = [body.get(name) for name in ("max_tokens", "max_completion_tokens")]
        return num_input, max((value for value in named if isinstance(value, int)), default=self.settings.max_reply_tokens)

    def _make_body(self, messages: Messages) -> dict[str, Any]:
        body = {
            "model": self.settings.model,
            "messages": [dict(message) for message in messages],
            "temperature": 0,
            "max_tokens": self.settings.max_reply_tokens,
            **self.settings.request,
        }
        return {name: value for name, value in body.items() if value is not None}

    def _identify(self, body: Mapping[str, Any]) -> str:
        return hashlib.sha256(json.dumps({"url": self._server.url, **body}, sort_keys=True).encode()).hexdigest()

    def _read_cached(self, key: str) -> Reply | None:
        if self._cache_dir is None:
            return None
        try:
            return replace(Reply(**json.loads(self._place(self._cache_dir, key).read_bytes())), cached=True)
        except (OSError, ValueError, TypeError):  # not there, or torn: asked once more
            return None

    def _write_cached(self, key: str, reply: Reply) -> None:
        if self._cache_dir is None:
            return
        path = self._place(self._cache_dir, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{uuid.uuid4().hex}")  # another run may ask the same
        draft.write_text(json.dumps(asdict(reply)), encoding="utf-8")
        draft.replace(path)

    @staticmethod
    def _place(cache_dir: Path, key: str) -> Path:
        return cache_dir / key[:2] / f"{key}.json"


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end; on a thread of its own where this one has an event loop already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
