"""A program in place of a person on the page of `rlhf rank`: the same requests on the loopback, the same page, read as it is shown."""

import http.client
import json
import re
import secrets
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlsplit

# (prompt, answers as shown) -> levels, best first; each a list of places.
Rank = Callable[[str, Sequence[str]], list[list[int]]]
_TIMEOUT_S = 60.0


class _Page(HTMLParser):
    """What stands on the page: the set's id, the order, the last message of the prompt, and each answer's text."""

    def __init__(self) -> None:
        super().__init__()
        self.main: dict[str, str] = {}
        self.prompt, self.answers = "", list[str]()
        self._inside = ""  # "turn" or "answer"
        self._depth = 0  # of the text that is being read; 0: none is

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        classes = given.get("class", "").split()
        if tag == "main":
            self.main = given
        elif "turn" in classes:
            self._inside, self.prompt = "turn", ""
        elif "answer" in classes:
            self._inside = "answer"
            self.answers.append("")
        if self._depth:
            self._depth += tag not in ("br", "img")
        elif "said" in classes or tag == "code":
            self._depth = 1

    def handle_endtag(self, tag: str) -> None:
        self._depth -= self._depth > 0

    def handle_data(self, data: str) -> None:
        if self._depth and self._inside == "turn":
            self.prompt += data
        elif self._depth and self._inside == "answer":
            self.answers[-1] += data


class Visitor:
    """Somebody who has opened a link of the page.

    Args:
        link: As `rlhf rank` prints it.

    Raises:
        OSError: The page is not there, or refuses.
    """

    def __init__(self, link: str) -> None:
        parts = urlsplit(link)
        self._connection = http.client.HTTPConnection(parts.netloc, timeout=_TIMEOUT_S)
        self._origin, self._cookie = f"{parts.scheme}://{parts.netloc}", ""
        _, cookie = self._ask("GET", parts.path)
        self._cookie = cookie.partition(";")[0]

    def rank_next(self, rank: Rank, seconds: float = 1.0) -> bool:
        """Rank the set that is shown; False where there is none left."""
        page = _Page()
        page.feed(self._ask("GET", "/")[0].decode())
        if "data-item" not in page.main:
            return False
        judgement: dict[str, Any] = {
            "id": secrets.token_hex(16),
            "item": page.main["data-item"],
            "order": [int(place) for place in re.findall(r"\d+", page.main["data-order"])],
            "levels": rank(page.prompt, page.answers),
            "outcome": "ranked",
            "repeat": page.main["data-repeat"] == "1",
            "grade": None,
            "flags": {},
            "reason": "",
            "note": "",
            "seconds": seconds,
        }
        self._ask("POST", "/judge", json.dumps(judgement).encode())
        return True

    def close(self) -> None:
        """Leave."""
        self._connection.close()

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[bytes, str]:
        headers = {"Origin": self._origin, "Cookie": self._cookie, "Content-Type": "application/json"}
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        content = response.read()
        if response.status >= http.client.BAD_REQUEST:
            raise OSError(f"{self._origin}{path}: found {response.status} {content[:200].decode(errors='replace').strip()}; needed a page")
        return content, response.getheader("Set-Cookie", "")
