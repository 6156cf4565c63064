import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from unseen.errors import InputError
from unseen.measures.adaptive_sharpness import layerwise_sharpness, sharpness
from unseen.shifts.sampling import derive_seed


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()


@pytest.fixture
def examples(generator):
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (30,), generator=generator)
    return [(x[:20], y[:20]), (x[20:], y[20:])]


def loss(network, examples, norm=1.0):
    x, y = (torch.cat(parts) for parts in zip(*examples, strict=True))
    logits = network(x)
    return nn.functional.cross_entropy(norm * logits / logits.norm(dim=1, keepdim=True), y)


def test_the_average_case_written_out(network, examples):
    found = sharpness(network, examples, 0.3, samples=3, seed=7)
    values = []
    for sample in range(3):
        other = copy.deepcopy(network)
        with torch.no_grad():
            for index, p in enumerate(other.parameters()):
                generator = torch.Generator().manual_seed(derive_seed(7, sample, index))
                noise = torch.randn(p.shape, generator=generator).double()
                p.add_(0.3 * p.abs() * noise)
            values.append(float(loss(other, examples) - loss(network, examples)))
    assert found.values == pytest.approx(values)
    assert found.value == pytest.approx(sum(values) / 3)
    assert found.error == pytest.approx(float(torch.tensor(values).std()) / math.sqrt(3))


def test_of_many_samples_it_is_half_the_trace_of_the_scaled_hessian(network, examples):
    names = [n for n, _ in network.named_parameters()]
    state = {n: p.detach() for n, p in network.named_parameters()}

    def value(flat):
        parts = dict(zip(names, flat.split([state[n].numel() for n in names]), strict=True))
        parts = {n: part.view(state[n].shape) for n, part in parts.items()}
        x, y = (torch.cat(p) for p in zip(*examples, strict=True))
        logits = torch.func.functional_call(network, parts, (x,))
        return nn.functional.cross_entropy(logits, y)

    flat = torch.cat([state[n].flatten() for n in names])
    curvature = torch.autograd.functional.hessian(value, flat).diagonal()
    expected = 0.5 * 0.02**2 * float((curvature * flat.square()).sum())
    found = sharpness(network, examples, 0.02, samples=3000, logit_norm=None)
    assert abs(found.value - expected) < 4 * found.error and found.error < 0.5 * abs(found.value) + 1e-4


@pytest.mark.parametrize("scaling", ["element", "layer", "none"])
def test_the_worst_case_is_no_less_than_random_corners_and_the_slope_for_small_radii(
    network, examples, generator, scaling
):
    whole = [tuple(torch.cat(parts) for parts in zip(*examples, strict=True))]

    def scale(p):
        return {"element": p.abs(), "layer": p.square().mean().sqrt(), "none": torch.ones(())}[scaling]

    found = sharpness(network, whole, 0.05, mode="worst", scaling=scaling).value
    start = float(loss(network, whole).detach())
    for _ in range(20):
        other = copy.deepcopy(network)
        with torch.no_grad():
            for p in other.parameters():
                signs = torch.randint(2, p.shape, generator=generator) * 2 - 1
                p.add_(0.05 * scale(p) * signs)
        assert found >= float(loss(other, whole).detach()) - start
    slopes = torch.autograd.grad(loss(network, whole), list(network.parameters()))
    rise = sum(
        float((g.abs() * scale(p)).sum().detach()) for g, p in zip(slopes, network.parameters(), strict=True)
    )
    small = sharpness(network, whole, 1e-6, mode="worst", scaling=scaling).value
    assert small == pytest.approx(1e-6 * rise, rel=1e-3)


def test_the_worst_case_is_a_mean_over_batches_by_their_size(network, examples):
    alone = [sharpness(network, [batch], 0.05, mode="worst").value for batch in examples]
    found = sharpness(network, examples, 0.05, mode="worst")
    assert found.values == pytest.approx(alone) and found.error > 0
    assert found.value == pytest.approx((20 * alone[0] + 10 * alone[1]) / 30)
    assert math.isnan(sharpness(network, examples[:1], 0.05, mode="worst").error)


@pytest.mark.parametrize("mode", ["average", "worst"])
def test_rescaled_units_and_louder_logits_change_nothing(network, examples, mode):
    before = sharpness(network, examples, 0.1, mode=mode, seed=2).value
    other = copy.deepcopy(network)
    with torch.no_grad():
        other[0].weight *= 10
        other[0].bias *= 10
        other[2].weight /= 10
    assert sharpness(other, examples, 0.1, mode=mode, seed=2).value == pytest.approx(before, rel=1e-6)
    assert sharpness(other, examples, 0.1, mode=mode, scaling="none").value != pytest.approx(before, rel=0.1)
    with torch.no_grad():
        other[2].weight *= 5
        other[2].bias *= 5
    assert sharpness(other, examples, 0.1, mode=mode, seed=2).value == pytest.approx(before, rel=1e-6)
    loud = sharpness(other, examples, 0.1, mode=mode, seed=2, logit_norm=None).value
    assert loud != pytest.approx(before, rel=0.1)


def test_groups_move_alone_under_the_noise_that_the_whole_has(network, examples):
    found = layerwise_sharpness(network, examples, 0.2, seed=3)
    assert list(found) == ["0", "2"]
    other = copy.deepcopy(network)
    for p in other[2].parameters():
        p.requires_grad_(False)
    # the noise of a parameter goes by its position, not by what else moves
    assert sharpness(other, examples, 0.2, seed=3).value == pytest.approx(found["0"].value)
    assert layerwise_sharpness(network, examples, 0.2, groups={"a": "."})["a"] == sharpness(
        network, examples, 0.2
    )
    with pytest.raises(InputError, match="has no parameter"):
        layerwise_sharpness(network, examples, 0.2, groups={"a": "conv"})


def test_the_network_is_left_as_it_was_and_zeros_do_not_move(network, examples):
    with torch.no_grad():
        network[0].weight[:, 0] = 0
    before = copy.deepcopy(network.state_dict())
    seen = []
    network.register_forward_pre_hook(lambda module, _: seen.append(module[0].weight[:, 0].abs().max()))
    for mode in ("average", "worst"):
        sharpness(network, examples, 0.2, mode=mode)
    assert all(torch.equal(before[n], v) for n, v in network.state_dict().items())
    assert max(seen) == 0 and not network.training


def test_a_loader_that_does_not_shuffle_is_as_good_as_a_list(network, examples):
    x, y = (torch.cat(parts) for parts in zip(*examples, strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=10)
    assert sharpness(network, loader, 0.1).value == pytest.approx(sharpness(network, [(x, y)], 0.1).value)
    shuffled = DataLoader(TensorDataset(x, y), batch_size=10, shuffle=True)
    for bad in (shuffled, iter(examples), [], (pair for pair in examples)):
        with pytest.raises(InputError, match="another order"):
            sharpness(network, bad, 0.1)


def test_what_cannot_be_is_refused(network, examples):
    for changes, message in (
        ({"rho": 0.0}, "not positive"),
        ({"samples": 0}, "not positive"),
        ({"mode": "mean"}, "is not known"),
        ({"scaling": "filter"}, "is not known"),
        ({"logit_norm": 0.0}, "positive length"),
        ({"include": lambda name: False}, "is included"),
    ):
        with pytest.raises(InputError, match=message):
            sharpness(network, examples, **{"rho": 0.1, **changes})
    network.train()
    with pytest.raises(InputError, match="training mode"):
        sharpness(network, examples, 0.1)
