from dataclasses import replace

import pytest
import torch
from outlier_data import accuracy, outliers, trained
from torch import nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.objectives.mixing import mix_outliers
from unseen.objectives.mixoe import MixOE, mixoe_loss
from unseen.objectives.outlier_exposure import OutlierExposure
from unseen.shifts import Batch


def with_outliers(batch, count=30):
    generator = torch.Generator().manual_seed(1)
    return replace(batch, auxiliary=torch.randn(count, batch.x.shape[1], generator=generator).double())


def ready(**options):
    objective = MixOE(**options)
    objective.setup(features=8, classes=3, domains=3)
    return objective


@pytest.mark.parametrize("mix", ["mixup", "masking"])
def test_the_loss_is_written_out(model, batch, mix):
    batch = with_outliers(batch)
    objective = ready(mix=mix, weight=5.0)
    prepared = objective.prepare(batch, torch.Generator().manual_seed(3))
    mixed, _, share = mix_outliers(
        batch.x, batch.y, batch.auxiliary, 3, mix=mix, alpha=1.0, generator=torch.Generator().manual_seed(3)
    )
    logs = torch.log_softmax(model(mixed), 1)
    mixture = sum(-share * logs[i, batch.y[i]] - (1 - share) / 3 * logs[i].sum() for i in range(22)) / 22
    expected = nn.functional.cross_entropy(model(batch.x), batch.y) + 5 * mixture
    torch.testing.assert_close(objective(model, prepared).total, expected)
    assert torch.equal(prepared.x, batch.x) and torch.equal(prepared.y, batch.y)


def test_its_ends_are_outlier_exposure_and_cross_entropy(model, batch, monkeypatch):
    batch = with_outliers(batch, count=22)
    exposure = OutlierExposure(weight=5.0)(model, batch).total
    for share, expected in ((0.0, exposure), (1.0, 6 * nn.functional.cross_entropy(model(batch.x), batch.y))):
        monkeypatch.setattr("unseen.objectives.mixing.beta_share", lambda alpha, generator, s=share: s)
        objective = ready()
        prepared = objective.prepare(batch, torch.Generator())
        torch.testing.assert_close(objective(model, prepared).total, expected, rtol=1e-5, atol=1e-6)


def test_cutmix_pastes_the_outlier_into_the_example_not_the_reverse():
    x, others = torch.ones(4, 1, 8, 8), torch.zeros(4, 1, 8, 8)
    batch = Batch(
        x=x, y=torch.arange(4) % 2, domain=torch.zeros(4, dtype=torch.int64), domains=1, auxiliary=others
    )
    objective = MixOE(mix="cutmix", alpha=2.0)
    objective.setup(features=4, classes=2, domains=1)
    for seed in range(20):
        made = objective.prepare(batch, torch.Generator().manual_seed(seed)).auxiliary
        assert made["x"][:, 0, [0, 0, 7, 7], [0, 7, 0, 7]].mean() > 0.5  # corners are the example's
        kept = made["x"].mean((1, 2, 3))
        torch.testing.assert_close(made["y"].amax(1), kept + (1 - kept) / 2)
    network = Network(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), 4, 2)
    assert torch.isfinite(objective(network, objective.prepare(batch, torch.Generator())).total)


def test_two_passes_keep_batch_statistics_apart_and_one_does_not(model, batch):
    batch = with_outliers(batch)
    batch = ready().prepare(batch, torch.Generator().manual_seed(0))
    model.featurizer.append(nn.BatchNorm1d(8).double())
    apart, together = (ready(together=t)(model, batch).parts["risk"] for t in (False, True))
    torch.testing.assert_close(apart, nn.functional.cross_entropy(model(batch.x), batch.y))
    assert not torch.isclose(apart, together)


def test_parts_of_a_batch_see_all_mixtures(model, batch):
    objective = ready()
    prepared = objective.prepare(with_outliers(batch), torch.Generator().manual_seed(0))
    whole, part = objective(model, prepared), objective(model, prepared.of_domain(1))
    assert whole.parts["mixture"] == part.parts["mixture"] and whole.parts["risk"] != part.parts["risk"]


def test_confidence_falls_on_the_way_from_examples_to_outliers():
    far = outliers(200, 9)
    erm, mixoe = trained("erm")[2], trained("mixoe")[2]
    assert accuracy(mixoe) > 0.95
    near = torch.tensor([2.0, 0.0, 0.0, 0.0]) + 0.2 * torch.randn(
        200, 4, generator=torch.Generator().manual_seed(2)
    )
    path = [
        float(mixoe(share * near + (1 - share) * far).softmax(1).amax(1).mean())
        for share in (1.0, 0.75, 0.5, 0.25, 0.0)
    ]
    assert path == sorted(path, reverse=True) and path[0] - path[-1] > 0.4
    assert erm(0.5 * near + 0.5 * far).softmax(1).amax(1).mean() > path[2] + 0.1


def test_loops_of_ones_own_get_the_same_loss(batch):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    batch = with_outliers(batch)
    objective = ready(alpha=0.5, weight=2.0)
    expected = objective(plain, objective.prepare(batch, torch.Generator().manual_seed(7))).total
    options = {"classes": 3, "generator": torch.Generator().manual_seed(7), "alpha": 0.5, "weight": 2.0}
    found = mixoe_loss(plain, batch.x, batch.y, batch.auxiliary, **options)
    torch.testing.assert_close(found, expected)
    found.backward()
    with pytest.raises(InputError, match="outliers: are 0 for 22"):
        mixoe_loss(plain, batch.x, batch.y, batch.auxiliary[:0], **options)


def test_errors(model, batch):
    with pytest.raises(InputError, match="without outliers"):
        ready().prepare(batch, torch.Generator())
    with pytest.raises(InputError, match="outliers: are 5 for 22"):
        ready().prepare(with_outliers(batch, 5), torch.Generator())
    for match, wrong in {
        "alpha": {"alpha": 0},
        "weight": {"weight": -0.1},
        "mix 'paste'": {"mix": "paste"},
    }.items():
        with pytest.raises(InputError, match=match):
            MixOE(**wrong)
