"""The pretrained decoder and the text of full-scale reproductions, named by environment variables.

UNSEEN_LM    name or folder of a causal decoder of transformers
UNSEEN_TEXT  a text file, or the name or folder of a data set with a column 'text' and a split 'test'
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unseen.errors import InputError, MissingExtra


def pretrained_decoder(default: str) -> tuple[Any, Any]:
    """(model, tokenizer) of UNSEEN_LM, else of `default`; in evaluation mode, on a GPU if there is one."""
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtra("a pretrained language model", "language") from error
    name = os.environ.get("UNSEEN_LM", default)
    model = AutoModelForCausalLM.from_pretrained(name, dtype="auto").eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device), AutoTokenizer.from_pretrained(name)


def text_sequences(tokenizer: Any, count: int, length: int, *, seed: int) -> Tensor:
    """Sequences (count, length) int64 of UNSEEN_TEXT without overlap; `seed` draws their places.

    Each starts with the tokenizer's first token, if it has one, as in training. Places are drawn from the
    text's first 4 * count sequences. Raises InputError when the text is missing or too short.
    """
    text = os.environ.get("UNSEEN_TEXT")
    if not text:
        raise InputError("UNSEEN_TEXT", "is not set", "Name a text file or a data set with a column 'text'.")
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    step = length - len(start)
    ids = _read_tokens(tokenizer, text, 4 * count * step)
    places = len(ids) // step
    if places < count:
        raise InputError(f"text {text!r}", f"has only {len(ids)} tokens", f"Give {count * step} or more.")
    chosen = torch.randperm(places, generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return torch.tensor([start + ids[place * step : (place + 1) * step] for place in chosen])


def _read_tokens(tokenizer: Any, text: str, enough: int) -> list[int]:
    """Up to `enough` tokens of a text, its documents one after the other."""
    ids: list[int] = []
    for document in _documents(text, characters=8 * enough):
        ids += tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) >= enough:
            break
    return ids[:enough]


def _documents(text: str, characters: int) -> Iterator[str]:
    """A file's first `characters` (its tokens are rarely longer than 8), or a data set's texts."""
    if Path(text).is_file():
        with open(text, encoding="utf-8", errors="replace") as file:
            yield file.read(characters)
        return
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtra("a data set in UNSEEN_TEXT", "language") from error
    for example in load_dataset(text, split="test", streaming=True):
        if "text" not in example:
            raise InputError(
                f"data set {text!r}", f"has columns {', '.join(example)}", "Give one with 'text'."
            )
        yield example["text"]
