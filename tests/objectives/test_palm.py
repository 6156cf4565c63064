import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks.prototypes import PrototypeBank
from unseen.objectives.palm import PALMLoss
from unseen.registry import objectives

CLASSES, PER_CLASS, DIM = 3, 4, 6


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(*shape, generator=generator).double(), dim=-1)


def bank(per_class=PER_CLASS, momentum=0.8):
    generator = torch.Generator().manual_seed(1)
    return PrototypeBank(CLASSES, per_class, DIM, momentum, generator=generator).double()


def slow_transport(z, p, eps=0.05):
    q = torch.exp(z @ p.T / eps)
    for _ in range(3):
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    return q.detach()


def slow_loss(z, y, p, classes_of, k, momentum, tau=0.1, weight=1.0, proto_tau=0.5):
    """PALM example by example; y None: one pool. Returns the loss and the moved prototypes."""
    rows = [(v, None if y is None else int(y[i])) for i in range(len(z)) for v in z[i]]
    points = torch.stack([v for v, _ in rows])
    own = [[j for j in range(len(p)) if label in (None, classes_of[j])] for _, label in rows]
    q = slow_transport(points, p)
    kept = [sorted(own[i], key=lambda j: -float(q[i, j]))[:k] for i in range(len(rows))]
    moved = []
    for j in range(len(p)):
        w = [q[i, j] / sum(q[i, m] for m in kept[i]) if j in kept[i] else 0.0 for i in range(len(rows))]
        total = sum(w)
        mean = sum(w[i] / total * points[i] for i in range(len(rows))) if total else torch.zeros(DIM).double()
        new = momentum * p[j] + (1 - momentum) * mean
        moved.append(new / new.norm())
    moved = torch.stack(moved)
    fixed, likelihood = moved.detach(), 0.0
    q = slow_transport(points, fixed)
    for i in range(len(rows)):
        logits = fixed @ points[i] / tau
        shares = sum(q[i, m] for m in kept[i])
        likelihood = likelihood - sum(q[i, m] / shares * logits[m] for m in kept[i]) + logits.logsumexp(0)
    contrast = 0.0
    for a in range(len(p)):
        others = [b for b in range(len(p)) if b != a]
        if y is None:
            positives = sorted(others, key=lambda b: -float((moved[a] @ moved[b]).detach()))[:k]
        else:
            positives = [b for b in others if classes_of[a] == classes_of[b]]
        cosines = {b: moved[a] @ moved[b] / proto_tau for b in others}
        denominator = torch.stack(list(cosines.values())).exp().sum().log()
        contrast = contrast - sum(cosines[b] for b in positives) / len(positives) + denominator
    return likelihood / len(rows) + weight * contrast / len(p), moved


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("k", [1, 3, 4])
def test_loss_and_step_written_out(labelled, k):
    known, z = bank(), unit(5, 2, DIM).requires_grad_()
    y = torch.tensor([0, 2, 1, 0, 2]) if labelled else None
    start = known.vectors.clone()
    found = PALMLoss(known, k)(z, y).total
    expected, moved = slow_loss(z, y, start, known.labels.tolist(), k, 0.8)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(known.vectors, moved.detach())
    slopes = [torch.autograd.grad(loss, z)[0] for loss in (found, expected)]
    torch.testing.assert_close(*slopes)


def test_examples_move_prototypes_of_their_class_alone():
    known, start = bank(), bank().vectors
    PALMLoss(known, 3)(unit(6, 2, DIM), torch.ones(6, dtype=torch.int64))
    moved = ((known.vectors - start).abs() > 1e-6).any(1)
    assert moved[known.labels == 1].any() and not moved[known.labels != 1].any()


def test_one_prototype_a_class_has_cross_entropy_and_dispersion_instead_of_nothing_over_nothing():
    known, z, y = bank(per_class=1), unit(6, 2, DIM), torch.tensor([0, 1, 2, 0, 1, 2])
    loss = PALMLoss(known, 1)(z, y)
    points, labels = z.flatten(0, 1), y.repeat_interleave(2)
    expected = nn.functional.cross_entropy(points @ known.vectors.T / 0.1, labels)
    torch.testing.assert_close(loss.parts["likelihood"], expected)
    p = known.vectors
    dispersion = sum(
        sum(torch.exp(p[a] @ p[b] / 0.5) for b in range(3) if b != a).div(2).log() for a in range(3)
    )
    torch.testing.assert_close(loss.parts["contrast"], dispersion / 3)


def test_weight_zero_is_the_likelihood_alone():
    z, y = unit(6, 2, DIM), torch.tensor([0, 1, 2, 0, 1, 2])
    loss = PALMLoss(bank(), weight=0.0, k=3)(z, y)
    torch.testing.assert_close(loss.total, loss.parts["likelihood"])


def test_contrast_has_a_gradient_in_the_features_but_a_small_one():
    z, y = unit(6, 2, DIM).requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 2])
    slopes = []
    for momentum in (0.9, 0.999):
        contrast = PALMLoss(bank(momentum=momentum), k=3)(z, y).parts["contrast"]
        slopes.append(float(torch.autograd.grad(contrast, z)[0].norm()))
    assert slopes[0] > 50 * slopes[1] > 0


def test_a_repeated_batch_has_the_same_loss_and_moves_nothing():
    loss, z, y = PALMLoss(bank(), 3), unit(5, 2, DIM), torch.tensor([0, 2, 1, 0, 2])
    first = loss(z, y).total
    state = copy.deepcopy(loss.state_dict())
    torch.testing.assert_close(loss(z, y, repeat=True).total, first)
    assert all(torch.equal(value, state[name]) for name, value in loss.state_dict().items())


def test_two_modes_of_a_class_get_prototypes_of_their_own():
    generator = torch.Generator().manual_seed(0)
    modes = torch.linalg.qr(torch.randn(DIM, 4, generator=generator)).Q.T
    known = PrototypeBank(2, 2, DIM, 0.8, generator=generator)
    loss = PALMLoss(known, 1)
    for _ in range(60):
        which = torch.randint(4, (32,), generator=generator)
        z = nn.functional.normalize(modes[which] + 0.1 * torch.randn(32, DIM, generator=generator), dim=1)
        loss(z.unsqueeze(1), which // 2)
    nearest = (modes @ known.vectors.T).max(1)
    assert nearest.values.min() > 0.97 and nearest.indices.unique().numel() == 4
    assert torch.equal(known.labels[nearest.indices], torch.tensor([0, 0, 1, 1]))


@pytest.mark.parametrize(
    ("z", "y", "message"),
    [
        (2 * unit(4, 2, DIM), torch.zeros(4).long(), "features: are not unit vectors"),
        (
            unit(4, 2, DIM),
            torch.full((4,), CLASSES),
            "y: has labels from 3 to 3. The bank has classes 0 to 2",
        ),
        (unit(4, 2, DIM), torch.full((4,), -1), "y: has labels from -1"),
        (unit(4, 2, DIM), torch.zeros(3).long(), r"y: has shape \(3,\)"),
        (unit(4, 2, DIM + 1), torch.zeros(4).long(), "features: have size 7. The prototypes have size 6"),
        (unit(1, 1, DIM), torch.zeros(1).long(), "two vectors at least"),
        (unit(4, DIM), torch.zeros(4).long(), r"Give \(examples, views, size\)"),
        (unit(4, 2, DIM) * float("nan"), torch.zeros(4).long(), "are not unit vectors: 8 of 8"),
    ],
)
def test_bad_input(z, y, message):
    with pytest.raises(InputError, match=message):
        PALMLoss(bank(), 3)(z, y)


def test_more_neighbours_than_prototypes():
    with pytest.raises(InputError, match="k: is 5. The bank has 4 prototypes a class"):
        PALMLoss(bank(), 5)
    with pytest.raises(InputError, match="k: is 7. The bank has 6 prototypes"):
        objectives.build("palm(k=7)")
    with pytest.raises(InputError, match="tau: is 0"):
        objectives.build("palm(tau=0)")


def test_the_objective_trains_features_by_the_loss_and_the_head_by_the_probe(model, batch, built, generator):
    objective = built("palm", per_class=4, projection=DIM)
    views = objective.prepare(batch, generator)
    assert views.x.shape == (22, 2, *batch.x.shape[1:])
    before = copy.deepcopy(objective)
    loss = objective(model, views)
    features = model.featurizer(views.x.flatten(0, 1))
    z = nn.functional.normalize(before.projector(features), dim=1).unflatten(0, (22, 2))
    expected = before.loss(z, batch.y).total
    torch.testing.assert_close(loss.total - loss.parts["probe"], expected)
    probe = nn.functional.cross_entropy(model.head(features), batch.y.repeat_interleave(2))
    torch.testing.assert_close(loss.parts["probe"], probe)
    weight = model.featurizer[0].weight
    found = torch.autograd.grad(loss.total, weight, retain_graph=True)[0]
    torch.testing.assert_close(
        found, torch.autograd.grad(expected, weight)[0]
    )  # the probe's stops at the features
    assert torch.autograd.grad(loss.total, model.head.weight)[0].any()


def test_without_supervision_labels_reach_the_probe_alone(model, batch, built, generator):
    objective = built("palm", per_class=4, projection=DIM, supervised=False)
    views = objective.prepare(batch, generator)
    other = replace(views, y=(views.y + 1) % 3)
    one, two = (copy.deepcopy(objective)(model, b).parts for b in (views, other))
    assert torch.equal(one["likelihood"], two["likelihood"]) and not torch.equal(one["probe"], two["probe"])
