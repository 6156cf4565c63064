"""Therapy: what is learnt, what stays, the rate, and errors."""

import copy

import pytest
import torch
from torch import nn

from unseen.errors import InputError, TrainingDiverged
from unseen.networks import Network
from unseen.relabelling.labeler import RelabelResult
from unseen.relabelling.therapy import therapy_finetune, therapy_report
from unseen.training.system import seeded

X = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def network():
    with seeded(1):
        return Network(
            nn.Sequential(nn.Linear(5, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5)), 32, 2
        ).eval()


def result(label=Y, accepted=None, predicted=None):
    accepted = torch.zeros(60, dtype=torch.bool) if accepted is None else accepted
    predicted = network()(X).argmax(1) if predicted is None else predicted
    return RelabelResult(label, torch.ones(60), accepted, label[:, None], torch.ones(60).long(), predicted)


def accuracy(model, y=Y):
    return therapy_report(model, (X, y), (X[:10], y[:10]))["used"]


def test_it_learns_the_corrected_labels_and_leaves_the_model_and_head_alone():
    model = network()
    before = copy.deepcopy(model.state_dict())
    tuned = therapy_finetune(model, X, result(), lr=3e-2, epochs=40)
    assert accuracy(tuned) > 0.95 > accuracy(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(tuned.head.weight, before["head.weight"])
    assert torch.equal(tuned.featurizer[1].running_mean, before["featurizer.1.running_mean"])


def test_accepted_images_are_learnt_with_the_first_models_label():
    accepted = torch.arange(60) < 30
    tuned = therapy_finetune(network(), X, result(1 - Y, accepted, predicted=Y), lr=3e-2, epochs=80)
    answers = tuned(X).argmax(1)
    assert (answers[:30] == Y[:30]).float().mean() > 0.8 and (answers[30:] != Y[30:]).float().mean() > 0.8


def test_without_confident_images_they_do_not_matter():
    accepted = torch.arange(60) < 30
    changed = X.clone()
    changed[:30] = 100.0
    one, other = (
        therapy_finetune(network(), x, result(Y, accepted), keep_confident=False, lr=1e-2)
        for x in (X, changed)
    )
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


def test_the_papers_rate_moves_little_and_the_seed_decides():
    little, much = (therapy_finetune(network(), X, result(), lr=lr) for lr in (5e-7, 1e-2))
    start = network().featurizer[0].weight
    assert 0 < (little.featurizer[0].weight - start).abs().max() < 1e-5
    assert (much.featurizer[0].weight - start).abs().max() > 1e-2
    again, other = (therapy_finetune(network(), X, result(), lr=1e-2, seed=seed) for seed in (0, 1))
    assert torch.equal(again.featurizer[0].weight, much.featurizer[0].weight)
    assert not torch.equal(other.featurizer[0].weight, much.featurizer[0].weight)


def test_a_frozen_model_is_trained_all_the_same():
    frozen = network().requires_grad_(False)
    assert accuracy(therapy_finetune(frozen, X, result(), lr=3e-2, epochs=40)) > 0.95


def test_errors():
    with pytest.raises(InputError, match="60 images"):
        therapy_finetune(network(), X[:5], result())
    with pytest.raises(InputError, match="accept every label"):
        therapy_finetune(
            network(), X, result(accepted=torch.ones(60, dtype=torch.bool)), keep_confident=False
        )
    for options in ({"lr": 0.0}, {"epochs": 0}, {"batch_size": 0}):
        with pytest.raises(InputError, match="lr, epochs, batch_size"):
            therapy_finetune(network(), X, result(), **options)
    with pytest.raises(TrainingDiverged):
        therapy_finetune(network(), X * float("inf"), result(), lr=1e-2)
