import pytest
import torch

from unseen.objectives.mixup import Mixup
from unseen.objectives.regmixup import RegMixup
from unseen.shifts.arrays import from_arrays
from unseen.shifts.sampling import derive_seed
from unseen.training.data import TrainingData
from unseen.training.examples import StackedExamples


class OneByOne(Mixup):
    def prepare(self, batch, generator):
        return super().prepare(batch, generator)


@pytest.fixture
def data(generator):
    x, labels = torch.randn(120, 5, generator=generator), torch.arange(120) % 3
    shift = from_arrays(x, labels, torch.arange(120) // 3 % 3)
    return [TrainingData(shift.split(name)) for name in shift.domains]


def streams(kind, data):
    """Two data sets, two seeds, two alphas: some draw the same, others do not."""
    found = []
    for one in data[:2]:
        for seed in (3, 4):
            for alpha in (0.3, 5.0):
                objective = kind(alpha)
                objective.setup(features=5, classes=3, domains=2)
                found.append((one, seed, objective))
    return found


@pytest.mark.parametrize("kind", [Mixup, RegMixup, OneByOne])
def test_batches_are_those_that_each_stream_alone_would_draw_and_change(kind, data):
    three = streams(kind, data)
    stacked = StackedExamples(*zip(*three, strict=True), per_domain=7).batches(3)
    shares = set()
    for step, together in enumerate(stacked):
        for index, (one, seed, objective) in enumerate(three):
            rows = one.sampler(7, derive_seed(seed, 0)).rows(step)
            generator = torch.Generator().manual_seed(derive_seed(seed, 0, step))
            alone = objective.prepare(one.batch(rows, step), generator)
            torch.testing.assert_close(together.x[index], alone.x)
            torch.testing.assert_close(together.y[index], alone.y)
            assert torch.equal(together.domain, alone.domain) and together.step == step
            if alone.auxiliary is not None:
                torch.testing.assert_close(together.auxiliary["x"][index], alone.auxiliary["x"])
                torch.testing.assert_close(together.auxiliary["y"][index], alone.auxiliary["y"])
            generator = torch.Generator().manual_seed(derive_seed(seed, 0, step))
            shares.add(float(objective.draw(14, generator)["share"]))
    assert len(shares) == 12  # a share for each seed, alpha and step, whatever the data


def test_streams_that_draw_the_same_are_drawn_once(data, monkeypatch):
    three, calls = streams(Mixup, data), []
    draw = Mixup.draw
    monkeypatch.setattr(Mixup, "draw", lambda *given: calls.append(given) or draw(*given))
    list(StackedExamples(*zip(*three, strict=True), per_domain=7).batches(2))
    assert len(calls) == 2 * 4
