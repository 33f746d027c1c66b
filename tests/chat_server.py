"""A real server on the loopback that answers chat completions, as a test says."""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ChatServer:
    """What it was asked, and what it answers: `answer(body) -> text`, or (status, headers, content) instead of a completion."""

    def __init__(self, answer):
        self.answer = answer
        self.asked, self.headers = [], []
        self.now = self.most_at_once = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.asked.append(body)
                    server.headers.append((self.path, dict(self.headers)))
                    server.now += 1
                    server.most_at_once = max(server.most_at_once, server.now)
                try:
                    said = server.answer(body)
                finally:
                    with server._lock:
                        server.now -= 1
                status, headers, content = said if isinstance(said, tuple) else (200, {}, complete(said))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @contextmanager
    def serving(self):
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()


def complete(text, prompt_tokens=100, completion_tokens=10, finish_reason="stop"):
    """Write a chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def shown(body):
    """The two answers that a judge is shown, without the markers."""
    material = body["messages"][-1]["content"]
    return [re.search(rf"<<<ANSWER {name} (\w+)>>>\n(.*?)\n<<<END ANSWER {name} \1>>>", material, re.DOTALL)[2] for name in "AB"]


def prefers(better):
    """Answer as a judge that likes the answer for which `better(text)` is higher, wherever it stands."""

    def answer(body):
        if len(body["messages"]) == 1:  # the trial
            return "OK"
        a, b = map(better, shown(body))
        return f"They differ.\nVERDICT: {'TIE' if a == b else 'A' if a > b else 'B'}"

    return answer
