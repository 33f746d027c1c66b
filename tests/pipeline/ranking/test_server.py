"""Only this page, with a token of this run, is heard; whatever else comes gets a 4xx."""

import http.client
import json
import re
import signal
import socket
import time
from contextlib import suppress

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def page(serve):
    return serve()


def ask(page, method, path, *, headers=None, body=None, cookie=True, origin=True):
    """Send a request as this page does, but for what is changed."""
    connection = http.client.HTTPConnection("127.0.0.1", int(page.port), timeout=20)
    sent = {"Host": f"127.0.0.1:{page.port}", **({"Origin": f"http://127.0.0.1:{page.port}"} if origin else {})}
    if cookie:
        sent["Cookie"] = f"rlhf-rank-{page.port}={page.links['ann'].rpartition('/')[2]}"
    with suppress(BrokenPipeError):  # a body that is too long is refused before all of it is sent: the answer is there all the same
        connection.request(method, path, body=body, headers=sent | (headers or {}))
    response = connection.getresponse()
    return response.status, response.read().decode(), dict(response.getheaders())


def read_shown(page):
    """What the page shows: (set, order)."""
    html = ask(page, "GET", "/")[1]
    return re.search(r'data-item="(\w+)"', html)[1], [int(each) for each in re.search(r'data-order="([\d,]+)"', html)[1].split(",")]


def make_judgement(item, order, **changes):
    fields = {"id": "0" * 32, "item": item, "order": order, "outcome": "ranked", "levels": [[0], [1, 2]], "flags": {}, "grade": 5}
    return fields | {"note": "", "reason": "", "seconds": 2.5, "repeat": False} | changes


def test_a_ranking_is_written_with_what_was_shown(page, read_journal):
    item, order = read_shown(page)
    assert "hidden" in page.answers.read_text() and "hidden-" not in ask(page, "GET", "/")[1]  # who said it, and why it is shown
    body = json.dumps(make_judgement(item, order, flags={"wrong": [1]}, note="as said"))
    assert ask(page, "POST", "/judge", body=body)[:2] == (200, '{"written":true}')
    assert ask(page, "POST", "/judge", body=body)[:2] == (200, '{"written":false}')
    (line,) = read_journal()
    assert [line["ranks"][answer] for answer in order] == [1, 2, 2]
    assert (line["annotator"], line["flags"], line["grade"], line["note"]) == ("ann", {"wrong": [order[1]]}, 5, "as said")
    undone = json.loads(ask(page, "POST", "/undo", body="{}")[1])
    assert (undone["item"], undone["order"], undone["draft"]["levels"], undone["draft"]["flags"]) == (
        item,
        order,
        [[0], [1, 2]],
        {"wrong": [1]},
    )
    assert read_shown(page) == (item, order)


def test_what_is_not_of_this_page_is_refused(page, read_journal):
    item, order = read_shown(page)
    body = json.dumps(make_judgement(item, order))
    refused = {
        "no token": ask(page, "POST", "/judge", body=body, cookie=False),
        "token of another run": ask(page, "GET", "/open/abc", cookie=False),
        "no token to read": ask(page, "GET", "/", cookie=False),
        "other host": ask(page, "GET", "/", headers={"Host": "evil.example"}),
        "rebound host": ask(page, "POST", "/judge", body=body, headers={"Host": f"evil.example:{page.port}"}),
        "other origin": ask(page, "POST", "/judge", body=body, headers={"Origin": "http://evil.example"}),
        "no origin": ask(page, "POST", "/judge", body=body, origin=False),
        "origin null": ask(page, "POST", "/undo", body="{}", headers={"Origin": "null"}),
        "path": ask(page, "GET", "/../../etc/passwd"),
        "encoded path": ask(page, "GET", "/%2e%2e/%2e%2e/etc/passwd"),
        "its own source": ask(page, "GET", "/server.py"),
        "other method": ask(page, "PUT", "/judge", body=body),
        "another one's tab": ask(page, "POST", "/judge", body=json.dumps(make_judgement(item, order, annotator="ben"))),
        "another one's undo": ask(page, "POST", "/undo", body='{"annotator": "ben"}'),
        "no object": ask(page, "POST", "/undo", body="[]"),
        "half a surrogate pair": ask(page, "POST", "/judge", body=json.dumps(make_judgement(item, order, note="\ud800"))),
        "no number": ask(page, "POST", "/judge", body=json.dumps(make_judgement(item, order, seconds=float("nan")))),
        "huge by its header": ask(page, "POST", "/judge", headers={"Content-Length": str(100 * 1024**2)}),
        "long": ask(page, "POST", "/judge", body=b"x" * 65_537),
        "huge in chunks": ask(page, "POST", "/judge", body=iter([b"x" * 40_000] * 3), headers={"Transfer-Encoding": "chunked"}),
    }
    assert {name: status for name, (status, _, _) in refused.items() if not 400 <= status < 500} == {}
    assert not any("root:" in text for _, text, _ in refused.values())
    assert read_journal() == []


def test_what_is_no_ranking_is_refused_and_nothing_is_written(page, read_journal):
    item, order = read_shown(page)
    wrong = [
        {"levels": []},
        {"levels": [[7]]},
        {"levels": "ab"},
        {"order": [0, 0, 1]},
        {"item": "none"},
        {"item": ["a"]},
        {"id": "x"},
        {"outcome": "won"},
        {"grade": 8},
        {"flags": {"other": [0]}},
        {"flags": {"wrong": [9]}},
        {"flags": {"wrong": [-1]}},
        {"flags": {"wrong": [1, 1]}},
        {"flags": 3},
        {"seconds": -1},
        {"grades": {"0": 5}},
        {"note": "x" * 10_001},
    ]
    bodies = [json.dumps(make_judgement(item, order) | changes) for changes in wrong]
    for body in [*bodies, "", "null", "[]", "{}", "{" * 30_000, '"a"', b"\xff"]:
        status, text, _ = ask(page, "POST", "/judge", body=body)
        assert (status, text[:16]) == (400, "found no ranking"), body[:100]
    assert read_journal() == []


def test_nothing_may_be_loaded_or_framed_or_kept(page):
    headers = ask(page, "GET", "/")[2]
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store" and headers["x-content-type-options"] == "nosniff"
    cookie = ask(page, "GET", "/open/" + page.links["ann"].rpartition("/")[2], cookie=False)[2]["set-cookie"]
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower()


def test_after_kill_9_the_same_command_goes_on(serve, read_journal):
    page = serve()
    item, order = read_shown(page)
    ask(page, "POST", "/judge", body=json.dumps(make_judgement(item, order)))
    page.process.kill()
    page.process.wait()
    again = serve()
    assert read_shown(again)[0] != item
    assert [line["item"] for line in read_journal()] == [item]
    assert "1 done, 7 left" in ask(again, "GET", "/")[1]


def test_ctrl_c_ends_the_page_at_once_and_without_a_word_whoever_hangs(serve):
    page = serve()
    with socket.create_connection(("127.0.0.1", int(page.port)), timeout=20) as connection:
        head = f"POST /judge HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\nOrigin: http://127.0.0.1:{page.port}\r\nContent-Length: 500"
        cookie = f"rlhf-rank-{page.port}={page.links['ann'].rpartition('/')[2]}"
        connection.sendall(f"{head}\r\nCookie: {cookie}\r\n\r\n{{".encode())  # the rest of the body never comes
        ask(page, "GET", "/")  # the first request is being read by now
        page.process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        assert page.process.wait(20) == 130 and time.monotonic() - begun < 10
    assert page.process.stdout.read() == ""


def test_ctrl_c_before_the_page_is_up_ends_it_without_a_word(serve):
    page = serve()
    page.process.send_signal(signal.SIGINT)
    assert page.process.wait(20) == 130 and page.process.stdout.read() == ""
