"""A language model behind an OpenAI-compatible address: what vLLM, llama.cpp, Ollama and the hosted services offer."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

from unseen.errors import InputError

BUSY = (408, 429, 500, 502, 503, 504)
"""HTTP codes after which the same request may well succeed a little later."""


class ChatEndpoint:
    """Question -> answer of a chat model over HTTP.

    url           address up to the version, such as http://localhost:8000/v1
    model         name by which the server knows the model
    key_variable  environment variable that holds the key, sent when it is set; the key itself is stored nowhere
    temperature   of sampling, from 0
    seed          sent with the request; servers that ignore it answer differently every time
    timeout       seconds to wait for an answer
    attempts      requests before an unreachable or busy server is an `InputError`, `pause` seconds, then twice
                  as long and so on, between them
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str = "OPENAI_API_KEY",
        temperature: float = 1.0,
        seed: int = 0,
        timeout: float = 120.0,
        attempts: int = 3,
        pause: float = 1.0,
    ):
        if not url.startswith(("http://", "https://")):
            raise InputError(
                f"endpoint {url!r}", "is no web address", "Give http://HOST:PORT/v1 or https://..."
            )
        if attempts < 1 or timeout <= 0:
            raise InputError(
                "attempts, timeout", f"are {attempts}, {timeout}", "Give at least 1, and above 0."
            )
        self.url, self.model, self.key_variable = url.rstrip("/"), model, key_variable
        self.temperature, self.seed = temperature, seed
        self.timeout, self.attempts, self.pause = timeout, attempts, pause
        self._opener = urllib.request.build_opener(_NoRedirect)

    @property
    def name(self) -> str:
        return f"{self.model} at {self.url}, temperature {self.temperature:g}, seed {self.seed}"

    def __call__(self, question: str) -> str:
        """The answer's text. Raises `InputError` that says what of address, key, model or server is at fault."""
        problem = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                with self._opener.open(self._request(question), timeout=self.timeout) as response:
                    return self._text(response.read())
            except urllib.error.HTTPError as error:
                if error.code not in BUSY:
                    raise self._refused(error) from None
                problem = f"answered {error.code} {error.reason}"
            except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
                problem = (
                    f"cannot be reached ({getattr(error, 'reason', None) or error or type(error).__name__})"
                )
        raise InputError(
            f"endpoint {self.url!r}",
            f"{problem}, {self.attempts} time(s)",
            "Start the server, correct the address, or use a list of domains instead.",
        )

    def _request(self, question: str) -> urllib.request.Request:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": self.temperature,
            "seed": self.seed,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        return urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)

    def _text(self, body: bytes) -> str:
        try:
            text = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            text = None
        if not isinstance(text, str):
            raise InputError(
                f"endpoint {self.url!r}",
                f"answered with no chat completion ({body[:80].decode(errors='replace')!r})",
                "Give the address of an OpenAI-compatible server, up to and with /v1.",
            )
        return text

    def _refused(self, error: urllib.error.HTTPError) -> InputError:
        remedies = {
            401: f"Put a valid key into the environment variable {self.key_variable}.",
            403: f"Put a valid key into the environment variable {self.key_variable}.",
            404: f"Is {self.model!r} the server's name of the model, and does the address end in /v1?",
        }
        said = error.read(300).decode(errors="replace").strip()
        return InputError(
            f"endpoint {self.url!r}",
            f"refused the request ({error.code} {error.reason}{': ' + said if said else ''})",
            remedies.get(error.code, "Correct the address or the model."),
        )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects would carry the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None
