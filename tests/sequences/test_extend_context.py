import pytest
import torch

from unseen.errors import InputError, UnseenWarning
from unseen.sequences.attention_policy import POLICIES, attention_policy
from unseen.sequences.extend_context import extend_context
from unseen.sequences.language_model import DecoderLM


def tiny(positions="rope", **options):
    model = DecoderLM(32, width=32, layers=2, heads=4, window=8, positions=positions, seed=1, **options)
    with torch.no_grad():  # sharper attention than at initialisation, so that policies differ visibly
        for block in model.blocks:
            block.attention.query.weight.mul_(12)
            block.attention.key.weight.mul_(12)
    return model.eval()


def tokens(generator, batch=2, length=30):
    return torch.randint(32, (batch, length), generator=generator)


def names(positions):
    return [name for name in POLICIES if not (positions == "alibi" and name == "ntk")]


@pytest.mark.parametrize(("positions", "name"), [(p, n) for p in ("rope", "alibi") for n in names(p)])
@torch.no_grad()
def test_cached_decoding_equals_full_recomputation(generator, positions, name):
    model, x = tiny(positions, kv_heads=2), tokens(generator)
    with extend_context(model, n_global=3, policy=name, factor=2.0):
        full = model(x)
        cache = model.new_cache()
        parts = [model(part, cache=cache) for part in x.split([11, 1, 1, 4, 1, 12], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), full, atol=1e-5, rtol=1e-4)
    assert cache.length == 30


@pytest.mark.parametrize("name", POLICIES)
@torch.no_grad()
def test_left_padded_rows_decode_like_rows_alone(generator, name):
    model, x = tiny(), tokens(generator)
    mask = torch.ones_like(x)
    mask[1, :5] = 0
    with extend_context(model, n_global=3, policy=name, factor=2.0):
        together = model(x, padding_mask=mask)
        cache = model.new_cache(mask[:, :12])
        parts = torch.cat([model(part, cache=cache) for part in x.split([12] + [1] * 18, dim=1)], 1)
        alone = model(x[1:, 5:])
    torch.testing.assert_close(together[1:, 5:], alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(parts[1:, 5:], alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(parts[0], together[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("positions", ["rope", "alibi"])
@torch.no_grad()
def test_within_the_window_nothing_changes(generator, positions):
    model, x = tiny(positions), tokens(generator, length=8)
    vanilla = model(x)
    for name in ("lm-infinite", "window", "mask-only", "ceiling-only"):
        with extend_context(model, policy=name):
            torch.testing.assert_close(model(x), vanilla, atol=1e-5, rtol=1e-5)
    assert torch.equal(model(x), vanilla)


@torch.no_grad()
def test_beyond_the_window_every_policy_differs(generator):
    model, x = tiny(), tokens(generator)
    outputs = {}
    for name in POLICIES:
        with extend_context(model, n_global=3, policy=name, factor=4.0):
            outputs[name] = model(x)[:, -1]
    for one in POLICIES:
        for other in POLICIES[: POLICIES.index(one)]:
            assert not torch.allclose(outputs[one], outputs[other], atol=1e-3), (one, other)


@torch.no_grad()
def test_streaming_cache_stays_bounded(generator):
    model = tiny()
    with extend_context(model, n_global=3):
        cache = model.new_cache()
        for _ in range(4):
            model(tokens(generator, length=20), cache=cache)
            assert cache.rows == 3 + 8
        assert cache.length == 80
        held = [tensor for pair in cache._layers.values() for tensor in pair]
        assert all(
            tensor.untyped_storage().nbytes() == 4 * 2 * 4 * 11 * 8 for tensor in held
        )  # no hidden copies
    cache = model.new_cache()
    model(tokens(generator, length=20), cache=cache)
    assert cache.rows == 20


@torch.no_grad()
def test_interpolation_reads_position_factor_times_p_as_p(generator):
    model = tiny()
    x = tokens(generator, length=9)
    model.policy = attention_policy("interpolation", 8, factor=2.0)
    stretched = model(x)
    model.policy = attention_policy("vanilla", 8)
    model.encoding = type(model.encoding)(model.encoding.inverse_frequencies / 2)
    torch.testing.assert_close(stretched, model(x))


def test_ntk_divides_the_lowest_frequency_by_the_factor_and_keeps_the_highest():
    encoding = tiny().encoding
    frequencies = encoding.rebased(4.0).inverse_frequencies / encoding.inverse_frequencies
    assert frequencies[0] == 1
    torch.testing.assert_close(frequencies[-1], torch.tensor(0.25))


@torch.no_grad()
def test_topk_keeps_the_middle_and_changes_late_layers_only(generator):
    model, x = tiny(), tokens(generator, batch=1)
    with extend_context(model, n_global=3):
        plain = model(x)
    with extend_context(model, n_global=3, topk=2, topk_first_layer=1):
        retrieving = model(x)
        cache = model.new_cache()
        parts = [model(part, cache=cache) for part in x.split([29, 1], dim=1)]
        assert cache.rows == 30
    with (
        pytest.warns(UnseenWarning, match="nothing is retrieved"),
        extend_context(model, n_global=3, topk=2, topk_first_layer=2),
    ):
        torch.testing.assert_close(model(x), plain)
    torch.testing.assert_close(retrieving[:, :-1], plain[:, :-1])
    assert not torch.allclose(retrieving[:, -1], plain[:, -1], atol=1e-3)
    torch.testing.assert_close(parts[1][:, -1], retrieving[:, -1], atol=1e-5, rtol=1e-4)
    with extend_context(model, topk=2, topk_first_layer=0), pytest.raises(InputError, match="batch of 2"):
        model(tokens(generator))


def test_policy_is_restored_after_an_error():
    model = tiny()
    before = model.policy
    with pytest.raises(RuntimeError), extend_context(model):
        assert model.policy.name == "lm-infinite" and model.policy.n_local == model.policy.d_max == 8
        raise RuntimeError
    assert model.policy is before


def test_errors_and_warnings():
    model = tiny()
    for options, message in (
        (dict(n_global=-1), "n_global"),
        (dict(n_local=0), "n_local"),
        (dict(policy="lm-infinit"), "Did you mean 'lm-infinite'"),
        (dict(policy="ntk"), "factor"),
        (dict(policy="sink", n_global=8), "Leave local"),
        (dict(policy="window", topk=3), "topk"),
        (dict(d_max=6), "d_max"),
    ):
        with pytest.raises(InputError, match=message), extend_context(model, **options):
            pass
    with pytest.raises(InputError, match="ALiBi"), extend_context(tiny("alibi"), policy="ntk", factor=2.0):
        pass
    with pytest.warns(UnseenWarning, match="n_local 9"), extend_context(model, n_local=9):
        pass
    with pytest.raises(InputError, match="no known kind"), extend_context(torch.nn.Linear(2, 2)):
        pass
    with pytest.raises(InputError, match="relative positions"):
        DecoderLM(positions="learned")
    with pytest.raises(InputError, match="divide"):
        DecoderLM(width=30, heads=4)
    x = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(InputError, match="not at the left"):
        model(x, padding_mask=torch.tensor([[1, 1, 1, 0]]))
    with pytest.raises(InputError, match="new_cache"):
        model(x, cache=model.new_cache(), padding_mask=torch.ones(1, 4))
