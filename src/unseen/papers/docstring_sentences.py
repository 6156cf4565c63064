"""Sentences of installed packages' documentation: one package familiar, two unfamiliar, one that fills up."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import sysconfig
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from unseen.errors import InputError

FAMILIAR, LEAKED, SECOND, FILLER = "sklearn", "torch", "standard library", "scipy"
SHORTEST, LONGEST = 40, 160  # characters
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
SKIPPED = {"tests", "test", "testing", "_vendor", "externals", "site-packages", "idlelib", "lib2to3"}


@dataclass(frozen=True)
class Sentences:
    """train     familiar sentences to learn from
    held_out  further ones, to stop by and to report perplexity on
    test      familiar ones that are judged against `unfamiliar`: by domain, as many, of the same lengths
    corpus    what pre-training reads, by domain: other files than those of held_out and tests
    """

    train: list[str]
    held_out: list[str]
    test: list[str]
    unfamiliar: dict[str, list[str]]
    corpus: dict[str, list[str]]


def draw_sentences(seed: int, train: int = 3000, test: int = 400) -> Sentences:
    """Split the packages' files anew and draw sentences: of a file all are for training, or none.

    Raises `InputError` when a package is not installed or has too few sentences.
    """
    generator = torch.Generator().manual_seed(seed)
    reading: dict[str, list[str]] = {}
    judging: dict[str, list[str]] = {}
    for domain in (FAMILIAR, LEAKED, SECOND, FILLER):
        by_file = file_sentences(domain)
        order = torch.randperm(len(by_file), generator=generator).tolist()
        total = sum(map(len, by_file))
        kept_apart: list[str] = []
        while order and len(kept_apart) < min(3 * test, total // 3) and domain != FILLER:
            kept_apart += by_file[order.pop()]
        read = [sentence for file in order for sentence in by_file[file]]
        if len(read) < train or (domain != FILLER and len(kept_apart) < 2 * test):
            problem = f"has {total} sentences"
            raise InputError(f"documentation of {domain}", problem, f"About {train + 3 * test} are needed.")
        judging[domain] = _shuffled(kept_apart, generator)
        reading[domain] = _shuffled(read, generator)[:train]
    familiar = judging[FAMILIAR][:test]
    unfamiliar = {domain: of_lengths(judging[domain], familiar) for domain in (LEAKED, SECOND)}
    return Sentences(
        reading[FAMILIAR], judging[FAMILIAR][test : test + test // 2], familiar, unfamiliar, reading
    )


def of_lengths(sentences: Sequence[str], like: Sequence[str]) -> list[str]:
    """As many sentences as `like` has, one for each: the nearest in length of those that are left."""
    left = sorted(sentences, key=len)
    lengths = [len(sentence) for sentence in left]
    chosen = []
    for sentence in like:
        after = bisect_left(lengths, len(sentence))
        nearest = min(
            (at for at in (after - 1, after) if 0 <= at < len(left)),
            key=lambda at: abs(lengths[at] - len(sentence)),
        )
        chosen.append(left.pop(nearest))
        lengths.pop(nearest)
    return chosen


@functools.cache
def file_sentences(domain: str) -> tuple[tuple[str, ...], ...]:
    """Sentences of each source file of a package, or of the standard library; each sentence once."""
    if domain == SECOND:
        root = Path(sysconfig.get_path("stdlib"))
    else:
        found = importlib.util.find_spec(domain)
        if found is None or not found.submodule_search_locations:
            raise InputError(
                f"package {domain}", "is not installed", f"pip install {domain}, or scikit-learn."
            )
        root = Path(next(iter(found.submodule_search_locations)))
    seen: set[str] = set()
    files = []
    for path in sorted(root.rglob("*.py")):
        if SKIPPED & set(path.relative_to(root).parts):
            continue
        new = [s for s in sentences_of(path.read_bytes()) if s not in seen and not seen.add(s)]  # type: ignore[func-returns-value]
        if new:
            files.append(tuple(new))
    return tuple(files)


def sentences_of(source: bytes) -> list[str]:
    """Sentences of 40 to 160 ASCII characters in the docstrings of a source, without doctests."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # sources kept for other versions of Python
        return []
    found = []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, documented) else None
        for paragraph in re.split(r"\n\s*\n", text or ""):
            if ">>>" in paragraph:
                continue
            for sentence in SENTENCE_END.split(" ".join(paragraph.split())):
                if SHORTEST <= len(sentence) <= LONGEST and sentence.isascii() and sentence[-1] in ".!?":
                    found.append(sentence)
    return found


def _shuffled(sentences: Sequence[str], generator: torch.Generator) -> list[str]:
    return [sentences[row] for row in torch.randperm(len(sentences), generator=generator).tolist()]
