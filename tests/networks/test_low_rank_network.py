"""The network `low-rank` in the life of a learner: trained, saved, loaded, pickled, exported."""

import copy
import pickle

import numpy as np
import pytest
import torch

from unseen.errors import InputError
from unseen.networks import build_network
from unseen.networks.low_rank import low_rank_updates, parameter_counts
from unseen.registry import Spec
from unseen.shifts.arrays import from_arrays
from unseen.training import Learner, Predictor, fit
from unseen.training.model_folder import load, save

SHAPE = (1, 8, 8)
TINY = "low-rank(of='transformer(width=16, depth=1)', rank=2, groups=3)"


@pytest.fixture(scope="module")
def split():
    generator = np.random.default_rng(0)
    labels, domain = np.arange(90) % 3, np.arange(90) // 3 % 3
    images = generator.integers(0, 100, size=(90, *SHAPE), dtype=np.uint8)
    images[np.arange(90), 0, 2 * labels] = 255
    return from_arrays(images, labels, domain).split("2")


@pytest.fixture(scope="module")
def pretrained(split, tmp_path_factory):
    """A model folder of the plain transformer."""
    learner = Learner(network="transformer(width=16, depth=1)", steps=20, learning_rate=0.01)
    return save(fit(learner, split), tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def tuned(split, pretrained):
    network = TINY[:-1] + f", weights={str(pretrained)!r})"
    return fit(Learner(objective="pego", network=network, steps=20, learning_rate=0.02), split)


def test_head_and_updates_are_trainable_and_nothing_else():
    network = build_network(TINY, SHAPE, 4)
    trainable = {name for name, p in network.named_parameters() if p.requires_grad}
    place = "featurizer.1.layers.0.self_attn.parametrizations.in_proj_weight.0"
    assert trainable == {"head.weight", "head.bias", f"{place}.down", f"{place}.up"}
    assert parameter_counts(network)[0] == 4 * 17 + 2 * 3 * 2 * 2 * 16


def test_training_leaves_the_pretrained_weights_untouched(tuned, pretrained):
    base = load(pretrained).network.state_dict()
    state = tuned.network.state_dict()
    names = {
        name: name.replace("in_proj_weight", "parametrizations.in_proj_weight.original") for name in base
    }
    for name in (name for name in base if name.startswith("featurizer.")):
        assert torch.equal(base[name], state[names[name] if names[name] in state else name]), name
    assert all(update.up.abs().sum() > 0 for _, _, update in low_rank_updates(tuned.network))


def test_a_saved_model_needs_no_weights_file(tuned, split, tmp_path):
    loaded = load(save(tuned, tmp_path / "model"))
    images = split.shift.inputs[:20]
    assert tuned.predict(images).equals(loaded.predict(images))
    assert "weights" not in loaded.network.spec.options
    assert Spec.of(str(loaded.network.spec)) == loaded.network.spec == tuned.network.spec


def test_pickled_and_copied_networks_compute_the_same(tuned, generator):
    network = tuned.network
    x = torch.randn(3, *SHAPE, generator=generator)
    merged = network.merged()
    for twin in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert torch.equal(twin(x), network(x))
        assert low_rank_updates(twin) and twin.training == network.training
    torch.testing.assert_close(merged(x), network(x), rtol=1e-4, atol=1e-5)
    assert not low_rank_updates(merged) and low_rank_updates(network)
    assert torch.equal(pickle.loads(pickle.dumps(merged))(x), merged(x))
    assert torch.equal(merged.merged()(x), merged(x))


def test_merged_weights_are_those_of_the_base_network(tuned, generator):
    plain = build_network("transformer(width=16, depth=1)", SHAPE, 3).eval()
    plain.load_state_dict(tuned.network.merged().state_dict())
    x = torch.randn(3, *SHAPE, generator=generator)
    torch.testing.assert_close(plain(x), tuned.network.eval()(x), rtol=1e-4, atol=1e-5)


def test_weights_of_a_file(pretrained, generator):
    path = pretrained / "weights.safetensors"
    network = build_network(TINY[:-1] + f", weights={str(path)!r})", SHAPE, 7)
    x = torch.randn(3, *SHAPE, generator=generator)
    assert torch.equal(network.featurizer(x), load(pretrained).network.train().featurizer(x))


@pytest.mark.parametrize("merged", [False, True])
def test_onnx(merged, tuned, split, tmp_path):
    onnx = pytest.importorskip("onnx", reason="extra `onnx` is absent")
    pytest.importorskip("onnxscript", reason="extra `onnx` is absent")
    runtime = pytest.importorskip("onnxruntime", reason="extra `onnx` is absent")
    network = tuned.network.merged() if merged else tuned.network
    predictor = Predictor(network, tuned.preprocessing, tuned.classes)
    path = predictor.export_onnx(tmp_path / "model.onnx")
    images = split.shift.inputs[:5]
    (logits,) = runtime.InferenceSession(path).run(["logits"], {"x": np.asarray(images)})
    np.testing.assert_allclose(logits, tuned.outputs(images).logits.numpy(), atol=1e-4)
    if merged:
        stored = [weights.name for weights in onnx.load(path).graph.initializer]
        assert stored and not [name for name in stored if "parametrizations" in name]


def test_convolutions_of_a_pretrained_backbone(generator):
    pytest.importorskip("efficientnet_lite_pytorch", reason="extra `backbones` is absent")
    of = "pretrained(name='efficientnet-lite0', size=32)"
    network = build_network(f"low-rank(of={of!r}, rank=2, targets='.*_project_conv')", (3, 16, 16), 3)
    plain = build_network(of, (3, 16, 16), 3)
    x = torch.randn(2, 3, 16, 16, generator=generator)
    torch.testing.assert_close(network.featurizer(x), plain.featurizer(x))
    network(x).sum().backward()
    updates = low_rank_updates(network)
    assert len(updates) == 16
    assert all(update.up.grad.abs().sum() > 0 for _, _, update in updates)
    trained, everything = parameter_counts(network)
    assert trained < 0.02 * everything


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("low-rank(of='cnn')", "match no linear layer"),
        ("low-rank(of='transfromer')", "'transformer'"),
        (f"low-rank(of={TINY!r})", "updated twice"),
        ("low-rank(weights='/nowhere')", "cannot be read"),
        ("low-rank(rank=100)", "Give a lower rank"),
    ],
)
def test_errors(spec, words):
    with pytest.raises(InputError, match=words):
        build_network(spec, SHAPE, 3)


def test_weights_of_another_network_are_refused(pretrained):
    with pytest.raises(InputError, match="do not fit"):
        build_network(f"low-rank(of='transformer(width=32)', weights={str(pretrained)!r})", SHAPE, 3)
