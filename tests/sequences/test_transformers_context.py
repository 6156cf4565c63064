import json
import os
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers (extra 'language') is not installed")

from unseen.errors import InputError, UnseenWarning  # noqa: E402
from unseen.sequences.extend_context import extend_context  # noqa: E402
from unseen.sequences.length_evaluation import evaluate_policies, nll_by_position  # noqa: E402
from unseen.sequences.passkey import passkey_accuracy, passkey_dataset  # noqa: E402

SMALL = dict(
    vocab_size=40,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=16,
    initializer_range=0.4,
    bos_token_id=1,
    eos_token_id=None,
    pad_token_id=0,
)


def decoder(kind, **options):
    options = {**SMALL, **options}
    if kind in ("Llama", "Qwen2", "Qwen3", "Mistral"):
        options |= dict(num_key_value_heads=2)
    if kind == "Qwen3":
        options |= dict(head_dim=8)
    if kind == "Granite":  # has its own scale of the logits
        options |= dict(num_key_value_heads=4, attention_multiplier=0.2)
    if kind == "OPT":
        options |= dict(ffn_dim=48, word_embed_proj_dim=32)
    if kind == "Mistral":
        options |= dict(sliding_window=None)
    torch.manual_seed(0)  # transformers draws its initial weights from the global generator
    config = getattr(transformers, f"{kind}Config")(**options)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


KINDS = ("Llama", "Qwen2", "Qwen3", "Mistral", "Granite", "Phi", "GPTNeoX")


def tokens(batch=2, length=40, seed=0):
    return torch.randint(2, 40, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_within_the_window_nothing_changes_and_exit_restores_all(kind):
    model, x = decoder(kind), tokens(length=16)
    long = tokens(length=40)
    before, long_before = model(x).logits, model(long).logits
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    implementation = model.config._attn_implementation
    interfaces = (transformers.AttentionInterface, transformers.AttentionMaskInterface)
    registered = [set(interface._global_mapping) for interface in interfaces]
    with extend_context(model):
        torch.testing.assert_close(model(x).logits, before, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(model(long).logits, long_before, atol=1e-2)
    assert torch.equal(model(x).logits, before) and torch.equal(model(long).logits, long_before)
    assert model.config._attn_implementation == implementation
    assert attributes == {name: set(vars(module)) for name, module in model.named_modules()}
    assert registered == [set(interface._global_mapping) for interface in interfaces]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_seeing_all_at_true_distances_is_the_models_own_attention(kind):
    """As many starting keys as tokens: the block-wise path must reproduce the model's rotation and scale."""
    model, x = decoder(kind), tokens(length=40)
    mask = torch.ones_like(x)
    mask[0, :7] = 0
    plain, padded = model(x).logits, model(x, attention_mask=mask).logits
    with extend_context(model, n_global=40, policy="mask-only"):
        torch.testing.assert_close(model(x).logits, plain, atol=1e-4, rtol=1e-4)
        ours = model(x, attention_mask=mask).logits
    torch.testing.assert_close(ours[0, 7:], padded[0, 7:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours[1], padded[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["Llama", "GPTNeoX"])
@pytest.mark.parametrize("policy", ["lm-infinite", "sink", "window", "ceiling-only", "interpolation", "ntk"])
@torch.no_grad()
def test_generate_equals_recomputation_with_left_padding(kind, policy):
    model, prompt = decoder(kind), tokens(length=20)
    mask = torch.ones_like(prompt)
    mask[0, :6] = 0
    with extend_context(model, n_global=3, policy=policy, factor=2.0):
        out = model.generate(prompt, attention_mask=mask, max_new_tokens=25, do_sample=False)
        expected, full = prompt, mask
        for _ in range(25):
            step = model(expected, attention_mask=full, use_cache=False).logits[:, -1:].argmax(-1)
            expected, full = torch.cat([expected, step], 1), torch.cat([full, torch.ones_like(step)], 1)
    assert torch.equal(out, expected)


@torch.no_grad()
def test_generation_cache_stays_bounded():
    model = decoder("Llama")
    with extend_context(model, n_global=3):
        out = model.generate(tokens(1), max_new_tokens=50, do_sample=False, return_dict_in_generate=True)
        cache = out.past_key_values
        assert cache.get_seq_length() == 89
        assert all(layer.keys.shape[-2] == layer.values.shape[-2] == 3 + 16 for layer in cache.layers)
        beams = model.generate(tokens(1), max_new_tokens=10, num_beams=3, do_sample=False)
        assert beams.shape == (1, 50)
    with extend_context(model, n_global=3, topk=2, topk_first_layer=1):
        out = model.generate(tokens(1), max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
        assert all(layer.keys.shape[-2] == 44 for layer in out.past_key_values.layers)
        with pytest.raises(InputError, match="batch of 2"):
            model.generate(tokens(2), max_new_tokens=2)


@torch.no_grad()
def test_plain_forward_with_a_dynamic_cache_continues():
    model, x = decoder("Qwen2"), tokens()
    with extend_context(model, n_global=3):
        full = model(x).logits
        first = model(x[:, :30], use_cache=True)
        second = model(x[:, 30:], past_key_values=first.past_key_values)
    torch.testing.assert_close(second.logits, full[:, 30:], atol=1e-4, rtol=1e-4)


def test_an_error_inside_restores():
    model, x = decoder("Llama"), tokens()
    before = model(x).logits
    with pytest.raises(RuntimeError), extend_context(model):
        raise RuntimeError
    assert torch.equal(model(x).logits, before)


def test_models_that_cannot_be_extended_say_why():
    for kind in ("OPT", "Bloom"):  # learned absolute positions, ALiBi
        with pytest.raises(InputError, match="no rotary embedding"), extend_context(decoder(kind)):
            pass
    with (
        pytest.raises(InputError, match="sliding window"),
        extend_context(
            transformers.MistralForCausalLM(
                transformers.MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=8)
            )
        ),
    ):
        pass
    dynamic = decoder("Llama", rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=10000.0))
    with pytest.raises(InputError, match="'dynamic'"), extend_context(dynamic):
        pass
    cohere = decoder("Cohere", num_key_value_heads=2)
    with pytest.raises(InputError, match="two halves"), extend_context(cohere):
        pass


def test_misuse_says_what_is_wrong():
    model, x = decoder("Llama"), tokens()
    right = torch.ones_like(x)
    right[:, -3:] = 0
    with extend_context(model):
        with pytest.raises(InputError, match="not at the left"):
            model(x, attention_mask=right)
        with pytest.raises(InputError, match="4-dimensional"):
            model(x, attention_mask=torch.zeros(2, 1, 40, 40))
        with pytest.raises(InputError, match="already extended"), extend_context(model):
            pass
        with pytest.raises(InputError, match="packed"):
            model(x, position_ids=torch.arange(20).repeat(2)[None].expand(2, -1), use_cache=False)
        with pytest.raises(InputError, match="static cache"):
            model(x, past_key_values=transformers.StaticCache(model.config, max_cache_len=64))
    dropping = decoder("Llama", attention_dropout=0.1).train()
    with extend_context(dropping), pytest.raises(InputError, match="dropout"):
        dropping(x)
    with pytest.raises(InputError, match="n_global"), extend_context(model, n_global=-1):
        pass
    with pytest.warns(UnseenWarning, match="n_local 17"), extend_context(model, n_local=17):
        pass


@pytest.fixture(scope="module")
def stories():
    """A Llama of 260 thousand weights, really trained (TinyStories, 512 tokens), and its vocabulary."""
    shared = Path(os.environ.get("UNSEEN_SHARED", Path(__file__).parents[3] / "shared"))
    folder = shared / "data" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"pretrained weights are not at {folder}")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), json.loads((folder / "vocab.json").read_text())["tokens"]


@pytest.fixture(scope="module")
def story_tokens(stories):
    """Two texts of 2,048 tokens: stories that the model tells itself, each from its own window."""
    model, _ = stories
    torch.manual_seed(0)  # generate samples from the global generator
    out = model.generate(
        torch.ones(10, 1, dtype=torch.long),
        max_new_tokens=410,
        do_sample=True,
        temperature=0.8,
        eos_token_id=None,
    )
    return out[:, :410].reshape(2, 2050)[:, :2048]


BUCKETS = [(256, 512), (512, 1024), (1024, 2048)]


def test_pretrained_llama_stays_flat_beyond_its_context_and_vanilla_does_not(stories, story_tokens):
    model, _ = stories
    results = evaluate_policies(
        model,
        story_tokens,
        512,
        10,
        BUCKETS,
        policies=("vanilla", "mask-only", "window", "lm-infinite"),
        batch=1,
    )
    for name, row in results.items():
        print(name, {bucket: round(value, 3) for bucket, value in row.items()})
    vanilla, infinite = results["vanilla"], results["lm-infinite"]
    assert vanilla[256, 512] == pytest.approx(infinite[256, 512], abs=1e-3)
    assert vanilla[1024, 2048] > vanilla[256, 512] + 0.2
    assert infinite[1024, 2048] < infinite[256, 512] + 0.1
    assert infinite[1024, 2048] < vanilla[1024, 2048] - 0.2


def test_pretrained_llama_generates_a_long_story_in_bounded_memory(stories):
    model, vocabulary = stories
    start = torch.tensor([[1]])
    with extend_context(model, n_local=256):
        out = model.generate(
            start, max_new_tokens=600, do_sample=False, eos_token_id=None, return_dict_in_generate=True
        )
        assert out.past_key_values.layers[0].keys.shape[-2] == 10 + 256
    assert "Once upon a time" in "".join(vocabulary[i] for i in out.sequences[0, :12]).replace("▁", " ")
    with torch.no_grad():
        plain = nll_by_position(model, out.sequences[:, :200], [(1, 200)])
    assert plain[1, 200] < 1.5  # greedy text is likely under the untouched model: it was really restored


def test_passkey_runs_on_transformers():
    class Words:
        def encode(self, text, add_special_tokens):
            return [2 + ord(character) % 38 for character in text]

        def decode(self, ids):
            return "".join(map(chr, ids))

    model = decoder("Llama")
    with extend_context(model, n_global=3):
        assert passkey_accuracy(model, passkey_dataset(Words(), 300, 0.5, 2)) == 0.0
