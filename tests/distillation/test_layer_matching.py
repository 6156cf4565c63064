"""Layers that are matched by similarity, against a loop over tokens and layers."""

import pytest
import torch

from unseen.distillation.distances import distance
from unseen.distillation.layer_matching import choose_layers, fixed_layers, nearest_layer
from unseen.errors import InputError


def loop(student, teacher, k, name):
    """Every token, every student layer: all distances, sorted, the K smallest."""
    distances, layers = [], []
    for n in range(len(student)):
        for own in student[n]:
            every = sorted((float(distance(name).of(own, other)), j) for j, other in enumerate(teacher[n]))
            distances.append([d for d, _ in every[:k]])
            layers.append([j for _, j in every[:k]])
    shape = (len(student), student.shape[1], k)
    return torch.tensor(distances).view(shape), torch.tensor(layers).view(shape)


@pytest.mark.parametrize("name", ["mse", "kl", "cosine"])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_equals_the_loop(name, k, generator):
    student, teacher = torch.randn(6, 3, 8, generator=generator), torch.randn(6, 5, 8, generator=generator)
    found = nearest_layer(student, teacher, k, name)
    distances, layers = loop(student, teacher, k, name)
    torch.testing.assert_close(found.distance, distances, atol=1e-6, rtol=1e-5)
    assert torch.equal(found.layer, layers)


def test_a_layer_finds_itself_wherever_it_lies(generator):
    teacher = torch.randn(2, 9, 4, 8, generator=generator)
    found = nearest_layer(teacher[:, :, [3, 0]], teacher)
    assert torch.equal(found.layer, torch.tensor([3, 0]).view(1, 1, 2, 1).expand(2, 9, 2, 1))
    assert found.distance.eq(0).all()


def test_tokens_may_choose_differently():
    teacher = torch.tensor([[[0.0], [1.0]], [[1.0], [0.0]]])
    assert nearest_layer(torch.zeros(2, 1, 1), teacher).layer.flatten().tolist() == [0, 1]


def test_gradient_is_that_of_all_pairs_sorted(generator):
    student = torch.randn(6, 3, 8, generator=generator).requires_grad_()
    teacher = torch.randn(6, 5, 8, generator=generator).requires_grad_()
    nearest_layer(student, teacher, 2).distance.sum().backward()
    fast = student.grad.clone(), teacher.grad.clone()
    student.grad = teacher.grad = None
    every = (student[:, :, None] - teacher[:, None]).square().mean(-1)
    every.sort(-1).values[..., :2].sum().backward()
    torch.testing.assert_close(fast, (student.grad, teacher.grad))


def test_distances_keep_their_digits_far_from_the_origin():
    """Products of large numbers rank layers; what is returned is computed from differences."""
    teacher = torch.full((1, 2, 4), 1000.0)
    teacher[:, 1] += 5
    found = nearest_layer(teacher[:, :1] + 0.125, teacher)
    assert found.layer.item() == 0 and found.distance.item() == 0.125**2


def test_all_layers_of_the_paper():
    assert choose_layers("middle", 12) == tuple(range(3, 10))
    assert choose_layers("middle", 3) == (1, 2)
    assert [choose_layers("middle", count) for count in (1, 2)] == [(1,), (1,)]
    assert choose_layers("last", 12) == (12,) and choose_layers("all", 3) == (1, 2, 3)
    assert choose_layers([3, 2], 3) == (3, 2)


def test_fixed_maps():
    assert fixed_layers(3, 12) == (4, 8, 12)
    assert fixed_layers(3, 12, "last") == (10, 11, 12)
    assert fixed_layers(4, 4) == fixed_layers(4, 4, "last") == (1, 2, 3, 4)


def test_errors(generator):
    student, teacher = torch.randn(6, 3, 8, generator=generator), torch.randn(6, 5, 8, generator=generator)
    for k in (0, 6):
        with pytest.raises(InputError, match=f"top_k: is {k} with 5 teacher layer"):
            nearest_layer(student, teacher, k)
    with pytest.raises(InputError, match="same positions and width"):
        nearest_layer(student[..., :7], teacher)
    with pytest.raises(InputError, match="from 1 to 12"):
        choose_layers([0], 12)
    with pytest.raises(InputError, match="from 1 to 12"):
        choose_layers([], 12)
    with pytest.raises(InputError, match="Did you mean 'middle'"):
        choose_layers("midle", 12)
    with pytest.raises(InputError, match="has 5 layer"):
        fixed_layers(5, 4)
    with pytest.raises(InputError, match="Did you mean 'spread'"):
        fixed_layers(2, 4, "spreads")
