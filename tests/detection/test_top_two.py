import pytest
import torch

from unseen.detection.top_two import Margin, TopTwoRatio
from unseen.errors import InputError
from unseen.networks import Bank


def test_scores_written_out(generator):
    logits = torch.randn(20, 5, generator=generator)
    bank = Bank(torch.zeros(20, 2), logits)
    ordered = logits.softmax(1).sort(1, descending=True).values
    torch.testing.assert_close(Margin().score(bank), ordered[:, 0] - ordered[:, 1])
    torch.testing.assert_close(TopTwoRatio().score(bank), (ordered[:, 0] / ordered[:, 1]).log())


def test_the_ratio_of_a_sure_classifier_is_finite():
    assert TopTwoRatio().score(Bank(torch.zeros(1, 2), torch.tensor([[500.0, -500.0]]))).tolist() == [1000.0]


def test_one_class_has_no_second():
    with pytest.raises(InputError, match="there is one"):
        Margin().score(Bank(torch.zeros(1, 2), torch.zeros(1, 1)))
