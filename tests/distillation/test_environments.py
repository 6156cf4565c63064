"""Examples of several environments, numbered through, whatever form they come in."""

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from unseen.distillation.environments import Environments
from unseen.errors import InputError
from unseen.shifts import Batch


class Pairs(Dataset):
    """x is the example's number in its dataset, and counts how often it is read."""

    def __init__(self, count):
        self.count, self.read = count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError
        self.read += 1
        return torch.tensor([float(index)]), index % 2


def tensors(count, seed=0):
    return TensorDataset(torch.randn(count, 3), torch.arange(count) % 2)


def test_numbers_run_through_all_environments():
    data = Environments.of([Pairs(3), Pairs(4)])
    batch = data.batch(torch.tensor([2, 3, 6]), step=7)
    assert batch.x.squeeze(1).tolist() == [2, 0, 3] and batch.y.tolist() == [0, 0, 1]
    assert batch.domain.tolist() == [0, 1, 1] and batch.ids.tolist() == [2, 3, 6]
    assert (batch.domains, batch.step, len(data), data.names) == (2, 7, 7, ("0", "1"))


def test_datasets_are_read_when_asked_for_and_tensors_taken_whole():
    lazy = Pairs(5)
    data = Environments.of(lazy)
    assert lazy.read == 0
    assert torch.cat([b.ids for b in data.in_order(2)]).tolist() == list(range(5)) and lazy.read == 5


def test_dicts_of_tensors_are_joined():
    def batch(count):
        return Batch({"a": torch.ones(count, 2)}, torch.zeros(count).long(), torch.zeros(count).long(), 1)

    assert Environments.of([batch(2), batch(3)]).batch(torch.tensor([1, 4])).x["a"].shape == (2, 2)


def test_a_batch_brings_its_domains_and_a_mapping_its_names():
    domain = torch.tensor([0, 2, 1])
    batch = Batch(torch.randn(3, 1), torch.zeros(3).long(), domain, 3)
    assert torch.equal(Environments.of(batch).domain, domain)
    named = Environments.of({"photo": batch})
    assert named.names == ("photo",) and named.domain.tolist() == [0, 0, 0]
    assert Environments.of(named) is named


def test_labels_are_checked_over_all_examples():
    data = Environments.of([tensors(4), TensorDataset(torch.randn(2, 3), torch.tensor([0, 3]))])
    data.check_labels(4)
    with pytest.raises(InputError, match="there are 3 texts"):
        data.check_labels(3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no environment"),
        ({}, "no environment"),
        ([tensors(2), Pairs(2)], "mix tensors and datasets"),
        ([Pairs(2), Pairs(0)], "environment without an example|hold no example"),
        (3, "no stable order"),
    ],
)
def test_what_cannot_be_read(data, message):
    with pytest.raises(InputError, match=message):
        Environments.of(data)
