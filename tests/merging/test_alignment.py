import pytest
import torch
from torch import nn

from unseen.averaging import snapshot
from unseen.errors import InputError
from unseen.merging import align, interpolation_curve, sequential_axes
from unseen.merging.alignment import Permutation
from unseen.networks import build_network


def mlp(width=12):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 3),
    )  # fmt: skip


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.GroupNorm(1, 6), nn.ReLU(), nn.Conv2d(6, 8, 3, bias=False), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 4, 5), nn.ReLU(), nn.Linear(5, 2),
    )  # fmt: skip


def shuffled(state, permutations, generator):
    """The same function with its hidden units in another order, and those orders."""
    state = {name: value.clone() for name, value in state.items()}
    for one in permutations:
        order = torch.randperm(one.size, generator=generator)
        for name, axis in one.axes:
            value = state[name]
            blocks = value.unflatten(axis, (one.size, -1))
            state[name] = blocks.index_select(axis, order).reshape(value.shape)
    return state


@pytest.mark.parametrize("make, shape", [(mlp, (6,)), (cnn, (2, 6, 6))])
def test_a_permuted_copy_is_brought_back_exactly(make, shape, generator):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
    x = torch.randn(9, *shape, generator=generator)
    if make is mlp:  # statistics that differ between units
        model[2].running_mean.copy_(torch.randn(12, generator=generator))
    target, expected = snapshot(model), model(x)
    permutations = sequential_axes(model)
    other = shuffled(target, permutations, generator)
    model.load_state_dict(other)
    torch.testing.assert_close(model(x), expected)  # the axes are right: the function is the same
    assert any(not torch.equal(target[name], other[name]) for name in target)
    found = align(other, target, permutations, generator=generator)
    assert all(torch.equal(found[name], target[name]) for name in target)


def test_networks_with_other_weights_come_nearer_and_keep_their_function(generator):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        a, b = mlp().eval(), mlp().eval()
    x = torch.randn(9, 6, generator=generator)
    before, target = snapshot(b), snapshot(a)
    expected = b(x)
    found = align(before, target, sequential_axes(b), generator=generator)
    b.load_state_dict(found)
    torch.testing.assert_close(b(x), expected)

    def distance(state):
        return sum(float((state[name].double() - target[name].double()).square().sum()) for name in target)

    assert distance(found) < 0.95 * distance(before)


def test_alignment_removes_the_barrier_between_permuted_networks(generator):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(200, 6, generator=generator)
    a = snapshot(model)
    labels = model(x).argmax(1)
    b = shuffled(a, sequential_axes(model), generator)

    @torch.no_grad()
    def accuracy(state):
        model.load_state_dict(state)
        return float((model(x).argmax(1) == labels).float().mean())

    assert interpolation_curve(a, b, accuracy).barrier() > 0.1
    b = align(b, a, sequential_axes(model), generator=generator)
    assert interpolation_curve(a, b, accuracy).barrier() == 0


def test_the_librarys_mlp_is_understood():
    network = build_network("mlp(width=8, depth=2)", (4,), 3)
    assert [p.size for p in sequential_axes(network)] == [8, 8]


class Written(nn.Module):
    """A convolution and two linear layers, called as the test says."""

    def __init__(self, forward):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(2, 3, 1), nn.Linear(12, 12), nn.Linear(12, 2)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.last(torch.relu(m.second(m.first(x).flatten(1)))),
        lambda m, x: m.last(m.second(m.first(x).view(x.size(0), -1))),
        lambda m, x: m.last(m.second(m.first(x).reshape(x.shape[0], 12))),
    ],
)
def test_chains_written_as_code_are_understood(forward, generator):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, target = Written(forward), Written(forward)
    x = torch.randn(5, 2, 2, 2, generator=generator)
    expected = model(x)
    found = align(model.state_dict(), target.state_dict(), sequential_axes(model), generator=generator)
    assert not torch.equal(found["second.weight"], model.second.weight)
    model.load_state_dict(found)
    torch.testing.assert_close(model(x), expected)


def shortcut(m, x):
    x = m.first(x).flatten(1)
    return m.last(x + m.second(x))


@pytest.mark.parametrize(
    "forward, message",
    [
        (shortcut, "is no chain of modules: 'add' takes"),
        (lambda m, x: m.last(m.second(m.second(m.first(x).flatten(1)))), "each of its layers once, in order"),
        (lambda m, x: m.last(m.first(x).flatten(1)), "each of its layers once, in order"),
        (lambda m, x: m.last(m.second(x if len(x) else m.first(x))), "cannot be followed"),
        (lambda m, x: m.last(m.second(m.first(x).flatten(1) * m.last.weight[0])), "is no chain of modules"),
    ],
)
def test_networks_whose_code_is_no_chain_are_refused(forward, message):
    """Units of a shortcut's two sides cannot be permuted apart: the network would compute something else."""
    with pytest.raises(InputError, match=message):
        sequential_axes(Written(forward))


def test_states_and_permutations_that_do_not_fit_are_refused(generator):
    a, b = (snapshot(mlp(width)) for width in (12, 13))
    axes = sequential_axes(mlp())
    broken = {name: value.clone() for name, value in a.items()}
    broken["4.weight"][0, 0] = float("nan")
    for state, target, permutations, message in (
        (a, b, axes, r"'1.weight': has shape \(12, 6\) in the state, but \(13, 6\) in the target"),
        (a, {**{k: v for k, v in a.items() if k != "1.bias"}}, axes, "'1.bias': is in the state, but not in"),
        (a, a, sequential_axes(mlp(13)), "does not run over 13 units"),
        (a, a, [Permutation(12, (("1.weigth", 0),))], "Did you mean '1.weight'"),
        (a, a, [Permutation(12, (("1.bias", 1),))], "axis 1 of '1.bias'"),
        (broken, a, axes, "'4.weight' of the state: has NaN"),
        (a, broken, axes, "'4.weight' of the target: has NaN"),
    ):
        with pytest.raises(InputError, match=message):
            align(state, target, permutations, generator=generator)


@pytest.mark.parametrize(
    "model, message",
    [
        (nn.Sequential(nn.Linear(2, 2)), "no hidden layer"),
        (nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1)), "grouped"),
        (nn.Sequential(nn.Conv2d(4, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1)), "normalises in 2 groups"),
        (nn.Sequential(nn.Linear(2, 4), nn.Linear(6, 2)), "Is the network sequential"),
        (nn.Sequential(nn.Linear(2, 4), nn.PReLU(4), nn.Linear(4, 2)), "is a PReLU"),
    ],
)
def test_networks_that_cannot_be_described_are_refused(model, message):
    with pytest.raises(InputError, match=message):
        sequential_axes(model)
