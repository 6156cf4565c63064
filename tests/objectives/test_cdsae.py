import warnings

import pandas as pd
import pytest
import torch
from torch import nn

from unseen.errors import InputError, UnseenWarning
from unseen.measures.fairness import counterfactual_effect
from unseen.networks.causal_autoencoder import CausalAutoencoder, input_size
from unseen.networks.simple import cnn
from unseen.objectives.cdsae import CDSAE, counterfactual_gap
from unseen.objectives.parity import parity_gap
from unseen.objectives.total_correlation import TotalCorrelation
from unseen.registry import objectives
from unseen.shifts.arrays import from_arrays
from unseen.shifts.fair_circle import fair_circle, people
from unseen.shifts.tables import from_dataframe
from unseen.training import Learner, fit
from unseen.training.data import TrainingData
from unseen.training.fit import train
from unseen.training.model_folder import load
from unseen.training.system import build_system

SETTINGS = {"network": "mlp(width=32)", "steps": 150, "learning_rate": 3e-3, "evaluations": 2, "keep": "last"}


def trained(objective, shift, unseen=None, **settings):
    split = shift.split(unseen or shift.domains[-1], seed=0)
    data = TrainingData(split)
    predictor = fit(Learner.parse(objective, **{**SETTINGS, **settings}), split, seed=0, data=data)
    return predictor.network, data


@pytest.fixture(scope="module")
def circle():
    """A network trained on people whom the attribute moves a lot, and the people."""
    options = {"domains": 3, "size": 300, "effect": 0.6, "strength": 0.2, "seed": 2}
    network, data = trained("cdsae(fairness=10.0,warmup_steps=50)", fair_circle(**options))
    return network, data, people(**options)


def effect_on(network, data, hidden):
    found = [network.predict_proba(data.preprocessing.encode(hidden.inputs(v)))[:, 1] for v in (1, 0)]
    return counterfactual_effect(*found)


def test_true_counterfactuals_change_predictions_less_than_without_the_penalty(circle):
    network, data, hidden = circle
    other, _ = trained("cdsae(fairness=0.0)", data.split.shift)
    assert effect_on(network, data, hidden) < 0.7 * effect_on(other, data, hidden)


def test_generated_counterfactuals_resemble_the_true_ones(circle):
    network, data, hidden = circle
    made, probabilities = network.counterfactual(data.stored, 1 - hidden.attribute)
    true = data.preprocessing.encode(hidden.inputs(1 - hidden.attribute))
    assert torch.equal(made[:, 6], true[:, 6])  # the attribute itself is exact
    error, change = (made - true)[:, :6].square().sum(), (true - data.stored)[:, :6].square().sum()
    assert error < 0.6 * change
    torch.testing.assert_close(probabilities, network.predict_proba(made))


def test_the_attribute_reaches_what_it_influences_alone(circle):
    network, data, _ = circle
    flipped = data.stored.clone()
    flipped[:, 6] = network.featurizer.holds.sum(0)[6] - flipped[:, 6]
    before, after = network.latents(data.stored), network.latents(flipped)
    for name in ("semantic", "environment"):
        assert torch.equal(before[name], after[name])
    for name in ("semantic_a", "environment_a"):
        assert not torch.allclose(before[name], after[name])
    assert torch.equal(network.read_attribute(data.stored), data.split.shift.group)


def test_without_the_attribute_in_use_predictions_do_not_read_it():
    shift = fair_circle(domains=3, size=60)
    network, data = trained("cdsae(use_attribute=False)", shift, steps=5)
    flipped = data.stored.clone()
    flipped[:, 6] = -flipped[:, 6]
    assert torch.equal(network(flipped), network(data.stored))
    with pytest.warns(UnseenWarning, match="no column"):
        trained("cdsae", fair_circle(domains=3, size=60, observed=False), steps=2)


def test_the_prior_of_the_environment_goes_on_after_training(circle):
    network, *_ = circle
    near, far = network.upcoming_environment(1), network.upcoming_environment(3, attribute=1)
    assert near[0].mean.shape == (1, 2) and not torch.equal(near[1].mean, far[1].mean)
    assert network.domain_means.any()
    with pytest.raises(InputError, match="steps"):
        network.upcoming_environment(0)


def test_tables_from_learner_to_model_folder(tmp_path):
    generator = torch.Generator().manual_seed(0)
    count = 240
    sex = torch.randint(2, (count,), generator=generator)
    score = torch.randn(count, generator=generator) + sex
    frame = pd.DataFrame({
        "score": score.numpy(), "sex": ["f" if s else "m" for s in sex.tolist()],
        "work": [("state", "own", "firm")[i % 3] for i in range(count)],
        "year": [2000 + i // 60 for i in range(count)], "hired": (score > 0.5).tolist(),
        "group": sex.tolist(),
    })  # fmt: skip
    shift = from_dataframe(frame, "hired", "year", group="group", features=["score", "sex", "work"])
    split = shift.split("2003")
    predictor = fit(Learner.parse("cdsae(warmup_steps=5)", steps=30, network="mlp(width=16)"), split)
    network = predictor.network
    assert network.columns.kind.tolist() == [-1, -3, -3, 1, 1, 1]
    assert network.featurizer.hides.tolist() == [False, True, True, False, False, False]
    again = load(predictor.save(tmp_path / "model"))
    pd.testing.assert_frame_equal(again.predict(frame), predictor.predict(frame))
    with pytest.raises(InputError, match="lacks the column"):
        predictor.predict(frame.drop(columns="sex"))
    strange = predictor.preprocessing.encode(frame.assign(sex="x"))
    for refuses in (network.read_attribute, network.predict_proba):
        with pytest.raises(InputError, match="training did not have"):
            refuses(strange)
    # a predictor takes it for neither of the known values
    assert not network.featurizer.attribute(strange).any()
    known = predictor.preprocessing.encode(frame)
    assert torch.equal(network.featurizer.attribute(known).argmax(1), shift.group)
    assert network.featurizer.attribute(known).sum(1).eq(1).all()


def test_kinds_of_columns_may_be_said():
    shift = fair_circle(domains=3, size=40, observed=False)
    split = shift.split("period-03")
    learner = Learner.parse("cdsae(use_attribute=False,columns=('number',3,'binary','number'))", steps=2)
    assert fit(learner, split).network.columns.kind.tolist() == [-1, 0, 0, 0, -2, -1]
    with pytest.raises(InputError, match="The inputs have 6"):
        fit(Learner.parse("cdsae(columns=('number',))", steps=2), split)


def test_no_gradient_of_the_penalty_reaches_the_generator(circle):
    network, data, hidden = circle
    x, attribute = data.stored[:20], nn.functional.one_hot(hidden.attribute[:20], 2).float()
    gap = counterfactual_gap(network, network.encode(x), x, attribute, 1 - attribute)
    named = dict(network.named_parameters())
    slopes = dict(zip(named, torch.autograd.grad(gap, list(named.values()), allow_unused=True), strict=True))
    reached = {name.split(".")[0] for name, slope in slopes.items() if slope is not None}
    assert reached == {"featurizer", "head"} and gap > 0


def test_density_ratio_of_dependent_and_of_independent_blocks():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(1000, 1, generator=generator)
    noise = torch.randn(1000, 1, generator=generator)
    estimates = []
    for second in ((first + noise) / 2**0.5, noise):
        torch.manual_seed(0)
        ratio = TotalCorrelation(2, width=32)
        optimizer = torch.optim.Adam(ratio.parameters(), 5e-3)
        for _ in range(150):
            optimizer.zero_grad()
            ratio.loss(first, second, torch.randperm(1000, generator=generator)).backward()
            optimizer.step()
        estimates.append(float(ratio.estimate(first, second).detach()))
    # mutual information of Gaussians with correlation 1/sqrt(2): log(2) / 2 = 0.347
    assert estimates[0] == pytest.approx(0.347, abs=0.08) and abs(estimates[1]) < 0.05


def test_each_player_of_the_density_ratio_has_its_own_loss(generator):
    ratio = TotalCorrelation(3)
    first, second = (torch.randn(8, n, generator=generator, requires_grad=True) for n in (1, 2))
    ratio.estimate(first, second).backward()
    assert first.grad is not None and all(p.grad is None for p in ratio.parameters())
    first.grad = second.grad = None
    order = torch.randperm(8, generator=generator)
    ratio.loss(first, second, order).backward()
    assert first.grad is None and second.grad is None and all(p.grad is not None for p in ratio.parameters())


def test_a_gap_of_parity_by_hand():
    probabilities = torch.tensor([[0.2, 0.8], [0.4, 0.6], [0.9, 0.1], [0.9, 0.1]])
    # means 0.7 and 0.1 of the second class, 0.4 of all: each apart by 0.3, in both classes
    gap = parity_gap(probabilities, torch.tensor([0, 0, 1, 1]), 2)
    torch.testing.assert_close(gap, torch.tensor(2 * 0.3**2))
    torch.testing.assert_close(parity_gap(probabilities, torch.tensor([0] * 4), 3), torch.tensor(0.0))


def test_several_values_of_the_attribute():
    shift = fair_circle(domains=3, size=90)
    shift.group, shift.groups = torch.arange(270) % 3, ("a", "b", "c")
    with pytest.raises(InputError, match="Set attributes=3"):
        trained("cdsae", shift, steps=1)
    with pytest.warns(UnseenWarning, match="no column"):
        network, data = trained("cdsae(attributes=3)", shift, steps=5)
    made, _ = network.counterfactual(data.stored, (shift.group + 2) % 3, shift.group)
    assert torch.isfinite(made).all()


def test_errors():
    for options, message in (
        ({"dims": (1, 2)}, "dims"), ({"prior": "mean"}, "prior"), ({"fairness": -1.0}, "fairness"),
        ({"attributes": 1}, "attributes"), ({"width": 0}, "width"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            CDSAE(**options)
    assert objectives.build("cdsae").needs_domains
    with pytest.raises(InputError, match="begins with Conv2d"):
        input_size(cnn(input_shape=(3, 8, 8), classes=2))


def test_the_attribute_must_vary_in_every_domain_and_change_in_a_counterfactual(circle):
    shift = fair_circle(domains=3, size=40)
    shift.group = torch.where(shift.domain == 1, 1, shift.group)
    with pytest.raises(InputError, match="training domain number 2"):
        trained("cdsae", shift, steps=1)
    with pytest.raises(InputError, match="at least two domains"):
        build_system(Learner(objective="cdsae"), TrainingData(shift.split(["period-02", "period-03"])), 0)
    network, data, hidden = circle
    with pytest.raises(InputError, match="is the old value"):
        network.counterfactual(data.stored[:2], hidden.attribute[:2])
    with pytest.raises(InputError, match="one value an example"):
        network.counterfactual(data.stored[:1], torch.tensor([2]))


def test_data_without_groups_is_told():
    shift = from_arrays(torch.randn(40, 3).numpy(), [0, 1] * 20, [0] * 20 + [1] * 20)
    data = TrainingData(shift.split())
    with pytest.warns(UnseenWarning, match="no group"):
        result = train(Learner(objective="cdsae", **{**SETTINGS, "steps": 3}), data)
    assert all(value.isfinite().all() for value in result.state.values())


def test_domains_of_different_sizes_weigh_alike_in_the_prior():
    shift = fair_circle(domains=3, size=60)
    rows = torch.cat([torch.arange(20), torch.arange(60, 180)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnseenWarning)
        network, data = trained("cdsae", shift.subset(rows), steps=5)
    assert isinstance(network, CausalAutoencoder)
    inside = data.split.train[data.domain[data.split.train] == 0]
    own = network.latents(data.stored[inside])
    expected = torch.cat([own["environment_a"], own["environment"]], 1).mean(0)
    torch.testing.assert_close(network.domain_means[0], expected)
