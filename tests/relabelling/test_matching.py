"""The matching network learns to tell classes that it never saw, and its episodes are what they say."""

import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.relabelling.matching import MatchingNetwork, _episodes, train_matching
from unseen.relabelling.questions import Questions
from unseen.training.system import seeded


def data(classes, seed):
    """Points whose first four numbers tell the class, four others nothing."""
    generator = torch.Generator().manual_seed(7)
    centres = 2 * torch.randn(12, 8, generator=generator)
    centres[:, 4:] = 0
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(classes).repeat_interleave(20)
    noise = torch.randn(len(labels), 8, generator=generator)
    noise[:, 4:] *= 5
    return centres[labels] + 0.3 * noise, labels


def network():
    with seeded(0):
        return MatchingNetwork(nn.Linear(8, 8))


def questions(x, labels, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = [(labels == c).nonzero().flatten() for c in labels.unique()]
    picked, truth = _episodes(rows, 300, generator)
    return Questions(x, x, *picked.unbind(1), ["a"] * 300, ["b"] * 300), truth


def test_episodes():
    x, labels = data([0, 1, 2], 0)
    asked, truth = questions(x, labels, 1)
    q, p, n = (labels[rows] for rows in (asked.query, asked.positive, asked.negative))
    assert torch.equal((q == p).float(), truth) and (p != n).all()
    assert 0.3 < ((q != p) & (q != n)).float().mean() / (1 - truth).mean() * 2 < 0.7
    assert (asked.query != asked.positive).all() and (asked.query != asked.negative).all()
    assert 0.4 < truth.mean() < 0.6


def test_it_judges_classes_that_it_never_saw():
    trained = train_matching(network(), *data(list(range(8)), 1), steps=200, learning_rate=1e-2)
    asked, truth = questions(*data([8, 9, 10, 11], 2), 3)
    right = ((trained.verify(asked) > 0.5).float() == truth).float().mean()
    before = ((network().verify(asked) > 0.5).float() == truth).float().mean()
    assert right > 0.9 > before


def test_batches_do_not_matter():
    asked, _ = questions(*data([0, 1, 2], 2), 3)
    one, other = network(), network()
    other.batch_size = 7
    assert torch.allclose(one.verify(asked), other.verify(asked), atol=1e-6)


def test_too_few_classes():
    with pytest.raises(InputError, match="fewer than two classes"):
        train_matching(network(), torch.randn(5, 8), torch.tensor([0, 0, 0, 0, 1]))
