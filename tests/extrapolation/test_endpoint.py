import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from unseen.errors import InputError
from unseen.extrapolation import ChatEndpoint


def completion(text):
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


@pytest.fixture
def server(monkeypatch):
    """A stub server on this machine: gives its `replies` one after the other (the last again), keeps requests."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            stub.requests.append((self.path, dict(self.headers), json.loads(body)))
            code, text, *headers = stub.replies.pop(0) if len(stub.replies) > 1 else stub.replies[0]
            self.send_response(code)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    stub = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.requests, stub.replies = [], [completion("yes")]
    stub.url = f"http://127.0.0.1:{stub.server_port}/v1"
    thread = threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield stub
    stub.shutdown()
    thread.join()
    stub.server_close()


def test_asks_as_the_protocol_says(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    endpoint = ChatEndpoint(server.url + "/", "small", key_variable="MY_KEY", temperature=0.5, seed=3)
    assert endpoint("well?") == "yes"
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body == {
        "model": "small",
        "messages": [{"role": "user", "content": "well?"}],
        "temperature": 0.5,
        "seed": 3,
    }
    assert "secret" not in endpoint.name and "small" in endpoint.name


def test_without_a_key_none_is_sent(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    ChatEndpoint(server.url, "small")("well?")
    assert "Authorization" not in server.requests[0][1]


def test_a_busy_server_is_asked_again(server):
    server.replies = [(503, "busy"), (429, "slow down"), completion("at last")]
    assert ChatEndpoint(server.url, "small", pause=0)("well?") == "at last"
    assert len(server.requests) == 3


def test_a_server_that_stays_busy_is_an_error(server):
    server.replies = [(503, "busy")]
    with pytest.raises(InputError, match=r"answered 503 .*, 2 time\(s\)"):
        ChatEndpoint(server.url, "small", attempts=2, pause=0)("well?")


@pytest.mark.parametrize(
    ("code", "says"),
    [(401, "OPENAI_API_KEY"), (404, "'small' the server's name"), (400, "Correct the address")],
)
def test_a_refusal_is_not_repeated_and_says_what_to_change(server, code, says):
    server.replies = [(code, "not with me")]
    with pytest.raises(InputError, match=says) as caught:
        ChatEndpoint(server.url, "small", pause=0)("well?")
    assert "not with me" in str(caught.value) and len(server.requests) == 1


def test_the_key_does_not_follow_a_redirect(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.replies = [(302, "", ("Location", server.url + "/elsewhere"))]
    with pytest.raises(InputError, match="302"):
        ChatEndpoint(server.url, "small", pause=0)("well?")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "body", ["<html>", "{}", '{"choices": []}', '{"choices": [{"message": {"content": null}}]}']
)
def test_an_answer_that_is_no_completion_is_an_error(server, body):
    server.replies = [(200, body)]
    with pytest.raises(InputError, match="no chat completion"):
        ChatEndpoint(server.url, "small", pause=0)("well?")


def test_a_server_that_is_down_is_named():
    with pytest.raises(InputError, match=r"'http://127.0.0.1:9/v1': cannot be reached"):
        ChatEndpoint("http://127.0.0.1:9/v1", "small", attempts=2, pause=0, timeout=2)("well?")


def test_only_web_addresses_are_opened():
    with pytest.raises(InputError, match="no web address"):
        ChatEndpoint("file:///etc/passwd", "small")
