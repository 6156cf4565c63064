import json

import numpy as np
import pytest
import torch

from unseen.errors import InputError
from unseen.networks.steering import Steering
from unseen.shifts.arrays import from_arrays
from unseen.training import Learner, fit
from unseen.training.model_folder import load
from unseen.training.steered import head_names, predict_steered, settle


@pytest.fixture(scope="module")
def data():
    """Two places whose cue for the label has opposite signs; which place it is shows in another coordinate."""
    generator = torch.Generator().manual_seed(0)
    labels, place = torch.arange(240) % 2, torch.arange(240) // 80
    sign = torch.tensor([1.0, -1.0, 1.0])[place]
    cue = sign * (2 * labels - 1) * 2 + 0.3 * torch.randn(240, generator=generator)
    where = sign * 2 + 0.3 * torch.randn(240, generator=generator)
    return torch.stack([cue, where], 1).numpy(), labels.numpy(), np.array(["north", "south", "new"])[place]


@pytest.fixture(scope="module")
def predictor(data):
    x, labels, place = data
    split = from_arrays(x, labels, place).split("new")
    learner = Learner(
        objective="drm(discriminator=8)", network="mlp(width=16)", steps=60, batch_size=16, learning_rate=0.01
    )
    return fit(learner, split, seed=1)


def inputs(data, place):
    x, _, places = data
    return x[places == place]


def test_each_place_takes_its_own_head(data, predictor):
    assert head_names(predictor) == [*predictor.facts["train_domains"], "all"]
    x = np.concatenate([inputs(data, "south")[:20], inputs(data, "north")[:20]])
    table = predict_steered(
        predictor, x, groups=["s"] * 20 + ["n"] * 20, steering=Steering(by="discriminator")
    )
    assert set(table["head"][:20]) == {"south"} and set(table["head"][20:]) == {"north"}
    assert list(table.columns) == ["label", "p(0)", "p(1)", "head"]
    np.testing.assert_allclose(table["p(0)"] + table["p(1)"], 1, rtol=1e-5)
    alone = predict_steered(predictor, x[:20], steering=Steering(by="discriminator"))
    np.testing.assert_allclose(alone["p(1)"], table["p(1)"][:20], rtol=1e-4)
    with pytest.raises(InputError, match="are 2 for 40 examples"):
        predict_steered(predictor, x, groups=["s", "n"])


def test_the_shared_head_answers_unless_steering_is_asked_for(data, predictor):
    x = inputs(data, "new")
    shared = predict_steered(predictor, x, steering=Steering(by="shared"))
    np.testing.assert_allclose(predictor.predict(x)["p(1)"], shared["p(1)"], rtol=1e-5)
    np.testing.assert_allclose(predictor.predict(x[:1])["p(1)"], shared["p(1)"][:1], rtol=1e-4)


def test_a_saved_model_steers_as_before(data, predictor, tmp_path):
    restored = load(predictor.save(tmp_path / "model"))
    x = inputs(data, "new")
    assert restored.predict(x).equals(predictor.predict(x))
    for by in ("entropy", "prototype", "discriminator"):
        steering = Steering(by=by)
        assert predict_steered(restored, x, steering=steering).equals(
            predict_steered(predictor, x, steering=steering)
        )


def test_a_settled_predictor_answers_with_the_chosen_head_and_is_saved_so(data, predictor, tmp_path):
    x, steering = inputs(data, "south"), Steering(by="prototype")
    predictor.facts["evaluation"] = {"unseen": []}
    settled = settle(predictor, x, steering)
    assert settled.facts["head"] == "south" and "evaluation" not in settled.facts
    steered = predict_steered(predictor, x, steering=steering)
    np.testing.assert_allclose(settled.predict(x)["p(1)"], steered["p(1)"], rtol=1e-5)
    assert predictor.network.head.mixture.tolist() == [0, 0, 1]  # the given predictor stays as it was
    restored = load(settled.save(tmp_path / "settled"))
    assert restored.predict(x).equals(settled.predict(x))
    description = json.loads((tmp_path / "settled" / "model.json").read_text())
    assert description["training"]["head"] == "south" and settled.familiarity is None
    for bad in (Steering(unit="example"), Steering(gamma=1.0)):
        with pytest.raises(InputError, match="steering to settle by"):
            settle(predictor, x, bad)


@pytest.mark.parametrize("settles", [False, True])
def test_an_onnx_file_gives_what_the_model_gives(data, predictor, settles, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    x = inputs(data, "south")
    model = settle(predictor, x) if settles else predictor
    session = runtime.InferenceSession(model.export_onnx(tmp_path / "model.onnx"))
    encoded = {"x": model.preprocessing.encode(x).numpy()}
    (found,) = session.run(["probabilities"], encoded)
    np.testing.assert_allclose(found[:, 1], model.predict(x)["p(1)"], rtol=1e-4, atol=1e-5)


def test_other_networks_have_no_heads_of_domains(data):
    x, labels, place = data
    plain = fit(Learner(network="mlp(width=4)", steps=2), from_arrays(x, labels, place).split("new"))
    for call in (lambda: predict_steered(plain, x), lambda: settle(plain, x), lambda: head_names(plain)):
        with pytest.raises(InputError, match="no heads of domains"):
            call()
