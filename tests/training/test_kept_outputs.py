"""Outputs of a model in a folder: computed once, the same bits, refused to others."""

import pandas as pd
import pytest
import torch

from unseen.errors import InputError
from unseen.networks import Bank
from unseen.registry import detectors
from unseen.shifts import Shift
from unseen.training import Learner, fit, kept_outputs


@pytest.fixture(scope="module")
def shift() -> Shift:
    generator = torch.Generator().manual_seed(0)
    y, domain = torch.arange(1400) % 3, torch.arange(1400) % 2
    x = torch.randn(1400, 6, generator=generator) + 2 * torch.nn.functional.one_hot(y, 6)
    return Shift("toy", "array", x, y, domain, "xyz", ("north", "south"))


def trained(shift, seed=0):
    learner = Learner(network="mlp(width=32)", steps=5, batch_size=8, evaluations=1)
    return fit(learner, shift.split("south"), seed=seed)


@pytest.fixture(scope="module")
def predictor(shift):
    return trained(shift)


@pytest.fixture
def blocks_of_512(monkeypatch):
    monkeypatch.setattr(kept_outputs, "BLOCK", 512)


def counted(predictor, monkeypatch) -> list[int]:
    """Sizes of the batches that pass the network from now on."""
    sizes, original = [], predictor.network.featurizer.forward
    monkeypatch.setattr(
        predictor.network.featurizer, "forward", lambda x: sizes.append(len(x)) or original(x)
    )
    return sizes


def test_the_network_is_passed_once_and_the_bits_are_those_in_memory(
    predictor, shift, tmp_path, monkeypatch, blocks_of_512
):
    gram = detectors.build("gram")
    expected = predictor.outputs(shift, [gram])
    sizes = counted(predictor, monkeypatch)
    found = predictor.outputs(shift, [gram], folder=tmp_path / "bank")
    assert sum(sizes) == 1400 + 1 and max(sizes) <= 128  # one more, to learn what is kept of an input
    for name in ("features", "logits", "labels", "domain"):
        assert torch.equal(getattr(expected, name), getattr(found, name))
    assert found.layers.keys() == expected.layers.keys() and found.domains == ("north", "south")
    assert all(torch.equal(value, expected.layers[name]) for name, value in found.layers.items())
    assert found.head is predictor.network.head and found.network_hash
    del sizes[:]
    again = predictor.outputs(shift, [gram], folder=tmp_path / "bank")
    assert sizes == [1] and torch.equal(again.features, found.features)
    assert torch.equal(gram.fit(again).score(again), gram.fit(expected).score(expected))


def test_labels_are_those_of_the_shift_that_is_asked_for(predictor, shift, tmp_path):
    predictor.outputs(shift, folder=tmp_path / "bank")
    other = Shift("other", "array", shift.inputs, shift.labels.flip(0), shift.domain, "xyz", "ab")
    found = predictor.outputs(other, folder=tmp_path / "bank")
    assert torch.equal(found.labels, other.labels) and found.domains == ("a", "b")
    assert predictor.outputs(shift.inputs, folder=tmp_path / "bank").labels is None


def test_another_model_other_inputs_detectors_and_precision_are_refused(predictor, shift, tmp_path):
    folder = tmp_path / "bank"
    predictor.outputs(shift, folder=folder)
    with pytest.raises(InputError, match="holds outputs of another network"):
        trained(shift, seed=1).outputs(shift, folder=folder)
    with pytest.raises(InputError, match="holds outputs for other inputs"):
        predictor.outputs(shift.inputs + 1e-6, folder=folder)
    with pytest.raises(InputError, match=r"was computed without 'gram\(10\)/.*which a detector reads"):
        predictor.outputs(shift, [detectors.build("gram")], folder=folder)
    with pytest.raises(InputError, match="holds float32, not float16"):
        predictor.outputs(shift, folder=folder, dtype="float16")
    half = predictor.outputs(shift, folder=tmp_path / "half", dtype="float16")
    assert half.features.dtype == torch.float16
    assert torch.equal(half.features.float(), Bank.open(folder).features.half().float())


def test_other_preprocessing_before_the_same_network_is_refused(predictor, shift, tmp_path):
    predictor.outputs(shift, folder=tmp_path / "bank")
    other = trained(shift)
    assert torch.equal(other.outputs(shift, folder=tmp_path / "bank").labels, shift.labels)  # equally trained
    other.preprocessing.mean[0] += 1
    with pytest.raises(InputError, match="holds outputs for other inputs"):
        other.outputs(shift, folder=tmp_path / "bank")


def test_tables_and_no_inputs_at_all(tmp_path):
    frame = pd.DataFrame({"a": range(40), "b": list("uv") * 20})
    table = Shift("t", "table", frame, [0, 1] * 20, [0] * 20 + [1] * 20, "xy", "mn")
    model = fit(Learner(network="mlp(width=4)", steps=2, batch_size=4, evaluations=1), table.split("n"))
    bank = model.outputs(frame, folder=tmp_path / "bank")
    assert torch.equal(bank.logits, model.outputs(frame).logits)
    with pytest.raises(InputError, match="other inputs"):
        model.outputs(frame.assign(a=frame.a + 1), folder=tmp_path / "bank")
    assert len(model.outputs(frame[:0], folder=tmp_path / "none")) == 0
