import math

import torch

from unseen.adaptation.rotta import RoTTA


def identity(x, generator):
    return x


def test_the_first_answers_are_the_trained_networks(world):
    method, x = RoTTA(world.network, update_every=1000), world.inputs()
    with torch.no_grad():
        torch.testing.assert_close(method.adapt(x), world.network(x), rtol=1e-4, atol=1e-5)
    assert len(method.memory["bank"]) <= 64


def test_statistics_and_teacher_move_by_their_rates(world):
    x = world.inputs(count=40)
    method = RoTTA(
        world.network, teacher_rate=0.25, rate=0.1, memory_size=40, update_every=40, augment=identity
    )
    layer = world.network.featurizer[1]
    method.adapt(x)
    bank = torch.stack([item["x"] for item in method.memory["bank"]])
    means = world.network.featurizer[0](bank).mean((0, 2, 3)).detach()
    teacher = method.memory["teacher"]
    expected = 0.9 * layer.running_mean + 0.1 * means
    torch.testing.assert_close(teacher["featurizer.1.running_mean"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        method.network.featurizer[1].running_mean, expected, rtol=1e-4, atol=1e-5
    )  # the student's own, of the same inputs
    moved = (method.network.featurizer[1].weight - layer.weight).detach()
    assert float(moved.abs().max()) > 1e-5
    torch.testing.assert_close(
        teacher["featurizer.1.weight"] - layer.weight, 0.25 * moved, rtol=1e-3, atol=1e-7
    )


def test_the_loss_counts_recent_examples_more(small_network, generator):
    network = small_network("group", classes=4)
    x = torch.randn(8, 3, 8, 8, generator=generator)
    rate = 0.01
    method = RoTTA(network, rate, memory_size=8, update_every=8, augment=lambda x, g: x.flip(3))
    logits = network(x).detach()
    ages = {tuple(item["x"].flatten()[:3].tolist()): item["age"] for item in _bank_before(network, x)}
    loss = 0
    for row, target in zip(x, logits, strict=True):
        key = tuple(row.flatten()[:3].tolist())
        if key in ages:
            age = ages[key] / 8
            weight = math.exp(-age) / (1 + math.exp(-age))
            loss = loss - weight * (target.softmax(0) * network(row[None].flip(3)).log_softmax(1)).sum()
    gradient = torch.autograd.grad(loss / len(ages), network.featurizer[1].weight)[0]
    method.adapt(x)
    # Adam's first step is the sign of the gradient times the rate
    step = method.network.featurizer[1].weight - network.featurizer[1].weight
    clear = gradient.abs() > 1e-5
    assert clear.any()
    torch.testing.assert_close(step[clear], -rate * gradient[clear].sign(), rtol=1e-2, atol=1e-6)


def _bank_before(network, x):
    """What the memory holds when the update comes: the same without an update."""
    method = RoTTA(network, memory_size=8, update_every=1000)
    method.adapt(x)
    return method.memory["bank"]


def test_batches_are_no_more_than_examples_together(world):
    x = world.inputs(count=30)
    whole, single = (RoTTA(world.network, update_every=1000) for _ in range(2))
    answers = whole.adapt(x)
    found = torch.cat([single.adapt(x[i : i + 1]) for i in range(30)])
    torch.testing.assert_close(found, answers, rtol=1e-4, atol=1e-4)
    assert [i["age"] for i in whole.memory["bank"]] == [i["age"] for i in single.memory["bank"]]
