import math

import pytest
import torch

from unseen.errors import InputError
from unseen.objectives.pseudo_labels import AdaptivePseudoLabels, Ramp


@pytest.fixture
def logits(generator):
    return torch.randn(11, 4, generator=generator) / 10


def hard_rows(targets):
    return ((targets == 0) | (targets == 1)).all(1)


def test_soft_and_hard_are_the_ends(logits):
    soft = AdaptivePseudoLabels(schedule=0.0)(logits)
    torch.testing.assert_close(soft, (logits / 0.05).softmax(1))
    hard = AdaptivePseudoLabels(schedule=1.0)(logits)
    assert torch.equal(hard, torch.nn.functional.one_hot(logits.argmax(1), 4).float())


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.3, 0.5, 1.0])
def test_the_floor_of_the_share_is_hard_and_it_is_the_surest(logits, progress):
    targets = AdaptivePseudoLabels()(logits, progress)
    count = math.floor(11 * min(1, progress / 0.5))
    first, second = (logits / 0.05).softmax(1).topk(2, 1).values.T
    surest = sorted(range(11), key=lambda i: -float(first[i] / second[i]))[:count]
    assert hard_rows(targets).nonzero().flatten().tolist() == sorted(surest)
    torch.testing.assert_close(targets.sum(1), torch.ones(11))


def test_confidences_differ_as_their_names_say():
    probabilities = torch.tensor([[0.5, 0.02, 0.16, 0.16, 0.16], [0.56, 0.44, 0.0, 0.0, 0.0]])
    values = {
        name: AdaptivePseudoLabels(confidence=name).certainty(probabilities)
        for name in ("ratio", "margin", "max")
    }
    torch.testing.assert_close(values["ratio"], torch.tensor([0.5 / 0.16, 0.56 / 0.44]))
    torch.testing.assert_close(values["margin"], torch.tensor([0.34, 0.12]))
    torch.testing.assert_close(values["max"], torch.tensor([0.5, 0.56]))


def test_a_sure_teacher_has_a_finite_ratio():
    targets = AdaptivePseudoLabels()(torch.tensor([[100.0, -100.0], [0.1, 0.0]]), 0.25)
    assert torch.isfinite(targets).all() and hard_rows(targets).tolist() == [True, False]


def test_teachers_are_neither_changed_nor_trained(logits):
    before = logits.clone()
    assert not AdaptivePseudoLabels()(logits.requires_grad_(), 0.4).requires_grad
    assert torch.equal(logits, before)


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan")])
def test_progress_outside_of_the_training(logits, progress):
    with pytest.raises(InputError, match="progress: is"):
        AdaptivePseudoLabels()(logits, progress)


def test_bad_options(logits):
    with pytest.raises(InputError, match="confidence: is 'ration'. Did you mean 'ratio'"):
        AdaptivePseudoLabels(confidence="ration")
    with pytest.raises(InputError, match="temperature: is 0"):
        AdaptivePseudoLabels(temperature=0)
    with pytest.raises(InputError, match="schedule: gives the share 2"):
        AdaptivePseudoLabels(schedule=lambda progress: 2.0)(logits)
    with pytest.raises(InputError, match="until: is 0"):
        Ramp(0)
