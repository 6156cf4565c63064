"""Distances of outputs and penalties on them, against definitions written out."""

import copy

import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.objectives.continuous_inputs import input_noise
from unseen.objectives.trust_region import DIVERGENCES, TrustRegion
from unseen.registry import updates
from unseen.testing import check_objective
from unseen.training.system import TrainingSystem


@pytest.mark.parametrize("spec", ["trpo", "pretrained-kl", "mesa(decay=0.5)", "r3f", "r3f(divergence='mmd')"])
def test_the_contract_holds(spec):
    assert len(check_objective(spec).passed) >= 3


def test_divergences(generator):
    there, now = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    share = torch.rand(6, generator=generator, dtype=torch.float64)
    p, q = there.softmax(1), now.softmax(1)

    def kl(a, b):
        return sum(float(share[i] * a[i, c] * (a[i, c] / b[i, c]).log()) for i in range(6) for c in range(4))

    found = {name: float(measure(there, now, share)) for name, measure in DIVERGENCES.items()}
    assert found["kl"] == pytest.approx(kl(p, q))
    assert found["reverse_kl"] == pytest.approx(kl(q, p))
    assert found["sym_kl"] == pytest.approx(kl(p, q) + kl(q, p))
    assert found["l2"] == pytest.approx(float(share @ (p - q).square().sum(1)))
    for measure in DIVERGENCES.values():
        assert measure(there, there, share).abs() < 1e-12 < measure(there, now, share)


def outputs(model, x):
    with torch.no_grad():
        return model(x).log_softmax(1)


@pytest.mark.parametrize("spec", ["trpo", "pretrained-kl", "mesa(decay=0.6)"])
def test_the_reference_follows_the_updates(spec, model, batch, built):
    objective, past, average = built(spec, penalty_weight=3.0), [], None
    for step in range(4):
        batch.step = step
        state = copy.deepcopy(model)
        loss = objective(model, batch)
        if average is None:
            average = copy.deepcopy(model)
        reference = {"trpo": past[-1] if past else state, "pretrained-kl": past[0] if past else state}.get(
            spec, average
        )
        there, now = outputs(reference, batch.x), outputs(model, batch.x)
        expected = (there.exp() * (there - now)).sum(1).mean()
        torch.testing.assert_close(loss.parts["divergence"].detach(), expected)
        torch.testing.assert_close(loss.total.detach(), (loss.parts["risk"] + 3 * expected).detach())
        assert (expected > 1e-6) == (step > 0)
        again = objective(model, batch.again()).total
        torch.testing.assert_close(again, loss.total)
        loss.total.backward()
        with torch.no_grad():
            for p, a, s in zip(model.parameters(), average.parameters(), state.parameters(), strict=True):
                a.lerp_(s, 0.4)
                p.sub_(0.5 * p.grad)
        past.append(state)


def test_a_rule_that_evaluates_a_batch_again_meets_the_same_reference(model, batch, built):
    """Second passes are at moved parameters: these must not become the reference."""
    objective = built("trpo")
    rule = updates.build("sam(rho=0.5)")
    system = TrainingSystem(model, objective)
    rule.bind(system, torch.optim.SGD(model.parameters(), lr=0.1))
    starts = []
    for step in range(3):
        batch.step = step
        starts.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        rule.step(system, batch)
    assert torch.equal(objective.region.reference, starts[1])


def test_r3f_is_symmetric_and_its_gradient_passes_through_the_noisy_inputs(
    model, batch, built, same_with_gradients
):
    loss = built("r3f", penalty_weight=2.0, sigma=0.4, noise_seed=3)(model, batch)
    with input_noise(model, batch, 0.4, 3) as noised:
        p, q = model(batch.x).log_softmax(1), model(noised.x).log_softmax(1)
    expected = ((p.exp() - q.exp()) * (p - q)).sum(1).mean()
    same_with_gradients(loss.parts["divergence"], expected)


def test_no_gradient_reaches_a_reference_made_of_parameters(model, batch):
    region = TrustRegion()
    region.observe(model)
    with torch.no_grad():
        model.head.weight.add_(1.0)
    region.observe(model)
    there = region._reference_logits(model, batch)
    assert not there.requires_grad and region(model, batch).requires_grad


def test_a_state_is_taken_over_with_its_size(model, batch):
    region, other = TrustRegion("ema", decay=0.7), TrustRegion("ema", decay=0.7)
    region.observe(model)
    other.load_state_dict(region.state_dict())
    assert other.observed and torch.equal(other.reference, region.reference)


def test_outputs_are_compared_in_evaluation_mode(batch):
    from unseen.networks import Network

    model = Network(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5)), 8, 3).double()
    region = TrustRegion()
    region.observe(model)
    assert region(model, batch) == 0 and model.featurizer[1].training


def test_masked_tokens_do_not_count(batch, generator):
    logits = torch.randn(2, 5, 4, generator=generator)

    class Table(nn.Module):
        def forward(self, x):
            return logits + x["input_ids"].unsqueeze(2)

    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    batch = batch.take(torch.arange(2))
    batch.x = {"input_ids": torch.zeros(2, 5), "attention_mask": mask}
    shift = torch.randn(2, 5, 4, generator=generator)
    region = TrustRegion(lambda network, batch: logits + shift)
    p, q = (logits + shift).log_softmax(2), logits.log_softmax(2)
    each = (p.exp() * (p - q)).sum(2)
    torch.testing.assert_close(region(Table(), batch), each[mask.bool()].mean())


def test_an_own_reference_must_have_the_same_classes(model, batch):
    with pytest.raises(InputError, match="outputs of shape"):
        TrustRegion(lambda network, batch: torch.zeros(len(batch), 7))(model, batch)


@pytest.mark.parametrize(("options", "sentence"), [
    ({"reference": "initial"}, "Choose one of previous"),
    ({"divergence": "kll"}, "is not known"),
    ({"decay": 1.5}, "a share from 0 to 1"),
    ({"sigma": -1.0}, "a scale from 0"),
])  # fmt: skip
def test_what_cannot_be_is_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        TrustRegion(**options)
