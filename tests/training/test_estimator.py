import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from unseen.errors import InputError
from unseen.networks import Bank
from unseen.registry import detectors
from unseen.shifts import Shift
from unseen.training import Learner, fit
from unseen.training.estimator import UnseenClassifier
from unseen.training.familiarity_estimator import FamiliarityDetector

SMALL = {"steps": 30, "learning_rate": 0.03, "evaluations": 2, "network": "mlp(width=16, depth=1)"}


def examples(count: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels, domain = np.arange(count) % 3, np.arange(count) // 3 % 3
    x = generator.normal(size=(count, 5)) + 3 * np.eye(3, 5)[labels]
    return x, np.array(["cat", "dog", "eel"])[labels], np.array(["north", "south", "west"])[domain]


def failures(estimator: object) -> list[tuple[str, str]]:
    results = check_estimator(estimator, on_fail=None, on_skip=None)
    assert len(results) > 40
    return [(r["check_name"], str(r["exception"])) for r in results if r["status"] in ("failed", "xfail")]


@pytest.mark.parametrize(
    "estimator",
    [
        UnseenClassifier(**SMALL),
        UnseenClassifier(
            **(SMALL | {"update": "sam", "averaging": "ema", "objective": "mixup", "steps": 60})
        ),
        FamiliarityDetector(),
        FamiliarityDetector("mahalanobis", contamination=0.1),
    ],
    ids=["classifier", "classifier of other methods", "knn", "mahalanobis"],
)
def test_scikit_learn_has_no_objection(estimator):
    assert not failures(estimator)


# ---- classifier ----


def test_parameters_are_those_of_a_learner_with_its_defaults():
    names = set(UnseenClassifier().get_params())
    assert names == (set(Learner.__dataclass_fields__) - {"backbone"}) | {
        "validation_fraction",
        "random_state",
    }
    assert UnseenClassifier()._learner() == Learner()


def test_it_is_what_fit_gives():
    x, y, domain = examples()
    model = UnseenClassifier(**SMALL, random_state=7).fit(x, y, domain=domain)
    assert list(model.domains_) == ["north", "south", "west"] and list(model.classes_) == [
        "cat",
        "dog",
        "eel",
    ]
    codes = (np.unique(values, return_inverse=True)[1] for values in (y, domain))
    shift = Shift("arrays", "array", torch.from_numpy(x), *codes, model.classes_, model.domains_)
    other = fit(Learner(**SMALL), model._split(shift, 7), seed=7)
    assert all(
        torch.equal(v, other.network.state_dict()[n])
        for n, v in model.predictor_.network.state_dict().items()
    )
    table = other.predict(x)
    assert list(table["label"]) == list(model.predict(x)) and model.score(x, y) > 0.9
    probabilities = table[[f"p({name})" for name in model.classes_]]
    np.testing.assert_allclose(probabilities, model.predict_proba(x), atol=1e-5)


def test_validation_takes_its_share_of_every_class_and_domain_and_never_the_last_example():
    x, y, domain = examples(90)
    y[0] = "only one"
    codes = [np.unique(values, return_inverse=True) for values in (y, domain)]
    (classes, labels), (domains, places) = codes
    shift = Shift("arrays", "array", torch.from_numpy(x), labels, places, classes, domains)
    split = UnseenClassifier(validation_fraction=0.3)._split(shift, 0)
    assert sorted([*split.train.tolist(), *split.validation.tolist()]) == list(range(90))
    assert 0 in split.train
    assert pd.Series(y[split.validation]).value_counts().to_dict() == {"cat": 9, "dog": 9, "eel": 9}
    tiny = shift.subset(torch.tensor([0, 1, 2]))  # nothing to spare
    split = UnseenClassifier()._split(tiny, 0)
    assert sorted(split.train.tolist()) == sorted(split.validation.tolist()) == [0, 1, 2]


def test_domains_are_needed_where_they_are_compared():
    x, y, domain = examples()
    model = UnseenClassifier(objective="irm(penalty_weight=1)", **SMALL)
    with pytest.raises(
        InputError, match=r"compares training domains, but fit got none. Give fit\(X, y, domain="
    ):
        model.fit(x, y)
    with pytest.raises(InputError, match="there is only one"):
        model.fit(x, y, domain=np.full(len(y), "north"))
    assert model.fit(x, y, domain=domain).score(x, y) > 0.8


def test_searches_and_pipelines_pass_domains_on():
    x, y, domain = examples()
    search = GridSearchCV(
        UnseenClassifier(**SMALL), {"objective": ["erm", "vrex"]}, cv=LeaveOneGroupOut(), error_score="raise"
    )
    search.fit(x, y, groups=domain, domain=domain)
    assert search.best_score_ > 0.8 and len(search.best_estimator_.domains_) == 3
    pipeline = make_pipeline(StandardScaler(), UnseenClassifier(**SMALL))
    assert pipeline.fit(x, y, unseenclassifier__domain=domain).score(x, y) > 0.9
    assert cross_val_score(pipeline, x, y, cv=2).mean() > 0.8


def test_seeds():
    x, y, _ = examples(60)
    model = UnseenClassifier(**SMALL)
    first, again = (clone(model).fit(x, y).predict_proba(x) for _ in range(2))
    other = clone(model).set_params(random_state=1).fit(x, y).predict_proba(x)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    drawn = clone(model).set_params(random_state=np.random.RandomState(3))
    assert not np.array_equal(drawn.fit(x, y).predict_proba(x), drawn.fit(x, y).predict_proba(x))
    clone(model).set_params(random_state=None).fit(x, y)


def test_names_of_features_are_checked_and_models_are_pickled():
    x, y, _ = examples(60)
    frame = pd.DataFrame(x, columns=list("abcde"))
    model = UnseenClassifier(**SMALL).fit(frame, y)
    assert list(model.feature_names_in_) == list("abcde") and model.n_features_in_ == 5
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame.rename(columns={"a": "z"}))
    copied = pickle.loads(pickle.dumps(model))
    assert np.array_equal(copied.predict_proba(frame), model.predict_proba(frame))


def test_wrong_settings_are_told_at_fit():
    x, y, domain = examples(30)
    for changes, match in (
        ({"objective": "imr"}, "objective 'imr'"),
        ({"averaging": "emma"}, "averaging 'emma'"),
        ({"steps": 0}, "steps: is 0"),
        ({"validation_fraction": 1.0}, "validation_fraction: is 1.0"),
    ):
        with pytest.raises(InputError, match=match):
            UnseenClassifier(**(SMALL | changes)).fit(x, y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        UnseenClassifier(**SMALL).fit(x, y, domain=domain[:-1])
    with pytest.raises(ValueError, match="Unknown label type"):
        UnseenClassifier(**SMALL).fit(x, x[:, 0])


# ---- detector ----


def test_it_scores_as_the_detector_does():
    x, y, _ = examples()
    model = FamiliarityDetector("mahalanobis").fit(x, y)
    labels = torch.from_numpy(np.unique(y, return_inverse=True)[1])
    bank = Bank(torch.from_numpy(x), torch.zeros(len(x), 3), labels)
    expected = detectors.build("mahalanobis").fit(bank).score(bank)
    assert np.array_equal(model.score_samples(x), expected.double().numpy())
    assert np.array_equal(model.decision_function(x), model.score_samples(x) - model.offset_)
    assert (model.predict(x + 20) == -1).all()
    one_class = FamiliarityDetector("mahalanobis").fit(x)
    assert not np.array_equal(one_class.score_samples(x), model.score_samples(x))


@pytest.mark.parametrize("contamination", [0.0, 0.1, 0.25])
def test_contamination_is_the_share_of_outliers_in_training(contamination):
    x, _, _ = examples()
    outliers = FamiliarityDetector("mahalanobis", contamination=contamination).fit_predict(x) == -1
    assert outliers.sum() == round(contamination * len(x))


@pytest.mark.parametrize(
    "name", [entry.name for entry in detectors if getattr(entry.target, "needs_logits", False)]
)
def test_detectors_of_logits_are_refused_with_a_choice(name):
    with pytest.raises(InputError, match=f"'{name}': reads the logits.*Choose one of .*knn, .*mahalanobis"):
        FamiliarityDetector(name).fit(examples()[0])


def test_what_cannot_be_is_told():
    x, _, _ = examples()
    with pytest.raises(InputError, match="contamination: is 1"):
        FamiliarityDetector(contamination=1).fit(x)
    with pytest.raises(InputError, match="there is one class"):
        FamiliarityDetector("relative-mahalanobis").fit(x)
    with pytest.raises(NotFittedError):
        FamiliarityDetector().predict(x)


def test_looking_up_a_detector_does_not_import_scikit_learn():
    code = "import sys; from unseen.registry import detectors; detectors.names(); assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
