"""Low-rank updates: what they compute, what they leave alone, and how they are merged."""

import copy

import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import build_network
from unseen.networks.low_rank import (
    inject_low_rank,
    load_low_rank_state,
    low_rank_parameters,
    low_rank_state,
    low_rank_updates,
    merge_low_rank,
    parameter_counts,
    unmerge_low_rank,
)


class Attention(nn.Module):
    """One head with separate projections, named as transformers' models name them."""

    def __init__(self, width=8):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x):
        return torch.softmax(self.query(x) @ self.key(x).mT, -1) @ self.value(x)


class Fused(nn.Module):
    """The same with one fused layer."""

    def __init__(self, width=8):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return torch.softmax(q @ k.mT, -1) @ v


class MultiHead(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def gpt2():
    transformers = pytest.importorskip("transformers", reason="extra `language` is absent")
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=6)

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = transformers.GPT2Model(config)

        def forward(self, x):
            return self.model(inputs_embeds=x).last_hidden_state

    return Hidden().eval()


MODELS = {
    "linear": (Attention, ("q", "v")),
    "fused": (Fused, ("q", "v")),
    "multi-head": (MultiHead, ("q", "v")),
    "gpt2 c_attn": (gpt2, ("q", "v")),
    "gpt2 mlp": (gpt2, ("c_fc", "mlp.c_proj")),
}


@pytest.fixture
def x(generator):
    return torch.randn(3, 5, 8, generator=generator)


def injected(kind, **options):
    build, targets = MODELS[kind]
    torch.manual_seed(0)
    model = build()
    before = copy.deepcopy(model)
    return before, inject_low_rank(model, targets, **{"rank": 2, "groups": 3, **options})


def filled(model, seed=1):
    """Random factors, as after training."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in low_rank_parameters(model):
        parameter.data.normal_(generator=generator)
    return model


@pytest.mark.parametrize("kind", MODELS)
class TestEveryKind:
    def test_injecting_changes_nothing_at_first(self, kind, x):
        before, model = injected(kind)
        assert torch.equal(model(x), before(x))

    def test_output_is_that_of_the_weights_plus_the_updates(self, kind, x):
        plain, model = injected(kind, alpha=3.0)
        filled(model)
        for name, _, update in low_rank_updates(model):
            path, _, parameter = name.rpartition(".")
            module = plain.get_submodule(path)
            weight = getattr(module, parameter).data
            matrix = weight.T if type(module).__name__ == "Conv1D" else weight  # (out, in), shares memory
            height = len(matrix) // update.layout.sections
            for index, section in enumerate(update.layout.parts):
                rows = slice(section * height, (section + 1) * height)
                for i in range(3):
                    matrix[rows] += 3.0 / 2 * (update.up[index, i] @ update.down[index, i]).detach()
        torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)

    def test_merging_changes_no_output_and_restores_the_names(self, kind, x):
        before, model = injected(kind)
        filled(model)
        expected = model(x)
        merge_low_rank(model)
        torch.testing.assert_close(model(x), expected)
        assert not torch.allclose(before(x), expected, atol=1e-3)
        assert {n: v.shape for n, v in model.state_dict().items()} == {
            n: v.shape for n, v in before.state_dict().items()
        }

    def test_unmerging_is_exact(self, kind, x):
        before, model = injected(kind)
        state = {name: value.clone() for name, value in filled(model).state_dict().items()}
        unmerge_low_rank(model, merge_low_rank(model))
        for name, value in model.state_dict().items():
            assert torch.equal(value, state[name]), name
        merge_low_rank(model)
        assert before(x).shape == model(x).shape

    def test_training_moves_the_factors_alone_under_weight_decay_too(self, kind, x):
        before, model = injected(kind)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        assert all(update.up.abs().sum() > 0 for _, _, update in low_rank_updates(model))
        frozen = {
            name.replace("parametrizations.", "").replace(".original", ""): value
            for name, value in model.state_dict().items()
        }
        for name, value in before.state_dict().items():
            assert torch.equal(frozen[name], value), name


def test_untouched_thirds_of_a_fused_layer_get_no_update():
    _, model = injected("fused")
    before = model.qkv.parametrizations.weight.original.clone()
    filled(model)
    change = (model.qkv.weight - before).detach().view(3, 8, 8)
    assert torch.equal(change[1], torch.zeros(8, 8))
    assert change[0].abs().min() > 0 and change[2].abs().min() > 0


def test_a_fused_layer_targeted_as_a_whole():
    model = inject_low_rank(Fused(), ".*qkv", rank=2)
    (found,) = low_rank_updates(model)
    assert found.update.down.shape == (1, 1, 2, 8) and found.update.up.shape == (1, 1, 24, 2)


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolutions(kernel, generator):
    layer = nn.Conv2d(4, 6, kernel, padding=kernel // 2)
    model = inject_low_rank(nn.ModuleDict({"conv": layer}), ("conv",), rank=2)
    filled(model)
    (found,) = low_rank_updates(model)
    x = torch.randn(2, 4, 5, 5, generator=generator)
    down = nn.functional.conv2d(x, found.update.down[0, 0].view(2, 4, kernel, kernel), padding=kernel // 2)
    aside = nn.functional.conv2d(down, found.update.up[0, 0].view(6, 2, 1, 1))
    base = nn.functional.conv2d(x, found.weight, layer.bias, padding=kernel // 2)
    torch.testing.assert_close(layer(x), base + aside, rtol=1e-4, atol=1e-4)


def test_a_group_is_one_update_of_the_summed_rank():
    _, grouped = injected("linear", groups=4, rank=1)
    filled(grouped)
    _, single = injected("linear", groups=1, rank=4)
    for many, one in zip(low_rank_updates(grouped), low_rank_updates(single), strict=True):
        one.update.down.data = many.update.down.data.flatten(1, 2).unsqueeze(1)
        one.update.up.data = many.update.up.data.transpose(1, 2).flatten(2).unsqueeze(1)
        torch.testing.assert_close(one.update.total(), many.update.total())
        torch.testing.assert_close(many.update.updates().sum(1), many.update.total())
    assert parameter_counts(grouped) == parameter_counts(single)


def test_the_papers_number_of_parameters():
    """0.59 million for 12 blocks of ViT-B, query and value, N = 4, r = 4 (Hu et al. 2024)."""
    block = inject_low_rank(nn.ModuleDict({"attention": nn.MultiheadAttention(768, 12)}), rank=4, groups=4)
    trained, everything = parameter_counts(block)
    assert 12 * trained == 12 * 2 * 4 * 2 * 4 * 768 == 589_824
    assert everything == trained + 4 * 768 * 768 + 4 * 768


def test_first_factors_are_drawn_by_the_generator_and_in_the_layers_range():
    states = []
    for seed in (0, 0, 1):
        model = Attention()
        inject_low_rank(model, generator=torch.Generator().manual_seed(seed))
        states.append(low_rank_state(model)["query.weight.down"])
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])
    assert states[0].abs().max() <= 8**-0.5


def test_state_of_the_updates_alone_goes_round():
    _, model = injected("multi-head")
    _, other = injected("multi-head")
    state = low_rank_state(filled(model))
    assert set(state) == {"attention.in_proj_weight.down", "attention.in_proj_weight.up"}
    load_low_rank_state(other, state)
    assert torch.equal(other.attention.in_proj_weight, model.attention.in_proj_weight)
    with pytest.raises(InputError, match="is lacking"):
        load_low_rank_state(other, {})
    with pytest.raises(InputError, match="shape"):
        load_low_rank_state(other, {name: value[:1] for name, value in state.items()})


def test_evaluation_takes_the_fused_kernel_with_the_updates(generator):
    network = build_network("transformer(width=16)", (1, 8, 8), 3)
    inject_low_rank(network.featurizer, rank=2)
    filled(network)
    images = torch.randn(2, 1, 8, 8, generator=generator)
    expected = network(images)
    with torch.no_grad():  # nn.TransformerEncoderLayer calls one kernel with the weights of all its layers
        torch.testing.assert_close(network.eval()(images), expected, rtol=1e-4, atol=1e-5)


def test_half_precision_weights_have_updates_in_single_precision(x):
    model = inject_low_rank(Attention().bfloat16())
    assert {p.dtype for p in low_rank_parameters(model)} == {torch.float32}
    assert model(x.bfloat16()).dtype == torch.bfloat16
    assert {p.dtype for p in low_rank_parameters(inject_low_rank(Attention().double()))} == {torch.float64}


def test_autocast(x):
    model = filled(inject_low_rank(Attention()))
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(x).float(), expected, rtol=0.1, atol=0.3)
        with pytest.raises(InputError, match="small ones vanish"):
            model.bfloat16()(x)


class Packed(nn.Linear):
    def __init__(self):
        super().__init__(8, 8)
        self.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (Attention, {"targets": ("qurey",)}, "'query'"),
        (Attention, {"targets": "quer"}, "'query'"),
        (Attention, {"targets": "("}, "regular expression"),
        (nn.Identity, {}, "The model has none"),
        (Attention, {"rank": 8}, "rank: is 8.*8 x 8"),
        (Attention, {"rank": 0}, "rank: is 0"),
        (Attention, {"groups": 0}, "groups: is 0"),
        (lambda: nn.ModuleDict({"q": Packed()}), {}, "packed as torch.int8"),
        (lambda: nn.ModuleDict({"q": nn.Conv2d(8, 8, 3, groups=8)}), {}, "channel groups"),
        (lambda: inject_low_rank(Attention()), {}, "has an update already"),
    ],
)
def test_injection_errors(model, options, words):
    with pytest.raises(InputError, match=words):
        inject_low_rank(model(), **options)


def test_a_refused_injection_changes_nothing():
    model = Attention()
    with pytest.raises(InputError):
        inject_low_rank(model, rank=100)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not low_rank_updates(model)


def test_merging_a_copy_leaves_the_original_alone(x):
    model = filled(inject_low_rank(MultiHead()))
    expected, twin = model(x), copy.deepcopy(model)
    merge_low_rank(twin)
    torch.testing.assert_close(twin(x), expected)
    assert torch.equal(model(x), expected) and len(low_rank_updates(model)) == 1


def test_merging_twice_and_unmerging_what_is_not_merged():
    model = inject_low_rank(Attention())
    with pytest.raises(InputError, match="not merged"):
        unmerge_low_rank(model, low_rank_updates(model))
    merge_low_rank(model)
    with pytest.raises(InputError, match="merged already"):
        merge_low_rank(model)
