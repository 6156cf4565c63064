import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.networks.domain_heads import with_domain_heads
from unseen.networks.steering import Steering
from unseen.training.online_adapter import OnlineAdapter, pseudo_label_loss


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = with_domain_heads(Network(nn.Sequential(nn.Linear(4, 5), nn.Tanh()), 5, 3), 2)
    with torch.no_grad():
        made.head.weights.mul_(6)
    return made


@pytest.fixture
def x():
    return 2 * torch.randn(16, 4, generator=torch.Generator().manual_seed(1))


def test_the_loss_is_a_sum_over_heads_of_means_over_sure_examples():
    logits = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    confidence, labels = torch.tensor([0.9, 0.2, 0.8, 0.8, 0.1, 0.7]), torch.tensor([0, 1, 2, 3, 0, 1])
    sure = confidence >= 0.8
    expected = sum(nn.functional.cross_entropy(own[sure], labels[sure]) for own in logits)
    torch.testing.assert_close(pseudo_label_loss(logits, confidence, labels, 0.8), expected)
    own_confidence, own_labels = logits.softmax(-1).max(-1)
    expected = 0.0
    for own, c, label in zip(logits, own_confidence, own_labels, strict=True):
        if (c >= 0.5).any():
            expected = expected + nn.functional.cross_entropy(own[c >= 0.5], label[c >= 0.5])
    torch.testing.assert_close(pseudo_label_loss(logits, own_confidence, own_labels, 0.5), expected)
    assert pseudo_label_loss(logits, confidence, labels, 1.0) == 0


def test_the_threshold_is_a_probability(network, x):
    """The authors put the mixture through a softmax again, so that of three classes none exceeds 0.58."""
    confidence = Steering(gamma=1.0).answer(network, x).probabilities.max(-1).values
    assert confidence.softmax(-1).max() < 0.58 < confidence.max()
    for threshold, moves in ((float(confidence.max()) - 1e-4, True), (float(confidence.max()) + 1e-4, False)):
        adapter = OnlineAdapter(
            network, learning_rate=0.01, steering=Steering(gamma=1.0), threshold=threshold
        )
        adapter.answer(x)
        assert torch.equal(adapter.network.head.weights, network.head.weights) is not moves


@pytest.mark.parametrize("source", ["steered", "own"])
def test_heads_learn_alone_or_with_the_features_and_the_given_network_stays(network, x, source):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for parameters in ("heads", "all"):
        adapter = OnlineAdapter(
            network, learning_rate=0.01, source=source, parameters=parameters, threshold=0.0, steps=2
        )
        found = adapter.answer(x)
        torch.testing.assert_close(found.logits, adapter.network.all_logits(x))  # learns, and then answers
        features = adapter.network.featurizer[0].weight
        assert torch.equal(features, network.featurizer[0].weight) is (parameters == "heads")
        assert not torch.equal(adapter.network.head.weights, network.head.weights)
        assert torch.equal(adapter.network.prototypes, network.prototypes)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_one_step_is_one_of_adam_on_the_loss_of_the_steered_labels(network, x):
    steering = Steering(by="uniform")
    adapter = OnlineAdapter(network, learning_rate=0.01, steering=steering, threshold=0.4)
    adapter.answer(x)
    confidence, labels = network.all_logits(x).softmax(-1).mean(0).max(-1)
    loss = pseudo_label_loss(network.all_logits(x), confidence, labels, 0.4)
    slope = torch.autograd.grad(loss, network.head.weights)[0]
    moved = adapter.network.head.weights - network.head.weights
    torch.testing.assert_close(moved, -0.01 * slope / (slope.abs() + 1e-8), rtol=1e-3, atol=1e-6)


def test_what_is_learned_stays_unless_episodic_and_can_be_forgotten(network, x):
    settings = {"learning_rate": 0.05, "threshold": 0.0}
    staying, episodic = OnlineAdapter(network, **settings), OnlineAdapter(network, episodic=True, **settings)
    first, other = x[:8], x[8:]
    one = [a.answer(first).probabilities for a in (staying, episodic)]
    torch.testing.assert_close(*one)
    again = [a.answer(first).probabilities for a in (staying, episodic)]
    assert torch.equal(again[1], one[1]) and not torch.equal(again[0], one[0])
    staying.reset()
    assert torch.equal(staying.answer(first).probabilities, one[0])
    forwards, backwards = OnlineAdapter(network, **settings), OnlineAdapter(network, **settings)
    for part in (first, other):
        forwards.answer(part)
    for part in (other, first):
        backwards.answer(part)
    assert not torch.equal(forwards.network.head.weights, backwards.network.head.weights)  # order matters


def test_it_learns_what_it_is_sure_of(network, x):
    adapter = OnlineAdapter(network, learning_rate=0.05, threshold=0.0, steps=20)
    before = Steering().answer(network, x)
    after = adapter.answer(x)
    assert after.probabilities.max(-1).values.mean() > before.probabilities.max(-1).values.mean()


def test_groups_steer_the_pseudo_labels(network, x):
    group = torch.arange(16) % 2
    adapter = OnlineAdapter(network, learning_rate=0.01, steering=Steering(unit="group"))
    assert adapter.answer(x, group).weights.shape == (3, 16)
    with pytest.raises(InputError, match="group: is not given"):
        adapter.answer(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "drm"}, "source 'drm'"),
        ({"parameters": "none"}, "parameters 'none'"),
        ({"threshold": 1.5}, "threshold in"),
        ({"steps": 0}, "steps from 1"),
        ({"learning_rate": 0.0}, "positive rate"),
    ],
)
def test_settings_that_cannot_be_are_refused(network, options, message):
    with pytest.raises(InputError, match=message):
        OnlineAdapter(network, **{"learning_rate": 0.01, **options})


def test_a_network_of_one_head_is_refused():
    with pytest.raises(InputError, match="has one head"):
        OnlineAdapter(Network(nn.Identity(), 4, 2), learning_rate=0.01)
