import math

import torch

from unseen.adaptation.augmentations import shuffle_patches
from unseen.adaptation.deyo import DeYO, probability_drop


def test_the_drop_is_of_the_predicted_class():
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    destroyed = torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, 4.0]])
    expected = [
        float(a.softmax(0)[c] - b.softmax(0)[c]) for a, b, c in zip(logits, destroyed, (0, 2), strict=True)
    ]
    torch.testing.assert_close(probability_drop(logits, destroyed), torch.tensor(expected))
    assert expected[0] > 0 > expected[1]


def test_the_loss_is_the_slow_reference(world):
    method, x = DeYO(world.network, drop=0.1), world.inputs()
    state = method.generator.get_state()
    logits, loss = method.loss(x)
    method.generator.set_state(state)
    destroyed = method.network(shuffle_patches(x, 4, method.generator))
    most, terms, chosen = math.log(10), [], 0
    for row, other in zip(logits.detach().double(), destroyed.detach().double(), strict=True):
        p = row.softmax(0)
        entropy, label = -(p * p.log()).sum(), int(p.argmax())
        drop = p[label] - other.softmax(0)[label]
        if entropy < 0.5 * most and drop > 0.1:
            weight = 1 / math.exp(entropy - 0.4 * most) + 1 / math.exp(-drop)
            terms.append(weight * entropy)
            chosen += 1
    assert 0 < chosen < len(x)
    torch.testing.assert_close(loss.detach().double(), torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)


def test_without_a_sure_example_nothing_is_learnt(world):
    method = DeYO(world.network, learning_rate=1.0, drop=1.0)
    method.adapt(world.inputs())
    assert torch.equal(method.network.featurizer[1].weight, world.network.featurizer[1].weight)
