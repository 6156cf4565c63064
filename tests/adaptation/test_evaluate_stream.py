import pandas as pd
import pytest
import torch
from torch import nn

from unseen.adaptation.evaluate_stream import INTERVAL, METRICS, evaluate_stream
from unseen.adaptation.meta_ood import MetaOOD
from unseen.adaptation.stream_methods import SupportNeighbours, WithoutLabels
from unseen.adaptation.t3a import T3A
from unseen.adaptation.tent import Tent
from unseen.detection.metrics import ood_metrics
from unseen.errors import InputError
from unseen.networks import Network
from unseen.shifts.task_streams import Labelled, transform_stream


@pytest.fixture
def stream(generator):
    y = torch.arange(90) % 3
    x = 3 * torch.eye(4)[y] + 0.3 * torch.randn(90, 4, generator=generator)
    ood = 3 * torch.eye(4)[3] + 0.3 * torch.randn(30, 4, generator=generator)
    turns = {"roll": lambda v: v.roll(1, 1), "flip": lambda v: v.flip(1)}
    return transform_stream(x, y, ood, turns, shots=3)


class Recorder:
    """Remembers what it is called with; right on the distributions that it has adapted to last."""

    def __init__(self):
        self.resets, self.last = [], None

    def adapt(self, support, reset=False):
        self.resets.append(reset)
        self.last = support

    def predict(self, x):
        return (
            torch.cdist(x, self.last.x)
            .argmin(1)
            .remainder(len(self.last.x))
            .apply_(lambda i: int(self.last.y[i]))
        )

    def score(self, x):
        return -torch.cdist(x, self.last.x).amin(1)


def test_table_area_worst_and_forgetting(stream):
    method = Recorder()
    outcome = evaluate_stream(method, stream)
    assert method.resets == [True, True, False]
    assert (
        list(outcome.steps.index) == ["roll", "flip"] and tuple(outcome.steps.columns) == METRICS + INTERVAL
    )
    method.adapt(stream[0].support)
    found = ood_metrics(method.score(stream[0].id_test.x), method.score(stream[0].ood_test))
    assert outcome.steps.auroc["roll"] == found.auroc and outcome.steps.fpr95["roll"] == found.fpr95
    assert (outcome.steps.auroc_low["roll"], outcome.steps.auroc_high["roll"]) == pytest.approx(
        (found.auroc_low, found.auroc_high)
    )
    pd.testing.assert_series_equal(outcome.area, outcome.steps[list(METRICS)].mean())
    assert list(outcome.worst.index) == list(outcome.forgetting.index) == list(METRICS)
    assert outcome.worst.accuracy == outcome.steps.accuracy.min()
    assert outcome.worst.fpr95 == outcome.steps.fpr95.max()
    method.adapt(stream.source.support)
    at_home = (method.predict(stream.source.id_test.x) == stream.source.id_test.y).double().mean()
    method.adapt(stream[1].support)
    away = (method.predict(stream.source.id_test.x) == stream.source.id_test.y).double().mean()
    assert outcome.forgetting.accuracy == pytest.approx(float(at_home - away)) and at_home > away
    assert outcome.forgetting.fpr95 >= 0
    reset = Recorder()
    evaluate_stream(reset, stream, reset=True)
    assert reset.resets == [True, True, True]


def test_a_stream_without_source_has_no_forgetting(stream):
    from unseen.shifts.task_streams import ShiftStream

    assert evaluate_stream(Recorder(), ShiftStream(stream.tasks)).forgetting is None


def test_methods_of_all_kinds_share_it(stream):
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.ReLU()), 16, 3)
    methods = {
        "fine-tuning": MetaOOD(network, inner_lr=0.3, inner_steps=20),
        "prototypes": SupportNeighbours(lambda x: x),
        "neighbours": SupportNeighbours(lambda x: x, by="neighbours", k=3),
        "tent": WithoutLabels(Tent(network)),
        "t3a": WithoutLabels(T3A(network), detector="energy"),
    }
    area = {name: evaluate_stream(method, stream, reset=True).area for name, method in methods.items()}
    for name in ("fine-tuning", "prototypes", "neighbours"):
        assert area[name].accuracy > 0.95, name
    assert area["prototypes"].auroc > 0.95 and area["neighbours"].auroc > 0.95
    assert area["fine-tuning"].accuracy > area["tent"].accuracy


def test_an_object_that_lacks_a_method_is_named(stream):
    class Half:
        def adapt(self, support, reset=False): ...

    with pytest.raises(InputError, match="Half.*has no predict, score"):
        evaluate_stream(Half(), stream)


def test_prototypes_and_neighbours_by_hand(generator):
    support = Labelled(torch.randn(9, 5, generator=generator), torch.tensor([0, 0, 0, 2, 2, 2, 4, 4, 4]))
    x = torch.randn(20, 5, generator=generator)

    def unit(v):
        return v / v.norm(dim=-1, keepdim=True)

    means = {c: unit(unit(support.x[support.y == c]).mean(0)) for c in (0, 2, 4)}
    prototypes = SupportNeighbours(lambda v: v).adapt(support)
    for row, predicted, score in zip(unit(x), prototypes.predict(x), prototypes.score(x), strict=True):
        distances = {c: float((row - mean).norm()) for c, mean in means.items()}
        assert int(predicted) == min(distances, key=distances.get)
        assert float(score) == pytest.approx(-min(distances.values()), abs=1e-5)
    neighbours = SupportNeighbours(lambda v: v, by="neighbours", k=3).adapt(support)
    for row, predicted, score in zip(unit(x), neighbours.predict(x), neighbours.score(x), strict=True):
        distances = (row - unit(support.x)).norm(dim=1)
        nearest = support.y[distances.argsort()[:3]].tolist()
        most = max(nearest.count(c) for c in nearest)
        assert int(predicted) == next(c for c in nearest if nearest.count(c) == most)
        assert float(score) == pytest.approx(-float(distances.sort().values[2]), abs=1e-5)


def test_supports_add_up_until_reset():
    first = Labelled(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    second = Labelled(torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
    method = SupportNeighbours(lambda v: v)
    method.adapt(first)
    method.adapt(second)
    assert method.predict(first.x).tolist() == [0]
    method.adapt(second, reset=True)
    assert method.predict(first.x).tolist() == [1]


def test_what_is_learnt_from_test_inputs_is_forgotten(world):
    adapted = WithoutLabels(Tent(world.network, learning_rate=0.1))
    support = Labelled(world.inputs(32, 1), torch.zeros(32).long())
    adapted.adapt(support, reset=True)
    first = adapted.score(world.inputs(32, 2))
    adapted.predict(world.inputs(32, 3))
    assert torch.equal(adapted.score(world.inputs(32, 2)), first)
    adapted.adapt(support)
    assert not torch.equal(adapted.score(world.inputs(32, 2)), first)
    adapted.adapt(support, reset=True)
    assert torch.equal(adapted.score(world.inputs(32, 2)), first)


def test_baselines_refuse_what_does_not_fit():
    with pytest.raises(InputError, match="by"):
        SupportNeighbours(lambda v: v, by="votes")
    with pytest.raises(InputError, match="k"):
        SupportNeighbours(lambda v: v, k=0)
    with pytest.raises(InputError, match="no support yet"):
        SupportNeighbours(lambda v: v).predict(torch.zeros(1, 2))
    with pytest.raises(InputError, match="k.*1 support examples"):
        SupportNeighbours(lambda v: v, by="neighbours", k=2).adapt(
            Labelled(torch.ones(1, 2), torch.zeros(1).long())
        )
