import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from unseen.errors import InputError, UnseenWarning
from unseen.extrapolation import ChatEndpoint, LLMProposer, TemplateTextGenerator, extrapolate, mix
from unseen.shifts.arrays import from_arrays
from unseen.training.fit import fit
from unseen.training.learner import Learner


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


def test_from_an_endpoint_to_a_trained_model(server, tmp_path):
    """The whole way, with an answer that cannot be read on it; the second time nobody is asked."""
    words = {"good": ["fine", "splendid", "lovely"], "bad": ["poor", "awful", "dreadful"]}
    domains = [
        {"domain": name, "prompts": {cls: [f"{word} {name}" for word in words[cls]] for cls in words}}
        for name in ("harbour", "attic", "farm")
    ]
    server.replies = [completion("Let me think."), completion(json.dumps(domains))]

    def synthetic():
        model = ChatEndpoint(server.url, "small", pause=0)
        proposer = LLMProposer(
            model, per_class=False, prompts=3, exclude=("shop",), answers=tmp_path / "answers"
        )
        generator = TemplateTextGenerator(["a {prompt}", "what a {prompt}"])
        return extrapolate(
            "reviews of places", ("good", "bad"), proposer, generator, domains=3, per_cell=6, folder=tmp_path
        )

    with pytest.warns(UnseenWarning, match="examples that equal another"):
        made = synthetic()
    assert len(server.requests) == 2 and made.domains == ("attic", "farm", "harbour")
    assert "could not be used: it holds no JSON list" in server.requests[1][2]["messages"][0]["content"]
    assert synthetic().fingerprint == made.fingerprint and len(server.requests) == 2

    texts = ["a fine shop", "an awful shop", "a lovely place", "a poor place"] * 3
    real = from_arrays(texts, ["good", "bad"] * 6, ["shop"] * 12)
    shift = mix(real, made, share=1, budget=36, unseen="shop")
    split = shift.split(unseen="shop")
    predictor = fit(Learner(objective="coral", steps=60, batch_size=6, learning_rate=1e-2), split)
    assert (predictor.predict(texts).label == ["good", "bad"] * 6).mean() == 1
