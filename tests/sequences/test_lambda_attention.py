import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unseen.errors import InputError
from unseen.sequences import policy_attention
from unseen.sequences.attention_policy import attention_policy
from unseen.sequences.lambda_attention import lambda_attention
from unseen.sequences.policy_attention import left_padding
from unseen.sequences.positions import Alibi, Rotary
from unseen.sequences.streaming_cache import evict_middle


def tensors(generator, batch=2, heads=4, kv_heads=2, queries=11, keys=11, dimension=8):
    q = torch.randn(batch, heads, queries, dimension, generator=generator)
    k, v = torch.randn(2, batch, kv_heads, keys, dimension, generator=generator)
    return q, k, v


def rotate_slowly(x, position, base=10000.0):
    half = len(x) // 2
    out = torch.empty_like(x)
    for i in range(half):
        angle = position * base ** (-2 * i / len(x))
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return out


def slow_reference(q, k, v, n_local, n_global, d_max, positions):
    """The definition, one pair at a time: mask, ceiling, un-rotated far starting keys, softmax."""
    batch, heads, length, dimension = q.shape
    slopes = [2 ** (-8 * (h + 1) / heads) for h in range(heads)]
    out = torch.zeros_like(q)
    for b in range(batch):
        for h in range(heads):
            for i in range(length):
                logits, values = [], []
                for j in range(length):
                    distance = i - j
                    if distance < 0 or not (distance < n_local or j < n_global):
                        continue
                    query, key = q[b, h, i], k[b, h * k.shape[1] // heads, j]
                    if positions == "alibi":
                        logit = query @ key / dimension**0.5 - slopes[h] * min(distance, d_max)
                    elif j < n_global and distance >= n_local:
                        logit = rotate_slowly(query, d_max) @ key / dimension**0.5
                    else:
                        logit = rotate_slowly(query, i) @ rotate_slowly(key, j) / dimension**0.5
                    logits.append(logit)
                    values.append(v[b, h * k.shape[1] // heads, j])
                out[b, h, i] = torch.stack(logits).softmax(0) @ torch.stack(values)
    return out


@pytest.mark.parametrize("positions", ["rope", "alibi"])
@pytest.mark.parametrize("method", ["block", "dense"])
@pytest.mark.parametrize(("n_local", "n_global"), [(4, 2), (3, 0), (4, 6), (30, 2)])
def test_equals_the_definition_pair_by_pair(generator, positions, method, n_local, n_global):
    q, k, v = (x.double() for x in tensors(generator, batch=1, queries=13, keys=13))
    out = lambda_attention(
        q, k, v, n_local=n_local, n_global=n_global, d_max=n_local, positions=positions, method=method
    )
    expected = slow_reference(q, k, v, n_local, n_global, n_local, positions)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["block", "dense"])
@pytest.mark.parametrize("positions", ["rope", "alibi"])
def test_reindexing_counts_positions_among_what_is_visible(generator, method, positions):
    """StreamingLLM: the query attends as the last of a short text made of the visible tokens only."""
    q, k, v = tensors(generator, batch=1, queries=21, keys=21)
    out = lambda_attention(
        q, k, v, n_local=5, n_global=3, d_max=None, reindex=True, positions=positions, method=method
    )
    for i in range(21):
        kept = [j for j in range(i + 1) if i - j < 5 or j < 3]
        short = lambda_attention(
            q[:, :, i : i + 1],
            k[:, :, kept],
            v[:, :, kept],
            n_local=21,
            n_global=0,
            d_max=None,
            positions=positions,
            method="dense",
        )
        torch.testing.assert_close(out[:, :, i : i + 1], short, atol=1e-5, rtol=1e-5)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_block_equals_dense(data):
    draw = data.draw
    keys = draw(st.integers(1, 40))
    queries = draw(st.integers(1, keys))
    n_local, n_global = draw(st.integers(1, 45)), draw(st.integers(0, 8))
    rule = draw(st.sampled_from(["ceiling", "far ceiling", "none", "reindex"]))
    positions = draw(st.sampled_from(["rope", "alibi"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    q, k, v = tensors(generator, queries=queries, keys=keys)
    padding = torch.tensor([0, draw(st.integers(0, keys - 1))]) if draw(st.booleans()) else None
    options = dict(
        n_local=n_local,
        n_global=n_global,
        d_max={"ceiling": max(n_local - 1, 1), "far ceiling": n_local + 3}.get(rule),
        reindex=rule == "reindex",
        positions=positions,
        padding=padding,
    )
    block = lambda_attention(q, k, v, method="block", **options)
    dense = lambda_attention(q, k, v, method="dense", **options)
    for row in range(2):  # outputs at padding mean nothing
        real = 0 if padding is None else max(0, int(padding[row]) - (keys - queries))
        torch.testing.assert_close(block[row, :, real:], dense[row, :, real:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["block", "dense"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("reindex", [False, True])
def test_last_queries_and_evicted_keys_give_the_same_as_all(generator, method, padded, reindex):
    q, k, v = tensors(generator, queries=50, keys=50)
    padding = torch.tensor([3, 0]) if padded else None
    options = dict(
        n_local=6, n_global=4, d_max=None if reindex else 6, reindex=reindex, method=method, padding=padding
    )
    full = lambda_attention(q, k, v, **options)
    first = 7 if padded else 4
    for new in (1, 5):
        few_k, few_v = (evict_middle(x, first, 6 - 1 + new) for x in (k, v))
        assert few_k.shape[2] < 50
        few = lambda_attention(q[:, :, -new:], few_k, few_v, length=50, **options)
        torch.testing.assert_close(few, full[:, :, -new:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["block", "dense"])
def test_short_texts_are_plain_causal_attention(generator, method):
    q, k, v = tensors(generator, kv_heads=4, queries=16, keys=16)
    rotary, position = Rotary.default(8), torch.arange(16)
    expected = torch.nn.functional.scaled_dot_product_attention(
        rotary.rotate(q, position), rotary.rotate(k, position), v, is_causal=True
    )
    out = lambda_attention(q, k, v, n_local=16, n_global=4, d_max=16, method=method)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_far_text_is_as_exact_as_near_text(generator):
    """Rotations inside a block use small numbers, so half a million positions later nothing has drifted."""
    q, k, v = tensors(generator, batch=1, queries=1, keys=14)
    near = lambda_attention(q, k, v, n_local=10, n_global=4, d_max=10, length=100)
    far = lambda_attention(q, k, v, n_local=10, n_global=4, d_max=10, length=500_000)
    torch.testing.assert_close(near, far, atol=1e-6, rtol=1e-6)


def test_left_padding_is_invisible(generator):
    q, k, v = tensors(generator, batch=1, queries=20, keys=20)
    options = dict(n_local=5, n_global=3, d_max=5)
    alone = lambda_attention(q[:, :, 4:], k[:, :, 4:], v[:, :, 4:], **options)
    padded = lambda_attention(q, k, v, padding=torch.tensor([4]), **options)[:, :, 4:]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


def test_topk_lets_only_the_last_query_see_the_best_middle_keys(generator):
    q, k, v = tensors(generator, batch=1, heads=1, kv_heads=1, queries=30, keys=30)
    options = dict(n_local=5, n_global=3, d_max=5)
    plain = lambda_attention(q, k, v, **options)
    out = lambda_attention(q, k, v, topk=2, topk_distance=2, **options)
    torch.testing.assert_close(out[:, :, :-1], plain[:, :, :-1])
    # by hand for the last query (position 29): local 25..29, start 0..2, middle 3..24
    rotary, scaled = Rotary.default(8), q[0, 0, -1] / 8**0.5
    at = lambda d, j: rotary.rotate(scaled, torch.tensor(d)) @ k[0, 0, j]  # noqa: E731
    middle = sorted(range(3, 25), key=lambda j: -at(2, j))[:2]
    seen = [(at(29 - j, j), j) for j in range(25, 30)]
    seen += [(at(5, j), j) for j in range(3)] + [(at(2, j), j) for j in middle]
    weights = torch.stack([logit for logit, _ in seen]).softmax(0)
    torch.testing.assert_close(out[0, 0, -1], weights @ v[0, 0, [j for _, j in seen]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        out[:, :, -1:], lambda_attention(q[:, :, -1:], k, v, topk=2, topk_distance=2, **options)
    )


def test_topk_takes_what_there_is_and_refuses_a_batch_of_prompts(generator):
    q, k, v = tensors(generator)
    options = dict(n_local=4, n_global=2, d_max=4, topk=50)
    with pytest.raises(InputError, match="batch of 2"):
        lambda_attention(q, k, v, **options)
    assert lambda_attention(q[:, :, -1:], k, v, **options).isfinite().all()
    short = lambda_attention(q[:1, :, :3], k[:1, :, :3], v[:1, :, :3], **options)
    assert short.isfinite().all()


def test_gradients_are_finite_and_equal(generator):
    padding = torch.tensor([0, 5])
    gradients = []
    for method in ("block", "dense"):
        q, k, v = (x.requires_grad_() for x in tensors(torch.Generator().manual_seed(1), queries=17, keys=17))
        out = lambda_attention(q, k, v, n_local=4, n_global=2, d_max=4, padding=padding, method=method)
        out[0].square().sum().add(out[1, :, 5:].square().sum()).backward()
        gradients.append((q.grad, k.grad, v.grad))
    for block, dense in zip(*gradients, strict=True):
        assert block.isfinite().all()
        torch.testing.assert_close(block, dense, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_type(generator, dtype):
    q, k, v = (x.to(dtype) for x in tensors(generator, queries=20, keys=20))
    out = lambda_attention(q, k, v, n_local=5, n_global=2, d_max=5)
    exact = lambda_attention(q.float(), k.float(), v.float(), n_local=5, n_global=2, d_max=5)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), exact, atol=0.05, rtol=0.05)


def test_partial_rotation_and_given_encodings(generator):
    q, k, v = tensors(generator, queries=20, keys=20)
    partial = Rotary(Rotary.default(4).inverse_frequencies)
    options = dict(n_local=5, n_global=2, d_max=5, positions=partial)
    block, dense = (lambda_attention(q, k, v, method=m, **options) for m in ("block", "dense"))
    torch.testing.assert_close(block, dense, atol=1e-5, rtol=1e-5)
    alibi = lambda_attention(q, k, v, n_local=5, n_global=2, d_max=5, positions=Alibi.default(4))
    torch.testing.assert_close(
        alibi, lambda_attention(q, k, v, n_local=5, n_global=2, d_max=5, positions="alibi")
    )


def test_left_padding_counts_and_refuses_other_padding():
    assert left_padding(torch.ones(2, 3)) is None
    assert left_padding(torch.tensor([[0, 0, 1], [1, 1, 1]])).tolist() == [2, 0]
    for mask in ([[1, 1, 0]], [[1, 0, 1]], [[0, 0, 0]]):
        with pytest.raises(InputError, match="not at the left"):
            left_padding(torch.tensor(mask))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(n_global=-1), "n_global"),
        (dict(n_local=0), "n_local"),
        (dict(d_max=2), "d_max"),
        (dict(reindex=True), "d_max"),
        (dict(positions="learned"), "positions"),
        (dict(padding=torch.tensor([1])), "padding"),
        (dict(length=5), "length"),
        (dict(length=100, topk=2), "evicted nothing"),
        (dict(length=100, n_local=9, d_max=9), "must keep"),
    ],
)
def test_impossible_requests_say_what_is_wrong(generator, change, message):
    with pytest.raises(InputError, match=message):
        lambda_attention(*tensors(generator), **{**dict(n_local=4, n_global=2, d_max=4), **change})


def test_shapes_that_do_not_fit(generator):
    q, k, v = tensors(generator)
    for bad in ((q[0], k, v), (q[:, :3], k, v), (q, k[..., :4], v), (q, k[:, :, :5], v[:, :, :5])):
        with pytest.raises(InputError):
            lambda_attention(*bad, n_local=4, n_global=2, d_max=4)


def test_queries_in_parts_see_what_they_see_at_once(monkeypatch, generator):
    q, k, v = (torch.randn(2, 3, 37, 8, generator=generator) for _ in range(3))
    policy, padding = attention_policy("ceiling-only", 8), torch.tensor([0, 5])
    given = (policy, q[:, :, 10:], k, v, Rotary.default(8), padding, 37)
    monkeypatch.setattr(policy_attention, "QUERIES_AT_ONCE", 10)
    in_parts = policy_attention._dense_in_parts(*given)
    assert torch.allclose(in_parts, policy_attention._dense(*given), atol=1e-6)
