import numpy as np
import pytest
import torch

from unseen.errors import InputError
from unseen.measures.ensemble_outcomes import PATTERNS, ensemble_outcomes


def test_each_cell_is_what_its_letters_say():
    labels = np.zeros(36, dtype=int)
    predictions = [[], [], []]
    for count, pattern in enumerate(PATTERNS, start=1):
        for member, letter in zip(predictions, pattern, strict=True):
            member += [0 if letter == "T" else 1] * count
    outcomes = ensemble_outcomes(*predictions, labels)
    assert list(outcomes.counts) == ["TTT", "TTF", "TFT", "TFF", "FTT", "FTF", "FFT", "FFF"]
    assert list(outcomes.counts.values()) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert outcomes.rate("FFT") == 7 / 36 and outcomes.examples == 36


def test_gain_is_the_ensembles_accuracy_above_its_members_mean(generator):
    labels, a, b, both = torch.randint(3, (4, 500), generator=generator)
    outcomes = ensemble_outcomes(a, b, both, labels)
    accuracy = [float((x == labels).double().mean()) for x in (a, b, both)]
    assert outcomes.gain == pytest.approx(accuracy[2] - (accuracy[0] + accuracy[1]) / 2)


def test_an_average_of_logits_can_be_right_where_both_members_are_wrong():
    a, b = torch.tensor([[3.0, 0.0, 2.0]]), torch.tensor([[0.0, 3.0, 2.0]])
    predictions = [x.argmax(1) for x in (a, b, (a + b) / 2)]
    assert ensemble_outcomes(*predictions, torch.tensor([2])).counts["FFT"] == 1


@pytest.mark.parametrize("wrong", range(4))
def test_lengths_that_differ_are_refused(wrong):
    arrays = [np.zeros(5, dtype=int)] * 4
    arrays[wrong] = np.zeros(4, dtype=int)
    with pytest.raises(InputError, match="entries"):
        ensemble_outcomes(*arrays)


def test_logits_and_nothing_are_refused():
    with pytest.raises(InputError, match="one class for each"):
        ensemble_outcomes(np.zeros((5, 2)), *[np.zeros(5)] * 3)
    with pytest.raises(InputError, match="shape"):
        ensemble_outcomes([], [], [], [])
    with pytest.raises(InputError, match="pattern 'TF'"):
        ensemble_outcomes([0], [0], [0], [0]).rate("TF")
