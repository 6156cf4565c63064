import math

import pytest
import torch
from torch import nn

from unseen.adaptation.eata import EATA, ETA, sample_weights
from unseen.errors import InputError


def slow_weights(logits, average, threshold, similarity):
    weights = []
    for row in logits.double():
        p = row.exp() / row.exp().sum()
        entropy = -sum(float(v) * math.log(v) for v in p)
        keep = entropy < threshold
        if average is not None:
            a = average.double()
            cosine = float((p * a).sum()) / math.sqrt(float((p**2).sum()) * float((a**2).sum()))
            keep = keep and abs(cosine) < similarity
        weights.append(math.exp(threshold - entropy) if keep else 0.0)
    return torch.tensor(weights)


@pytest.mark.parametrize("average", [None, torch.tensor([0.7, 0.1, 0.1, 0.1])])
def test_weights_are_those_of_the_paper(average, generator):
    logits = 3 * torch.randn(200, 4, generator=generator)
    found = sample_weights(logits, average, 0.4 * math.log(4), 0.5)
    torch.testing.assert_close(found, slow_weights(logits, average, 0.4 * math.log(4), 0.5))
    assert 0 < int((found > 0).sum()) < 200


def slow_eata(network, source, batches, rate, similarity, beta):
    """SGD without momentum on group normalisation, every quantity spelt out."""
    parameters = [network.featurizer[1].weight, network.featurizer[1].bias]
    start = [p.detach().clone() for p in parameters]
    fisher = [torch.zeros_like(p) for p in parameters]
    for x in source:
        logits = network(x)
        loss = nn.functional.cross_entropy(logits, logits.argmax(1))
        for f, g in zip(fisher, torch.autograd.grad(loss, parameters), strict=True):
            f += g**2 / len(source)
    average, answers = None, []
    for x in batches:
        logits = network(x)
        answers.append(logits.detach())
        threshold = 0.4 * math.log(logits.shape[1])
        weights = slow_weights(logits.detach(), average, threshold, similarity)
        kept = weights > 0
        if not kept.any():
            continue
        p = logits.softmax(1)
        entropy = -(p * p.log()).sum(1)
        loss = (entropy * weights)[kept].mean()
        for f, value, first in zip(fisher, parameters, start, strict=True):
            loss = loss + beta * (f * (value - first) ** 2).sum()
        mean = p.detach()[kept].mean(0)
        average = mean if average is None else 0.9 * average + 0.1 * mean
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for value, gradient in zip(parameters, gradients, strict=True):
                value -= rate * gradient
    return answers


def test_eata_is_the_slow_reference(small_network, generator):
    network = small_network("group", classes=4)
    with torch.no_grad():
        network.head.weight *= 10  # sure of something
    source = [torch.randn(8, 3, 8, 8, generator=generator) for _ in range(3)]
    batches = [3 * torch.randn(24, 3, 8, 8, generator=generator) + 1 for _ in range(5)]
    fast = EATA(network, learning_rate=0.05, momentum=0.0, similarity=0.9, fisher_weight=2.0)
    fast.prepare(source)
    found = [fast.adapt(x) for x in batches]
    expected = slow_eata(network, source, batches, 0.05, 0.9, 2.0)
    for answer, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(answer, reference, rtol=1e-4, atol=1e-4)
    assert float((fast.network.featurizer[1].weight.detach() - 1).abs().max()) > 1e-3


def test_a_huge_penalty_holds_the_weights(world):
    x = [world.inputs(seed=seed) for seed in range(4)]
    drift = []
    for beta in (1e-6, 1e3):
        method = EATA(world.network, learning_rate=0.01, momentum=0.0, similarity=1.1, fisher_weight=beta)
        method.prepare(x)
        for batch in x:
            method.adapt(batch)
        moved = method.network.featurizer[1].bias - world.network.featurizer[1].bias
        drift.append(float(moved.detach().norm()))
    assert 0 < drift[1] < drift[0]


def test_unsure_examples_teach_nothing(small_network, generator):
    network = small_network("group")
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
    method = ETA(network, learning_rate=1.0)
    method.adapt(torch.randn(8, 3, 8, 8, generator=generator))
    assert torch.equal(method.network.featurizer[1].weight, network.featurizer[1].weight)
    assert method.memory["average"] is None


def test_fisher_information_must_be_there(world):
    with pytest.raises(InputError, match=r"eata: has no Fisher information.*choose eta"):
        EATA(world.network).adapt(world.inputs())
    with pytest.raises(InputError, match="source: has no batch"):
        EATA(world.network).prepare([])
