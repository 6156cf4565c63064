import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unseen.errors import InputError
from unseen.objectives.diversity import (
    PAIR_LOSSES,
    disagreement_loss,
    mutual_information,
    negative_l1,
    pair_loss,
    pairwise,
    prior_divergence,
)


def random_probabilities(*shape, seed=0):
    return torch.softmax(2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), -1)


def slow_mutual_information(p, q):
    """The double sum of the joint that loops build."""
    examples, classes = p.shape
    total = 0.0
    for a, b in itertools.product(range(classes), repeat=2):
        joint = sum(float(p[u, a] * q[u, b]) for u in range(examples)) / examples
        apart = float(p[:, a].mean() * q[:, b].mean())
        total += joint * math.log(joint / apart) if joint > 0 else 0.0
    return total


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 5), st.integers(1, 20), st.integers(0, 100))
def test_mutual_information_is_the_double_sum(classes, examples, seed):
    p, q = random_probabilities(2, examples, classes, seed=seed).double()
    assert float(mutual_information(p, q)) == pytest.approx(slow_mutual_information(p, q), abs=1e-9)
    assert float(mutual_information(p, q)) >= -1e-9
    torch.testing.assert_close(mutual_information(p, q), mutual_information(q, p))


def test_mutual_information_has_its_known_values():
    labels = torch.arange(40) % 2
    certain = torch.nn.functional.one_hot(labels, 2).float()
    other = torch.nn.functional.one_hot(torch.arange(40) // 2 % 2, 2).float()
    assert float(mutual_information(certain, certain)) == pytest.approx(math.log(2), abs=1e-6)
    assert float(mutual_information(certain, 1 - certain)) == pytest.approx(
        math.log(2), abs=1e-6
    )  # inverse: dependent
    assert float(mutual_information(certain, other)) == pytest.approx(0, abs=1e-6)
    # of a single example it is zero whatever the predictions: means over single examples would say nothing
    assert float(mutual_information(certain[:1], certain[:1])) == 0


def test_log_of_zero_gives_neither_nan_nor_infinite_gradients():
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    p = torch.softmax(logits, -1)
    for loss in PAIR_LOSSES.values():
        value = loss(p.detach(), p)
        assert torch.isfinite(value)
        assert torch.isfinite(torch.autograd.grad(value, logits, retain_graph=True)[0]).all()


def test_a_pair_of_zero_counts_and_every_pair_once():
    same = torch.nn.functional.one_hot(torch.arange(40) % 2, 2).float()
    other = torch.nn.functional.one_hot(torch.arange(40) // 2 % 2, 2).float()
    three = torch.stack([same, same, other])  # MI: log 2, 0, 0
    assert float(pairwise(mutual_information, three)) == pytest.approx(math.log(2) / 3, abs=1e-6)
    assert float(pairwise(mutual_information, torch.stack([same, other]))) == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="A pair needs two"):
        pairwise(mutual_information, same[None])


@pytest.mark.parametrize("loss", [mutual_information, negative_l1])
def test_the_closest_pair_of_each_hypothesis(loss):
    p = random_probabilities(4, 30, 3).requires_grad_()
    slow = torch.stack(
        [torch.stack([loss(p[i], p[j]) for j in range(4) if j != i]).max() for i in range(4)]
    ).mean()
    found = pairwise(loss, p, "closest")
    torch.testing.assert_close(found, slow)
    for fast, obvious in zip(*(torch.autograd.grad(value, p) for value in (found, slow)), strict=True):
        torch.testing.assert_close(fast, obvious)
    assert found > pairwise(loss, p)
    torch.testing.assert_close(pairwise(loss, p[:2], "closest"), pairwise(loss, p[:2]))
    same = torch.nn.functional.one_hot(torch.arange(40) % 2, 2).float()
    other = torch.nn.functional.one_hot(torch.arange(40) // 2 % 2, 2).float()
    three = torch.stack([same, same, other])  # log 2 for the twins, 0 for the third, whose zero counts
    assert float(pairwise(mutual_information, three, "closest")) == pytest.approx(
        2 * math.log(2) / 3, abs=1e-6
    )
    with pytest.raises(InputError, match="reduction 'least'.*'closest'"):
        pairwise(loss, p, "least")


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_pair_losses_take_stacks(name):
    p = random_probabilities(4, 12, 3)
    loss = pair_loss(name)
    expected = torch.stack([loss(p[i], p[3]) for i in range(3)])
    torch.testing.assert_close(loss(p[:3], p[3]), expected)
    pairs = [loss(p[i], p[j]) for i, j in itertools.combinations(range(4), 2)]
    torch.testing.assert_close(pairwise(loss, p), torch.stack(pairs).mean())


def test_disagreement_with_two_classes_is_the_papers_binary_form():
    p, q = random_probabilities(2, 12, 2, seed=3)
    binary = -(p[:, 0] * q[:, 1] + p[:, 1] * q[:, 0] + 1e-7).log().mean()
    for event in ("frozen", "trained"):
        torch.testing.assert_close(disagreement_loss(p, q, event), binary)
    with pytest.raises(InputError, match="event 'both'"):
        disagreement_loss(p, q, "both")


def test_disagreement_with_more_classes_is_about_one_event():
    p, q = random_probabilities(2, 12, 4, seed=3)
    for event, of in (("frozen", p), ("trained", q)):
        slow = []
        for u in range(12):
            c = int(of[u].argmax())
            slow.append(-math.log(float(p[u, c] * (1 - q[u, c]) + q[u, c] * (1 - p[u, c])) + 1e-7))
        assert float(disagreement_loss(p, q, event)) == pytest.approx(sum(slow) / 12, abs=1e-5)
    # the trap: members that agree on all but the event have next to no loss
    first = torch.tensor([[0.34, 0.33, 0.33, 0.0]])
    second = torch.tensor([[0.0, 0.5, 0.5, 0.0]])
    assert float(disagreement_loss(first, second)) == pytest.approx(-math.log(0.34), abs=1e-4)


def test_l1_lies_between_its_bounds():
    certain = torch.nn.functional.one_hot(torch.arange(10) % 2, 2).float()
    assert float(negative_l1(certain, 1 - certain)) == -2 and float(negative_l1(certain, certain)) == 0


def test_divergence_from_the_prior():
    certain = torch.nn.functional.one_hot(torch.arange(10) % 2, 2).float()
    prior = torch.tensor([0.5, 0.5])
    assert float(prior_divergence(certain, prior)) == pytest.approx(0, abs=1e-6)
    constant = torch.tensor([[1.0, 0.0]]).expand(10, 2)
    assert float(prior_divergence(constant, prior)) == pytest.approx(math.log(2), abs=1e-6)
    torch.testing.assert_close(
        prior_divergence(torch.stack([certain, constant]), prior),
        torch.tensor([0.0, math.log(2)]),
        atol=1e-6,
        rtol=0,
    )
    assert torch.isfinite(prior_divergence(constant, torch.tensor([0.0, 1.0])))


def test_an_unknown_diversity_is_refused():
    with pytest.raises(InputError, match="diversity 'kl'.*mi, l1, d-bat"):
        pair_loss("kl")
