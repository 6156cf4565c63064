import dataclasses

import pytest
import torch
from torch import nn

from unseen.errors import InputError, TrainingDiverged
from unseen.networks import Network
from unseen.objectives import Loss, Objective
from unseen.registry import networks, objectives
from unseen.shifts import Shift
from unseen.shifts.arrays import from_arrays
from unseen.shifts.sampling import DomainSampler
from unseen.training import Learner, train
from unseen.training import grouping as grouping_module
from unseen.training.batched import Run, can_batch, group_runs, train_many
from unseen.training.data import TrainingData
from unseen.training.examples import rows_ahead
from unseen.training.fit import TrainingResult
from unseen.training.numbers import numbers, with_numbers
from unseen.training.stacked import StackedBatch, StackedOptimizer
from unseen.updates import UpdateRule

SMALL = Learner(network="mlp(width=16)", steps=30, batch_size=8, evaluations=5, learning_rate=1e-2)


def _data(unseen: str) -> TrainingData:
    """Three classes in four domains that differ in place and in scale."""
    generator = torch.Generator().manual_seed(0)
    labels, domain = torch.arange(240) % 3, torch.arange(240) // 3 % 4
    centres, places = torch.randn(3, 6, generator=generator), torch.randn(4, 6, generator=generator)
    noise = torch.randn(240, 6, generator=generator) * (1 + 0.3 * domain.view(-1, 1))
    shift = from_arrays(centres[labels] + places[domain] + noise, labels, domain)
    shift = shift.with_outliers(torch.randn(50, 6, generator=generator) - 3)
    return TrainingData(shift.split(unseen, unlabelled=0.5))


@pytest.fixture(scope="module")
def data() -> list[TrainingData]:
    return [_data("0"), _data("1")]


def _alone(run: Run) -> TrainingResult | TrainingDiverged:
    try:
        return train(run.learner, run.data, seed=run.seed)
    except TrainingDiverged as error:
        return error


def _assert_same(runs: list[Run], tolerance: float = 1e-4) -> list[TrainingResult | TrainingDiverged]:
    """Trained together and one by one: the same weights, histories, facts and errors."""
    together = train_many(runs)
    assert len(together) == len(runs)
    for run, found in zip(runs, together, strict=True):
        expected = _alone(run)
        if isinstance(expected, TrainingDiverged):
            assert str(found) == str(expected)
            assert (found.state is None) == (expected.state is None)
            continue
        assert isinstance(found, TrainingResult)
        assert list(found.state) == list(expected.state)
        for name, value in expected.state.items():
            torch.testing.assert_close(found.state[name], value, rtol=tolerance, atol=tolerance)
        values = [torch.tensor([row.pop("value") for row in r.history]) for r in (found, expected)]
        assert found.history == expected.history
        torch.testing.assert_close(*values, rtol=1e-3, atol=tolerance)
        for facts in (found.facts, expected.facts):
            assert facts.pop("seconds") >= 0 and facts.pop("evaluation_seconds") >= 0
        assert found.facts == expected.facts
    return together


def _grid(learners: list[Learner], data: list[TrainingData], seeds: int = 2) -> list[Run]:
    return [Run(learner, one, seed) for seed in range(seeds) for learner in learners for one in data]


@pytest.mark.parametrize("name", [entry.name for entry in objectives])
def test_every_objective_gives_the_same_as_one_by_one(name: str, data: list[TrainingData]) -> None:
    runs = _grid([SMALL.replace(objective=name, learning_rate=rate) for rate in (1e-3, 1e-2)], data)
    if can_batch(SMALL.replace(objective=name), data[0]) is None:
        assert [len(group) for group in group_runs(runs)] == [8]
    _assert_same(runs)


@pytest.mark.parametrize("name", ["erm", "groupdro", "mixup", "dann", "irm", "vrex", "coral", "fishr", "hgp"])
def test_the_methods_of_studies_can_be_batched(name: str, data: list[TrainingData]) -> None:
    assert can_batch(SMALL.replace(objective=name), data[0]) is None


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_rates_decays_schedules_and_selection_may_differ_within_a_program(
    optimizer: str, data: list[TrainingData]
) -> None:
    learners = [
        SMALL.replace(optimizer=optimizer, weight_decay=0.1, schedule="cosine", warmup=0.3),
        SMALL.replace(optimizer=optimizer, learning_rate=1e-3, keep="last"),
    ]
    runs = _grid(learners, data)
    assert len(group_runs(runs)) == 1
    _assert_same(runs)


@pytest.mark.parametrize("update", ["sam(rho=0.1)", "asam"])
@pytest.mark.parametrize("averaging", ["ema", "swa(start=0.3,every=2)", "swad"])
def test_sam_clipping_and_averaging(update: str, averaging: str, data: list[TrainingData]) -> None:
    learner = SMALL.replace(objective="groupdro", update=update, averaging=averaging, clip=0.5)
    assert can_batch(learner, data[0]) is None
    _assert_same(_grid([learner], data))


def test_penalty_weights_may_differ_within_a_program(data: list[TrainingData]) -> None:
    specs = [f"irm(penalty_weight={weight},warmup_steps=0)" for weight in (0.5, 2.0, 8.0)]
    runs = _grid([SMALL.replace(objective=spec) for spec in specs], data)
    assert [len(group) for group in group_runs(runs)] == [12]
    results = _assert_same(runs, tolerance=1e-3)
    assert (results[0].state["head.weight"] - results[2].state["head.weight"]).abs().max() > 2e-2


def test_the_optimizer_is_reset_where_a_penalty_sets_in(data: list[TrainingData]) -> None:
    schedules = [(1.0, 15), (5.0, 15), (20.0, 7), (20.0, 0)]  # at equal weights nothing is reset
    specs = [f"vrex(penalty_weight={w},warmup_steps={s},warmup_weight=1.0)" for w, s in schedules]
    runs = _grid([SMALL.replace(objective=spec) for spec in specs], data)
    assert [len(group) for group in group_runs(runs)] == [16]
    _assert_same(runs, tolerance=1e-3)


def test_numbers_that_code_branches_on_are_shared_by_a_program(data: list[TrainingData]) -> None:
    learners = [SMALL.replace(objective=f"dann(warmup_steps={steps})") for steps in (5, 10)]
    runs = _grid(learners, data)
    assert [len(group) for group in group_runs(runs)] == [4, 4]
    _assert_same(runs)


def test_settings_that_shape_an_objective_are_shared_by_a_program(data: list[TrainingData]) -> None:
    runs = _grid([SMALL.replace(objective=f"dann(width={width})") for width in (8, 16)], data)
    assert [len(group) for group in group_runs(runs)] == [4, 4]
    _assert_same(runs)


@pytest.mark.parametrize("averaging", [None, "swa"])
def test_a_run_out_of_patience_stops_and_the_others_go_on(averaging, data: list[TrainingData]) -> None:
    learners = [SMALL.replace(patience=p, evaluations=15, averaging=averaging) for p in (1, 3, None)]
    runs = _grid(learners, data)
    results = _assert_same(runs)
    assert len(group_runs(runs)) == 1
    stopped = {result.history[-1]["step"] for result in results}
    assert len(stopped) > 1 and 29 in stopped


def test_a_run_that_diverges_leaves_the_others_alone(data: list[TrainingData]) -> None:
    rates = [1e-2, 1e30]
    runs = _grid([SMALL.replace(optimizer="sgd", learning_rate=rate) for rate in rates], data)
    assert len(group_runs(runs)) == 1
    results = _assert_same(runs)
    assert [isinstance(r, TrainingDiverged) for r in results] == [
        run.learner.learning_rate > 1 for run in runs
    ]


def test_order_and_number_of_runs_do_not_matter(data: list[TrainingData]) -> None:
    runs = [Run(SMALL.replace(learning_rate=rate), data[i], seed) for rate, i, seed in
            ((1e-2, 0, 0), (1e-3, 1, 5), (1e-2, 1, 0), (1e-3, 0, 0), (1e-2, 0, 7))]  # fmt: skip
    assert sorted(len(group) for group in group_runs(runs)) == [2, 3]  # one stream of two, three of one
    _assert_same(runs)
    assert train_many([]) == []


def test_large_studies_are_cut(data: list[TrainingData], monkeypatch: pytest.MonkeyPatch) -> None:
    learner = SMALL.replace(network="linear", steps=4, evaluations=1)
    runs = _grid([learner.replace(learning_rate=rate) for rate in (1e-3, 1e-2, 1e-1)], data, seeds=3)
    assert can_batch(learner, data[0]) is None
    size = grouping_module.Size(inputs=100, run=1000)
    monkeypatch.setattr(grouping_module, "PROGRAM_BYTES", 2200)
    programs = grouping_module.cut(runs, size)
    assert sorted(index for program in programs for index in program) == list(range(len(runs)))
    assert all(len(program) <= 2 for program in programs)
    _assert_same(runs)


def test_progress_counts_runs(data: list[TrainingData]) -> None:
    calls: list[tuple[int, int]] = []
    learners = [SMALL.replace(steps=2), SMALL.replace(steps=3)]
    train_many(_grid(learners, data), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(4, 8), (8, 8)]


def test_what_cannot_be_stacked_says_why_and_is_trained_alone(data: list[TrainingData]) -> None:
    learner = SMALL.replace(network="mlp(width=8,dropout=0.5)", steps=5)
    assert "dropout" in can_batch(learner, data[0])
    runs = _grid([learner, SMALL.replace(steps=5)], data)
    assert sorted(len(group) for group in group_runs(runs)) == [1, 1, 1, 1, 4]
    _assert_same(runs)
    images = torch.randint(0, 256, (48, 1, 8, 8), dtype=torch.uint8)
    shift = from_arrays(images, torch.arange(48) % 2, torch.arange(48) // 2 % 3)
    assert "convolutions" in can_batch(Learner(network="cnn", steps=2), TrainingData(shift.split("0")))
    assert can_batch(Learner(network="linear", steps=2), TrainingData(shift.split("0"))) is None


def test_graphs_and_groups_are_stacked_too() -> None:
    generator = torch.Generator().manual_seed(0)
    count = 60
    mask = (torch.rand(count, 5, generator=generator) < 0.8).float()
    mask[:, 0] = 1
    adjacency = (torch.rand(count, 5, 5, generator=generator) < 0.4).float()
    nodes = torch.randn(count, 5, 3, generator=generator) * mask.unsqueeze(-1)
    inputs = {"nodes": nodes, "mask": mask, "adjacency": adjacency * mask[:, None] * mask[:, :, None]}
    shift = Shift(
        "graphs", "graph", inputs, torch.arange(count) % 2, torch.arange(count) // 2 % 3, ("a", "b"),
        ("0", "1", "2"), group=torch.arange(count) % 5 % 2, groups=("x", "y"),
    )  # fmt: skip
    learner = Learner(network="gcn(width=8)", steps=6, batch_size=4, evaluations=2)
    data = [TrainingData(shift.split(name)) for name in ("0", "1")]
    assert can_batch(learner, data[0]) is None
    _assert_same(_grid([learner], data))


def test_a_run_with_a_wrong_setting_fails_as_it_does_alone() -> None:
    data = TrainingData(_data("0").split.shift.split(["0", "1", "2"]))
    learner = SMALL.replace(objective="groupdro")
    assert "training domains" in can_batch(learner, data)
    with pytest.raises(InputError, match="training domains"):
        train_many([Run(learner, data), Run(learner, data, 1)])


class _NormalisedNetwork(Network):
    def __init__(self, size: int, classes: int):
        super().__init__(nn.BatchNorm1d(size), size, classes)


class _Branching(Objective):
    """A loss with a branch on data, which cannot be vectorised."""

    def forward(self, model, batch):
        loss = nn.functional.cross_entropy(model(batch.x), batch.y)
        return Loss(loss * 2 if loss > 1 else loss)


class _OneNorm(UpdateRule):
    """Takes one norm of the gradient for all runs: right for a run alone, wrong for a stack."""

    def step(self, loss_function, batch):
        loss = self.gradient(loss_function, batch)
        norm = torch.stack([p.grad.norm() for p in self.parameters]).norm()
        for parameter in self.parameters:
            parameter.grad /= norm
        self.optimizer.step()
        return loss


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    from unseen.registry import updates

    for registry in (networks, objectives, updates):
        registry.names()  # loaded, so that what is added here does not stay
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    objectives.register("branching", summary="")(_Branching)
    updates.register("one-norm", summary="")(_OneNorm)
    networks.register("normalised", summary="")(
        lambda *, input_shape, classes: _NormalisedNetwork(input_shape[0], classes)
    )


def test_plug_ins_are_tried_before_they_are_trusted(data: list[TrainingData], plugins: None) -> None:
    for changes, word in (
        ({"network": "normalised"}, "batch normalisation"),
        ({"objective": "branching"}, "vectorised"),
        ({"update": "one-norm", "optimizer": "sgd"}, "other results"),
    ):
        learner = SMALL.replace(**changes)
        assert word in can_batch(learner, data[0])
        _assert_same(_grid([learner], data))


def test_rows_ahead_are_the_samplers_rows() -> None:
    domain = torch.tensor([0] * 11 + [1] * 3 + [2] * 40)
    rows = torch.randperm(54, generator=torch.Generator().manual_seed(1))
    for first, steps in ((0, 7), (5, 1), (13, 20)):
        sampler, other = (DomainSampler(rows, domain[rows], 5, seed=3) for _ in range(2))
        expected = torch.stack([other.rows(step) for step in range(first, first + steps)])
        assert torch.equal(rows_ahead(sampler, first, steps), expected)


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_stacked_optimizer_equals_torch(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    rates, decays = torch.tensor([1e-3, 1e-2, 0.3]), torch.tensor([0.0, 0.1, 0.01])
    start = torch.randn(3, 4, 2, generator=generator)
    stacked = start.clone().requires_grad_()
    single = [value.clone().requires_grad_() for value in start]
    stack = StackedOptimizer(kind, [stacked], rates, decays)
    make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[kind]
    extra = {"momentum": 0.9} if kind == "sgd" else {}
    others = [
        make([p], lr=float(rate), weight_decay=float(decay), **extra)
        for p, rate, decay in zip(single, rates, decays, strict=True)
    ]
    for _ in range(20):
        gradient = torch.randn(3, 4, 2, generator=generator) * 10 ** torch.randn(1, generator=generator)
        stacked.grad = gradient
        stack.step()
        for parameter, own, optimizer in zip(single, gradient, others, strict=True):
            parameter.grad = own.clone()
            optimizer.step()
    torch.testing.assert_close(stacked, torch.stack(single), rtol=1e-5, atol=1e-6)


def test_stacked_batch_takes_examples_of_every_stream(data: list[TrainingData]) -> None:
    batches = [data[0].batch(data[0].sampler(4, seed).rows(0), 0) for seed in range(3)]
    stacked = StackedBatch.of(batches)
    for index, batch in enumerate(batches):
        for domain in range(3):
            found, expected = stacked.of_domain(domain).again().of_stream(index), batch.of_domain(domain)
            for field in dataclasses.fields(expected):
                a, b = getattr(found, field.name), getattr(expected, field.name)
                if isinstance(b, torch.Tensor):
                    assert torch.equal(a, b), field.name
        assert found.repeat


def test_numbers_of_an_objective_are_replaced_and_put_back() -> None:
    objective = objectives.build("irm(penalty_weight=3.0)")
    before = numbers(objective)
    assert before["schedule.weight"] == 3.0
    with with_numbers(objective, {"schedule.weight": torch.tensor(5.0)}):
        assert float(objective.schedule.weight) == 5.0
        assert objective.schedule.warmup_steps == before["schedule.warmup_steps"]
    assert numbers(objective) == before
