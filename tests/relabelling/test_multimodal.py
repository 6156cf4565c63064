"""Language models as judges: the prompt, tokens that must be single, and a real server's odds."""

import base64
import io
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch

from unseen.errors import InputError
from unseen.relabelling.multimodal import EndpointVerifier, InContextVerifier, prompt
from unseen.relabelling.questions import Questions

GENERATOR = torch.Generator().manual_seed(0)
IMAGES, SUPPORT = (torch.rand(n, 3, 4, 4, generator=GENERATOR) for n in (2, 3))
QUESTIONS = Questions(
    IMAGES, SUPPORT, torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([1, 2]), ["cat", "dog"], ["dog", "dog"]
)  # fmt: skip


def test_the_prompt_of_another_class_shows_its_exemplar_twice():
    parts = prompt(QUESTIONS, 0)
    assert (
        torch.equal(parts[0], SUPPORT[0])
        and torch.equal(parts[2], SUPPORT[0])
        and torch.equal(parts[4], IMAGES[0])
    )
    assert parts[1] == "This image shows a photo of dog, True or False? Answer: False\n"
    assert parts[3] == "This image shows a photo of cat, True or False? Answer: True\n"
    assert parts[5] == "This image shows a photo of cat, True or False? Answer:"


def test_the_prompt_of_the_predicted_class_shows_the_next_candidate_as_false():
    parts = prompt(QUESTIONS, 1)
    assert torch.equal(parts[0], SUPPORT[2]) and torch.equal(parts[2], SUPPORT[1])
    assert parts[1].startswith("This image shows a photo of dog") and parts[1].endswith("False\n")


class Tokenizer:
    def __init__(self, **ids):
        self.ids = ids

    def encode(self, text, add_special_tokens):
        assert add_special_tokens is False
        return self.ids[text]


def test_local_models_are_read_over_both_words_alone():
    seen = []

    def logits(parts):
        seen.append(len(parts))
        return torch.tensor([9.0, 1.0, 50.0, 2.0])

    found = InContextVerifier(logits, Tokenizer(**{"True": [3], "False": [1]}))(QUESTIONS)
    assert found.tolist() == pytest.approx([1 / (1 + math.exp(-1))] * 2) and seen == [6, 6]


def test_words_must_be_single_and_different_tokens():
    with pytest.raises(InputError, match="'False': is 2 tokens"):
        InContextVerifier(None, Tokenizer(**{"True": [3], "False": [1, 2]}))
    with pytest.raises(InputError, match="one token"):
        InContextVerifier(None, Tokenizer(**{"True": [0], "False": [0]}))


@pytest.fixture
def server():
    bodies, answers = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            answer = json.dumps(answers.pop(0)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/v1", bodies, answers
    http.shutdown()
    http.server_close()


def odds(**tokens):
    top = [{"token": token, "logprob": math.log(p)} for token, p in tokens.items()]
    return {"choices": [{"message": {"content": "x"}, "logprobs": {"content": [{"top_logprobs": top}]}}]}


def test_an_endpoint(server):
    from PIL import Image

    url, bodies, answers = server
    answers += [odds(**{"True": 0.2, " true": 0.1, "False": 0.1, "Yes": 0.6}), odds(FALSE=0.5)]
    found = EndpointVerifier(url, "seer")(QUESTIONS)
    assert found.tolist() == pytest.approx([0.75, 0.0])
    body = bodies[0]
    assert (
        body["logprobs"] is True
        and body["max_tokens"] == 1
        and body["temperature"] == 0
        and body["model"] == "seer"
    )
    content = body["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url", "text"] * 3
    raw = base64.b64decode(content[4]["image_url"]["url"].partition(",")[2])
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(raw))))
    assert torch.equal(pixels.float(), (IMAGES[0] * 255).round().permute(1, 2, 0))


def test_an_endpoint_that_does_not_answer(server):
    url, _, answers = server
    answers += [odds(Maybe=1.0), {"choices": [{"message": {"content": "True"}}]}]
    for problem in ("neither True nor False", "no log-probabilities"):
        with pytest.raises(InputError, match=problem):
            EndpointVerifier(url, "seer")(QUESTIONS)
