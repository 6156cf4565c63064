import math

import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.objectives.protogcd import UNLABELLED, ProtoGCDLoss, marginal_entropy, simgcd_loss
from unseen.objectives.pseudo_labels import AdaptivePseudoLabels


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(*shape, generator=generator).double(), dim=-1)


@pytest.fixture
def parts():
    features, prototypes, projections = unit(6, 2, 5), unit(4, 5, seed=1), unit(6, 2, 3, seed=2)
    y = torch.tensor([0, UNLABELLED, 1, UNLABELLED, UNLABELLED, 0])
    return (features @ prototypes.T).requires_grad_(), y, prototypes.requires_grad_(), projections


def slow_contrast(z, labels, temperature):
    points, names = [v for pair in z for v in pair], [n for n in labels for _ in range(2)]
    total = 0.0
    for a in range(len(points)):
        others = [b for b in range(len(points)) if b != a]
        norm = sum(torch.exp(points[a] @ points[b] / temperature) for b in others)
        positives = [b for b in others if names[a] == names[b]]
        total = total - sum(points[a] @ points[b] / temperature - norm.log() for b in positives) / len(
            positives
        )
    return total / len(points)


def slow_loss(cosines, y, prototypes, projections, hard, entropy=2.0, separation=0.1, w=0.35):
    """Every term written out; hard pseudo-labels for all examples or for none."""
    labels, views = 0.0, 2
    known = [i for i in range(len(y)) if y[i] >= 0]
    for i in known:
        for v in range(views):
            labels = labels - (cosines[i, v] / 0.1).log_softmax(0)[y[i]] / (2 * len(known))
    pseudo = 0.0
    for i in range(len(y)):
        for v in range(views):
            teacher = (cosines[i, 1 - v].detach() / 0.05).softmax(0)
            if hard:
                teacher = nn.functional.one_hot(teacher.argmax(), len(teacher)).double()
            pseudo = pseudo - (teacher * (cosines[i, v] / 0.1).log_softmax(0)).sum() / (2 * len(y))
    mean = (cosines / 0.1).softmax(-1).mean((0, 1))
    evenness = math.log(len(mean)) + torch.special.xlogy(mean, mean).sum()
    k = len(prototypes)
    apart = (
        sum(
            sum(torch.exp(prototypes[a] @ prototypes[b] / 0.1) for b in range(k) if b != a).div(k - 1).log()
            for a in range(k)
        )
        / k
    )
    views_apart = slow_contrast(projections, list(range(len(y))), 1.0)
    told = slow_contrast([projections[i] for i in known], [int(y[i]) for i in known], 0.07)
    alone = pseudo + entropy * evenness + separation * apart + views_apart
    return (1 - w) * alone + w * (labels + told)


@pytest.mark.parametrize("hard", [False, True])
def test_all_terms_written_out(parts, hard):
    cosines, _, prototypes, _ = parts
    found = ProtoGCDLoss(AdaptivePseudoLabels(schedule=float(hard)))(*parts, progress=0.3).total
    expected = slow_loss(*parts, hard=hard)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(loss, (cosines, prototypes)) for loss in (found, expected)]
    torch.testing.assert_close(*slopes)


def test_the_published_schedule_lies_between_soft_and_hard(parts):
    soft, half, hard = (
        float(ProtoGCDLoss()(*parts, progress=p).parts["pseudo"].detach()) for p in (0.0, 0.25, 0.5)
    )
    expected = [
        float(ProtoGCDLoss(AdaptivePseudoLabels(schedule=s))(*parts, progress=0.0).parts["pseudo"].detach())
        for s in (0.0, 0.5, 1.0)
    ]
    assert [soft, half, hard] == expected and len({soft, half, hard}) == 3


def test_marginal_entropy_is_between_zero_and_log_k_and_does_not_underflow():
    assert float(marginal_entropy(torch.eye(4) * 1000)) == pytest.approx(math.log(4))
    one = torch.zeros(5, 4)
    one[:, 2] = 1000
    assert float(marginal_entropy(one)) == 0
    probabilities = torch.randn(9, 4).softmax(1).mean(0)
    logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    probabilities = logits.softmax(1).mean(0)
    torch.testing.assert_close(marginal_entropy(logits), -(probabilities * probabilities.log()).sum())


def test_labelled_examples_are_taught_by_pseudo_labels_too(parts):
    cosines, y, prototypes, projections = parts
    none = torch.full_like(y, UNLABELLED)
    told, untold = (
        ProtoGCDLoss()(cosines, labels, prototypes, projections, 0.2).parts for labels in (y, none)
    )
    torch.testing.assert_close(told["pseudo"], untold["pseudo"])
    assert untold["labels"] == 0 and untold["contrast"] == 0 and told["labels"] > 0


def test_simgcd_is_soft_and_without_separation(parts):
    loss = simgcd_loss(entropy=1.0)
    assert loss.separation == 0 and loss.entropy == 1 and loss.targets.hard_share(1.0) == 0
    assert ProtoGCDLoss().targets.hard_share(1.0) == 1


def test_bad_input(parts):
    cosines, y, prototypes, projections = parts
    with pytest.raises(InputError, match=r"Give \(B, 2, 3\)"):
        ProtoGCDLoss()(cosines, y, prototypes[:3], projections, 0.0)
    with pytest.raises(InputError, match="progress: is 1.5"):
        ProtoGCDLoss()(*parts, progress=1.5)
    with pytest.raises(InputError, match="prototypes: are not unit vectors"):
        ProtoGCDLoss()(cosines, y, 2 * prototypes, projections, 0.0)
    for options in ({"entropy": -1.0}, {"separation": -1.0}, {"supervised": 2.0}, {"temperature": 0.0}):
        with pytest.raises(InputError, match=f"{next(iter(options))}: is"):
            ProtoGCDLoss(**options)
