import pytest
import torch

from unseen.errors import InputError, UnseenWarning
from unseen.registry import objectives
from unseen.shifts import Shift
from unseen.testing import check_objective
from unseen.training import Learner, fit, train
from unseen.training.data import TrainingData
from unseen.training.model_folder import load
from unseen.training.system import build_system


def coloured(count=900, seed=0):
    """A cue that agrees with noisy labels in 95 and 85 % of two domains and in 10 % of a third; a weaker cause."""
    generator = torch.Generator().manual_seed(seed)
    domain = torch.arange(count) % 3
    cause = torch.randint(0, 2, (count,), generator=generator)
    y = torch.where(torch.rand(count, generator=generator) < 0.2, 1 - cause, cause)
    agree = torch.tensor([0.95, 0.85, 0.1])[domain]
    cue = torch.where(torch.rand(count, generator=generator) < agree, y, 1 - y)
    x = 0.2 * torch.randn(count, 5, generator=generator)
    x[:, 0] += 2 * (2 * cue - 1)
    x[:, 1] += 0.6 * (2 * cause - 1)
    return Shift("c", "array", x, y, domain, ("0", "1"), ("a", "b", "turned"))


SETTINGS = {"network": "mlp(width=16, depth=1)", "steps": 100, "batch_size": 128, "learning_rate": 0.01,
            "keep": "last", "evaluations": 1}  # fmt: skip
VREX = "vrex(penalty_weight=3000.0, warmup_steps=0, rescale_loss=True)"


@pytest.fixture(scope="module")
def data():
    return TrainingData(coloured().split("turned"))


def accuracy(learner, data):
    predictor = fit(learner, data.split, data=data)
    return float(predictor.outputs(data.split.shift.subset(data.split.unseen)).correct.float().mean())


def test_a_penalty_that_fails_from_new_weights_works_from_rich_features(data):
    plain = accuracy(Learner(objective=VREX, **SETTINGS), data)
    rich = accuracy(Learner(objective=f"bonsai(base={VREX!r}, freeze=True, first=0.1)", **SETTINGS), data)
    assert rich > plain + 0.1 and rich > 0.5


def test_the_run_begins_from_rich_features_and_reports_the_rounds(data):
    learner = Learner(objective="bonsai(first=0.1, length=0.5)", **{**SETTINGS, "steps": 50})
    result = train(learner, data)
    report = result.objective["report.values"]
    assert report.shape == (2, 5) and report[0, 1:3].tolist() == [-1, -1]
    assert report[1, 1] > 0.5 and report[:, 3].all() and (report[:, 4] > 0.8).all()
    again = train(learner, data)
    assert all(torch.equal(value, again.state[name]) for name, value in result.state.items())


def test_frozen_features_are_those_of_the_beginning(data):
    """Trained on, with another penalty or without one, they are the same; heads are not."""
    states = [
        train(
            Learner(objective=f"bonsai(base={base!r}, freeze=True, length=0.3)", **{**SETTINGS, "steps": 30}),
            data,
        ).state
        for base in ("erm", VREX)
    ]
    start = build_system(Learner(**SETTINGS), data, 0).network.state_dict()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]) == ("featurizer" in name)
        assert not torch.equal(value, start[name])
    loose = train(Learner(objective="bonsai(length=0.3)", **{**SETTINGS, "steps": 30}), data).state
    assert not any(torch.equal(value, states[0][name]) for name, value in loose.items())


def test_it_is_parsed_saved_and_loaded_as_any_learner(data, tmp_path):
    text = f"bonsai(base={VREX!r}, freeze=True, rounds=2)+sam+ema"
    learner = Learner.parse(text, **{**SETTINGS, "steps": 5})
    assert (
        Learner.from_json(learner.to_json()) == learner
        and Learner.parse(learner.name).objective == learner.objective
    )
    predictor = fit(learner, data.split, data=data)
    predictor.save(tmp_path / "model")
    inputs = data.split.shift.subset(data.split.unseen)
    assert torch.equal(load(tmp_path / "model").outputs(inputs).logits, predictor.outputs(inputs).logits)


@pytest.mark.filterwarnings("ignore::unseen.errors.UnseenWarning")
@pytest.mark.parametrize("base", ["coral", "jtt"])
def test_what_the_base_has_goes_on_in_the_contract(base):
    """A penalty on features, and stages of its own."""
    report = check_objective(f"bonsai(base={base!r}, first=0.02, length=0.2)")
    assert "stages" in report.passed and "exact resume" in report.passed


@pytest.mark.parametrize("base", ["coral", "supcon", "oe", "mixoe", "adrmx"])
def test_it_needs_what_its_base_needs(base, data):
    objective, own = objectives.build(f"bonsai(base={base!r})"), objectives.build(base)
    for trait in ("needs_domains", "carries_weights", "needs_unlabelled", "needs_outliers", "several_views"):
        assert getattr(objective, trait) == getattr(own, trait)


def test_outliers_and_several_views_are_as_without_it(data):
    short = {**SETTINGS, "steps": 4}
    shift = data.split.shift.with_outliers(torch.full((40, 5), 9.0))
    fit(Learner(objective="bonsai(base='oe')", **short), shift.split("turned"))
    with pytest.raises(InputError, match="outliers"):
        fit(Learner(objective="bonsai(base='oe')", **short), data.split)
    with pytest.raises(InputError, match="makes several views"):
        fit(Learner(objective="bonsai(base='supcon')", update="tram-x", **short), data.split)


def test_a_first_round_that_knows_everything_is_said(data):
    shift = data.split.shift
    easy = Shift(
        "e",
        "array",
        3.0 * (2 * shift.labels[:, None] - 1).float(),
        shift.labels,
        shift.domain,
        ("0", "1"),
        ("a", "b", "c"),
    )
    with pytest.warns(UnseenWarning, match="overfitted"):
        result = train(Learner(objective="bonsai(first=1.0)", **SETTINGS), TrainingData(easy.split("c")))
    assert len(result.objective["report.values"]) == 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("bonsai(rounds=0)", "rounds"), ("bonsai(first=0.0)", "first"), ("bonsai(length=-1.0)", "length"),
        ("bonsai(discovery='max')", "discovery"), ("bonsai(targets='y')", "targets"),
        ("bonsai(base='bonsai')", "itself"), ("bonsai(base='coral', freeze=True)", "do nothing"),
        ("bonsai(base='no-such')", "no-such"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong, told):
    with pytest.raises(InputError, match=told):
        Learner.parse(wrong)


def test_networks_that_rich_features_do_not_fit_are_refused(data):
    with pytest.raises(InputError, match="trains none"):
        train(Learner(objective="bonsai", **{**SETTINGS, "network": "linear"}), data)
    several = TrainingData(coloured().split("turned", unlabelled=0.5))
    with pytest.raises(InputError, match="network of its own"):
        train(Learner(objective="bonsai(base='divdis')", **SETTINGS), several)
