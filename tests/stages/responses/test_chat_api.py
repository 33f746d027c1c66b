"""A model behind an address, asked over real HTTP on the loopback: tries, pauses, cache, cost, and what is refused."""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import pytest
from pydantic import ValidationError

from stages.blocks import EndpointSettings
from stages.responses.chat_api import ChatClient
from stages.responses.chat_http import ChatError
from tests.chat_server import ChatServer, complete


@pytest.fixture
def serve():
    """A function: how to answer -> a server that runs until the test ends."""
    running = []

    def start(answer):
        holder = ChatServer(answer).serving()
        running.append(holder)
        return holder.__enter__()

    yield start
    for holder in running:
        holder.__exit__(None, None, None)


def say(*texts):
    """Conversations of one message."""
    return [[{"role": "user", "content": text}] for text in texts]


def make_client(server, cache_dir=None, *, environment=None, **settings):
    url = server if isinstance(server, str) else server.url
    return ChatClient(EndpointSettings(url=url, model="m", **settings), cache_dir, environment=environment or {})


def failing(statuses, headers=None):
    """Answer with each of these first, then well."""
    left, lock = list(statuses), threading.Lock()

    def answer(body):
        with lock:
            status = left.pop(0) if left else None
        return (status, headers or {}, b'{"error": {"message": "slow\\ndown"}}') if status else f"echo {body['messages'][-1]['content']}"

    return answer


def test_replies_come_in_the_order_of_the_questions_with_no_more_at_once_than_allowed(serve):
    def answer(body):
        time.sleep(0.05 if body["messages"][0]["content"] == "0" else 0.01)
        return f"echo {body['messages'][0]['content']}"

    server = serve(answer)
    told = []
    replies = make_client(server, concurrency=3).ask(say(*map(str, range(12))), lambda *done: told.append(done))
    assert [reply.text for reply in replies] == [f"echo {place}" for place in range(12)]
    assert 2 <= server.most_at_once <= 3
    assert told[-1] == (12, 12)
    body = server.asked[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 1024)


def test_a_caller_with_an_event_loop_of_its_own_may_ask_as_in_a_notebook(serve):
    client = make_client(serve(lambda body: "yes"))

    async def ask():
        return client.ask(say("0"))

    # On a thread of its own, as another test's browser may have left a loop in this one.
    with ThreadPoolExecutor(1) as pool:
        (reply,) = pool.submit(asyncio.run, ask()).result()
    assert reply.text == "yes"


@pytest.mark.parametrize("ending", ["", "/", "/chat/completions"])
def test_the_address_may_be_given_with_or_without_its_end(serve, ending):
    server = serve(lambda _: "OK")
    make_client(server.url + ending).check()
    assert server.headers[0][0] == "/v1/chat/completions"


def test_a_request_is_sent_again_after_429_and_5xx_after_the_pause_that_the_server_asks_for(serve, monkeypatch):
    slept = []

    async def sleep(seconds, real=asyncio.sleep):
        slept.append(seconds)
        await real(0)

    monkeypatch.setattr("stages.responses.chat_http.asyncio.sleep", sleep)
    monkeypatch.setattr("stages.responses.chat_http.time.monotonic", lambda: sum(slept))
    client = make_client(serve(failing([429, 503], {"Retry-After": "7"})), retries=2)
    assert client.ask(say("hello"))[0].text == "echo hello"
    assert slept == [7.0, 7.0]
    slept.clear()
    assert make_client(serve(failing([500, 500, 500])), retries=3).ask(say("hello"))[0].text == "echo hello"
    assert [low <= pause <= 2 * low for low, pause in zip((0.25, 0.5, 1.0), slept, strict=True)] == [True] * 3


def test_a_pause_may_be_a_date_and_one_that_is_too_long_is_told_at_once(serve):
    date = formatdate(time.time() + 7200, usegmt=True)
    server = serve(failing([429] * 9, {"Retry-After": date}))
    with pytest.raises(ChatError, match=r"^m at http://127.0.0.1:\d+/v1: 429 slow down; it asks for a pause of 7[12]\d\d s; run the same"):
        make_client(server).ask(say("hello"))
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("status", "said", "todo"),
    [
        (401, b'{"error": {"message": "bad key"}}', "401 bad key; it refuses no key: name its variable by api_key_env"),
        (404, b'{"detail": "Not Found"}', "check url"),
        (400, b"max_tokens is not supported", "change what the request says by `request`"),
        (429, b'{"error": {"message": "pay", "code": "insufficient_quota"}}', "429 pay; its quota is used up"),
        (307, b"", "it points elsewhere, where the key is not sent"),
    ],
)
def test_what_will_not_get_better_is_told_after_one_try(serve, status, said, todo):
    server = serve(lambda _: (status, {"Location": "http://127.0.0.1:1/"}, said))
    with pytest.raises(ChatError) as caught:
        make_client(server).check()
    assert todo in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "content", [b"<html>busy</html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": {"content": 7}}]}', b"[" * 10**5]
)
def test_what_is_no_completion_is_asked_again_and_told(serve, content, monkeypatch):
    monkeypatch.setattr("stages.responses.chat_http._SHORTEST_S", 0.0)
    server = serve(lambda _: (200, {}, content))
    with pytest.raises(ChatError, match=r"found .*, needed a chat completion \(after 2 tries\)"):
        make_client(server, retries=1).ask(say("hello"))
    assert len(server.asked) == 2


def test_an_address_where_nobody_answers_is_told_and_so_is_silence(serve, monkeypatch):
    monkeypatch.setattr("stages.responses.chat_http._SHORTEST_S", 0.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ChatError, match=r"^m at http://127.0.0.1:\d+/v1: ConnectError: .* \(after 3 tries\); check the address"):
        make_client(f"http://127.0.0.1:{port}/v1").check()
    with pytest.raises(ChatError, match=r"no answer within 0.05 s \(after 1 try\)"):
        make_client(serve(lambda _: time.sleep(0.3) or "late"), timeout_s=0.05, retries=0).ask(say("hello"))


def test_nothing_is_asked_twice_by_another_client_or_in_one_call(serve, tmp_path):
    server = serve(lambda body: f"echo {body['messages'][-1]['content']}")
    first = make_client(server, tmp_path / "replies")
    assert [reply.text for reply in first.ask(say("a", "b", "a"))] == ["echo a", "echo b", "echo a"]
    again = make_client(server, tmp_path / "replies")
    assert [reply.text for reply in again.ask(say("b", "c"))] == ["echo b", "echo c"]
    assert sorted(body["messages"][0]["content"] for body in server.asked) == ["a", "b", "c"]
    assert (again.usage.cached, again.usage.replies) == (1, 2)
    make_client(server, tmp_path / "replies", request={"seed": 1}).ask(say("a"))
    assert server.asked[-1]["seed"] == 1  # another request is another question


def test_replies_that_came_before_a_failure_are_kept_and_torn_ones_are_asked_anew(serve, tmp_path):
    server = serve(lambda body: "fine" if body["messages"][-1]["content"] != "bad" else (400, {}, b"no"))
    with pytest.raises(ChatError):
        make_client(server, tmp_path, concurrency=1).ask(say("a", "b", "bad", "c"))
    kept = list(tmp_path.rglob("*.json"))
    assert len(kept) == 2
    kept[0].write_text(kept[0].read_text()[:20])
    num_asked = len(server.asked)
    make_client(server, tmp_path).ask(say("a", "b"))
    assert len(server.asked) == num_asked + 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".json"]


def test_cost_is_counted_and_max_cost_is_never_exceeded_whatever_was_cached(serve, tmp_path):
    server = serve(lambda _: (200, {}, complete("x", prompt_tokens=30, completion_tokens=50)))
    prices = {"price_per_1m_input": 2.0, "price_per_1m_output": 10.0, "max_reply_tokens": 100}
    free = make_client(server, **prices)
    free.ask(say("a", "b"))
    assert free.cost == pytest.approx(2 * 0.00056)  # (30 * 2 + 50 * 10) / 1e6 each
    # "a" is at most 1 + 32 tokens, and the reply 100: with 0.00168 spent, a fourth may make it 0.002746, and a fifth 0.003306.
    assert free.bound_cost(say("a")) == pytest.approx((33 * 2 + 100 * 10) / 1e6)
    texts = [chr(97 + place) for place in range(20)]
    limited = make_client(server, tmp_path, max_cost=0.003, concurrency=7, **prices)
    replies = limited.ask(say(*texts))
    assert [reply is not None for reply in replies] == [True] * 4 + [False] * 16
    assert limited.cost == pytest.approx(4 * 0.00056)
    num_asked = len(server.asked)
    again = make_client(server, tmp_path, max_cost=0.003, concurrency=2, **prices)
    assert [reply is not None for reply in again.ask(say(*texts))] == [True] * 4 + [False] * 16
    assert len(server.asked) == num_asked
    assert again.cost == limited.cost


def test_tokens_that_a_server_does_not_count_are_the_most_they_can_be(serve):
    content = json.dumps({"choices": [{"message": {"content": "yes"}}]}).encode()
    client = make_client(serve(lambda _: (200, {}, content)), max_reply_tokens=50)
    client.ask(say("four"))
    assert (client.usage.uncounted, client.usage.input_tokens, client.usage.output_tokens) == (1, 36, 50)
    assert client.cost is None


def test_the_key_goes_to_the_server_alone(serve, tmp_path, monkeypatch):
    key = "abc-123-secret-value"
    monkeypatch.setenv("MY_API_KEY", key)
    server = serve(lambda body: "fine" if body["messages"][-1]["content"] == "a" else (403, {}, f"wrong key {key}".encode()))
    client = make_client(server, tmp_path, api_key_env="MY_API_KEY", environment={"MY_API_KEY": f" {key}\n"})
    client.ask(say("a"))
    assert server.headers[0][1]["Authorization"] == f"Bearer {key}"
    assert all(key not in path.read_text() for path in tmp_path.rglob("*.json"))
    with pytest.raises(ChatError, match=r"wrong key \*\*\*.*it refuses what MY_API_KEY holds") as caught:
        client.ask(say("b"))
    assert key not in str(caught.value)


@pytest.mark.parametrize(("value", "told"), [("", "found nothing in the environment variable MY_API_KEY"), ("a\nb", "a line end perhaps")])
def test_a_key_that_is_missing_or_none_is_told_before_anything_is_asked(value, told):
    with pytest.raises(ChatError, match=told):
        make_client("http://127.0.0.1:1/v1", api_key_env="MY_API_KEY", environment={"MY_API_KEY": value})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_cost": 1.0}, "needs price_per_1m_input and price_per_1m_output"),
        ({"api_key_env": "MINE"}, "not the name of a secret"),
        ({"url": "https://me:secret@host/v1"}, "url"),
        ({"url": "file:///etc/passwd"}, "url"),
    ],
)
def test_settings_that_cannot_hold_are_refused(settings, told):
    with pytest.raises(ValidationError, match=told):
        EndpointSettings(**{"url": "http://localhost/v1", "model": "m", **settings})
