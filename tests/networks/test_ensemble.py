import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks.ensemble import ensemble


def test_probabilities_are_averaged_and_logits_where_that_is_asked_for():
    torch.manual_seed(0)
    models = [nn.Linear(3, 4) for _ in range(5)]
    x = torch.randn(7, 3)
    found = torch.softmax(ensemble(models)(x), -1)
    assert torch.allclose(found, sum(torch.softmax(m(x), -1) for m in models) / 5, atol=1e-6)
    of_logits = torch.softmax(sum(m(x) for m in models) / 5, -1)
    assert not torch.allclose(found, of_logits, atol=1e-3)
    assert torch.allclose(torch.softmax(ensemble(models, "logits")(x), -1), of_logits, atol=1e-6)


def test_an_ensemble_of_one_is_that_network():
    model, x = nn.Linear(3, 4), torch.randn(7, 3)
    assert torch.allclose(ensemble([model])(x), torch.log_softmax(model(x), -1), atol=1e-6)


def test_no_models():
    with pytest.raises(InputError, match="are none"):
        ensemble([])
    with pytest.raises(InputError, match="mean 'odds': is not known"):
        ensemble([nn.Linear(2, 2)], "odds")
