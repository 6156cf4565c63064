"""Passkey retrieval: one hidden number in long filler text (Mohtashami & Jaggi 2023, arXiv 2305.16300)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.sequences.language_model import DecoderLM

TASK = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it.\n"
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key. "
QUESTION = "\nWhat is the pass key? The pass key is "


@dataclass(frozen=True)
class PasskeyDataset:
    """Prompts of equal length and the numbers they hide.

    tokens  (n, length) int64 prompts, ending in the question
    keys    n strings of digits
    spans   (n, 2) first token of the hidden sentence and the one after its last
    """

    tokens: Tensor
    keys: tuple[str, ...]
    spans: Tensor
    tokenizer: Any = None

    def decode(self, tokens: Tensor) -> str:
        """Text of generated tokens (T,)."""
        if self.tokenizer is None:
            return bytes(tokens.tolist()).decode("utf-8", errors="replace")
        return self.tokenizer.decode(tokens.tolist())


def passkey_dataset(
    tokenizer: Any, length: int, depth: float, n: int, *, digits: int = 5, seed: int = 0
) -> PasskeyDataset:
    """n prompts of exactly `length` tokens with a random number hidden at `depth`.

    tokenizer  with `encode(text, add_special_tokens=False)` and `decode` (transformers); None: bytes
    depth      place of the hidden sentence in the filler, from 0 (first) to 1 (last)

    A policy that forgets what left its window fails by design unless the number lies within or topk is set.
    """
    if not 0 <= depth <= 1:
        raise InputError("depth", f"is {depth}", "Give a fraction from 0 (start) to 1 (end).")
    if n < 1 or digits < 1:
        raise InputError("n, digits", f"are {n}, {digits}", "Give at least 1 of each.")
    generator = torch.Generator().manual_seed(seed)
    task, filler, question = (_encode(tokenizer, text) for text in (TASK, FILLER, QUESTION))
    prompts, keys, spans = [], [], []
    for _ in range(n):
        number = torch.randint(10, (digits,), generator=generator).tolist()
        keys.append("".join(map(str, number)))
        needle = _encode(tokenizer, NEEDLE.format(key=keys[-1]))
        room = length - len(task) - len(needle) - len(question)
        if room < 0:
            raise InputError(
                "length", f"is {length}", f"Task, number and question alone take {length - room} tokens."
            )
        text = (filler * (room // len(filler) + 1))[:room]
        # whole filler sentences before the number, so that its surroundings read alike everywhere
        before = round(depth * room) if depth == 1 else round(depth * room) // len(filler) * len(filler)
        prompts.append(task + text[:before] + needle + text[before:] + question)
        spans.append([len(task) + before, len(task) + before + len(needle)])
    return PasskeyDataset(torch.tensor(prompts), tuple(keys), torch.tensor(spans), tokenizer)


def passkey_accuracy(model: Any, dataset: PasskeyDataset) -> float:
    """Share of prompts whose greedy continuation starts with the hidden number, in [0, 1]."""
    device = next(model.parameters()).device
    budget = max(len(_encode(dataset.tokenizer, key)) for key in dataset.keys) + 2
    correct = 0
    for prompt, key in zip(dataset.tokens.to(device), dataset.keys, strict=True):
        if isinstance(model, DecoderLM):
            output = model.generate(prompt[None], budget)
        else:
            mask = torch.ones_like(prompt[None])
            output = model.generate(
                prompt[None], attention_mask=mask, max_new_tokens=budget, do_sample=False, pad_token_id=0
            )
        correct += dataset.decode(output[0, len(prompt) :]).strip().startswith(key)
    return correct / len(dataset.keys)


def _encode(tokenizer: Any, text: str) -> list[int]:
    if tokenizer is None:
        return list(text.encode())
    return list(tokenizer.encode(text, add_special_tokens=False))
