import numpy as np
import pytest
import torch
from torch import nn

from unseen.arena import Candidate
from unseen.arena.probe import (
    Standardise,
    Tuned,
    batches,
    best_trial,
    cosine,
    fine_tune,
    layer_groups,
    train_heads,
)


def test_standardised_features_have_mean_0_and_deviation_1_whatever_their_scale():
    features = torch.randn(200, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + 7
    for scale in (1e-6, 1.0, 1e6):
        found = Standardise.fit(scale * features)(scale * features)
        np.testing.assert_allclose(found.mean(0), 0, atol=1e-3)
        np.testing.assert_allclose(found.std(0, correction=0), 1, atol=2e-3)


def test_features_that_never_fire_in_training_are_not_blown_up():
    features = torch.randn(100, 3)
    features[:, 2] = 0
    assert Standardise.fit(features)(torch.ones(1, 3))[0, 2] < 200
    assert torch.isfinite(Standardise.fit(torch.ones(5, 2))(torch.ones(1, 2))).all()


def test_batches_go_through_all_rows_before_any_comes_again():
    rows = torch.cat(list(batches(12, 4, 6, torch.Generator().manual_seed(0))))
    assert sorted(rows[:12].tolist()) == sorted(rows[12:].tolist()) == list(range(12))
    assert [len(part) for part in batches(5, 8, 3, torch.Generator().manual_seed(0))] == [5, 5, 5]


def test_heads_of_all_rates_are_what_torch_trains_one_by_one(toy_shift):
    shift = toy_shift(60)
    rates = torch.tensor([0.01, 0.3])
    weight, bias = train_heads(
        shift.inputs, shift.labels, 3, rates, steps=20, batch=16, generator=torch.Generator().manual_seed(3)
    )
    for trial, rate in enumerate(rates.tolist()):
        head = nn.Linear(6, 3)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        optimizer = torch.optim.SGD(head.parameters(), lr=rate, momentum=0.9)
        # torch's momentum buffer takes the rate of the step that uses it, as here
        for step, rows in enumerate(batches(60, 16, 20, torch.Generator().manual_seed(3))):
            optimizer.param_groups[0]["lr"] = rate * cosine(step, 20)
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(shift.inputs[rows]), shift.labels[rows]).backward()
            optimizer.step()
        torch.testing.assert_close(weight[trial], head.weight.detach().T, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(bias[trial, 0], head.bias.detach(), atol=1e-5, rtol=1e-4)


def test_the_best_trial_is_the_most_accurate_then_the_surest_and_never_a_diverged_one():
    labels = torch.tensor([0, 1])
    unsure = torch.tensor([[0.1, 0.0], [0.0, 0.1]])
    wrong = -unsure
    nan = torch.full((2, 2), torch.nan)
    assert best_trial(torch.stack([nan, wrong, unsure, 10 * unsure]), labels) == 3
    assert best_trial(torch.stack([nan, wrong]), labels) == 1


def test_fine_tuning_learns_what_a_frozen_encoder_does_not_tell_and_leaves_it_as_it_was(toy, toy_shift):
    shift = toy_shift(120)
    entrant = toy("told little", kept=1)  # one column: cannot tell three classes apart
    before = entrant.encoder.layer.weight.clone()
    rows = torch.arange(120)
    tuned = fine_tune(
        entrant, shift.inputs, rows, shift.labels, 3, 0.05, steps=80, batch=32, layer_decay=1.0, seed=0
    )
    right = (tuned.logits(shift.inputs, rows).argmax(1) == shift.labels).float().mean()
    assert right > 0.75
    torch.testing.assert_close(entrant.encoder.layer.weight, before)
    assert not torch.equal(tuned.encoder.layer.weight, before)
    again = fine_tune(
        entrant, shift.inputs, rows, shift.labels, 3, 0.05, steps=80, batch=32, layer_decay=1.0, seed=0
    )
    torch.testing.assert_close(again.head.weight, tuned.head.weight)


def test_blocks_far_from_the_head_learn_slower():
    encoder = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    entrant = Candidate("deep", encoder, reads="array")
    tuned = Tuned(entrant, 6, 3, Standardise(torch.zeros(6), torch.ones(6)))
    assert [group["lr"] for group in layer_groups(tuned.encoder, tuned.head, 1.0, 0.5)] == pytest.approx(
        [0.25, 0.5, 1.0]
    )


def test_encoders_without_parameters_can_be_tuned(toy_shift):
    shift = toy_shift(60)

    class Same(nn.Module):
        def forward(self, x):
            return x

    entrant = Candidate("same", Same(), reads="array", keep_features=False)
    tuned = fine_tune(
        entrant,
        shift.inputs,
        torch.arange(60),
        shift.labels,
        3,
        0.1,
        steps=50,
        batch=32,
        layer_decay=0.75,
        seed=0,
    )
    assert (tuned.logits(shift.inputs, torch.arange(60)).argmax(1) == shift.labels).float().mean() > 0.9
