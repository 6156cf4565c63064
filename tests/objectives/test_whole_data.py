import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from unseen.errors import InputError
from unseen.objectives.whole_data import WholeData, minimise, outputs_of
from unseen.shifts import Batch

X, Y = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2
BATCH = Batch(x=X, y=Y, domain=torch.arange(20) // 10, domains=2, ids=torch.arange(20) + 100)


def generator():
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize(
    "data", [BATCH, TensorDataset(X, Y), DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)]
)
def test_every_kind_of_data_has_the_same_order(data):
    whole = WholeData.of(data)
    assert whole.size == 20
    read = list(whole.in_order(8))
    assert torch.equal(torch.cat([batch.x for batch in read]), X)
    assert torch.equal(
        torch.cat([batch.ids for batch in read]), torch.arange(20)
    )  # positions, not rows of a shift
    some = whole.batch(torch.tensor([7, 3]))
    assert torch.equal(some.x, X[[7, 3]]) and some.ids.tolist() == [7, 3]


def test_a_dataset_may_name_domains():
    whole = WholeData.of(TensorDataset(X, Y, BATCH.domain))
    assert torch.equal(whole.batch(torch.arange(20)).domain, BATCH.domain)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(X[0], Y[0])])


@pytest.mark.parametrize("data", [Stream(), DataLoader(Stream()), iter([1, 2]), {1: 2}.items()])
def test_what_has_no_stable_order_is_refused(data):
    with pytest.raises(InputError, match="no stable order"):
        WholeData.of(data)


def test_no_example_is_refused():
    with pytest.raises(InputError, match="no example"):
        WholeData.of(BATCH.take(torch.arange(0)))


def test_draws():
    whole = WholeData.of(BATCH)
    assert torch.equal(whole.draw(None, None, generator()).ids, torch.arange(20))
    some = whole.draw(6, None, generator())
    assert len(some.ids.unique()) == 6 and torch.equal(some.x, X[some.ids])
    shares = torch.zeros(20)
    shares[[2, 5]] = torch.tensor([3.0, 1.0])
    drawn = torch.cat([whole.draw(None, shares, generator().manual_seed(s)).ids for s in range(50)])
    assert drawn.unique().tolist() == [2, 5]
    assert (drawn == 2).double().mean() == pytest.approx(0.75, abs=0.05)


def test_outputs_are_those_of_evaluation_and_the_mode_comes_back():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)).train()
    found = outputs_of(model, WholeData.of(BATCH))
    assert torch.allclose(found, model[0](X)) and model.training


def test_descent_adds_the_squared_norm_of_all_weights():
    """One step against autograd: Adam's first step is the sign of the gradient times the learning rate."""
    model = nn.Linear(3, 2)
    before = [p.detach().clone() for p in model.parameters()]

    def loss(batch):
        return nn.functional.cross_entropy(model(batch.x), batch.y)

    total = loss(BATCH) + 2.0 * sum(p.square().sum() for p in model.parameters())
    slopes = torch.autograd.grad(total, list(model.parameters()))
    minimise(model, loss, WholeData.of(BATCH), steps=1, learning_rate=0.01, l2=2.0, generator=generator())
    for old, new, slope in zip(before, model.parameters(), slopes, strict=True):
        torch.testing.assert_close(new - old, -0.01 * slope.sign(), rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_not_finite_is_said():
    model = nn.Linear(3, 2)
    with pytest.raises(InputError, match="learning_rate"):
        minimise(
            model, lambda batch: model(batch.x).sum() / 0, WholeData.of(BATCH), steps=1, learning_rate=0.01,
            generator=generator(),
        )  # fmt: skip
