import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.objectives.supcon import contrastive_loss, supcon_loss
from unseen.registry import objectives


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(*shape, generator=generator).double(), dim=-1)


def slow(vectors, labels, temperature):
    losses = []
    for a in range(len(vectors)):
        others = [b for b in range(len(vectors)) if b != a]
        positives = [b for b in others if labels[b] == labels[a]]
        if positives:
            total = sum(torch.exp(vectors[a] @ vectors[b] / temperature) for b in others)
            logs = [torch.log(torch.exp(vectors[a] @ vectors[b] / temperature) / total) for b in positives]
            losses.append(-sum(logs) / len(logs))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("labels", [[0, 0, 1, 2, 1, 0], [0, 1, 2, 3, 3, 4]])
def test_equals_pairs_written_out(labels):
    vectors, labels = unit(6, 4).requires_grad_(), torch.tensor(labels)
    found, expected = contrastive_loss(vectors, labels, 0.1), slow(vectors, labels, 0.1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, vectors)[0] for loss in (found, expected)))


def test_without_labels_it_is_the_cross_entropy_of_finding_the_other_view():
    z = unit(5, 2, 4)
    points = z.flatten(0, 1)
    cosines = (points @ points.T / 0.5).fill_diagonal_(-torch.inf)
    other = torch.arange(10) ^ 1
    torch.testing.assert_close(supcon_loss(z, None, 0.5), nn.functional.cross_entropy(cosines, other))


def test_views_in_another_order_change_nothing():
    z, y = unit(5, 2, 4), torch.tensor([0, 1, 0, 2, 1])
    torch.testing.assert_close(supcon_loss(z, y), supcon_loss(z.flip(1), y))
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(supcon_loss(z, y), supcon_loss(z[order], y[order]))


def test_no_positive_is_no_loss_and_a_finite_gradient():
    for count in (1, 3):
        z = unit(count, 1, 4).requires_grad_()
        loss = supcon_loss(z, torch.arange(count))
        assert float(loss) == 0
        assert not torch.autograd.grad(loss, z)[0].isnan().any()


def test_presets_differ_by_their_labels(model, batch, built, generator):
    views = built("supcon").prepare(batch, generator)
    torch.manual_seed(2)
    supervised, alone = built("supcon", temperature=0.5), built("simclr")
    z = nn.functional.normalize(
        supervised.projector(model.featurizer(views.x.flatten(0, 1))), dim=1
    ).unflatten(0, (22, 2))
    torch.testing.assert_close(supervised(model, views).parts["contrast"], supcon_loss(z, batch.y, 0.5))
    torch.testing.assert_close(alone(model, views).parts["contrast"], supcon_loss(z, None, 0.5))


def test_bad_options():
    with pytest.raises(InputError, match="temperature: is 0"):
        objectives.build("supcon(temperature=0)")
    with pytest.raises(InputError, match="projection: is 0"):
        objectives.build("simclr(projection=0)")
    with pytest.raises(InputError, match="crop: is 0"):
        objectives.build("simclr(crop=0)")
    with pytest.raises(InputError, match="corruption: is 1"):
        objectives.build("simclr(corruption=1)")
    with pytest.raises(InputError, match=r"z: has shape \(4, 3\)"):
        supcon_loss(unit(4, 3))
