import math
from dataclasses import replace

import pytest
import torch
from outlier_data import accuracy, blobs, outliers, trained
from torch import nn

from unseen.errors import InputError
from unseen.objectives.outlier_exposure import EnergyOE, OutlierExposure, energy, uniform_losses


def with_outliers(batch, count=30):
    generator = torch.Generator().manual_seed(1)
    return replace(batch, auxiliary=torch.randn(count, batch.x.shape[1], generator=generator).double())


def test_oe_is_the_published_formula(model, batch):
    batch = with_outliers(batch)
    loss = OutlierExposure()(model, batch)
    known, unknown = model(batch.x), model(batch.auxiliary)
    exposure = -(unknown.mean(1) - torch.logsumexp(unknown, 1)).mean()
    expected = nn.functional.cross_entropy(known, batch.y) + 0.5 * exposure
    torch.testing.assert_close(loss.total, expected)
    uniform = torch.full_like(unknown, 1 / 3)
    torch.testing.assert_close(exposure, nn.functional.cross_entropy(unknown, uniform))
    assert float(uniform_losses(torch.zeros(2, 3))[0]) == pytest.approx(math.log(3))


def test_one_pass_or_two_differ_by_batch_statistics_alone(model, batch):
    batch = with_outliers(batch)
    one, two = OutlierExposure(together=True), OutlierExposure(together=False)
    torch.testing.assert_close(one(model, batch).total, two(model, batch).total)
    model.featurizer.append(nn.BatchNorm1d(8).double())
    assert not torch.isclose(one(model, batch).total, two(model, batch).total)


def test_mining_keeps_the_most_confident_outliers(model, batch):
    batch = with_outliers(batch)
    loss = OutlierExposure(weight=1.0, hardest=0.2)(model, batch)
    logits = model(batch.auxiliary).detach()
    order = sorted(range(30), key=lambda i: -float(logits[i].softmax(0).max()))[:6]
    torch.testing.assert_close(loss.parts["exposure"], uniform_losses(logits[order]).mean())


def test_energy_bounds_are_the_published_formula(model, batch):
    batch = with_outliers(batch)
    loss = EnergyOE(weight=0.3, bound_in=-2.0, bound_out=-1.0)(model, batch)
    total = nn.functional.cross_entropy(model(batch.x), batch.y)
    e_in = [-math.log(sum(math.exp(v) for v in row)) for row in model(batch.x).tolist()]
    e_out = [-math.log(sum(math.exp(v) for v in row)) for row in model(batch.auxiliary).tolist()]
    hinges = sum(max(0.0, e + 2.0) ** 2 for e in e_in) / 22 + sum(max(0.0, -1.0 - e) ** 2 for e in e_out) / 30
    assert float(loss.total.detach()) == pytest.approx(float(total.detach()) + 0.3 * hinges)
    satisfied = EnergyOE(bound_in=50.0, bound_out=60.0)(model, batch)
    assert satisfied.parts["above"].item() == 0 and satisfied.parts["below"].item() > 0


def test_they_learn_to_be_uncertain_of_outliers_and_stay_right_about_examples():
    confident = trained("erm")[2](outliers(200, 9)).softmax(1).amax(1).mean()
    for objective in ("oe", "oe-m"):
        logits = trained(objective)[2]
        assert accuracy(logits) > 0.95
        assert logits(outliers(200, 9)).softmax(1).amax(1).mean() < confident - 0.3, objective
    logits = trained("energy-oe(bound_in=-6.0, bound_out=-2.0)")[2]
    assert accuracy(logits) > 0.95
    apart = energy(logits(outliers(200, 9))).quantile(0.1) - energy(logits(blobs(1).inputs)).quantile(0.9)
    assert apart > 1


def test_errors(model, batch):
    for objective in (OutlierExposure(), EnergyOE()):
        with pytest.raises(InputError, match="without outliers"):
            objective(model, batch)
    with pytest.raises(InputError, match="weight: is -1"):
        OutlierExposure(weight=-1)
    with pytest.raises(InputError, match="hardest: is 0"):
        OutlierExposure(hardest=0)
    with pytest.raises(InputError, match="bound_in"):
        EnergyOE(bound_in=-5.0, bound_out=-6.0)
