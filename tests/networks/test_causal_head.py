import warnings

import pytest
import torch
from torch import nn

from unseen.errors import InputError, UnseenWarning
from unseen.networks.causal_head import CausalHead, class_prototypes


@pytest.fixture
def head(generator):
    torch.manual_seed(0)
    head = CausalHead(6, 3, {"text": 5, "video": 2}, width=4).double()
    prototypes = {
        "text": torch.rand(3, 5, generator=generator).double(),
        "video": torch.rand(3, 2, generator=generator).double(),
    }
    head.set_prototypes(prototypes, torch.tensor([1.0, 2.0, 5.0]))
    return head


def test_prototypes_are_class_means_over_examples_and_time():
    x = {"text": torch.tensor([[0, 1], [1, 1], [2, 0]]), "video": torch.arange(12.0).view(3, 2, 2)}
    found = class_prototypes(x, torch.tensor([0, 0, 2]), classes=3, vocabulary=3)
    assert found["text"].tolist() == [[0.25, 0.75, 0], [0, 0, 0], [0.5, 0, 0.5]]
    assert found["video"].tolist() == [[3, 4], [0, 0], [9, 10]]


def test_it_is_the_log_of_the_mixture(head, generator):
    h = torch.randn(4, 6, generator=generator).double()
    prior = torch.tensor([1.0, 2.0, 5.0]).double() / 8
    expected = torch.zeros(4, 3).double()
    for k in range(3):
        encoded = [head.encoders[n](getattr(head, f"prototypes_{n}")[k]) for n in ("text", "video")]
        joint = torch.cat([h, *(e.expand(4, -1) for e in encoded)], 1)
        expected += prior[k] * head.classifiers[k](joint).softmax(-1)
    found = head(h)
    torch.testing.assert_close(found, expected.log())
    torch.testing.assert_close(found.exp().sum(1), torch.ones(4).double())
    torch.testing.assert_close(found.log_softmax(-1), found)


def test_evaluation_has_mean_prototypes_and_a_uniform_prior(head, generator):
    h = torch.randn(4, 6, generator=generator).double()
    trained = head.train()(h)
    evaluated = head.eval()(h)
    assert not torch.allclose(trained, evaluated)
    same = {name: getattr(head, f"prototypes_{name}").mean(0).expand(3, -1) for name in head.sizes}
    head.set_prototypes(same, torch.ones(3))
    torch.testing.assert_close(head.train()(h), evaluated)


def test_small_probabilities_and_absent_classes_have_finite_gradients(head):
    h = torch.full((2, 6), 1e4).double().requires_grad_()
    head.set_prototypes(
        {n: getattr(head, f"prototypes_{n}") for n in head.sizes}, torch.tensor([1.0, 0.0, 1.0])
    )
    nn.functional.nll_loss(head.train()(h), torch.tensor([0, 1])).backward()
    assert torch.isfinite(h.grad).all()


def test_training_without_prototypes_is_said_once(head):
    bare = CausalHead(6, 3, {"text": 5, "video": 2}, width=4).double()
    h = torch.randn(4, 6).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bare.eval()(h)
        head.train()(h)
    with pytest.warns(UnseenWarning, match="trains without prototypes"):
        bare.train()(h)
    resumed = CausalHead(6, 3, {"text": 5, "video": 2}, width=4).double()
    resumed.load_state_dict(head.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bare(h)
        resumed.train()(h)


@pytest.mark.parametrize(
    ("changes", "prior", "match"),
    [
        ({"text": torch.zeros(2, 5)}, torch.ones(3), r"prototypes of 'text': have shape \(2, 5\)"),
        ({"audio": torch.zeros(3, 5)}, torch.ones(3), "built for"),
        ({}, torch.ones(2), "prior: is"),
        ({}, torch.tensor([1.0, -1, 1]), "Give 3 class frequencies"),
        ({}, torch.zeros(3), "prior: is"),
    ],
)
def test_prototypes_that_do_not_fit_are_told(head, changes, prior, match):
    prototypes = {"text": torch.zeros(3, 5), "video": torch.zeros(3, 2)} | changes
    with pytest.raises(InputError, match=match):
        head.set_prototypes(prototypes, prior)
