import math
import warnings

import pytest
import torch
import torch.nn as nn

from unseen.errors import InputError, UnseenWarning
from unseen.sequences.language_model import DecoderLM
from unseen.sequences.mixture_of_experts import MoEDecoder
from unseen.sequences.routing import (
    RoutingRecorder,
    effective_dimension,
    pathway_smoothness,
    routing_entropy,
    routing_kernel,
)

TOKENS = torch.randint(2, 40, (3, 7), generator=torch.Generator().manual_seed(0))
ALL_REAL = torch.ones_like(TOKENS)


def small(seed=0, **options):
    return MoEDecoder(40, width=16, layers=3, heads=2, experts=5, top_k=2, hidden=8, seed=seed, **options)


def record(model, tokens=TOKENS, mask=ALL_REAL, **options):
    recorder = RoutingRecorder(model, **options)
    with recorder.watch(mask) as recording:
        model(tokens)
    return recording.routing


def random_routing(samples=6, layers=3, experts=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, layers, experts, generator=generator).softmax(-1)


def test_recorded_weights_are_means_of_the_softmax_over_all_experts():
    model, seen = small(), []
    handles = [
        block.feedforward.router.register_forward_hook(lambda module, inputs, output: seen.append(output))
        for block in model.blocks
    ]
    routing = record(model)
    for handle in handles:
        handle.remove()
    expected = torch.stack([logits.softmax(-1).mean(1) for logits in seen], dim=1)
    torch.testing.assert_close(routing, expected)
    assert routing.shape == (3, 3, 5) and not routing.requires_grad
    assert bool((routing > 0).all())  # before the top-k, which would leave zeros


def test_recording_changes_neither_outputs_nor_gradients_and_leaves_no_hook():
    model = small()
    before = model(TOKENS)
    gradient = torch.autograd.grad(before.square().sum(), model.embedding.weight)[0]
    recorder = RoutingRecorder(model)
    with recorder.watch(ALL_REAL):
        during = model(TOKENS)
        assert torch.equal(before, during)
        assert torch.equal(gradient, torch.autograd.grad(during.square().sum(), model.embedding.weight)[0])
    assert all(not block.feedforward.router._forward_hooks for block in model.blocks)
    with pytest.raises(RuntimeError), recorder.watch(ALL_REAL):
        raise RuntimeError
    assert all(not block.feedforward.router._forward_hooks for block in model.blocks)


def test_padding_does_not_count():
    model, mask = small(), torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    recorder = RoutingRecorder(model)
    found = []
    for fill in (0, 39):
        padded = torch.cat([torch.full((1, 2), fill), TOKENS[:1, 2:]], dim=1)
        with recorder.watch(mask) as recording:
            model(padded, padding_mask=mask)
        found.append(recording.routing)
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], record(model, TOKENS[:1, 2:], mask[:, 2:]))


def test_top_k_keeps_what_the_experts_receive():
    model = small()
    routing = record(model, TOKENS[:, :1], ALL_REAL[:, :1], top_k=2)  # one token a sample: no averaging
    assert bool(((routing > 0).sum(-1) == 2).all())
    torch.testing.assert_close(routing.sum(-1), torch.ones(3, 3))
    full = record(model, TOKENS[:, :1], ALL_REAL[:, :1])
    values, chosen = full.topk(2, dim=-1)
    torch.testing.assert_close(routing.gather(-1, chosen), values / values.sum(-1, keepdim=True))


def test_named_routers_and_a_bias():
    torch.manual_seed(0)

    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.first(x), self.second(x)

    model, x = Mine(), torch.randn(2, 5, 4)
    routing = record(model, x, torch.ones(2, 5), router_modules=["second", "first"])
    expected = [layer(x).softmax(-1).mean(1) for layer in (model.second, model.first)]
    torch.testing.assert_close(routing, torch.stack(expected, dim=1).detach())


def test_models_and_batches_that_cannot_be_recorded():
    with pytest.raises(InputError, match="no router"):
        RoutingRecorder(DecoderLM(16, width=16, layers=2, heads=2))
    with pytest.raises(InputError, match="single router"):
        RoutingRecorder(MoEDecoder(16, width=16, layers=1, heads=2))
    with pytest.raises(InputError, match="name no module: blocks.9"):
        RoutingRecorder(small(), ["blocks.9"])
    with pytest.raises(InputError, match="no weight"):
        RoutingRecorder(small(), ["blocks.0", "blocks.1"])
    with pytest.raises(InputError, match="shapes"):
        RoutingRecorder(small(), ["blocks.0.feedforward.router", "blocks.1.feedforward.up"])
    with pytest.raises(InputError, match="top_k"):
        RoutingRecorder(small(), top_k=6)
    recorder = RoutingRecorder(small())
    with pytest.raises(InputError, match="padding_mask"), recorder.watch(torch.zeros(2, 3)):
        pass
    with pytest.raises(InputError, match="for 6 tokens"), recorder.watch(torch.ones(2, 3)):
        small_model = recorder.routers[0]
        small_model(torch.randn(2, 4, 16))
    with recorder.watch(ALL_REAL) as recording, pytest.raises(InputError, match="has nothing of"):
        _ = recording.routing


def test_smoothness_of_known_routing():
    rows = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]] * 3)  # three layers, the same two orthogonal experts
    steady = torch.tensor([[1.0, 0.0]] * 3)
    turning = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = pathway_smoothness(torch.stack([steady, turning]), rows)
    torch.testing.assert_close(found.cosine, torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(found.inconsistency, torch.tensor([0.0, 0.5]), atol=1e-6, rtol=0)


def test_smoothness_equals_the_formula_written_out():
    routing, rows = random_routing(), torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(1)) + 0.5
    found = pathway_smoothness(routing, rows)
    for i in range(len(routing)):
        e = [sum(routing[i, layer, k] * rows[layer, k] for k in range(4)) for layer in range(3)]
        c = [float(e[a] @ e[a + 1] / (e[a].norm() * e[a + 1].norm())) for a in range(2)]
        assert float(found.cosine[i]) == pytest.approx(sum(c) / 2, abs=1e-5)
        assert float(found.inconsistency[i]) == pytest.approx(1 - sum(c) / 2 / (max(c) + 1e-8), abs=1e-4)


def test_the_two_numbers_point_in_opposite_directions():
    rows = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(1)).repeat(6, 1, 1)
    smooth = pathway_smoothness(torch.eye(4)[[0, 0, 0, 0, 0, 0]].repeat(2, 1, 1), rows)
    erratic = pathway_smoothness(torch.eye(4)[[0, 0, 1, 2, 3, 1]].repeat(2, 1, 1), rows)
    assert bool((smooth.cosine > erratic.cosine).all())
    assert bool((smooth.inconsistency < erratic.inconsistency).all())


def test_samples_without_a_positive_cosine_are_told():
    rows = torch.tensor([[[1.0, 0.0], [1.0, 0.1]], [[-1.0, 0.0], [-1.0, 0.1]]])
    with pytest.warns(UnseenWarning, match="2 of 2 samples"):
        found = pathway_smoothness(random_routing(2, 2, 2), rows)
    assert bool((found.cosine < 0).all()) and not bool(found.meaningful.any())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bool(pathway_smoothness(random_routing(2, 2, 2), rows.abs()).meaningful.all())


def test_entropy():
    uniform, certain = torch.full((1, 2, 4), 0.25), torch.eye(4)[:2].unsqueeze(0)
    assert float(routing_entropy(uniform)) == pytest.approx(math.log(4))
    assert float(routing_entropy(certain)) == 0


def test_effective_dimension_of_known_kernels():
    assert effective_dimension(torch.eye(5), 1.0) == pytest.approx(2.5)
    assert effective_dimension(torch.ones(5, 5), 1.0) == pytest.approx(5 / 6)
    kernel = routing_kernel(random_routing()).double()
    inverse = torch.linalg.inv(kernel + 0.1 * torch.eye(6, dtype=torch.float64))
    assert effective_dimension(kernel, 0.1) == pytest.approx(float((kernel @ inverse).trace()))
    alike = random_routing(1).repeat(6, 1, 1)
    assert effective_dimension(routing_kernel(alike), 0.1) < effective_dimension(kernel, 0.1)


def test_bad_input():
    routing, rows = random_routing(), torch.randn(3, 4, 8)
    with pytest.raises(InputError, match="two samples"):
        pathway_smoothness(routing[:1], rows)
    with pytest.raises(InputError, match="two layers"):
        pathway_smoothness(routing[:, :1], rows[:1])
    with pytest.raises(InputError, match="not normalised"):
        pathway_smoothness(routing / 2, rows)
    for wrong in (rows[:2], rows[:, :3], rows[0]):
        with pytest.raises(InputError, match="router_weights"):
            pathway_smoothness(routing, wrong)
    for kernel in (torch.randn(3, 4), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), -torch.eye(3)):
        with pytest.raises(InputError, match="kernel"):
            effective_dimension(kernel, 0.1)
    with pytest.raises(InputError, match="ridge"):
        effective_dimension(torch.eye(3), 0.0)


SMALL = dict(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=16, num_experts_per_tok=2, pad_token_id=0,
)  # fmt: skip
KINDS = {
    "Olmoe": dict(num_experts=6),
    "Mixtral": dict(num_local_experts=6),
    "Qwen2Moe": dict(num_experts=6, moe_intermediate_size=8, shared_expert_intermediate_size=8),
    "Qwen3Moe": dict(num_experts=6, moe_intermediate_size=8, head_dim=8),
}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_routers_of_transformers_are_found_and_agree_with_its_own_record(kind):
    transformers = pytest.importorskip(
        "transformers", reason="transformers (extra 'language') is not installed"
    )
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SMALL, **KINDS[kind])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("gate.weight"):
            parameter.normal_()  # some begin at zero, where all experts are alike
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 3 + [0] * 4])
    recorder = RoutingRecorder(model)
    with recorder.watch(mask) as recording:
        output = model(input_ids=TOKENS, attention_mask=mask, output_router_logits=True)
    assert recorder.router_weights.shape == (3, 6, 16)
    for layer, logits in enumerate(output.router_logits):
        weights = logits.float().softmax(-1).view(3, 7, 6)
        for row, real in enumerate(mask.bool()):
            torch.testing.assert_close(recording.routing[row, layer], weights[row, real].mean(0))
    assert float(recording.routing.std()) > 0.01
