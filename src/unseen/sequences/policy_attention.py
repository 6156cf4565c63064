"""Causal attention under an `AttentionPolicy`: a dense reference and a block-wise O(n) form of the same rule.

Keys come *un-rotated*, so that one key can be read at several distances.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unseen.errors import InputError
from unseen.sequences.attention_policy import AttentionPolicy
from unseen.sequences.positions import Alibi, Encoding, Reading


def attend(
    policy: AttentionPolicy,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    encoding: Encoding,
    *,
    padding: Tensor | None = None,
    length: int | None = None,
    layer: int = 0,
    scale: float | None = None,
    method: Literal["block", "dense"] = "block",
) -> Tensor:
    """Attention under any policy; shapes as in `lambda_attention`, `encoding` as the model was trained."""
    length = k.shape[2] if length is None else length
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    if k.shape[1] != q.shape[1]:  # grouped-query attention
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    encoding = policy.encoding(encoding)
    core: Callable[..., Tensor]
    if method == "dense":
        core = _dense
    elif policy.local(length) == length and (policy.d_max is None or policy.d_max >= length - 1):
        core = _causal  # neither mask nor ceiling has reached anything yet
    else:
        core = _dense_in_parts if policy.n_local is None else _blockwise
    if policy.topk is None or layer < policy.topk_first_layer:
        return core(policy, q, k, v, encoding, padding, length)
    if len(q) > 1 and q.shape[2] > 1:
        raise InputError(
            "topk",
            f"was asked for a batch of {len(q)} prompts",
            "Feed one prompt at a time or omit topk.",
        )
    last = _dense(policy, q[:, :, -1:], k, v, encoding, padding, length, topk=policy.topk)
    if q.shape[2] == 1:
        return last
    before = core(policy, q[:, :, :-1], k[:, :, :-1], v[:, :, :-1], encoding, padding, length - 1)
    return torch.cat([before, last], dim=2)


def left_padding(mask: Tensor) -> Tensor | None:
    """Padding tokens at the left of each row, (B,), or None without any.

    mask  (B, T), nonzero for real tokens. Raises InputError when a row has padding elsewhere or nothing else.
    """
    real = mask.bool()
    if bool(real.all()):
        return None
    if bool((real[:, :-1] & ~real[:, 1:]).any()) or not bool(real[:, -1].all()):
        raise InputError(
            "padding mask",
            "has padding that is not at the left",
            "Pad on the left (tokenizer.padding_side = 'left'): starting tokens are found by position.",
        )
    return (~real).sum(dim=1)


def _causal(
    policy: AttentionPolicy,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    encoding: Encoding,
    padding: Tensor | None,
    length: int,
) -> Tensor:
    """All earlier keys at true distances: PyTorch's fused kernel."""
    if isinstance(encoding, Alibi):
        return _dense(policy, q, k, v, encoding, padding, length)
    position = torch.arange(length, device=q.device)
    q, k = encoding.rotate(q, position[length - q.shape[2] :]), encoding.rotate(k, position)
    if q.shape[2] == length and padding is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    mask = position <= position[length - q.shape[2] :, None]
    if padding is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    real = position >= padding[:, None]
    # a padding query sees itself, so that no row of the softmax is empty; nobody sees a padding key
    mask = (mask & real[:, None]) | (position == position[length - q.shape[2] :, None])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None], scale=1.0)


def _dense(
    policy: AttentionPolicy,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    encoding: Encoding,
    padding: Tensor | None,
    length: int,
    topk: int | None = None,
) -> Tensor:
    """Reference: every query against every key row."""
    rows = k.shape[2]
    start_rows = starting_rows(policy, padding)
    row = torch.arange(rows, device=q.device)
    k_position = torch.where(row < start_rows, row, row + length - rows) if rows < length else row
    q_position = torch.arange(length - q.shape[2], length, device=q.device)
    if padding is not None:  # positions count from each row's first real token
        k_position, q_position = k_position - padding[:, None, None], q_position - padding[:, None, None]
    distance = q_position[..., :, None] - k_position[..., None, :]
    near = distance < policy.local(length)
    start = (k_position < policy.n_global)[..., None, :]
    seen = (distance >= 0) & (k_position >= 0)[..., None, :]
    visible = seen & (near | start)
    logits = encoding.score(q, k, q_position, k_position)
    if policy.d_max is not None:
        capped = _score_at(encoding, q, k, policy.d_max)
        logits = torch.where(distance > policy.d_max, capped, logits)
    if policy.reindex:
        moved = q_position.clamp(max=policy.n_global + policy.local(length) - 1)
        logits = torch.where(start & ~near, encoding.score(q, k, moved, k_position), logits)
    if topk is not None:
        middle = (seen & ~near & ~start).expand(logits.shape)
        candidates = _score_at(encoding, q, k, policy.topk_distance).masked_fill(~middle, -torch.inf)
        best = candidates.topk(min(topk, rows), dim=-1).indices
        chosen = torch.zeros_like(middle).scatter(-1, best, True) & middle
        logits, visible = torch.where(chosen, candidates, logits), visible | chosen
    return _softmax(logits, visible).to(v.dtype) @ v


QUERIES_AT_ONCE = 1024


def _dense_in_parts(
    policy: AttentionPolicy,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    encoding: Encoding,
    padding: Tensor | None,
    length: int,
) -> Tensor:
    """`_dense`, some queries at a time: without a window all keys count, but not all logits must be held."""
    queries, parts = q.shape[2], []
    for start in range(0, queries, QUERIES_AT_ONCE):
        stop = min(start + QUERIES_AT_ONCE, queries)
        later = queries - stop
        earlier_k, earlier_v = (x[:, :, : x.shape[2] - later] for x in (k, v))
        part = _dense(policy, q[:, :, start:stop], earlier_k, earlier_v, encoding, padding, length - later)
        parts.append(part)
    return torch.cat(parts, dim=2)


def _blockwise(
    policy: AttentionPolicy,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    encoding: Encoding,
    padding: Tensor | None,
    length: int,
) -> Tensor:
    """The same in blocks of queries, each with its window of keys and the starting keys."""
    batch, heads, queries, _ = q.shape
    n_local, device = policy.local(length), q.device
    size = min(n_local, queries)
    blocks = -(-queries // size)
    width = size + n_local - 1
    begin = length - blocks * size - (n_local - 1)  # position of the first key of the first window
    pad = torch.zeros(1, dtype=torch.long, device=device) if padding is None else padding
    pad = pad.view(-1, 1, 1, 1)

    q_blocks = F.pad(q, (0, 0, blocks * size - queries, 0)).unflatten(2, (blocks, size)).transpose(1, 2)
    k_windows, v_windows = (_windows(x, length - begin, width, size) for x in (k, v))
    # Inside a block only differences matter: small numbers keep rotations exact however long the text is.
    inside = torch.arange(width, device=device)
    distance = inside[n_local - 1 :, None] - inside
    absolute = begin + size * torch.arange(blocks, device=device)[:, None, None, None] + inside
    visible = [(distance >= 0) & (distance < n_local) & (absolute >= pad[:, None])]
    keys, values = [(k_windows, inside[n_local - 1 :], inside)], [v_windows]

    if policy.n_global:
        k_start, v_start = (
            _starting(x, policy.n_global, padding)[:, None].expand(-1, blocks, -1, -1, -1) for x in (k, v)
        )
        k_position = torch.arange(k_start.shape[3], device=device)
        q_position = absolute[:, 0, :, n_local - 1 :] - pad  # (B or 1, blocks, 1, size)
        far = q_position[..., :, None] - k_position
        outside = far >= n_local  # starting tokens inside the window are already counted there
        if policy.d_max is None or policy.d_max > n_local:
            limit = policy.n_global + n_local - 1
            moved = q_position.clamp(max=limit) if policy.reindex else q_position
            keys.append((k_start, moved, k_position))
            visible.append(outside if policy.d_max is None else outside & (far < policy.d_max))
            values.append(v_start)
        if policy.d_max is not None:
            ceiling = torch.full((size,), policy.d_max, device=device)
            keys.append((k_start, ceiling, torch.zeros_like(k_position)))
            visible.append(outside & (far >= policy.d_max))
            values.append(v_start)
    output = _fused(encoding, q_blocks, keys, torch.cat(values, dim=3), visible)
    return output.transpose(1, 2).reshape(batch, heads, blocks * size, -1)[:, :, -queries:]


def _fused(
    encoding: Encoding,
    q: Tensor,
    keys: list[Reading],
    v: Tensor,
    visible: list[Tensor],
) -> Tensor:
    """PyTorch's fused kernel over several readings of keys: three to nine times faster than softmax by hand."""
    q_joined, k_joined, bias = encoding.join(q, keys)
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in visible))
    seen = torch.cat([part.expand(*shape, -1) for part in visible], dim=-1)
    mask = torch.where(seen, bias, torch.finfo(q.dtype).min)  # finite: padding may see nothing at all
    mask = mask.to(q.dtype).expand(len(q), -1, -1, -1, -1).flatten(0, 1)
    # the kernel wants values as wide as keys
    wide = F.pad(v, (0, max(q_joined.shape[-1] - v.shape[-1], 0)))
    output = F.scaled_dot_product_attention(
        q_joined.flatten(0, 1), k_joined.flatten(0, 1), wide.flatten(0, 1), attn_mask=mask, scale=1.0
    )
    return output[..., : v.shape[-1]].unflatten(0, q.shape[:2])


def starting_rows(policy: AttentionPolicy, padding: Tensor | None) -> int:
    """Rows at the head of a cache that eviction must spare: the starting tokens of every row of the batch."""
    return policy.n_global + (0 if padding is None else int(padding.max()))


def _windows(x: Tensor, needed: int, width: int, step: int) -> Tensor:
    """The last `needed` rows of x (B, H, K, d), zeros in front if fewer, as (B, blocks, H, width, d)."""
    x = x[:, :, -needed:]
    x = F.pad(x, (0, 0, needed - x.shape[2], 0))
    return x.unfold(2, width, step).permute(0, 2, 1, 4, 3)


def _starting(x: Tensor, count: int, padding: Tensor | None) -> Tensor:
    """The first `count` rows after each row's padding; past the end the last repeats, as yet unseen."""
    if padding is None:
        return x[:, :, :count]
    row = (padding[:, None] + torch.arange(count, device=x.device)).clamp(max=x.shape[2] - 1)
    return x.gather(2, row[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _score_at(encoding: Encoding, q: Tensor, k: Tensor, distance: int) -> Tensor:
    """Logits as if every key were `distance` tokens away: the query rotated, the key not."""
    return encoding.score(
        q, k, torch.full((q.shape[-2],), distance, device=q.device), torch.zeros(k.shape[-2], device=q.device)
    )


def _softmax(logits: Tensor, visible: Tensor) -> Tensor:
    """Softmax in float32 over visible keys; the finite fill spares rows that see nothing (padding) NaNs."""
    return logits.float().masked_fill(~visible, torch.finfo(torch.float32).min).softmax(dim=-1)
