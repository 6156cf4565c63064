import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import Network, build_network
from unseen.networks.hypotheses import Hypotheses, Members, SharedHeads, with_heads, with_members
from unseen.shifts.arrays import from_arrays
from unseen.training import Learner, fit
from unseen.training.model_folder import load


def both(count=3):
    torch.manual_seed(0)
    return {
        "heads": with_heads(Network(nn.Sequential(nn.Linear(5, 4), nn.Tanh()), 4, 3), count),
        "members": with_members(
            [Network(nn.Sequential(nn.Linear(5, 4), nn.Tanh()), 4, 3) for _ in range(count)]
        ),
    }


def slow_logits(network: Hypotheses, x):
    """Every hypothesis by itself, as plain linear layers."""
    if isinstance(network, Members):
        parts = zip(network.featurizer.members, network.head.heads, strict=True)
        return torch.stack([head(featurizer(x)) for featurizer, head in parts])
    features, head = network.featurizer(x), network.head
    return torch.stack([features @ w.T + b for w, b in zip(head.weights, head.biases, strict=True)])


@pytest.mark.parametrize("kind", ["heads", "members"])
def test_all_logits_are_those_of_each_hypothesis_and_the_head_is_their_mixture(kind):
    network, x = both()[kind], torch.randn(7, 5)
    expected = slow_logits(network, x)
    torch.testing.assert_close(network.all_logits(x), expected)
    network.head.choose(None)
    torch.testing.assert_close(network(x), expected.mean(0))
    for index in range(3):
        network.head.choose(index)
        torch.testing.assert_close(network(x), expected[index])
    features = network.featurizer(x)  # what reads weight and bias sees the same head
    torch.testing.assert_close(features @ network.head.weight.T + network.head.bias, network(x))
    assert network.head.weight.shape == (network.classes, network.features) == (3, features.shape[1])


@pytest.mark.parametrize("kind", ["heads", "members"])
def test_gradients_are_those_of_the_slow_way(kind):
    network, x = both()[kind], torch.randn(7, 5)
    weights, found = torch.randn(3, 7, 3), []
    for logits in (network.all_logits(x), slow_logits(network, x)):
        found.append(torch.autograd.grad((weights * logits).sum(), list(network.parameters())))
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow)


def test_members_are_independent_and_one_is_evaluated_alone():
    network, x = both()["members"], torch.randn(7, 5)
    torch.testing.assert_close(network.member_logits(1, x), network.all_logits(x)[1])
    network.member_logits(1, x).sum().backward()
    for index, member in enumerate(network.featurizer.members):
        assert all((p.grad is not None) == (index == 1) for p in member.parameters())
        assert (network.head.heads[index].weight.grad is not None) == (index == 1)
    assert int(network.head.mixture.argmax()) == 2  # the last answers until another is chosen
    assert not torch.equal(network.all_logits(x)[0], network.all_logits(x)[1])


def test_a_frozen_members_batch_statistics_stay():
    torch.manual_seed(0)
    network = with_members(
        [Network(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), 4, 2) for _ in range(2)]
    )
    network.train()
    network.freeze(0)
    network.member_logits(0, torch.randn(16, 5))
    network.member_logits(1, torch.randn(16, 5))
    first, second = (int(member[1].num_batches_tracked) for member in network.featurizer.members)
    assert (first, second) == (0, 1)


def test_a_choice_that_cannot_be_is_refused():
    network = both()["heads"]
    for index in (-1, 3):
        with pytest.raises(InputError, match="from 0 to 2"):
            network.head.choose(index)
    with pytest.raises(InputError, match="at least two"):
        SharedHeads(1, 4, 2)
    unlike = [build_network("mlp(width=4)", (5,), 2), build_network("mlp(width=6)", (5,), 2)]
    with pytest.raises(InputError, match="equal networks"):
        with_members(unlike)


@pytest.mark.parametrize("objective", ["divdis", "d-bat"])
def test_hypotheses_and_the_choice_are_saved_and_may_be_chosen_anew(objective, tmp_path):
    generator = torch.Generator().manual_seed(0)
    labels, domain = torch.arange(120) % 2, torch.arange(120) // 40
    x = torch.randn(120, 3, generator=generator) + labels[:, None]
    split = from_arrays(x.numpy(), labels.numpy(), domain.numpy()).split("2", unlabelled=0.5)
    learner = Learner(objective=objective, network="mlp(width=8)", steps=10, batch_size=8)
    predictor = fit(learner, split)
    restored = load(predictor.save(tmp_path / "model"))
    assert isinstance(restored.network, Hypotheses)
    few = torch.randn(4, 3, generator=generator)
    torch.testing.assert_close(restored.network.all_logits(few), predictor.network.all_logits(few))
    torch.testing.assert_close(restored.network(few), predictor.network(few))
    restored.network.head.choose(0)
    torch.testing.assert_close(restored.network(few), predictor.network.all_logits(few)[0])
    assert torch.equal(restored.network.state_dict()["head.mixture"], torch.tensor([1.0, 0.0]))
