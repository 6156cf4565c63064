import pytest
import torch

from unseen.adaptation.t3a import T3A, surest_of_each_class
from unseen.errors import InputError


def slow_t3a(network, batches, keep):
    """Remembers everything, and chooses the surest of each class anew for every batch."""
    weights = network.head.weight.detach()

    def entropy(logits):
        return float(-(logits.softmax(0) * logits.log_softmax(0)).sum())

    supports = [(weights[c], c, entropy(network.head(weights[c]))) for c in range(len(weights))]
    answers = []
    for x in batches:
        for z in network.featurizer(x):
            logits = network.head(z)
            supports.append((z, int(logits.argmax()), entropy(logits)))
        templates = []
        for c in range(len(weights)):
            own = sorted((s for s in supports if s[1] == c), key=lambda s: s[2])[:keep]
            template = sum(z / z.norm() for z, _, _ in own)
            templates.append(template / template.norm())
        answers.append(torch.stack([torch.stack([z @ t for t in templates]) for z in network.featurizer(x)]))
    return answers


@pytest.mark.parametrize("keep", [1, 3, 1000])
@torch.no_grad()
def test_t3a_is_the_slow_reference(keep, world):
    batches = [world.inputs(count=20, seed=seed) for seed in range(4)]
    method = T3A(world.network, keep=keep)
    for x, expected in zip(batches, slow_t3a(world.network, batches, keep), strict=True):
        torch.testing.assert_close(method.adapt(x), expected, rtol=1e-4, atol=1e-4)
    assert len(method.memory["labels"]) <= keep * 10


def test_the_surest_of_each_class():
    entropy = torch.tensor([0.5, 0.1, 0.3, 0.2, 0.9])
    labels = torch.tensor([0, 0, 0, 2, 2])
    assert surest_of_each_class(entropy, labels, 1).tolist() == [1, 3]
    assert surest_of_each_class(entropy, labels, 2).tolist() == [1, 2, 3, 4]


def test_a_class_remembers_at_least_one(world):
    with pytest.raises(InputError, match="keep: is 0"):
        T3A(world.network, keep=0)
