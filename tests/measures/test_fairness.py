import numpy as np
import pytest
import torch

from unseen.errors import InputError
from unseen.measures.fairness import (
    counterfactual_effect,
    demographic_parity_diff,
    effects,
    equal_opportunity_diff,
    equalized_odds_diff,
    total_effect,
)


def test_effects_by_hand():
    one, zero = [0.9, 0.2, 0.5, 0.5], [0.5, 0.6, 0.5, 0.1]
    assert total_effect(one, zero) == pytest.approx(0.1)
    assert counterfactual_effect(one, zero) == pytest.approx(0.3)
    assert counterfactual_effect(one, zero, ["a", "a", "b", "b"]) == pytest.approx((0 + 0.2) / 2)
    assert counterfactual_effect(one, zero, np.zeros(4)) == pytest.approx(abs(total_effect(one, zero)))


def test_grouped_effects_lie_between_the_total_and_the_individual_one(generator):
    one, zero = torch.rand(2, 500, generator=generator)
    evidence = torch.randint(7, (500,), generator=generator)
    grouped = counterfactual_effect(one, zero, evidence)
    assert abs(total_effect(one, zero)) <= grouped <= counterfactual_effect(one, zero)


def test_any_predictor_and_any_generator(generator):
    x = torch.randn(200, 2, generator=generator)

    def generate(x, value):
        return torch.stack([x[:, 0] + value, x[:, 1]], 1)

    found = effects(lambda x: torch.sigmoid(x[:, 0]), generate, x)
    expected = float((torch.sigmoid(x[:, 0] + 1) - torch.sigmoid(x[:, 0])).mean())
    assert found == pytest.approx({"total effect": expected, "counterfactual effect": expected}, abs=1e-6)
    # a predictor that uses only what the attribute leaves alone has no effect
    assert effects(lambda x: torch.sigmoid(x[:, 1]), generate, x)["counterfactual effect"] == 0


def test_group_differences_by_hand():
    predictions, labels = [1, 1, 0, 1, 0, 0], [1, 0, 1, 1, 0, 1]
    group = ["f", "f", "f", "m", "m", "m"]
    assert demographic_parity_diff(predictions, group) == pytest.approx(2 / 3 - 1 / 3)
    assert equal_opportunity_diff(predictions, labels, group) == pytest.approx(0)
    assert equalized_odds_diff(predictions, labels, group) == pytest.approx(1)
    assert demographic_parity_diff(labels, [0, 1, 2, 2, 2, 2]) == pytest.approx(1)


def test_group_differences_do_not_depend_on_order_or_names(generator):
    predictions, labels = torch.randint(2, (2, 300), generator=generator)
    group = torch.randint(3, (300,), generator=generator)
    order = torch.randperm(300, generator=generator)
    names = np.array(["x", "a", "q"])[group.numpy()]
    for measure in (equal_opportunity_diff, equalized_odds_diff):
        found = measure(predictions, labels, group)
        assert measure(predictions[order], labels[order], group[order]) == pytest.approx(found)
        assert measure(predictions, labels, names) == pytest.approx(found)


def test_errors():
    with pytest.raises(InputError, match="single value"):
        demographic_parity_diff([0, 1], [1, 1])
    with pytest.raises(InputError, match="no example of label 1"):
        equal_opportunity_diff([0, 1, 1], [0, 1, 1], [0, 1, 1])
    with pytest.raises(InputError, match="booleans or shares"):
        total_effect([2.0], [0.5])
    with pytest.raises(InputError, match="under_zero"):
        total_effect([0.5, 0.5], [0.5])
    with pytest.raises(InputError, match="group"):
        demographic_parity_diff([0, 1], [1])
