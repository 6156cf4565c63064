"""Random projections: unbiased, equal for every chunk, and one matrix a parameter."""

import pytest
import torch

from unseen.errors import InputError
from unseen.networks import build_network
from unseen.networks.example_gradients import ExampleGradients
from unseen.networks.random_projection import TILE, RandomProjection


def matrix(projection, name, size):
    """The matrix that is never stored: the projection of the unit vectors."""
    found = torch.zeros(size, projection.dimension)
    projection.add(name, torch.eye(size), found)
    return found


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
class TestBothKinds:
    def test_inner_products_are_kept_in_expectation(self, kind, generator):
        rows = torch.randn(3, 40, generator=generator, dtype=torch.float64)
        products = []
        for seed in range(400):
            found = torch.zeros(3, 8, dtype=torch.float64)
            RandomProjection(8, seed, kind).add("weight", rows, found)
            products.append(found @ found.T)
        found, expected = torch.stack(products), rows @ rows.T
        error = found.std(0) / 400**0.5
        assert ((found.mean(0) - expected).abs() < 4 * error).all()

    def test_entries_are_independent_of_each_other(self, kind):
        entries = matrix(RandomProjection(37, 0, kind), "weight", 500) * 37**0.5
        assert entries.mean().abs() < 4 / (500 * 37) ** 0.5
        assert entries.var().item() == pytest.approx(1, abs=0.05)
        assert (entries.T @ entries / 500 - torch.eye(37)).abs().max() < 5 / 500**0.5

    def test_parts_of_the_coordinates_make_the_whole(self, kind, generator):
        """Tile after tile gives what the whole matrix gives."""
        projection, size = RandomProjection(5, 3, kind), TILE + 17
        rows = torch.randn(2, size, generator=generator)
        found = torch.zeros(2, 5)
        projection.add("weight", rows, found)
        tiles = [projection._tile("weight", index, length) for index, length in ((0, TILE), (1, 17))]
        assert not torch.equal(tiles[0][:17], tiles[1])
        torch.testing.assert_close(found, rows @ torch.cat(tiles) / 5**0.5, rtol=1e-4, atol=1e-4)

    def test_seed_and_name_decide(self, kind):
        first = matrix(RandomProjection(6, 0, kind), "weight", 30)
        assert torch.equal(first, matrix(RandomProjection(6, 0, kind), "weight", 30))
        assert not torch.equal(first, matrix(RandomProjection(6, 1, kind), "weight", 30))
        assert not torch.equal(first, matrix(RandomProjection(6, 0, kind), "bias", 30))


def test_signs():
    entries = matrix(RandomProjection(4, 0), "weight", 20)
    assert set(entries.unique().tolist()) == {-0.5, 0.5}


@pytest.mark.parametrize("method", ["linear", "vmap"])
def test_chunks_and_selection_of_parameters(method, generator):
    torch.manual_seed(0)
    network = build_network("mlp(width=40, depth=2)", (60,), 3).double()
    data = torch.randn(9, 60, generator=generator, dtype=torch.float64), torch.arange(9) % 3

    def project(**options):
        return ExampleGradients(network, method=method, **options).projected(data, 11, 5)

    whole = project()
    flat, names = ExampleGradients(network).flat(data), ExampleGradients(network).names
    known = dict(network.named_parameters())
    matrices = [matrix(RandomProjection(11, 5), name, known[name].numel()).double() for name in names]
    torch.testing.assert_close(whole, flat @ torch.cat(matrices), rtol=1e-5, atol=1e-6)
    for chunk in (1, 4, 9):
        torch.testing.assert_close(project(chunk=chunk), whole)
    torch.testing.assert_close(project(parameters="head.*") + project(parameters="featurizer.*"), whole)


def test_unit_rows(generator):
    network = build_network("linear", (6,), 3)
    data = torch.randn(9, 6, generator=generator), torch.arange(9) % 3
    found = ExampleGradients(network).projected(data, 16, 0, unit=True)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(9))


def test_errors():
    with pytest.raises(InputError, match="dimension: is 0"):
        RandomProjection(0, 0)
    with pytest.raises(InputError, match="'sparse'"):
        RandomProjection(4, 0, "sparse")
