import inspect

import pytest
import torch

from unseen.errors import InputError
from unseen.networks.counterfactual import CounterfactualDebias, bias_tokens, debiased_scores, only_tokens

# token 2 goes with class 0, token 3 with class 1, token 4 with both, token 5 is rare, 0 is special
TOKENS = torch.tensor([[0, 2, 2, 4], [0, 2, 4, 4], [0, 3, 3, 4], [0, 3, 4, 4], [0, 4, 5, 3], [0, 4, 4, 2]])
LABELS = torch.tensor([0, 0, 1, 1, 1, 0])


def test_bias_tokens_are_frequent_and_uneven():
    # counts in both classes: 3 and 3 of token 0, 4 and 0 of 2, 0 and 4 of 3, 5 and 4 of 4, 0 and 1 of 5
    def found(**options):
        return bias_tokens(TOKENS, LABELS, classes=2, **options).tolist()

    assert found(variation=0.1) == [2, 3, 4, 5]
    assert found(variation=0.2) == [2, 3, 5]
    assert found(variation=0.2, top=2) == [2, 3]
    assert found(variation=0.0) == [0, 2, 3, 4, 5]  # token 1 never occurs
    assert found(variation=0.0, special=(0, 2, 99)) == [3, 4, 5]


def test_only_the_named_tokens_stay():
    found = only_tokens(TOKENS[:2], torch.tensor([2]), mask=9, special=(0,))
    assert found.tolist() == [[0, 2, 2, 9], [0, 2, 9, 9]]


def test_scores_subtract_and_are_cut():
    first, second = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    torch.testing.assert_close(debiased_scores(first, second, 0), first)
    torch.testing.assert_close(debiased_scores(first, second, 2.0), first - 2 * second)
    zero = torch.tensor([[0.0, -torch.inf]])
    assert torch.isfinite(debiased_scores(zero, zero, 1.0)).all()


class TestDebias:
    """Inputs (true evidence, biased evidence); the counterfactual leaves the biased one."""

    @staticmethod
    def model(x):
        return torch.stack([x.sum(1), -x.sum(1)], 1)

    @staticmethod
    def biased(x):
        return x * torch.tensor([0.0, 1.0])

    def test_at_one_the_bias_is_gone(self):
        x = torch.tensor([[1.0, -3.0], [-1.0, 3.0]])
        labels = torch.tensor([0, 1])
        wrapped = CounterfactualDebias(self.model, self.biased, tau=0.0)
        assert (wrapped.predict(x) != labels).all()
        wrapped.tau = 1.0
        assert torch.equal(wrapped.predict(x), labels)

    def test_tau_is_the_smallest_best_on_validation_data(self):
        x = torch.tensor([[1.0, -1.5], [-1.0, 1.5], [2.0, 2.0]])
        labels = torch.tensor([0, 1, 0])
        wrapped = CounterfactualDebias(self.model, self.biased)
        chosen = wrapped.choose_tau(x, labels)
        assert wrapped.tau == chosen
        smaller = CounterfactualDebias(self.model, self.biased, tau=chosen - 0.1)
        assert torch.equal(wrapped.predict(x), labels) and not torch.equal(smaller.predict(x), labels)
        unbiased = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
        assert wrapped.choose_tau(unbiased, torch.tensor([0, 1])) == 0

    def test_predictions_take_no_labels(self):
        assert list(inspect.signature(CounterfactualDebias.predict).parameters) == ["self", "x"]
        assert list(inspect.signature(CounterfactualDebias.scores).parameters) == ["self", "x"]

    def test_what_cannot_be_is_told(self):
        with pytest.raises(InputError, match="tau: is -1"):
            CounterfactualDebias(self.model, self.biased, tau=-1)
        with pytest.raises(InputError, match="labels: are empty"):
            CounterfactualDebias(self.model, self.biased).choose_tau(torch.zeros(0, 2), torch.zeros(0))
        with pytest.raises(InputError, match="tokens: have shape"):
            bias_tokens(TOKENS, LABELS[:2], classes=2)
