"""Every registered method keeps its contract, alone and combined; a broken one is told what it broke."""

import itertools
import time

import numpy as np
import pytest
import torch
from torch import nn

from unseen.averaging import Averaging, snapshot
from unseen.errors import InputError
from unseen.objectives import Loss, Objective, example_losses
from unseen.objectives.erm import ERM
from unseen.registry import REGISTRIES, Spec
from unseen.shifts.arrays import from_arrays
from unseen.testing import CHECKS, ContractError, check_averaging, check_objective, check_update
from unseen.training.data import TrainingData
from unseen.training.fit import train
from unseen.training.learner import Learner
from unseen.training.system import build_system
from unseen.updates import UpdateRule
from unseen.updates.plain import Plain

VARIANTS = {
    "objectives": ["irm(unbiased=True)", "hutchinson(probes=5)", "irm(rescale_loss=True)"],
}
CASES = [(kind, spec) for kind in CHECKS for spec in [*REGISTRIES[kind].names(), *VARIANTS.get(kind, [])]]


@pytest.mark.parametrize(("kind", "spec"), CASES, ids=lambda value: value)
def test_registered_methods_keep_their_contract(kind, spec):
    report = CHECKS[kind](spec)
    assert len(report.passed) >= 3


# ---- every combination ----


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    domain = np.repeat([0, 1, 2], 16)
    labels = np.tile([0, 1], 24)
    x = generator.normal(size=(48, 5)).astype("float32")
    x[:, 0] += 2 * labels
    shift = from_arrays(x, labels, domain).with_outliers(generator.normal(size=(20, 5)).astype("float32") - 3)
    return TrainingData(shift.split("2", unlabelled=0.5))


class Interrupted(Exception):
    pass


def stop_after(count):
    def progress(done, steps):
        if done == count:
            raise Interrupted

    return progress


SEVERAL_HEADS = {"divdis", "divdis-seq", "d-bat", "drm", "mcd"}
ONE_HEAD = {"spectral-head", "udim", "udim-style"}
SEVERAL_VIEWS = {"cider", "compact-dispersed", "palm", "simclr", "supcon"}
OUTPUT_AWARE = {"tram", "tram-fisher", "tram-pretrained", "tram-x", "udim", "udim-style"}
AVERAGINGS = [None, *REGISTRIES["averaging"].names()]


@pytest.mark.parametrize("update", REGISTRIES["updates"].names())
@pytest.mark.parametrize("objective", REGISTRIES["objectives"].names())
def test_combinations_train_and_resume_exactly(objective, update, data, tmp_path, monkeypatch):
    clock = itertools.count(0, 100)  # checkpoints are written when seconds have passed
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    options = REGISTRIES["objectives"][objective].options()
    chosen = Spec.make(objective, **({"warmup_steps": 1} if "warmup_steps" in options else {}))
    no_sense = "head" if objective in SEVERAL_HEADS and update in ONE_HEAD else None
    if objective in SEVERAL_VIEWS and update in OUTPUT_AWARE:
        no_sense = "several views"
    if no_sense is not None:
        with pytest.raises(InputError, match=no_sense):
            train(Learner(objective=chosen, update=update, steps=3, batch_size=4), data, seed=1)
        return
    stopped = AVERAGINGS[(len(objective) + len(update)) % len(AVERAGINGS)]  # the averagings take turns
    for average in AVERAGINGS:
        learner = Learner(
            objective=chosen, update=update, averaging=average, network="mlp(width=4, depth=1)",
            steps=3, batch_size=4, evaluations=3, keep="last",
        )  # fmt: skip
        whole = train(learner, data, seed=1)
        start = build_system(learner, data, 1).network.state_dict()
        assert all(torch.isfinite(value).all() for value in whole.state.values())
        assert any(not torch.equal(value, start[name]) for name, value in whole.state.items())
        if average == stopped:
            path = tmp_path / "run.pt"
            with pytest.raises(Interrupted):
                train(learner, data, seed=1, checkpoint=path, progress=stop_after(2))
            assert path.exists()
            resumed = train(learner, data, seed=1, checkpoint=path)
            for name, value in whole.state.items():
                assert torch.equal(value, resumed.state[name]), name


# ---- the checks find what is broken ----


class Detached(ERM):
    def forward(self, model, batch):
        loss = super().forward(model, batch)
        return Loss(loss.total.detach().requires_grad_())


class DetachedPenalty(ERM):
    def forward(self, model, batch):
        risk = super().forward(model, batch).total
        penalty = model.head(model.featurizer(batch.x).detach()).square().mean()
        return Loss(risk + penalty, {"penalty": penalty})


class NotAScalar(ERM):
    def forward(self, model, batch):
        return Loss(example_losses(model(batch.x), batch))


class NotALoss(ERM):
    def forward(self, model, batch):
        return super().forward(model, batch).total


class DividesByMissing(Objective):
    needs_domains = True

    def forward(self, model, batch):
        losses = example_losses(model(batch.x), batch)
        return Loss(torch.stack([losses[batch.domain == d].mean() for d in range(batch.domains)]).mean())


class CountsRepeats(ERM):
    def setup(self, **sizes):
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, model, batch):
        self.seen.add_(1)
        return super().forward(model, batch)


class DriftsOnRepeat(ERM):
    def forward(self, model, batch):
        loss = super().forward(model, batch)
        return Loss(loss.total * (2.0 if batch.repeat else 1.0))


class GlobalNoise(ERM):
    def forward(self, model, batch):
        return Loss(super().forward(model, batch).total + 0 * torch.rand(()))


class ChangesTheBatch(ERM):
    def forward(self, model, batch):
        batch.x.mul_(1.5)
        return super().forward(model, batch)


class ForgetsWeights(ERM):
    def forward(self, model, batch):
        losses = example_losses(model(batch.x), batch)
        return Loss(losses.mean() if batch.weight is None else 2 * losses.mean())


class OnlyLabels(ERM):
    def forward(self, model, batch):
        labels = batch.y.long() if batch.y.dim() == 1 else batch.y.argmin(1)
        return Loss(nn.functional.cross_entropy(model(batch.x), labels))


class SinglePrecision(ERM):
    def forward(self, model, batch):
        return Loss(super().forward(model, batch).total.float())


class Idle(ERM):
    def setup(self, **sizes):
        self.unused = nn.Parameter(torch.zeros(()))


class LearnsNothing(ERM):
    def forward(self, model, batch):
        return Loss(sum(p.square().sum() for p in model.parameters()))


class HiddenState(ERM):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, model, batch):
        self.calls += not batch.repeat
        return Loss(super().forward(model, batch).total * self.calls)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (Detached, "would train nothing"),
        (DetachedPenalty, "the features would not feel it"),
        (NotAScalar, "instead of a scalar"),
        (NotALoss, "gives Tensor instead of Loss"),
        (DividesByMissing, "not finite for a batch that misses a domain"),
        (CountsRepeats, "changes the buffer 'seen' although batch.repeat"),
        (DriftsOnRepeat, "gives another loss when a batch repeats"),
        (GlobalNoise, "global random state"),
        (ChangesTheBatch, "changes the batch in place"),
        (ForgetsWeights, "gives another loss for weights of one"),
        (OnlyLabels, "gives another loss for one-hot soft targets"),
        (SinglePrecision, "computes in torch.float32"),
        (Idle, "never moves the parameter 'objective.unused'"),
        (LearnsNothing, "does not learn separable classes"),
        (HiddenState, "goes on differently when it is resumed"),
    ],
)
def test_a_broken_objective_is_told_what_it_broke(broken, sentence):
    with pytest.raises(ContractError, match=f"objective '{broken.__name__}' .*{sentence}"):
        check_objective(broken)


def test_data_dependent_control_flow_is_reported_not_refused():
    class Branches(ERM):
        def forward(self, model, batch):
            loss = super().forward(model, batch)
            return Loss(loss.total * (1 if float(loss.total.detach()) >= 0 else 2))

    report = check_objective(Branches)
    assert report.facts["vmap"] is not True and "vmap" in report.facts["vmap"]
    assert check_objective("erm").facts["vmap"] is True


class Perturbs(Plain):
    def step(self, loss_function, batch):
        loss = self.gradient(loss_function, batch)
        with torch.no_grad():
            for parameter in self.parameters:
                parameter.add_(0.01 * parameter.grad)
        self.apply()
        return loss


class Kicks(Plain):
    def step(self, loss_function, batch):
        loss = self.gradient(loss_function, batch)
        if not any(p.grad.any() for p in self.parameters):
            with torch.no_grad():
                self.parameters[0].add_(0.1)
        self.apply()
        return loss


class LateLoss(Plain):
    def step(self, loss_function, batch):
        super().step(loss_function, batch)
        return Loss(0 * loss_function(batch.again()).total)


class Unmarked(Plain):
    def step(self, loss_function, batch):
        self.gradient(loss_function, batch)
        loss = self.gradient(loss_function, batch)
        self.apply()
        return loss


class Sleeps(UpdateRule):
    def step(self, loss_function, batch):
        return self.gradient(loss_function, batch)


class HiddenMomentum(Plain):
    def __init__(self):
        self.calls = 0

    def step(self, loss_function, batch):
        self.calls += 1
        for group in self.optimizer.param_groups:
            group["lr"] = 0.02 / self.calls if group["lr"] else 0.0
        return super().step(loss_function, batch)


class Divides(Plain):
    def step(self, loss_function, batch):
        losses = [loss_function(batch.of_domain(d)).total for d in range(batch.domains)]
        self.optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        self.apply()
        return Loss(torch.stack(losses).mean().detach())


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (Perturbs, "does not restore the parameters"),
        (Kicks, "although the loss is constant"),
        (LateLoss, "does not give the loss at the parameters before the change"),
        (Unmarked, "use batch.again"),
        (Sleeps, "never moves the parameter"),
        (HiddenMomentum, "goes on differently when it is resumed"),
        (Divides, "not finite after a batch that misses a domain"),
    ],
)
def test_a_broken_update_rule_is_told_what_it_broke(broken, sentence):
    with pytest.raises(ContractError, match=f"update rule '{broken.__name__}' .*{sentence}"):
        check_update(broken)


def test_reset_forgets_what_the_optimizer_has_gathered():
    module = nn.Linear(3, 1)
    rule = Plain().bind(module, torch.optim.Adam(module.parameters(), lr=0.1))

    def constant_slope(batch):
        return Loss(module.weight.sum() + module.bias.sum())

    for _ in range(3):
        rule.step(constant_slope, None)
    rule.reset()
    assert not rule.optimizer.state
    rule.step(constant_slope, None)
    assert rule.optimizer.state[module.weight]["step"] == 1


def test_an_update_rule_that_mixes_stacked_runs_is_reported():
    class Normalises(Plain):
        def step(self, loss_function, batch):
            loss = self.gradient(loss_function, batch)
            norm = torch.cat([p.grad.flatten() for p in self.parameters]).norm()
            for parameter in self.parameters:
                parameter.grad.div_(norm + 1e-12)
            self.apply()
            return loss

    assert check_update(Normalises).facts["stacked"] == "runs in one stack influence each other"
    assert check_update("sam").facts["stacked"] is True


class Last(Averaging):
    """Keeps the contract: the last weights."""

    def __init__(self):
        self.state = {}

    def observe(self, step, model, validation_loss):
        self.state = snapshot(model)

    def result(self):
        return self.state or None


class Shares(Last):
    def observe(self, step, model, validation_loss):
        self.state = dict(model.state_dict())


class Extrapolates(Last):
    def result(self):
        return {n: 3 * v if v.is_floating_point() else v for n, v in self.state.items()} or None


class Forgets(Last):
    def __init__(self):
        super().__init__()
        self.first = {}

    def observe(self, step, model, validation_loss):
        self.first = self.first or snapshot(model)

    def result(self):
        return self.first or None

    def state_dict(self):
        return {}


class Truncates(Last):
    def result(self):
        return {n: v for n, v in self.state.items() if "bias" not in n} or None


class Casts(Last):
    def result(self):
        return {n: v.float() for n, v in self.state.items()} or None


class Meddles(Last):
    def observe(self, step, model, validation_loss):
        super().observe(step, model, validation_loss)
        with torch.no_grad():
            model[0].weight.mul_(0.9)


class KeepsModel(Last):
    def observe(self, step, model, validation_loss):
        super().observe(step, model, validation_loss)
        self.model = model


class Invents(Last):
    def result(self):
        return dict(self.state)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (Shares, "shares memory with the network"),
        (Extrapolates, "leaves the range of the weights seen"),
        (Forgets, "has another result when it is interrupted"),
        (Truncates, "other names than the network"),
        (Casts, "changes the dtype, shape or device"),
        (Meddles, "changes the network that it observes"),
        (KeepsModel, "more than tensors and plain values"),
        (Invents, "before it has seen a network"),
    ],
)
def test_a_broken_averaging_is_told_what_it_broke(broken, sentence):
    check_averaging(Last)
    with pytest.raises(ContractError, match=f"averaging '{broken.__name__}' .*{sentence}"):
        check_averaging(broken)
