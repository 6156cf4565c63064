import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.objectives.adrmx import ADRMX, contrast, partners_across_domains


def slow_contrast(features, labels, domain, share, temperature=0.07):
    unit = nn.functional.normalize(features, dim=1)
    losses = []
    for i in range(len(unit)):
        others = [j for j in range(len(unit)) if j != i]
        similar = {
            j: (share if domain[j] == domain[i] else 1 - share) * torch.exp(unit[i] @ unit[j] / temperature)
            for j in others
        }
        whole = sum(similar.values()) + 1e-5
        positive = [-torch.log(similar[j] / whole + 1e-5) for j in others if labels[j] == labels[i]]
        if positive:
            losses.append(torch.stack(positive).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_contrast_equals_pairs_written_out(share, generator):
    features = torch.randn(13, 4, generator=generator).double().requires_grad_()
    labels = torch.tensor([3, *[0, 1, 2] * 4])  # the first is alone in its class
    domain = torch.randint(2, (13,), generator=generator)
    found, expected = (
        contrast(features, labels, domain, share),
        slow_contrast(features, labels, domain, share),
    )
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(loss, features)[0] for loss in (found, expected)]
    torch.testing.assert_close(*slopes)


def test_contrast_without_pairs_is_zero():
    assert float(contrast(torch.eye(3), torch.arange(3), torch.zeros(3))) == 0


def test_partners_are_of_the_class_and_another_domain(generator):
    labels = torch.tensor([0] * 9 + [1] * 9 + [2] * 2)
    domain = torch.tensor([*[0, 1, 2] * 6, 1, 1])  # class 2 is in one domain
    seen = set()
    for _ in range(5):
        partner, found = partners_across_domains(labels, domain, torch.randperm(20, generator=generator))
        assert found.tolist() == [True] * 18 + [False] * 2
        assert torch.equal(labels[partner[:18]], labels[:18])
        assert (domain[partner[:18]] != domain[:18]).all()
        assert len(set(partner[:18].tolist())) > 6  # not one partner for all
        seen.add(tuple(partner.tolist()))
    assert len(seen) > 1


def test_parts_equal_their_definitions(model, batch, built):
    objective = built("adrmx", domain_weight=2.0, remix_weight=3.0, contrast_weight=0.5)
    loss = objective(model, batch)
    features = model.featurizer(batch.x)
    of_domain = objective.domain_part(features)
    invariant = features - of_domain
    partner, found = objective.partners(batch)
    entropy = nn.functional.cross_entropy
    remixed = [
        entropy(model.head(invariant[i] + of_domain[partner[i]]), batch.y[i])
        for i in range(len(batch))
        if found[i]
    ]
    contrasts = [slow_contrast(z, batch.y, batch.domain, 0.5) for z in (features, invariant)]
    expected = {
        "label": entropy(model.head(features), batch.y),
        "invariant": entropy(objective.invariant_head(invariant), batch.y),
        "domain": 2.0 * entropy(objective.domain_head(of_domain), batch.domain),
        "remix": 3.0 * torch.stack(remixed).mean(),
        "contrast": 0.5 * sum(contrasts),
        "adversary": entropy(objective.discriminator(invariant), batch.domain),
    }
    assert loss.parts.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(loss.parts[name], value, msg=name)
    torch.testing.assert_close(loss.total, sum(expected.values()))


def test_invariant_features_resist_the_discriminator(model, batch, built):
    objective = built("adrmx", adversarial_weight=0.75)
    loss = objective(model, batch).parts["adversary"]
    features = model.featurizer(batch.x)
    plain = objective.discriminator(features - objective.domain_part(features))
    plain = nn.functional.cross_entropy(plain, batch.domain)
    weight = model.featurizer[0].weight
    found, expected = (torch.autograd.grad(value, weight, retain_graph=True)[0] for value in (loss, plain))
    torch.testing.assert_close(found, -0.75 * expected)
    own = objective.discriminator[0].weight
    torch.testing.assert_close(*(torch.autograd.grad(value, own)[0] for value in (loss, plain)))


def test_errors():
    with pytest.raises(InputError, match="remix_weight: is -1"):
        ADRMX(remix_weight=-1)
