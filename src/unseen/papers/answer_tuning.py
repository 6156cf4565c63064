"""Instruction tuning of a causal decoder on a part of a user's data, judged on the target task and on another.

UNSEEN_LM         name or folder of the decoder
UNSEEN_SFT_TRAIN, UNSEEN_SFT_TARGET, UNSEEN_SFT_CROSS
                  files of JSON lines, {"prompt": ..., "answer": ...}
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from unseen.curation import Pool
from unseen.errors import InputError
from unseen.networks.example_gradients import token_cross_entropy
from unseen.papers.pretrained_language import pretrained_decoder
from unseen.registry import Spec, selectors
from unseen.shifts.batch import map_tensors

Pairs = list[tuple[str, str]]
DEFAULT = "meta-llama/Llama-3.1-8B"


def tuned_accuracies(
    selector: Spec | None, keep: float, seed: int, *, length: int = 512, batch: int = 8
) -> dict[str, float]:
    """Share of right last words on "target" and "upright" (the other task) after one epoch of AdamW (1e-5).

    selector  decides by the untrained decoder which share `keep` of the training pairs is used; None: all
    length    tokens of prompt and answer that are kept of a pair
    """
    train, target, cross = (_pairs(f"UNSEEN_SFT_{name}") for name in ("TRAIN", "TARGET", "CROSS"))
    model, tokenizer = pretrained_decoder(DEFAULT)
    pool = answer_pool(tokenizer, train, length)
    if selector is not None:
        given = {"seed": seed} if selector.name == "random" else {"loss": token_cross_entropy}
        chooser = selectors.build(selector, **given)
        pool = pool.take(chooser.select(chooser.fit(model, pool), keep))
    _tune(model, pool, seed, batch)
    return {
        name: last_word_accuracy(model, tokenizer, p) for name, p in (("target", target), ("upright", cross))
    }


def answer_pool(tokenizer: Any, pairs: Pairs, length: int) -> Pool:
    """Tokens of prompts and answers, padded; only those of the answers have a loss."""
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    rows = []
    for index, (prompt, answer) in enumerate(pairs):
        start = tokenizer(prompt)["input_ids"]
        end = tokenizer(answer, add_special_tokens=False)["input_ids"]
        if not end or len(start) >= length:
            raise InputError(
                f"pair {index}",
                f"has no answer within {length} tokens",
                "Leave it out, or give a larger length.",
            )
        rows.append((start, end[: length - len(start)]))
    width = max(len(start) + len(end) for start, end in rows)
    tokens = torch.full((len(rows), width), padding)
    targets, mask = torch.full_like(tokens, -100), torch.zeros_like(tokens)
    for row, (start, end) in enumerate(rows):
        stop = len(start) + len(end)
        tokens[row, :stop], mask[row, :stop] = torch.tensor(start + end), 1
        targets[row, len(start) : stop] = torch.tensor(end)
    return Pool({"input_ids": tokens, "attention_mask": mask}, targets)


def _tune(model: Any, pool: Pool, seed: int, batch: int) -> None:
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    model.train()
    for rows in order.split(batch):
        part = pool.take(rows)
        x, y = (map_tensors(lambda values: values.to(device), tree) for tree in part.examples)
        optimizer.zero_grad()
        token_cross_entropy(model, x, y).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


@torch.no_grad()
def last_word_accuracy(model: Any, tokenizer: Any, pairs: Pairs) -> float:
    """Share of prompts whose greedy continuation, as long as the answer, ends in the answer's last word."""
    device, right = next(model.parameters()).device, 0
    for prompt, answer in pairs:
        start = torch.tensor([tokenizer(prompt)["input_ids"]], device=device)
        count = len(tokenizer(answer, add_special_tokens=False)["input_ids"])
        found = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
        words = tokenizer.decode(found[0, start.shape[1] :], skip_special_tokens=True).split()
        right += words[-1:] == answer.split()[-1:]
    return right / len(pairs)


def _pairs(variable: str) -> Pairs:
    path = os.environ.get(variable)
    if not path or not Path(path).is_file():
        raise InputError(variable, "names no file", 'Name one of lines {"prompt": ..., "answer": ...}.')
    pairs = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            found = json.loads(line)
            pairs.append((str(found["prompt"]), str(found["answer"])))
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"line {number} of {path!r}",
                "has no prompt and answer",
                'Write {"prompt": ..., "answer": ...}.',
            ) from None
    if not pairs:
        raise InputError(f"file {path!r}", "is empty", 'Write lines {"prompt": ..., "answer": ...}.')
    return pairs
