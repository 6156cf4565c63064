"""Lambda-shaped attention with a distance ceiling (LM-Infinite, Han et al. 2024, arXiv 2308.16137).

A query sees the last `n_local` keys and the first `n_global` keys; no key seems farther than `d_max`. Keys
come *un-rotated*: a starting token is used with its true rotation while it is near and with none afterwards.
Flat perplexity is not long memory: what the evicted middle said is gone (see `topk` for retrieval).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from unseen.errors import InputError
from unseen.sequences.attention_policy import AttentionPolicy
from unseen.sequences.policy_attention import attend
from unseen.sequences.positions import Alibi, Encoding, Rotary


def lambda_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    n_local: int,
    n_global: int,
    d_max: int | None,
    positions: Literal["rope", "alibi"] | Encoding = "rope",
    reindex: bool = False,
    padding: Tensor | None = None,
    length: int | None = None,
    topk: int | None = None,
    topk_distance: int | None = None,
    scale: float | None = None,
    method: Literal["block", "dense"] = "block",
) -> Tensor:
    """Attention output (B, H, T, d_h) under the Lambda mask and the distance ceiling.

    q          (B, H, T, d_h), the last T of `length` tokens (T < length: decoding or chunked prefill)
    k, v       (B, H_kv, K, d_h), H_kv divides H; keys un-rotated. K = length, or fewer if a cache evicted
               the middle: then the first n_global (plus the longest padding) rows and the last of the rest
    n_local    visible distances are 0 .. n_local - 1, the query itself included
    d_max      larger distances are read as d_max; at least n_local - 1 (local keys stay); None: no ceiling
    positions  "rope" (base 10000), "alibi" (the paper's slopes), or a `Rotary` / `Alibi`
    reindex    StreamingLLM instead of a ceiling: far starting tokens sit just before the window
    padding    (B,) number of left-padding tokens of each row, see `policy_attention.left_padding`
    topk       middle keys (per head, by logit) that the last query also sees at `topk_distance` (default
               d_max / 2); a batch (B > 1) of more than one query is not supported
    method     "block": O(length * (2 n_local + n_global)) time, O(length) memory; "dense": O(length^2)

    Raises InputError on shapes or sizes that do not fit.
    """
    length = k.shape[2] if length is None else length
    _check(q, k, v, n_local, n_global, d_max, reindex, length, padding, topk)
    if isinstance(positions, str):
        if positions not in ("rope", "alibi"):
            raise InputError("positions", f"is {positions!r}", "Give 'rope', 'alibi', a Rotary or an Alibi.")
        positions = Rotary.default(q.shape[-1]) if positions == "rope" else Alibi.default(q.shape[1])
    policy = AttentionPolicy(
        "lambda",
        n_local=n_local,
        n_global=n_global,
        d_max=d_max,
        reindex=reindex,
        topk=topk,
        topk_distance=topk_distance or (d_max or n_local) // 2,
        topk_first_layer=0,
    )
    return attend(policy, q, k, v, positions, padding=padding, length=length, scale=scale, method=method)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    n_local: int,
    n_global: int,
    d_max: int | None,
    reindex: bool,
    length: int,
    padding: Tensor | None,
    topk: int | None,
) -> None:
    if (
        q.ndim != 4
        or k.ndim != 4
        or k.shape != v.shape
        or q.shape[0] != k.shape[0]
        or q.shape[3] != k.shape[3]
    ):
        raise InputError(
            "q, k, v",
            f"have shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}",
            "Give (B, H, T, d_h) queries and (B, H_kv, K, d_h) keys and values.",
        )
    if q.shape[1] % k.shape[1]:
        raise InputError("k", f"has {k.shape[1]} heads for {q.shape[1]} query heads", "H_kv must divide H.")
    if q.shape[2] > k.shape[2] or length < k.shape[2]:
        raise InputError(
            "length",
            f"is {length} with {q.shape[2]} queries and {k.shape[2]} keys",
            "There must be at most as many queries as keys, and at most `length` keys.",
        )
    if n_local < 1 or n_global < 0:
        raise InputError(
            "n_local, n_global",
            f"are {n_local}, {n_global}",
            "Give n_local >= 1 and n_global >= 0.",
        )
    if d_max is not None and (d_max < n_local - 1 or reindex):
        raise InputError(
            "d_max",
            f"is {d_max} with n_local {n_local}" + (" and reindex" if reindex else ""),
            "Give at least n_local - 1, so that only starting tokens meet the ceiling; None with reindex.",
        )
    if padding is not None and padding.shape != (q.shape[0],):
        raise InputError("padding", f"has shape {tuple(padding.shape)}", f"Give ({q.shape[0]},) counts.")
    if topk is not None and (topk < 1 or k.shape[2] < length):
        raise InputError(
            "topk",
            f"is {topk} with {k.shape[2]} rows of {length} tokens",
            "Give a positive number, and a cache that has evicted nothing.",
        )
    spared = n_global + (0 if padding is None else int(padding.max()))
    if k.shape[2] < length and k.shape[2] < spared + min(n_local - 1 + q.shape[2], length):
        raise InputError(
            "k",
            f"has {k.shape[2]} rows of {length} tokens",
            f"A cache must keep the first {spared} and the last {n_local - 1} rows besides the new ones.",
        )
