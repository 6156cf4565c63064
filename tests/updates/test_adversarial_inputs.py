"""Moves of inputs: one length for every example, within what may move, upwards."""

import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.objectives.continuous_inputs import EMBEDDINGS
from unseen.shifts import Batch
from unseen.updates.adversarial_inputs import (
    StylePerturbation,
    ValuePerturbation,
    adversarial_moves,
    moved_inputs,
)


def batch_of(x):
    count = len(next(iter(x.values())) if isinstance(x, dict) else x)
    zeros = torch.zeros(count).long()
    return Batch(x=x, y=zeros, domain=zeros, domains=1)


def moved(batch, objective, perturbation, network=None, **options):
    network = network or nn.Identity()
    moves = adversarial_moves(network, batch, objective, perturbation, **options)
    with moved_inputs(network, batch, perturbation, moves) as there:
        return there, moves


def test_every_example_moves_its_own_share_of_its_length_along_its_gradient(generator):
    x = torch.randn(5, 2, 4, 4, generator=generator) * torch.tensor([1.0, 10, 1, 1, 1]).view(5, 1, 1, 1)
    slopes = torch.randn(5, 2, 4, 4, generator=generator) * torch.tensor([1e-6, 1, 1, 1, 1e3]).view(
        5, 1, 1, 1
    )
    there, moves = moved(batch_of(x), lambda b: (b.x * slopes).sum(), ValuePerturbation(), radius=0.3)
    lengths = moves["x"].flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, 0.3 * x.flatten(1).norm(dim=1))
    torch.testing.assert_close(there.x, x + moves["x"])
    cosine = torch.cosine_similarity(moves["x"].flatten(1), slopes.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(5))


def test_a_move_does_not_depend_on_the_other_examples(generator):
    """The released code normalises each pixel across the batch."""
    x, slopes = torch.randn(2, 6, 3, generator=generator)
    _, together = moved(batch_of(x), lambda b: (b.x * slopes).sum(), ValuePerturbation(), radius=0.3)
    _, alone = moved(batch_of(x[:1]), lambda b: (b.x * slopes[:1]).sum(), ValuePerturbation(), radius=0.3)
    torch.testing.assert_close(together["x"][:1], alone["x"])
    across = torch.nn.functional.normalize(slopes, dim=0)
    assert (across[:1] - torch.nn.functional.normalize(slopes[:1], dim=0)).abs().max() > 0.1


def test_more_steps_stay_within_the_radius_and_do_not_do_worse(generator):
    x = torch.randn(8, 6, generator=generator)
    goal = torch.randn(8, 6, generator=generator)

    def rise(batch):
        return -(batch.x - goal).pow(4).sum()

    found = []
    for steps in (1, 5):
        there, moves = moved(batch_of(x), rise, ValuePerturbation(), radius=0.5, steps=steps)
        assert (moves["x"].norm(dim=1) <= 0.5 * x.norm(dim=1) * (1 + 1e-5)).all()
        found.append(rise(there))
    assert rise(batch_of(x)) < found[0] < found[1]


def test_fixed_columns_stay_and_clamped_values_keep_the_range(generator):
    x = torch.rand(6, 4, generator=generator)
    there, _ = moved(batch_of(x), lambda b: b.x.sum(), ValuePerturbation(fixed=(1, 3)), radius=2.0)
    assert torch.equal(there.x[:, [1, 3]], x[:, [1, 3]]) and (there.x[:, [0, 2]] > x[:, [0, 2]]).all()
    there, _ = moved(batch_of(x), lambda b: b.x.sum(), ValuePerturbation(clamp=True), radius=9.0)
    torch.testing.assert_close(there.x, x.amax(0).expand(6, 4))
    images = torch.rand(3, 2, 4, 4, generator=generator)
    there, _ = moved(batch_of(images), lambda b: -b.x.sum(), ValuePerturbation(clamp=True), radius=9.0)
    torch.testing.assert_close(there.x, images.amin((0, 2, 3), keepdim=True).expand(3, 2, 4, 4))


def test_styles_move_and_contents_stay(generator):
    x = torch.rand(4, 3, 6, 6, generator=generator)

    def rise(batch):
        return (batch.x[:, 0].mean() + 3 * batch.x[:, 1].std()).sum()

    style = StylePerturbation()
    there, moves = moved(batch_of(x), rise, style, radius=0.4)
    assert moves["x"].shape == (4, 2, 3, 1, 1) and rise(there) > rise(batch_of(x))
    torch.testing.assert_close(moves["x"].flatten(1).norm(dim=1), 0.4 * style.size(x))

    def contents(images):
        return (images - images.mean((2, 3), keepdim=True)) / images.std((2, 3), keepdim=True)

    torch.testing.assert_close(contents(there.x), contents(x), atol=1e-2, rtol=1e-2)
    with pytest.raises(InputError, match="needs images"):
        moved(batch_of(x.flatten(1)), lambda b: b.x.sum(), style, radius=0.1)


def test_of_several_inputs_the_continuous_ones_move_apart_from_structure(generator):
    x = {
        "nodes": torch.randn(2, 3, 4, generator=generator),
        "mask": torch.ones(2, 3),
        "kind": torch.ones(2).long(),
    }
    there, moves = moved(batch_of(x), lambda b: b.x["nodes"].sum(), ValuePerturbation(), radius=0.1)
    assert set(moves) == {"nodes"} and there.x["mask"] is x["mask"] and there.x["kind"] is x["kind"]


def test_embeddings_of_tokens_move():
    network = nn.Sequential(nn.Embedding(7, 5), nn.Flatten(), nn.Linear(20, 1))
    ids = torch.arange(12).view(3, 4) % 7
    batch = batch_of(ids)
    moves = adversarial_moves(network, batch, lambda b: network(b.x).sum(), ValuePerturbation(), radius=0.2)
    assert set(moves) == {EMBEDDINGS} and moves[EMBEDDINGS].shape == (3, 4, 5)
    before = network(ids)
    with moved_inputs(network, batch, ValuePerturbation(), moves) as there:
        assert torch.equal(there.x, ids) and (network(there.x) > before).all()
    assert torch.equal(network(ids), before)
    with pytest.raises(InputError, match="none is embedded"):
        adversarial_moves(nn.Identity(), batch, lambda b: b.x.sum(), ValuePerturbation(), radius=0.2)
