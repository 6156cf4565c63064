import numpy as np
import pytest
import torch
from torch import nn

from unseen.errors import InputError, UnseenWarning
from unseen.networks import Network
from unseen.networks.low_rank import (
    inject_low_rank,
    low_rank_parameters,
    low_rank_updates,
    merge_low_rank,
)
from unseen.objectives.pego import group_penalty, model_penalty
from unseen.registry import objectives
from unseen.shifts import Batch
from unseen.shifts.arrays import from_arrays
from unseen.training import Learner, fit

OUT, IN, RANK, GROUPS = 5, 7, 2, 3


def slow(weight, deltas, norm, side):
    """The formula of the paper, entry by entry."""
    size = (lambda m: m.abs().sum()) if norm == "l1" else (lambda m: m.square().sum())
    product = (lambda a, b: a @ b.T) if side == "row" else (lambda a, b: a.T @ b)
    preserve = sum(size(product(weight, delta)) for delta in deltas)
    pairs = [(i, j) for i in range(len(deltas)) for j in range(i + 1, len(deltas))]
    return preserve, sum((size(product(deltas[i], deltas[j])) for i, j in pairs), torch.zeros(()).double())


@pytest.fixture
def factors(generator):
    draw = [(OUT, IN), (GROUPS, RANK, IN), (GROUPS, OUT, RANK)]
    return [torch.randn(*shape, generator=generator).double().requires_grad_() for shape in draw]


@pytest.mark.parametrize("side", ["row", "column"])
@pytest.mark.parametrize("norm", ["l1", "fro2"])
class TestGroupPenalty:
    def test_is_the_formula_with_its_gradients(self, factors, norm, side):
        weight, down, up = factors
        found = group_penalty(weight, down, up, norm=norm, side=side)
        expected = slow(weight, [up[i] @ down[i] for i in range(GROUPS)], norm, side)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
            pairs = [torch.autograd.grad(v, [down, up], retain_graph=True) for v in (one, other)]
            torch.testing.assert_close(*pairs)

    def test_several_weights_are_summed(self, factors, norm, side):
        twice = [torch.stack([value, 2 * value]) for value in factors]
        parts = [group_penalty(*values, norm=norm, side=side) for values in zip(*twice, strict=True)]
        for found, one, other in zip(group_penalty(*twice, norm=norm, side=side), *parts, strict=True):
            torch.testing.assert_close(found, one + other)

    def test_matrices_go_in_as_they_are(self, factors, norm, side):
        """Any kind of adapter by its effective matrices, with identities beside them."""
        weight, down, up = factors
        matrices, identity = up @ down, torch.eye(OUT).double().expand(GROUPS, -1, -1)
        torch.testing.assert_close(
            group_penalty(weight, matrices, identity, norm=norm, side=side),
            group_penalty(weight, down, up, norm=norm, side=side),
        )

    def test_a_single_update_has_nothing_to_differ_from(self, factors, norm, side):
        weight, down, up = factors
        assert group_penalty(weight, down[:1], up[:1], norm=norm, side=side)[1] == 0

    def test_means_over_entries(self, factors, norm, side):
        side_length = OUT if side == "row" else IN
        found = group_penalty(*factors, norm=norm, side=side, normalize=True)
        summed = group_penalty(*factors, norm=norm, side=side)
        for mean, total in zip(found, summed, strict=True):
            torch.testing.assert_close(mean, total / side_length**2)


def test_orthogonal_row_spaces_cost_nothing():
    basis = torch.linalg.qr(torch.randn(6, 6).double())[0]
    weight = torch.randn(4, 2).double() @ basis[:2]  # rank 2, so that there is room beside its rows
    down = torch.stack([basis[2:4], basis[4:6]])
    up = torch.randn(2, 4, 2).double()
    preserve, diversify = group_penalty(weight, down, up)
    assert preserve < 1e-12 and diversify < 1e-12
    assert group_penalty(weight, down, up, side="column")[0] > 0.1


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(6, 18)

    def forward(self, x):
        q, k, v = self.qkv(x.view(-1, 2, 3).repeat(1, 1, 2)).chunk(3, -1)
        return (torch.softmax(q @ k.mT, -1) @ v).mean(1)


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = Network(Attention(), 6, 3)
    inject_low_rank(network.featurizer, rank=2, groups=GROUPS, alpha=3.0)
    for parameter in low_rank_parameters(network):
        nn.init.normal_(parameter)
    return network.double()


def built(**options):
    return objectives.build("pego", **options).double()


class TestObjective:
    def test_the_loss_is_risk_plus_weighted_penalties_of_query_and_value(self, network, batch):
        loss = built(preserve=2.0, diversify=0.5)(network, batch)
        ((_, weight, update),) = low_rank_updates(network)
        sums = [0, 0]
        for index, rows in enumerate((slice(0, 6), slice(12, 18))):  # the key between them has no part in it
            deltas = [1.5 * update.up[index, i] @ update.down[index, i] for i in range(GROUPS)]
            sums = [a + b for a, b in zip(sums, slow(weight[rows], deltas, "l1", "row"), strict=True)]
        risk = nn.functional.cross_entropy(network(batch.x), batch.y)
        torch.testing.assert_close(loss.parts["preserve"], sums[0])
        torch.testing.assert_close(loss.parts["diversify"], sums[1])
        torch.testing.assert_close(loss.total, risk + 1e-3 * (2.0 * sums[0] + 0.5 * sums[1]))

    def test_a_loop_of_ones_own_has_the_same_penalties(self, network, batch):
        loss = built()(network, batch)
        preserve, diversify = model_penalty(network)
        torch.testing.assert_close((preserve, diversify), (loss.parts["preserve"], loss.parts["diversify"]))
        (preserve + diversify).backward()
        reached = {name.rpartition(".")[2] for name, p in network.named_parameters() if p.grad is not None}
        assert reached == {"up", "down"}
        merge_low_rank(network)
        with pytest.raises(InputError, match="no low-rank updates"):
            model_penalty(network)

    def test_the_first_gradient_of_the_penalty_is_zero(self, network, batch):
        """B = 0 is its kink: the first step is that of the risk alone, the penalty acts from the second on."""
        (update,) = [u.update for u in low_rank_updates(network)]
        nn.init.zeros_(update.up)
        penalty = built(penalty_weight=100.0)(network, batch).parts["penalty"]
        assert penalty == 0
        for slope in torch.autograd.grad(penalty, [update.down, update.up]):
            assert not slope.any()
        nn.init.constant_(update.up, 1e-6)
        penalty = built()(network, batch).parts["penalty"]
        small = torch.autograd.grad(penalty, update.up)[0]
        nn.init.constant_(update.up, 1.0)
        large = torch.autograd.grad(built()(network, batch).parts["preserve"], update.up)[0]
        assert small.abs().mean() > 0.1 * large.abs().mean()  # constant in size, however small the update

    def test_the_penalty_does_not_move_the_frozen_weight(self, network, batch):
        ((_, weight, _),) = low_rank_updates(network)
        weight.requires_grad_(True)
        slope = torch.autograd.grad(built()(network, batch).parts["penalty"], weight, allow_unused=True)[0]
        assert slope is None

    def test_without_updates_it_is_erm_and_says_so(self, network, batch):
        merge_low_rank(network)
        with pytest.warns(UnseenWarning, match="no low-rank updates"):
            loss = built()(network, batch)
        torch.testing.assert_close(loss.total, nn.functional.cross_entropy(network(batch.x), batch.y))

    def test_autocast_keeps_the_penalty_in_single_precision(self, network, batch):
        network = network.float()
        low = Batch(x=batch.x.float(), y=batch.y, domain=batch.domain, domains=3)
        expected = built()(network, low).parts["penalty"]
        with torch.autocast("cpu", torch.bfloat16):
            found = built()(network, low).parts["penalty"]
        torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"norm": "l2"}, "l1, fro2"),
            ({"side": "left"}, "row, column"),
            ({"preserve": -1.0}, "preserve: is -1"),
            ({"penalty_weight": -1.0}, "penalty weight"),
        ],
    )
    def test_errors(self, options, words):
        with pytest.raises(InputError, match=words):
            built(**options)


def test_training_turns_the_updates_away_from_the_weights():
    """Through `fit`: the penalty lowers what it measures, compared with the same group without it."""
    from unseen.measures.update_geometry import update_geometry

    generator = np.random.default_rng(0)
    labels, domain = np.tile([0, 1], 60), np.repeat([0, 1, 2], 40)
    x = generator.normal(size=(120, 4, 6)).astype("float32")
    x[:, 0, :2] += 2 * np.eye(2)[labels]
    split = from_arrays(x, labels, domain).split("2")
    network = "low-rank(of='transformer(width=16, depth=1)', rank=2, groups=2)"
    found = {}
    for weight in (0.0, 0.3):
        learner = Learner(
            objective=f"pego(penalty_weight={weight})", network=network, steps=150, learning_rate=0.01, keep="last"
        )  # fmt: skip
        found[weight] = update_geometry(fit(learner, split).network).mean()
    assert found[0.3].preserve_cosine < found[0.0].preserve_cosine
    assert found[0.3].diversify_cosine < found[0.0].diversify_cosine
