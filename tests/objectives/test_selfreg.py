import numpy as np
import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.selfreg import SelfReg, partners_within_class
from unseen.shifts.sampling import derive_seed


def slow_loss(model, perturb, batch, seed=0):
    """Pairs by lists of the classes' members; squared differences summed one by one."""
    features = model.featurizer(batch.x)
    logits = model.head(features)
    outputs = ((logits, logits, 1.0), (features, perturb(features), 0.3))
    random = np.random.default_rng(derive_seed(seed, batch.step))
    share = float(random.beta(0.5, 0.5))
    partners = []
    for _ in range(2):
        order = random.permutation(len(batch)).tolist()
        partner = {}
        for c in range(3):
            members = [i for i in range(len(batch)) if batch.y[i] == c]
            partner.update(zip(members, [i for i in order if batch.y[i] == c], strict=True))
        partners.append(partner)
    risk = nn.functional.cross_entropy(logits, batch.y)
    total = 0.0
    for values, compared, factor in outputs:
        for i in range(len(batch)):
            one, two = (compared[partner[i]] for partner in partners)
            individual = (values[i] - one).square().mean()
            mixed = (values[i] - share * one - (1 - share) * two).square().mean()
            total = total + factor * (share * individual + (1 - share) * mixed) / len(batch)
    return risk + min(float(risk.detach()), 1.0) * total


def test_loss_equals_pairs_written_out(model, batch, built, same_with_gradients):
    objective = built("selfreg")
    expected = slow_loss(model, objective.perturb, batch)
    same_with_gradients(objective(model, batch).total, expected, objective.perturb)


def test_partners_are_a_permutation_within_classes_that_varies(generator):
    labels = torch.randint(4, (40,), generator=generator)
    seen = set()
    for _ in range(5):
        partner = partners_within_class(labels, torch.randperm(40, generator=generator))
        assert torch.equal(labels[partner], labels)
        assert torch.equal(partner.sort().values, torch.arange(40))
        seen.add(tuple(partner.tolist()))
    assert len(seen) == 5


def test_steps_pair_differently_and_repeats_alike(model, batch, built):
    objective = built("selfreg")
    first = objective(model, batch).parts["penalty"]
    torch.testing.assert_close(objective(model, batch.again()).parts["penalty"], first)
    batch.step += 1
    assert float(objective(model, batch).parts["penalty"].detach()) != pytest.approx(float(first.detach()))


def test_equal_outputs_within_each_class_cost_nothing(batch, built):
    class Perfect(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot(batch.y, 8).double().requires_grad_()

    objective = built("selfreg")
    objective.perturb = nn.Identity()
    loss = objective(Network(Perfect(), 8, 3).double(), batch)
    assert float(loss.parts["penalty"].detach()) == pytest.approx(0, abs=1e-12)


def test_errors():
    with pytest.raises(InputError, match="feature_weight: is -1"):
        SelfReg(feature_weight=-1)
