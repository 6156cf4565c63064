import math

import torch

from unseen.adaptation.roid import ROID, certainty_and_diversity_weights, prior_correction


def test_weights_are_the_slow_reference(generator):
    logits = 2 * torch.randn(40, 5, generator=generator)
    average = torch.rand(5, generator=generator).softmax(0)
    diversity, certainty = [], []
    for row in logits.double():
        p = row.softmax(0)
        norms = math.sqrt(float((p**2).sum()) * float((average.double() ** 2).sum()))
        diversity.append(1 - float((p * average.double()).sum()) / norms)
        certainty.append(float((p * p.log()).sum()))
    scaled = [[(v - min(c)) / (max(c) - min(c)) for v in c] for c in (diversity, certainty)]
    mean = sum(scaled[0]) / len(logits)
    expected = [0.0 if d < mean else math.exp(d * c / (1 / 3)) for d, c in zip(*scaled, strict=True)]
    found = certainty_and_diversity_weights(logits, average, 1 / 3)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_equal_examples_have_equal_weights():
    logits = torch.tensor([[1.0, 0.0]]).repeat(3, 1)
    assert torch.equal(
        certainty_and_diversity_weights(logits, torch.tensor([0.5, 0.5]), 1 / 3), torch.ones(3)
    )


def test_prior_correction_multiplies_probabilities(generator):
    logits = torch.randn(12, 4, generator=generator)
    p = logits.softmax(1)
    mean = p.mean(0)
    smooth = max(1 / 12, 1 / 4) / float(mean.max())
    prior = (mean + smooth) / (1 + smooth * 4)
    assert math.isclose(float(prior.sum()), 1, rel_tol=1e-6)
    expected = p * prior / (p * prior).sum(1, keepdim=True)
    torch.testing.assert_close(prior_correction(logits).softmax(1), expected)


def test_weights_are_drawn_back_to_the_trained_ones(world):
    x = world.inputs()
    free, kept = (ROID(world.network, learning_rate=0.05, momentum=0.0, keep=k) for k in (1.0, 0.25))
    for method in (free, kept):
        method.adapt(x)
    start = world.network.featurizer[1].weight.detach()
    moved = free.network.featurizer[1].weight.detach() - start
    assert float(moved.abs().max()) > 1e-4
    torch.testing.assert_close(kept.network.featurizer[1].weight - start, 0.25 * moved, rtol=1e-3, atol=1e-6)


def test_the_average_follows_the_predictions(world):
    method, x = ROID(world.network), world.inputs()
    mean = method.network(x).softmax(1).mean(0)
    method.adapt(x)
    torch.testing.assert_close(method.memory["average"], 0.9 * torch.full((10,), 0.1) + 0.1 * mean.detach())
