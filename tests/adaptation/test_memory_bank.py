"""The memory against a slow one, written with a list of items for each class."""

import math

import pytest
import torch

from unseen.adaptation.memory_bank import remember


class SlowMemory:
    def __init__(self, capacity, classes):
        self.capacity, self.classes = capacity, classes
        self.lists = [[] for _ in range(classes)]

    def score(self, age, uncertainty):
        return 1 / (1 + math.exp(-age / self.capacity)) + uncertainty / math.log(self.classes)

    def add(self, name, label, uncertainty):
        if self.make_room(label, self.score(0, uncertainty)):
            self.lists[label].append([name, uncertainty, 0])
        for items in self.lists:
            for item in items:
                item[2] += 1

    def make_room(self, label, newcomer):
        sizes = [len(items) for items in self.lists]
        if sizes[label] >= self.capacity / self.classes:
            return self.drop([label], newcomer)
        if sum(sizes) < self.capacity:
            return True
        return self.drop([c for c, size in enumerate(sizes) if size == max(sizes)], newcomer)

    def drop(self, classes, newcomer):
        worst = max((self.score(i[2], i[1]), c, k) for c in classes for k, i in enumerate(self.lists[c]))
        if worst[0] <= newcomer:
            return False
        del self.lists[worst[1]][worst[2]]
        return True


@pytest.mark.parametrize(("capacity", "classes"), [(12, 4), (7, 3), (2, 5), (1, 2)])
def test_the_same_examples_stay_as_in_the_slow_memory(capacity, classes, generator):
    bank, slow = [], SlowMemory(capacity, classes)
    for name in range(200):
        label = int(
            torch.randint(classes, (), generator=generator).clamp(max=name // 20)
        )  # correlated at first
        uncertainty = float(torch.rand((), generator=generator)) * math.log(classes)
        remember(
            bank,
            {"x": name, "label": label, "uncertainty": uncertainty, "age": 0},
            capacity=capacity,
            classes=classes,
        )
        slow.add(name, label, uncertainty)
        expected = {(item[0], item[2]) for items in slow.lists for item in items}
        assert {(item["x"], item["age"]) for item in bank} == expected
        assert len(bank) <= capacity


def test_classes_share_the_memory():
    bank = []
    for name in range(60):
        item = {"x": name, "label": 0 if name < 40 else name % 3, "uncertainty": 0.1, "age": 0}
        remember(bank, item, capacity=9, classes=3)
    assert sorted(item["label"] for item in bank) == [0] * 3 + [1] * 3 + [2] * 3
