import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.objectives.lisa import LISA, random_partners


@pytest.mark.parametrize("same_label", [1.0, 0.0])
def test_partners_share_what_they_should_and_differ_in_the_rest(same_label, batch, built):
    batch.x = torch.arange(22).double().unsqueeze(1)  # an example is its own number, to read partners off
    batch.x = torch.cat([batch.x, batch.x.square()], 1)
    for seed in range(10):
        mixed = built("lisa", same_label=same_label).prepare(batch, torch.Generator().manual_seed(seed))
        assert torch.equal(mixed.domain, batch.domain)
        shares = set()
        for i in range(22):
            number, square = mixed.x[i].tolist()
            # share * i + (1 - share) * j and share * i^2 + (1 - share) * j^2 give j
            if abs(number - i) < 1e-9:
                assert torch.equal(mixed.y[i], nn.functional.one_hot(batch.y[i], 3).float())
                continue
            j = round((square - i * i) / (number - i)) - i
            share = 1 - (number - i) / (j - i)
            shares.add(round(share, 6))
            alike, together = bool(batch.y[i] == batch.y[j]), bool(batch.domain[i] == batch.domain[j])
            assert (alike, together) == ((True, False) if same_label else (False, True))
            expected = torch.zeros(3)
            expected[batch.y[i]] += share
            expected[batch.y[j]] += 1 - share
            torch.testing.assert_close(mixed.y[i], expected)
        assert len(shares) == 1


def test_loss_is_the_cross_entropy_of_the_mixed_batch(model, batch, built, generator):
    objective = built("lisa")
    mixed = objective.prepare(batch, generator)
    logs = model(mixed.x).log_softmax(1)
    expected = -(logs * mixed.y).sum(1).mean()
    torch.testing.assert_close(objective(model, mixed).total, expected)
    assert torch.autograd.grad(objective(model, mixed).total, model.featurizer[0].weight)[0].any()


def test_partners_are_uniform_over_the_admissible_and_oneself_if_there_is_none(generator):
    admissible = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 1], [0, 0, 1, 0]], dtype=torch.bool)
    draws = torch.stack([random_partners(admissible, generator) for _ in range(600)])
    assert (draws[:, 1] == 1).all() and (draws[:, 3] == 2).all()
    for row, among in ((0, [1, 2]), (2, [0, 1, 3])):
        counts = draws[:, row].bincount(minlength=4)[among] / 600
        assert int(draws[:, row].bincount(minlength=4)[among].sum()) == 600
        assert (counts - 1 / len(among)).abs().max() < 0.07


def test_both_strategies_occur_and_the_seed_decides(batch, built):
    objective = built("lisa(same_label=0.5)")
    kinds = set()
    for seed in range(12):
        one, two = (objective.prepare(batch, torch.Generator().manual_seed(seed)) for _ in range(2))
        assert torch.equal(one.x, two.x) and torch.equal(one.y, two.y)
        kinds.add(bool((one.y.max(1).values == 1).all()))  # within a label, labels stay hard
    assert kinds == {True, False}


def test_errors():
    with pytest.raises(InputError, match="alpha: is 0"):
        LISA(alpha=0)
    with pytest.raises(InputError, match=r"same_label: is 1\.5"):
        LISA(same_label=1.5)
