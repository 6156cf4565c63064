import numpy as np
import pytest
import torch

from unseen.errors import InputError
from unseen.networks import build_network
from unseen.networks.domain_context import group_means
from unseen.shifts.arrays import from_arrays
from unseen.training.batched import Run, can_batch, train_many
from unseen.training.data import TrainingData
from unseen.training.fit import fit, train
from unseen.training.learner import Learner


@pytest.mark.parametrize(
    ("count", "sizes"), [(8, [4, 4]), (12, [4, 4, 4]), (3, [3]), (7, [7]), (11, [6, 5]), (1, [1])]
)
def test_groups_are_consecutive_and_never_smaller_than_the_support(count, sizes, generator):
    values = torch.randn(count, 2, 3, generator=generator).double()
    expected = torch.cat([part.mean(0).expand_as(part) for part in values.split(sizes)])
    torch.testing.assert_close(group_means(values, 4), expected)


def test_mtl_reads_the_features_and_their_mean(generator):
    network = build_network("mtl(base='mlp(width=6)', support=4)", (5,), 3).double()
    x = torch.randn(8, 5, generator=generator).double()
    features = network.featurizer.featurizer(x)
    means = torch.cat([features[:4].mean(0).expand(4, -1), features[4:].mean(0).expand(4, -1)])
    torch.testing.assert_close(network(x), network.head(torch.cat([features, means], 1)))


@pytest.mark.parametrize(("shape", "base"), [((5,), "mlp(width=6)"), ((2, 8, 8), "cnn(width=4)")])
def test_arm_reads_the_inputs_and_their_mean_context(shape, base, generator):
    network = build_network(f"arm(base={base!r}, support=4, context=2)", shape, 3).double().eval()
    x = torch.randn(8, *shape, generator=generator).double()
    context = network.featurizer.context(x)
    means = torch.cat(
        [context[:4].mean(0).expand_as(context[:4]), context[4:].mean(0).expand_as(context[4:])]
    )
    expected = network.head(network.featurizer.featurizer(torch.cat([x, means], 1)))
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("name", ["arm", "mtl"])
def test_a_training_batch_that_mixes_domains_is_an_error(name):
    network = build_network(f"{name}(base='mlp', support=4)", (5,), 3)
    with pytest.raises(InputError, match="support 4: does not divide a training batch of 6"):
        network(torch.zeros(6, 5))
    assert network(torch.zeros(3, 5)).shape == (3, 3)
    assert network.eval()(torch.zeros(6, 5)).shape == (6, 3)


@pytest.mark.parametrize(
    ("spec", "shape", "sentence"),
    [("arm", (4, 6), "takes images or vectors"), ("mtl(support=0)", (5,), "support: is 0")],
)
def test_errors(spec, shape, sentence):
    with pytest.raises(InputError, match=sentence):
        build_network(spec, shape, 3)


@pytest.fixture(scope="module")
def shifted():
    """The class is a sign relative to the domain's mean, which is far away and different in every domain."""
    generator = np.random.default_rng(0)
    domain, y = np.repeat(np.arange(7), 60), np.tile([0, 1], 210)
    centre = np.array([-4.0, 3.0, -1.5, 5.0, 1.0, -3.0, 2.5])[domain]
    x = np.stack([centre + 0.7 * (2 * y - 1) + 0.3 * generator.normal(size=420), np.ones(420)], 1)
    return TrainingData(from_arrays(x.astype("float32"), y, domain).split("6"))


def accuracy(network, data):
    learner = Learner(
        network=network, steps=250, batch_size=16, learning_rate=0.01, keep="last", evaluations=2
    )
    predictor = fit(learner, data.split, seed=1, data=data)
    bank = data.bank(predictor.network, data.split.rows("unseen"))
    return float(bank.correct.float().mean())


@pytest.mark.parametrize("name", ["arm", "mtl"])
def test_an_unseen_domain_is_read_by_its_own_mean(name, shifted):
    plain = accuracy("mlp(width=32)", shifted)
    assert plain < 0.85
    assert accuracy(f"{name}(base='mlp(width=32)', support=16)", shifted) > plain + 0.1


@pytest.mark.parametrize("name", ["arm", "mtl"])
def test_stacked_runs_are_those_of_each_alone(name, shifted):
    learner = Learner(network=f"{name}(base='mlp(width=6)', support=8)", steps=5, batch_size=8, keep="last")
    assert can_batch(learner, shifted) is None
    together = train_many([Run(learner, shifted, seed) for seed in (0, 1)])
    alone = train(learner, shifted, seed=1)
    for name, value in alone.state.items():
        torch.testing.assert_close(together[1].state[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["arm", "mtl"])
def test_an_exported_graph_groups_batches_of_any_size(name, shifted, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    learner = Learner(network=f"{name}(base='mlp(width=6)', support=8)", steps=5, batch_size=8, evaluations=1)
    predictor = fit(learner, shifted.split, data=shifted)
    session = runtime.InferenceSession(str(predictor.export_onnx(tmp_path / "m.onnx", familiarity=False)))
    for count in (1, 7, 8, 21):
        x = shifted.stored[:count]
        (logits,) = session.run(["logits"], {"x": x.numpy()})
        expected = predictor.network.eval()(shifted.preprocessing.finish(x)).detach()
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-5)
