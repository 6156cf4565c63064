import math

import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.objectives.cad import CAD, contrastive_domain_bottleneck


def slow_bottleneck(features, domain, labels=None, temperature=0.1):
    terms = []
    for i in range(len(features)):
        others = [j for j in range(len(features)) if j != i and (labels is None or labels[j] == labels[i])]
        if not any(domain[j] != domain[i] for j in others):
            continue
        odds = torch.stack([features[i] @ features[j] / temperature for j in others]).softmax(0)
        strange = torch.stack([p for p, j in zip(odds, others, strict=True) if domain[j] != domain[i]])
        terms.append(-strange.sum().log())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("name", ["cad", "condcad"])
def test_loss_is_risk_plus_bottleneck_written_out(name, model, batch, built, same_with_gradients):
    labels = batch.y if name == "condcad" else None
    penalty = slow_bottleneck(model.featurizer(batch.x), batch.domain, labels)
    expected = nn.functional.cross_entropy(model(batch.x), batch.y) + 0.5 * penalty
    same_with_gradients(built(f"{name}(penalty_weight=0.5)")(model, batch).total, expected)


def test_examples_without_an_admissible_neighbour_are_left_out(generator):
    features = torch.randn(4, 3, generator=generator).double().requires_grad_()
    domain, labels = torch.tensor([0, 1, 0, 0]), torch.tensor([0, 0, 1, 2])
    found = contrastive_domain_bottleneck(features, domain, labels=labels)
    torch.testing.assert_close(found, slow_bottleneck(features, domain, labels))
    alone = contrastive_domain_bottleneck(features, torch.zeros(4, dtype=torch.int64))
    assert float(alone.detach()) == 0
    assert not torch.autograd.grad(alone, features)[0].any()


def test_a_weight_of_zero_leaves_an_example_out_of_the_mean(generator):
    features, domain = torch.randn(6, 3, generator=generator), torch.arange(6) % 2
    each = [
        contrastive_domain_bottleneck(features, domain, weight=(torch.arange(6) == i).float())
        for i in range(6)
    ]
    weight = torch.tensor([1.0, 0, 1, 0, 0, 2])
    expected = (each[0] + each[2] + 2 * each[5]) / 4
    torch.testing.assert_close(contrastive_domain_bottleneck(features, domain, weight=weight), expected)


def test_clusters_by_domain_cost_and_mixed_ones_cost_a_coin_toss():
    domain = torch.arange(40) % 2
    apart = nn.functional.one_hot(domain, 2).float()
    assert contrastive_domain_bottleneck(apart, domain) > 9
    mixed = contrastive_domain_bottleneck(torch.ones(40, 2), domain)
    assert float(mixed) == pytest.approx(-math.log(20 / 39), rel=1e-5)


def test_errors():
    with pytest.raises(InputError, match="temperature: is 0"):
        CAD(temperature=0)
