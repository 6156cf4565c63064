import importlib

import pytest
import torch
from torch import nn

from unseen.errors import InputError, TrainingDiverged
from unseen.measures.coherence import CoherenceCurve
from unseen.networks import Network
from unseen.objectives import Loss, Objective
from unseen.registry import networks, objectives
from unseen.shifts import Shift
from unseen.training import Hardware, Learner, fit, train
from unseen.training.data import TrainingData


def toy(examples: int = 400, domains: int = 4) -> Shift:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (examples,), generator=generator)
    domain = torch.arange(examples) % domains
    x = (
        torch.randn(examples, 6, generator=generator)
        + 3 * nn.functional.one_hot(y, 6)
        + domain[:, None] * 0.2
    )
    return Shift("toy", "array", x, y, domain, tuple("xyz"), tuple("abcd"[:domains]))


module = importlib.import_module("unseen.training.fit")
SMALL = {"steps": 60, "batch_size": 16, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def split():
    return toy().split("d")


def test_erm_learns(split):
    predictor = fit(Learner(**SMALL), split)
    assert predictor.outputs(split.shift.subset(split.unseen)).correct.float().mean() > 0.85
    assert predictor.facts["steps"] == 60 and predictor.facts["unseen_domains"] == ["d"]


def test_one_step_is_what_plain_torch_does(split):
    data = TrainingData(split)
    learner = Learner(
        network="linear", steps=3, batch_size=8, optimizer="sgd", learning_rate=0.1, keep="last", clip=0.5
    )
    trained = train(learner, data, seed=3)
    from unseen.training.system import build_system

    network = build_system(learner, data, 3).network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    from unseen.shifts.sampling import derive_seed

    sampler = data.sampler(8, derive_seed(3, 0))
    for step in range(3):
        batch = data.batch(sampler.rows(step), step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(batch.x), batch.y).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()
    for name, value in network.state_dict().items():
        assert torch.allclose(value, trained.state[name], atol=1e-6), name


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone(split):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    learner = Learner(objective="mixup", network="mlp(dropout=0.2)", **SMALL)
    first, second, other = (train(learner, TrainingData(split), seed=seed).state for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


class _Interrupted(Exception):
    pass


@pytest.mark.parametrize(
    "text", ["erm+swad", "groupdro+sam+ema", "mixup+asam+swa", "dann", "fishr", "irm(warmup_steps=20)"]
)
def test_a_resumed_run_equals_an_unbroken_one(split, tmp_path, text, monkeypatch):
    learner = Learner.parse(text, network="mlp(dropout=0.1)", schedule="cosine", **SMALL)
    data = TrainingData(split)
    whole = train(learner, data, seed=1)
    path = tmp_path / "run.ckpt"
    monkeypatch.setattr(module, "SECONDS_BETWEEN_CHECKPOINTS", -1)  # save at every evaluation

    def interrupt(step, steps):
        if step == 41:
            raise _Interrupted

    with pytest.raises(_Interrupted):
        train(learner, data, seed=1, checkpoint=path, progress=interrupt)
    assert path.exists()
    steps = []
    resumed = train(learner, data, seed=1, checkpoint=path, progress=lambda step, _: steps.append(step))
    assert min(steps) > 30  # it did go on from the checkpoint
    for name, value in whole.state.items():
        assert torch.equal(value, resumed.state[name]), name
    assert whole.history == resumed.history


def test_a_run_killed_after_its_last_step_has_nothing_left_to_train(split, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_CHECKPOINTS", -1)
    learner, data, path = Learner(averaging="ema", **SMALL), TrainingData(split), tmp_path / "run.ckpt"
    whole = train(learner, data, checkpoint=path)
    again = train(learner, data, checkpoint=path, progress=lambda *_: pytest.fail("trained a step"))
    assert all(torch.equal(whole.state[name], again.state[name]) for name in whole.state)
    assert again.facts["steps"] == 60


def test_an_observer_sees_the_weights_after_each_update_and_changes_nothing(split):
    data = TrainingData(split)
    rows = split.train[:64]
    curve = CoherenceCurve((data.batch(rows, 0).x, split.shift.labels[rows]), every=20)
    norms = []

    def observe(step, network):
        curve(step, network)
        norms.append((step, float(network.head.weight.detach().norm())))

    watched = train(Learner(**SMALL, keep="last"), data, observe=observe)
    plain = train(Learner(**SMALL, keep="last"), data)
    for name, tensor in plain.state.items():
        assert torch.equal(tensor, watched.state[name]), name
    assert [step for step, _ in norms] == list(range(60))
    assert norms[-1][1] == pytest.approx(float(plain.state["head.weight"].norm()))
    assert [row["step"] for row in curve.rows()] == [0, 20, 40]
    with pytest.raises(InputError, match="one device"):
        train(Learner(**SMALL), data, observe=observe, hardware=Hardware("cpu", devices=2))


def test_a_checkpoint_of_another_run_is_refused(split, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_CHECKPOINTS", -1)
    data = TrainingData(split)
    path = tmp_path / "run.ckpt"
    train(Learner(**SMALL), data, checkpoint=path)
    with pytest.raises(InputError, match="belongs to another learner, split or seed"):
        train(Learner(**SMALL), data, seed=1, checkpoint=path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="cannot be read.*Delete it"):
        train(Learner(**SMALL), data, checkpoint=path)


class _Explodes(Objective):
    """Fine until step 25, then not a number."""

    def forward(self, model: Network, batch):
        loss = nn.functional.cross_entropy(model(batch.x), batch.y)
        return Loss(loss * (float("nan") if batch.step >= 25 else 1.0), {"task": loss})


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_good_state(
    split, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_CHECKPOINTS", -1)
    objectives.register("explodes", summary="test")(_Explodes)
    try:
        learner = Learner(objective="explodes", **SMALL)
        path = tmp_path / "run.ckpt"
        with pytest.raises(
            TrainingDiverged, match="nan at step 26 of 60.*best state, of step .*run.ckpt"
        ) as raised:
            train(learner, TrainingData(split), checkpoint=path)
        assert all(torch.isfinite(value).all() for value in raised.value.state.values())
        saved = torch.load(path, weights_only=True)
        assert saved["step"] == 24 and all(torch.isfinite(v).all() for v in saved["system"].values())
    finally:
        objectives._entries.pop("explodes")


def test_patience_stops_early_and_keeps_the_best(split):
    learner = Learner(steps=400, batch_size=16, learning_rate=0.05, evaluations=40, patience=3)
    result = train(learner, TrainingData(split))
    accuracy = {}
    for record in result.history:
        if record["metric"] == "accuracy":
            accuracy.setdefault(record["step"], []).append(record["value"])
    means = {step: sum(v) / len(v) for step, v in accuracy.items()}
    assert result.facts["steps"] < 400
    kept = int(result.facts["kept"].removeprefix("step ")) - 1
    assert means[kept] == max(means.values())


def test_methods_that_compare_domains_need_two(split):
    shift = toy(domains=2)
    with pytest.raises(InputError, match="'groupdro': compares training domains, but there is only one"):
        fit(Learner(objective="groupdro", **SMALL), shift.split("b"))


@pytest.mark.parametrize("name", ["coral", "dann", "mmd", "ib-erm"])
def test_methods_that_shape_features_need_some_to_shape(split, name):
    with pytest.raises(
        InputError, match=f"'{name}': acts on the features, but the network 'linear' trains none"
    ):
        fit(Learner(objective=name, network="linear", **SMALL), split)
    fit(Learner(objective=name, network="mlp", **{**SMALL, "steps": 2}), split)


def test_averaged_weights_get_their_own_batch_statistics(split):
    def bn(*, input_shape, classes):
        return Network(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()), 8, classes)

    networks.register("bn-test", summary="test")(bn)
    try:
        data = TrainingData(split)
        result = train(Learner(network="bn-test", averaging="swa(start=0.0)", **SMALL), data)
        network = bn(input_shape=None, classes=3)
        network.load_state_dict(result.state)
        first = network.featurizer[0](data.batch(split.train, 0).x)
        found = result.state["featurizer.1.running_mean"]
        assert torch.allclose(found, first.mean(0), atol=0.15)
    finally:
        networks._entries.pop("bn-test")


def test_two_processes_train_one_model(split):
    """DDP: gradients are averaged, so both halves of the batch count."""
    result = train(Learner(**SMALL), TrainingData(split), hardware=Hardware("cpu", 2))
    assert result.facts["steps"] == 60
    accuracy = [r["value"] for r in result.history if r["metric"] == "accuracy" and r["step"] == 59]
    assert sum(accuracy) / len(accuracy) > 0.85


@pytest.mark.parametrize("name", ["arm", "mtl"])
def test_a_network_that_reads_groups_is_judged_domain_by_domain(split, name):
    data = TrainingData(split)
    network = networks.build(f"{name}(support=8)", input_shape=(6,), classes=3).eval()
    bank = data.bank(network, "validation")
    shift = split.shift
    for index in shift.domain[split.validation].unique():
        rows = split.validation[shift.domain[split.validation] == index]
        expected = network(data.preprocessing.finish(data.stored[rows]))
        torch.testing.assert_close(bank.logits[shift.domain[split.validation] == index], expected)


def test_groups_that_would_mix_domains_are_refused(split):
    with pytest.raises(InputError, match="groups of 12 .* support=16"):
        fit(Learner(network="mtl(support=12)", **SMALL), split)
