import math

import pytest
import torch

from unseen.adaptation.eata import ETA
from unseen.adaptation.reliable_entropy import mean_over, moving_average


def test_the_mean_is_over_the_chosen_alone():
    values = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    mean = mean_over(values, torch.tensor([True, False, True]))
    assert mean == 3.5
    mean.backward()
    assert values.grad.tolist() == [0.5, 0.0, 0.5]
    assert mean_over(values, torch.zeros(3, dtype=torch.bool)) is None


def test_a_moving_average_begins_with_its_first_value():
    assert moving_average(None, 4.0) == 4.0
    assert moving_average(4.0, 14.0) == pytest.approx(5.0)
    found = moving_average(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(found, torch.tensor([0.9, 0.1]))


@pytest.mark.parametrize("classes", [2, 10])
def test_the_threshold_is_a_share_of_the_largest_entropy(classes, small_network):
    method = ETA(small_network(classes=classes), entropy_share=0.3)
    assert method.threshold(torch.zeros(1, classes)) == pytest.approx(0.3 * math.log(classes))
