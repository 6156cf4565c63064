import math

import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.measures.update_geometry import effective_rank, linear_cka, mean_row_cosine, update_geometry
from unseen.networks.low_rank import inject_low_rank, low_rank_parameters, low_rank_updates


def test_cosines_are_those_of_all_pairs_of_rows(generator):
    a, b = torch.randn(3, 5, generator=generator), torch.randn(4, 5, generator=generator)
    pairs = [abs(float(torch.cosine_similarity(x, y, 0))) for x in a for y in b]
    assert float(mean_row_cosine(a, b)) == pytest.approx(sum(pairs) / 12, rel=1e-5)
    assert float(mean_row_cosine(a, 3 * a[:1].expand(2, 5) * 0)) == 0
    large = torch.randn(200, 64, generator=generator), torch.randn(200, 64, generator=generator)
    assert float(mean_row_cosine(*large)) == pytest.approx(math.sqrt(2 / (math.pi * 64)), rel=0.03)


def test_effective_rank(generator):
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    for rank in (1, 2, 5):
        assert float(effective_rank(basis[:, :rank] @ basis[:rank])) == pytest.approx(rank, rel=1e-3)
    uneven = float(effective_rank(torch.diag(torch.tensor([3.0, 1.0]))))
    assert uneven == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))), rel=1e-5)
    assert float(effective_rank(torch.zeros(3, 3))) == 0


class TestGeometry:
    def test_a_row_for_each_matrix(self, generator):
        model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "v": nn.Linear(8, 6)})
        inject_low_rank(model, rank=2, groups=3)
        for parameter in low_rank_parameters(model):
            parameter.data.normal_(generator=generator)
        table = update_geometry(model)
        assert table.index.tolist() == [
            ("attention.in_proj_weight", 0), ("attention.in_proj_weight", 2), ("v.weight", 0)
        ]  # fmt: skip
        _, weight, update = low_rank_updates(model)[1]
        deltas = list(update.updates()[0].detach())
        row = table.loc["v.weight", 0]
        preserve = sum(float(mean_row_cosine(weight, d)) for d in deltas) / 3
        diversify = sum(float(mean_row_cosine(deltas[i], deltas[j])) for i, j in [(0, 1), (0, 2), (1, 2)]) / 3
        assert row.preserve_cosine == pytest.approx(preserve, rel=1e-5)
        assert row.diversify_cosine == pytest.approx(diversify, rel=1e-5)
        assert row.relative_size == pytest.approx(float(sum(deltas).norm() / weight.norm()), rel=1e-5)
        assert 1 < row.effective_rank <= 6

    def test_one_update_has_no_second_to_compare_with(self):
        table = update_geometry(inject_low_rank(nn.ModuleDict({"v": nn.Linear(8, 6)}), rank=2))
        assert table.diversify_cosine.isna().all() and (table.effective_rank == 0).all()

    def test_without_updates(self):
        with pytest.raises(InputError, match="no low-rank updates"):
            update_geometry(nn.Linear(3, 3))


class TestCKA:
    def test_is_blind_to_rotation_scale_and_place(self, generator):
        x = torch.randn(50, 6, generator=generator)
        rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
        assert linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(1, abs=1e-6)
        assert linear_cka(x, x * torch.tensor([9.0, 1, 1, 1, 1, 1])) < 0.9
        assert linear_cka(x, torch.randn(50, 4, generator=generator)) < 0.4

    def test_is_the_kernel_form(self, generator):
        a, b = torch.randn(20, 3, generator=generator), torch.randn(20, 5, generator=generator)
        centre = torch.eye(20) - 1 / 20
        k, m = centre @ a @ a.T @ centre, centre @ b @ b.T @ centre
        assert linear_cka(a, b) == pytest.approx(float((k * m).sum() / (k.norm() * m.norm())), rel=1e-4)

    def test_errors(self):
        with pytest.raises(InputError, match="shapes"):
            linear_cka(torch.zeros(3, 2), torch.zeros(4, 2))
        with pytest.raises(InputError, match="vary"):
            linear_cka(torch.ones(3, 2), torch.ones(3, 2))
