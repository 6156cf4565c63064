"""Negative labels: the names of a word list that are farthest from all class names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unseen.errors import InputError
from unseen.networks.dual_encoder import DualEncoder
from unseen.prompts.text import check_names

TEMPLATE = "a photo of a {}"


@torch.no_grad()
def encode_names(
    clip: DualEncoder, names: Sequence[str], templates: Sequence[str] = (TEMPLATE,), *, chunk: int = 1024
) -> Tensor:
    """(len(names), D) float32 features of length 1: the mean over templates, each with {} for the name."""
    for template in templates:
        if "{}" not in template:
            raise InputError(f"template {template!r}", "has no place for the class name", "Write {} there.")
    total: Tensor | float = 0.0
    for template in templates:
        texts = [template.format(name) for name in names]
        parts = [clip.encode_text(texts[first : first + chunk]) for first in range(0, len(texts), chunk)]
        total = total + normalize(torch.cat(parts).float(), dim=-1)
    return normalize(total, dim=-1)  # type: ignore[arg-type]


def mine_negative_labels(
    clip: DualEncoder,
    id_names: Sequence[str],
    candidates: Sequence[str] | Mapping[str, Sequence[str]],
    n: int,
    *,
    percentile: float = 0.95,
    margin: float = 0.0,
    templates: Sequence[str] = (TEMPLATE,),
) -> list[str]:
    """The n candidates whose `percentile` of cosines to the ID names is lowest, farthest first.

    candidates  words, or pools of them such as {"nouns": [...], "adjectives": [...]}, which contribute in
                proportion to their sizes (largest remainders); `wordnet_candidates` gives those of WordNet
    percentile  in [0, 1]; below 1 so that one ID name that a word resembles by accident does not decide
    margin      candidates within this cosine distance of some ID name count as synonyms and are left out, beside
                those that are an ID name in another case or number
    Jiang et al. 2024, arXiv 2403.20078, section 3.1 (NegMining). Raises for fewer usable candidates than n.
    """
    id_names = check_names("ID names", id_names)
    pools = candidates if isinstance(candidates, Mapping) else {"candidates": candidates}
    if not 0 <= percentile <= 1:
        raise InputError("percentile", f"is {percentile}", "Give a number from 0 to 1, such as 0.95.")
    if not margin >= 0:
        raise InputError("margin", f"is {margin}", "Give a cosine distance, 0 or more.")
    known = encode_names(clip, id_names, templates)
    taken = {lemma(name) for name in id_names}
    usable: list[tuple[list[str], Tensor]] = []
    for pool in pools.values():
        names = []
        for name in pool:  # a word of several pools counts in the first
            if lemma(name) not in taken:
                taken.add(lemma(name))
                names.append(name)
        if not names:
            usable.append(([], torch.zeros(0)))
            continue
        cosines = encode_names(clip, names, templates) @ known.T
        near = torch.quantile(cosines, percentile, dim=1)
        kept = (cosines.amax(1) <= 1 - margin + 1e-6).nonzero().squeeze(1).tolist()
        usable.append(([names[i] for i in kept], near[kept]))
    total = sum(len(names) for names, _ in usable)
    if not 1 <= n <= total:
        raise InputError(
            "n",
            f"is {n} for {total} candidates that are no ID name",
            "Give from 1 to their number, or a longer list of candidates.",
        )
    found = []
    for (names, near), share in zip(usable, _shares(n, [len(names) for names, _ in usable]), strict=True):
        found += [(float(near[i]), names[i]) for i in near.argsort(stable=True)[:share].tolist()]
    return [name for _, name in sorted(found, key=lambda pair: pair[0])]


def check_negatives(id_names: Sequence[str], negatives: Sequence[str]) -> tuple[str, ...]:
    """The negative names as a tuple; raises for none, and for an ID name among them in any case or number."""
    negatives = check_names("negative names", negatives)
    taken = {lemma(name): name for name in id_names}
    for name in negatives:
        if lemma(name) in taken:
            raise InputError(
                "negative names",
                f"hold {name!r}, which is the ID name {taken[lemma(name)]!r}",
                "Leave it out: images of it would be called unfamiliar.",
            )
    return negatives


def lemma(name: str) -> str:
    """A name without case, underscores, doubled spaces and the plural of its last word: "Fire_Trucks" -> fire truck.

    By rules of English spelling alone; irregular plurals stay what they are.
    """
    words = re.sub(r"[\s_-]+", " ", name).strip().casefold()
    for ending, singular in (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("shes", "sh")):
        if words.endswith(ending) and len(words) > len(ending) + 1:
            return words[: -len(ending)] + singular
    if words.endswith("s") and not words.endswith(("ss", "us", "is")) and len(words) > 3:
        return words[:-1]
    return words


def _shares(n: int, sizes: list[int]) -> list[int]:
    """n in proportion to sizes, by largest remainders; never more than a size, because n <= sum(sizes)."""
    exact = [n * size / sum(sizes) for size in sizes]
    shares = [int(value) for value in exact]
    order = sorted(range(len(sizes)), key=lambda i: shares[i] - exact[i])
    for i in order[: n - sum(shares)]:
        shares[i] += 1
    return shares
