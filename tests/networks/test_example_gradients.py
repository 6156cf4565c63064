"""Gradients of single examples against a loop of backward passes, whatever way and chunk they come by."""

import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import build_network
from unseen.networks.example_gradients import (
    ExampleGradients,
    cross_entropy,
    token_cross_entropy,
    unit_rows,
)
from unseen.networks.gradient_rows import DenseRows, OuterRows
from unseen.sequences.language_model import DecoderLM


def reference(module, loss, names, x, y):
    """(N, P): the textbook way."""
    chosen = [dict(module.named_parameters())[name] for name in names]
    rows = []
    for index in range(len(y)):
        one = {k: v[index : index + 1] for k, v in x.items()} if isinstance(x, dict) else x[index : index + 1]
        found = torch.autograd.grad(
            loss(module, one, y[index : index + 1]).sum(), chosen, materialize_grads=True
        )
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


@pytest.fixture
def data(generator):
    return torch.randn(13, 6, generator=generator, dtype=torch.float64), torch.arange(13) % 3


@pytest.fixture
def mlp():
    torch.manual_seed(0)
    return build_network("mlp(width=5, depth=2)", (6,), 3).double()


def gradients(module, method="auto", **options):
    return ExampleGradients(module, method=method, **options)


@pytest.mark.parametrize("method", ["linear", "vmap", "loop"])
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_every_way_and_chunk_gives_the_gradients_of_a_loop(mlp, data, method, chunk):
    found = gradients(mlp, method, chunk=chunk)
    expected = reference(mlp, cross_entropy, found.names, *data)
    torch.testing.assert_close(found.flat(data), expected)
    torch.testing.assert_close(found.norms(data), expected.norm(dim=1))
    torch.testing.assert_close(found.inner_products(data), expected @ expected.T)
    few = (data[0][:4], data[1][:4])
    torch.testing.assert_close(found.inner_products(data, few), expected @ expected[:4].T)
    mean, square = found.mean_and_square(data)
    torch.testing.assert_close(torch.cat([mean[n].flatten() for n in found.names]), expected.mean(0))
    torch.testing.assert_close(
        torch.cat([square[n].flatten() for n in found.names]), expected.square().mean(0)
    )
    torch.testing.assert_close(found.along(data, mean), expected @ expected.mean(0))


@pytest.mark.parametrize(
    ("network", "shape"), [("transformer(width=8, heads=2, depth=1)", (1, 8, 8)), ("cnn", (1, 8, 8))]
)
def test_networks_with_other_layers_go_through_vmap(network, shape, generator):
    torch.manual_seed(0)
    module = build_network(network, shape, 3).double()
    data = torch.randn(5, *shape, generator=generator, dtype=torch.float64), torch.arange(5) % 3
    found = gradients(module)
    assert found.method == "vmap"
    torch.testing.assert_close(found.flat(data), reference(module.eval(), cross_entropy, found.names, *data))


def test_the_head_of_a_network_is_a_closed_form(generator):
    module = build_network("cnn(width=8)", (1, 8, 8), 3)
    data = torch.randn(6, 1, 8, 8, generator=generator), torch.arange(6) % 3
    found = gradients(module, parameters="head.*")
    assert found.method == "linear" and found.names == ("head.weight", "head.bias")
    (chunk,) = found.chunks(data)
    assert isinstance(chunk["head.weight"], OuterRows)
    residual = module(data[0]).softmax(1) - nn.functional.one_hot(data[1], 3)
    torch.testing.assert_close(chunk["head.bias"].flat(), residual)
    torch.testing.assert_close(found.flat(data), reference(module, cross_entropy, found.names, *data))


@pytest.mark.parametrize("shape", [(4, 7, 3, 5), (4, 1, 3, 5), (4, 2, 3, 5)])
def test_factors_give_what_whole_gradients_give(shape, generator):
    n, positions, outputs, inputs = shape
    left = torch.randn(n, positions, outputs, generator=generator, dtype=torch.float64)
    right = torch.randn(n, positions, inputs, generator=generator, dtype=torch.float64)
    factors, whole = OuterRows(left, right), DenseRows(torch.einsum("ntc,ntf->ncf", left, right))
    direction = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    weights = torch.rand(2, n, generator=generator, dtype=torch.float64)
    assert len(factors) == len(whole) == n
    for ask in (
        lambda rows: rows.flat(),
        lambda rows: rows.squared_norms(),
        lambda rows: rows.products(rows),
        lambda rows: rows.products(whole),
        lambda rows: rows.along(direction),
        lambda rows: rows.sums(weights),
        lambda rows: rows.sum_of_squares(),
    ):
        torch.testing.assert_close(ask(factors), ask(whole))


class Shared(nn.Module):
    """A layer that is called twice, and a dict as input."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2, bias=False)

    def forward(self, x):
        return self.head(torch.tanh(self.layer(torch.tanh(self.layer(x["a"])) + x["b"])))


@pytest.mark.parametrize("method", ["linear", "vmap", "loop"])
def test_layers_called_twice_and_dicts_of_tensors(method, generator):
    module = Shared()
    x = {name: torch.randn(7, 4, generator=generator) for name in "ab"}
    y = torch.arange(7) % 2
    found = gradients(module, method, chunk=3)
    torch.testing.assert_close(found.flat((x, y)), reference(module, cross_entropy, found.names, x, y))


@pytest.mark.parametrize("parameters", ["*", "head.weight", "blocks.*.feedforward.*"])
def test_language_models_with_masked_tokens(parameters, generator):
    model = DecoderLM(20, width=8, layers=1, heads=2, window=6)
    tokens = torch.randint(20, (5, 6), generator=generator)
    labels = tokens.clone()
    labels[:, :3] = -100
    labels[4] = -100
    found = ExampleGradients(model, token_cross_entropy, parameters)
    assert found.method == ("vmap" if parameters == "*" else "linear")
    expected = reference(model, token_cross_entropy, found.names, tokens, labels)
    torch.testing.assert_close(found.flat((tokens, labels)), expected, atol=1e-6, rtol=1e-4)
    own = nn.functional.cross_entropy(model(tokens[:1])[0, 2:5], tokens[0, 3:])
    torch.testing.assert_close(token_cross_entropy(model, tokens[:1], labels[:1])[0], own)
    with pytest.raises(InputError, match=r"zero for 1 of 5 examples \(4\)"):
        found.projected((tokens, labels), 16, 0, unit=True)


def test_transformers_style_models_get_keyword_arguments(generator):
    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)

        def forward(self, input_ids, attention_mask):
            return Output(self.head(self.embedding(input_ids) * attention_mask.unsqueeze(-1)))

    tokens = torch.randint(9, (3, 5), generator=generator)
    x = {"input_ids": tokens, "attention_mask": torch.ones(3, 5)}
    model = Model()
    found = ExampleGradients(model, token_cross_entropy)
    torch.testing.assert_close(
        found.flat((x, tokens)), reference(model, token_cross_entropy, found.names, x, tokens)
    )


def test_an_iterable_of_batches_gives_what_the_whole_gives(mlp, data):
    batches = [(data[0][:4], data[1][:4]), (data[0][4:], data[1][4:])]
    found = gradients(mlp, chunk=3)
    torch.testing.assert_close(found.norms(iter(batches)), found.norms(data))
    torch.testing.assert_close(found.projected(batches, 8, 0), found.projected(data, 8, 0))
    whole, parts = found.mean_and_square(data), found.mean_and_square(batches)
    for name in found.names:
        torch.testing.assert_close(whole[0][name], parts[0][name])
    with pytest.raises(InputError, match="can be read once"):
        found.inner_products(iter(batches))


@pytest.mark.parametrize("method", ["vmap", "loop", "linear"])
def test_the_module_is_left_as_it_was(method, generator):
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    body = Counting() if method != "vmap" else nn.Linear(4, 4)  # vmap does not trace changes of buffers
    module = nn.Sequential(body, nn.Dropout(), nn.Linear(4, 2))
    module.train()
    module[2].eval()
    module[0].weight.requires_grad_(False)
    module[2].bias.grad = torch.ones(2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    data = torch.randn(3, 4, generator=generator), torch.tensor([0, 1, 0])
    found = ExampleGradients(module, parameters="2.*", method=method).flat(data)
    assert torch.equal(
        found, ExampleGradients(module, parameters="2.*", method=method).flat(data)
    )  # no dropout
    assert [m.training for m in module] == [True, True, False] and module.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert module[0].weight.grad is None and torch.equal(module[2].bias.grad, torch.ones(2))
    assert not module[0].weight.requires_grad and not module[2]._forward_hooks


def test_frozen_parameters_have_gradients_too(mlp, data):
    expected = gradients(mlp).flat(data)
    mlp.requires_grad_(False)
    for method in ("linear", "vmap", "loop"):
        torch.testing.assert_close(gradients(mlp, method).flat(data), expected)


class TestErrors:
    def test_a_pattern_without_a_match_names_near_ones(self, mlp):
        with pytest.raises(InputError, match=r"'heads\.weight': match none.*'head\.weight'"):
            gradients(mlp, parameters=["head.*", "heads.weight"])

    def test_losses_that_are_not_finite_are_named_by_example(self, mlp, data):
        data[0][7] = torch.nan
        for method in ("linear", "vmap", "loop"):
            with pytest.raises(InputError, match="loss of example 7: is not finite"):
                gradients(mlp, method, chunk=3).norms(data)

    @pytest.mark.parametrize("method", ["linear", "vmap", "loop"])
    def test_gradients_that_are_not_finite_are_named_by_example(self, method):
        def root(model, x, y):
            return model(x)[:, 0].abs().sqrt() * y  # the slope at zero is infinite

        head = nn.Linear(2, 1, bias=False)
        data = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 2.0]]), torch.ones(3)
        with pytest.raises(InputError, match="gradient of example 1: is not finite"):
            ExampleGradients(head, root, method=method).norms(data)

    @pytest.mark.parametrize("method", ["linear", "vmap", "loop"])
    def test_a_reduced_loss(self, mlp, data, method):
        def reduced(model, x, y):
            return nn.functional.cross_entropy(model(x), y)

        with pytest.raises(InputError, match=r"loss: has shape \(\)"):
            ExampleGradients(mlp, reduced, method=method).norms(data)

    def test_batch_normalisation_in_training_mode(self, data):
        module = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)).double()
        with pytest.raises(InputError, match="batch normalisation in training mode"):
            gradients(module).norms(data)
        assert gradients(module.eval()).norms(data).shape == (13,)

    def test_what_cannot_be_traced(self, mlp, data):
        def branching(model, x, y):
            return cross_entropy(model, x, y) if x.sum() > 0 else cross_entropy(model, x, y) * 2

        with pytest.raises(InputError, match="method='loop'"):
            ExampleGradients(mlp, branching, method="vmap").norms(data)
        assert ExampleGradients(mlp, branching, method="loop").norms(data).shape == (13,)

    def test_layers_that_are_not_called_as_such(self, data):
        class Functional(nn.Linear):
            pass

        class Outer(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Linear(6, 3).double()

            def forward(self, x):
                return nn.functional.linear(x, self.inner.weight, self.inner.bias)

        with pytest.raises(InputError, match="layer 'inner': is not called as a layer"):
            gradients(Outer()).norms(data)
        assert gradients(Functional(6, 3).double()).method == "vmap"

    def test_parameters_that_layers_share(self):
        module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        module[1].weight = module[0].weight
        assert gradients(module).method == "vmap"
        with pytest.raises(InputError, match="share no parameter"):
            gradients(module, "linear")

    def test_no_example_and_unequal_numbers(self, mlp, data):
        with pytest.raises(InputError, match="no example"):
            gradients(mlp).norms([])
        with pytest.raises(InputError, match=r"\[12, 13\] rows"):
            gradients(mlp).norms((data[0], data[1][1:]))

    def test_options(self, mlp):
        with pytest.raises(InputError, match="chunk"):
            gradients(mlp, chunk=0)
        with pytest.raises(InputError, match="'jacobian'"):
            gradients(mlp, "jacobian")

    def test_zero_rows(self):
        with pytest.raises(InputError, match=r"2 of 3 examples \(0, 2\)"):
            unit_rows(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]))
