import pandas as pd
import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks.column_kinds import BINARY, LEFT_OUT, NUMBER, ColumnKinds
from unseen.shifts.preprocessing import TablePreprocessing
from unseen.shifts.tables import from_dataframe


@pytest.fixture
def table():
    count = 60
    frame = pd.DataFrame({
        "age": [20.5 + i % 37 for i in range(count)], "sex": ["f" if i % 2 else "m" for i in range(count)],
        "work": [("state", "own", "firm")[i % 3] for i in range(count)], "paid": [i % 5 == 0 for i in range(count)],
        "y": [i % 2 for i in range(count)], "site": [i // 30 for i in range(count)],
    })  # fmt: skip
    shift = from_dataframe(frame, "y", "site")
    return TablePreprocessing.fit(shift, torch.arange(count)).encode(shift.inputs)


def test_kinds_are_read_from_an_encoded_table(table):
    columns = ColumnKinds(7)
    columns.infer(table)
    assert columns.kind.tolist() == [NUMBER, 0, 0, 1, 1, 1, BINARY]
    said = ColumnKinds(7)
    said.set(["number", 2, 3, "binary"])
    assert torch.equal(said.kind, columns.kind)


def test_a_missing_category_makes_columns_binary():
    columns = ColumnKinds(3)
    columns.infer(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1]]))
    assert columns.kind.tolist() == [BINARY] * 3


def test_losses_are_those_of_gaussian_bernoulli_and_softmax(table, generator):
    columns = ColumnKinds(7)
    columns.infer(table)
    with torch.no_grad():
        columns.noise.fill_(0.05)
    outputs = 30 * torch.randn(
        len(table), 7, generator=generator
    )  # far apart: a naive softmax would overflow
    gaussian = -torch.distributions.Normal(outputs[:, 0], torch.tensor(0.25).exp()).log_prob(table[:, 0])
    paid = (table[:, 6] > 0).float()
    expected = gaussian - torch.tensor(2 * torch.pi).log() / 2
    expected = expected + nn.functional.cross_entropy(outputs[:, 1:3], table[:, 1:3], reduction="none")
    expected = expected + nn.functional.cross_entropy(outputs[:, 3:6], table[:, 3:6], reduction="none")
    expected = expected + nn.functional.binary_cross_entropy_with_logits(
        outputs[:, 6], paid, reduction="none"
    )
    torch.testing.assert_close(columns.losses(outputs, table), expected)


def test_means_are_the_minimum_of_the_losses(table, generator):
    columns = ColumnKinds(7)
    columns.infer(table)
    outputs = torch.randn(1, 7, generator=generator, requires_grad=True)
    optimizer = torch.optim.LBFGS([outputs], max_iter=60)

    def closure():
        optimizer.zero_grad()
        loss = columns.losses(outputs.expand(len(table), -1), table).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(columns.means(outputs)[0], table.mean(0), atol=2e-3, rtol=0)


def test_columns_left_out_do_not_count(table):
    columns = ColumnKinds(7)
    columns.infer(table)
    columns.leave_out(torch.tensor([False, True, True, False, False, False, False]))
    assert columns.kind.tolist()[1:3] == [LEFT_OUT] * 2
    outputs = torch.zeros(len(table), 7, requires_grad=True)
    columns.losses(outputs, table).sum().backward()
    assert not outputs.grad[:, 1:3].any() and outputs.grad[:, 3:].any()
    assert not columns.means(outputs + 3)[:, 1:3].any()


def test_errors():
    with pytest.raises(InputError, match="no known kind"):
        ColumnKinds(2).set(["number", 1])
    with pytest.raises(InputError, match="inputs have 2"):
        ColumnKinds(2).set([3])
