"""Language models that see as judges: a prompt of true and false exemplars, and the odds of the next word."""

from __future__ import annotations

import base64
import io
import json
import math
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.extrapolation.endpoint import ChatEndpoint
from unseen.relabelling.questions import Questions
from unseen.relabelling.verifiers import check_pictures

Part = str | Tensor


def prompt(questions: Questions, index: int) -> list[Part]:
    """Texts and images (C, H, W), in order: an exemplar that is falsely named, one rightly, and the query.

    The false one is the positive exemplar under the name that the model predicts; where that very name is in
    question, it is the negative exemplar (an image of the next candidate). Paper, section 3.2.
    """
    name, rival = questions.name[index], questions.rival[index]
    positive = questions.support[questions.positive[index]]
    same = name == rival
    false = questions.support[questions.negative[index]] if same else positive

    def about(name: str) -> str:
        return f"This image shows a photo of {name}, True or False? Answer:"

    return [
        false, about(rival) + " False\n", positive, about(name) + " True\n",
        questions.images[questions.query[index]], about(name),
    ]  # fmt: skip


class InContextVerifier:
    """A local model as a judge: P(True) from its logits for the next token, over "True" and "False" alone.

    next_token_logits  a prompt's parts (texts and images) to logits (V,)
    tokenizer          of transformers: `encode(text, add_special_tokens=False)`; both words must be one token each
    words              as they follow "Answer:", with a space in front where the tokenizer has it so
    """

    def __init__(
        self,
        next_token_logits: Callable[[Sequence[Part]], Tensor],
        tokenizer: Any,
        words: tuple[str, str] = ("True", "False"),
    ):
        self.next_token_logits, self.ids = next_token_logits, []
        for word in words:
            ids = list(tokenizer.encode(word, add_special_tokens=False))
            if len(ids) != 1:
                raise InputError(
                    f"word {word!r}",
                    f"is {len(ids)} tokens",
                    "Give words that are one token each: words=(...).",
                )
            self.ids.append(ids[0])
        if self.ids[0] == self.ids[1]:
            raise InputError("words", f"{words} are one token", "Give two that differ.")

    @torch.no_grad()
    def __call__(self, questions: Questions) -> Tensor:
        answers = []
        for index in range(len(questions)):
            logits = self.next_token_logits(prompt(questions, index))
            answers.append(torch.softmax(logits[self.ids].float(), 0)[0].cpu())
        return torch.stack(answers)


class EndpointVerifier(ChatEndpoint):
    """A multimodal model behind an OpenAI-compatible address that gives log-probabilities (vLLM, hosted services).

    It takes the options of `ChatEndpoint`. Images are (1 or 3, H, W) in [0, 1] and are sent as PNG. The odds are
    those of the first word of the answer, over all ways to write true and false among the 20 likeliest tokens.
    Raises `InputError` for a server without log-probabilities and for answers that are neither.
    """

    def __init__(self, url: str, model: str, **options: Any):
        super().__init__(url, model, **{"temperature": 0.0, **options})

    def __call__(self, questions: Questions) -> Tensor:  # type: ignore[override]
        answers: list[float] = []
        for index in range(len(questions)):
            question: Any = prompt(questions, index)  # `_request` writes it as contents, not as a text
            answers.append(float(super().__call__(question)))
        return torch.tensor(answers)

    def _request(self, question: Any) -> urllib.request.Request:
        request = super()._request("")
        assert isinstance(request.data, bytes)
        body = json.loads(request.data)
        body["messages"] = [{"role": "user", "content": [_content(part) for part in question]}]
        body |= {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
        return urllib.request.Request(
            request.full_url, json.dumps(body).encode(), dict(request.header_items())
        )

    def _text(self, body: bytes) -> str:
        """P(True) in digits."""
        try:
            top = json.loads(body)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            odds = [(str(entry["token"]), float(entry["logprob"])) for entry in top]
        except (ValueError, LookupError, TypeError):
            raise InputError(
                f"endpoint {self.url!r}",
                f"gives no log-probabilities ({body[:80].decode(errors='replace')!r})",
                "Use a server and model that answer logprobs and top_logprobs.",
            ) from None
        true, false = (
            sum(math.exp(value) for token, value in odds if token.strip(" \u0120\u2581").lower() == word)
            for word in ("true", "false")
        )
        if not true + false > 0:
            said = ", ".join(repr(token) for token, _ in odds[:5])
            raise InputError(
                f"endpoint {self.url!r}",
                f"answers neither True nor False ({said})",
                "Use a model that follows.",
            )
        return repr(true / (true + false))


def _content(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    from PIL import Image

    check_pictures(part)
    pixels = (part.cpu() * 255).round().byte().expand(3, -1, -1).permute(1, 2, 0).contiguous()
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "png")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}
