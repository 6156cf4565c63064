import functools

import pytest
import torch
from torch import nn

from unseen.discovery import (
    AdaptivePseudoLabels,
    GeneralizedCategoryDiscovery,
    ProtoGCDLoss,
    clustering_accuracy,
    simgcd_loss,
)
from unseen.errors import InputError, TrainingDiverged, UnseenWarning
from unseen.objectives.views import two_views

SMALL = {"hidden": 16, "projection": 8, "epochs": 4, "batch_size": 32, "learning_rate": 0.1}
SMALL["views"] = functools.partial(two_views, corruption=0.1)


pytestmark = pytest.mark.filterwarnings("ignore:prototypes .* have no unlabelled example")


@pytest.fixture(scope="module")
def data():
    """Four classes of vectors; half of the examples of the first two have labels."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(160) % 4
    x = 3 * torch.eye(4, 8)[y] + 0.5 * torch.randn(160, 8, generator=generator)
    return x, y, (y < 2) & (torch.arange(160) < 80)


@pytest.fixture(scope="module")
def fitted(data):
    x, y, known = data
    return GeneralizedCategoryDiscovery(None, 2, 2, **{**SMALL, "epochs": 40}).fit(
        (x[known], y[known]), x[~known]
    )


def test_old_classes_keep_their_number_and_new_ones_are_found(fitted, data):
    x, y, known = data
    answers, hidden = fitted.predict(x[~known]), y[~known]
    assert (answers[hidden < 2] == hidden[hidden < 2]).float().mean() > 0.9
    found = clustering_accuracy(hidden, answers, hidden < 2)
    assert found.all > 0.9 and found.new > 0.9


def test_what_is_neither_old_nor_in_the_pool_is_less_familiar(fitted, data):
    x, _, known = data
    others = torch.ones(4, 8)  # between all classes
    others[:, 4:] = 0
    for detector in ("msp", "max-logit", "energy", "margin", "top-two-ratio"):
        assert fitted.score(x[~known], detector).median() > fitted.score(others, detector).median()


def test_the_seed_decides_and_global_state_does_not(data):
    x, y, known = data
    runs = []
    for state in (8, 9):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        discovery = GeneralizedCategoryDiscovery(None, 2, 2, **SMALL)
        runs.append(discovery.fit((x[known], y[known]), x[~known]).model.state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name]), name


def test_the_number_of_new_classes_may_be_estimated(data):
    x, y, known = data
    found = GeneralizedCategoryDiscovery(None, 2, **{**SMALL, "epochs": 1}).fit(
        (x[known], y[known]), x[~known]
    )
    assert found.n_classes == found.estimate.total == 4
    assert len(found.model.prototypes.vectors) == 4


def test_only_parameters_that_ask_for_it_are_trained(data):
    x, y, known = data
    encoder = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    encoder[0].requires_grad_(False)
    before = [layer.weight.clone() for layer in encoder]
    GeneralizedCategoryDiscovery(encoder, 2, 2, simgcd_loss(), **{**SMALL, "epochs": 1}).fit(
        (x[known], y[known]), x[~known]
    )
    assert torch.equal(encoder[0].weight, before[0]) and not torch.equal(encoder[1].weight, before[1])


def test_without_the_entropy_term_new_classes_are_neglected(data):
    x, y, known = data
    loss = ProtoGCDLoss(AdaptivePseudoLabels(schedule=1.0), entropy=0.0, separation=0.0)
    with pytest.warns(UnseenWarning, match="have no unlabelled example"):
        found = GeneralizedCategoryDiscovery(None, 2, 12, loss, **SMALL).fit((x[known], y[known]), x[~known])
    assert len(found.predict(x).unique()) < 14


def test_progress_is_told(data):
    x, y, known = data
    seen = []
    GeneralizedCategoryDiscovery(
        None, 2, 2, **{**SMALL, "epochs": 2}, progress=lambda done, epochs: seen.append((done, epochs))
    ).fit((x[known], y[known]), x[~known])
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": lambda y: y + 1}, "labels: go from 1 to 2. Old classes are 0 to 1"),
        ({"y": lambda y: y.float()}, "labels: are torch.float32"),
        ({"y": lambda y: 0 * y}, r"labels: name no example of old class\(es\) \[1\]"),
        ({"pool": lambda x: x / 0}, "features: has NaN or infinite values"),
        ({"y": lambda y: y[:-1]}, r"labels: have shape \(39,\)"),
        ({"pool": lambda x: x[:0]}, "unlabeled: has no examples"),
        ({"n_new": 0}, "n_new: is 0"),
        ({"n_new": "some"}, "n_new: is 'some'"),
        ({"n_old": 0}, "n_old: is 0"),
        ({"n_new": 500}, "examples: are 160, for 502 prototypes"),
        ({"epochs": 0}, "epochs: is 0"),
    ],
)
def test_bad_input(data, change, message):
    x, y, known = data
    settings = {**SMALL, **{k: v for k, v in change.items() if k in SMALL}}
    labels, pool = change.get("y", lambda y: y)(y[known]), change.get("pool", lambda x: x)(x[~known])
    with pytest.raises(InputError, match=message):
        GeneralizedCategoryDiscovery(None, change.get("n_old", 2), change.get("n_new", 2), **settings).fit(
            (x[known], labels), pool
        )


def test_training_that_breaks_down_is_told(data):
    x, y, known = data
    loss = ProtoGCDLoss(separation=float("inf"))
    with pytest.raises(TrainingDiverged, match="epoch 1: lower learning_rate=0.1"):
        GeneralizedCategoryDiscovery(None, 2, 2, loss, **SMALL).fit((x[known], y[known]), x[~known])


def test_no_prediction_before_fit(data):
    with pytest.raises(InputError, match="is not fitted"):
        GeneralizedCategoryDiscovery(None, 2, 2).predict(data[0])
