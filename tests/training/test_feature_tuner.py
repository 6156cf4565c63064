import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from unseen.errors import InputError, TrainingDiverged, UnseenWarning
from unseen.training.feature_tuner import FeatureTuner

PROBE = {"hidden_ratio": 0, "consistency": 0, "covariance": 0, "singular": 0, "learning_rate": 1e-2}


def examples(count=120, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    x = generator.normal(size=(count, 6)) + 3 * np.eye(3, 6)[labels]
    return x, np.array(["cat", "dog", "eel"])[labels]


@pytest.mark.parametrize(
    "estimator", [FeatureTuner(learning_rate=0.03, epochs=10), FeatureTuner(**PROBE)], ids=["nmtune", "probe"]
)
def test_scikit_learn_has_no_objection(estimator):
    results = check_estimator(estimator, on_fail=None, on_skip=None)
    assert len(results) > 50
    assert not [(r["check_name"], r["exception"]) for r in results if r["status"] in ("failed", "xfail")]


def test_it_learns_and_transforms_to_what_its_head_reads():
    x, y = examples()
    tuner = FeatureTuner(epochs=20, learning_rate=1e-2).fit(x, y)
    assert tuner.score(x, y) > 0.9 and list(tuner.classes_) == ["cat", "dog", "eel"]
    tuned = tuner.transform(x)
    assert tuned.shape == x.shape and not np.allclose(tuned, x)
    head = tuner.network_.head
    logits = tuned @ head.weight.detach().double().numpy().T + head.bias.detach().double().numpy()
    np.testing.assert_array_equal(tuner.classes_[logits.argmax(1)], tuner.predict(x))
    assert tuner.loss_curve_[-1] < tuner.loss_curve_[0]


def test_a_probe_leaves_features_as_they_are():
    x, y = examples()
    probe = FeatureTuner(**PROBE | {"learning_rate": 0.1}).fit(x, y)
    np.testing.assert_allclose(probe.transform(x), x)
    assert probe.score(x, y) > 0.9


def test_regularizers_do_what_they_are_for():
    x, y = examples(200)
    x = x @ np.random.default_rng(3).normal(size=(6, 6))  # correlated

    def cosine(tuner):
        tuned = tuner.transform(x)
        lengths = np.linalg.norm(tuned, axis=1) * np.linalg.norm(x, axis=1)
        return ((tuned * x).sum(1) / lengths).mean()

    def correlation(tuner):
        covariance = np.cov(tuner.transform(x).T)
        return (covariance**2).sum() - (np.diag(covariance) ** 2).sum()

    plain = {"consistency": 0, "covariance": 0, "singular": 0, "learning_rate": 1e-2}
    free = FeatureTuner(**plain).fit(x, y)
    assert cosine(FeatureTuner(**{**plain, "consistency": 50}).fit(x, y)) > cosine(free) + 0.01
    assert correlation(FeatureTuner(**{**plain, "covariance": 0.1}).fit(x, y)) < 0.5 * correlation(free)


def test_the_second_view_matters_and_must_fit():
    x, y = examples()
    alone = FeatureTuner(epochs=2).fit(x, y)
    both = FeatureTuner(epochs=2).fit(x, y, strong=x + 0.5)
    assert not np.allclose(alone.predict_proba(x), both.predict_proba(x))
    with pytest.raises(InputError, match=r"strong: has shape \(119, 6\), but X \(120, 6\)"):
        FeatureTuner().fit(x, y, strong=x[1:])
    with pytest.raises(ValueError, match="NaN"):
        FeatureTuner().fit(x, y, strong=np.where(x > 2, np.nan, x))


def test_pipelines_searches_names_and_pickles():
    x, y = examples()
    search = GridSearchCV(FeatureTuner(epochs=5), {"learning_rate": [1e-3, 1e-2]}, cv=2, error_score="raise")
    assert search.fit(x, y, strong=x).best_params_ == {"learning_rate": 1e-2}
    pipeline = make_pipeline(StandardScaler(), FeatureTuner(epochs=20, learning_rate=1e-2))
    assert pipeline.fit(x, y).score(x, y) > 0.9
    frame = pd.DataFrame(x, columns=list("abcdef"))
    tuner = FeatureTuner(epochs=2).set_output(transform="pandas").fit(frame, y)
    assert list(tuner.transform(frame).columns) == [f"featuretuner{i}" for i in range(6)]
    copied = pickle.loads(pickle.dumps(tuner))
    assert np.array_equal(copied.predict_proba(frame), tuner.predict_proba(frame))


def test_a_term_that_does_nothing_is_told():
    x, y = examples(60)
    with pytest.warns(UnseenWarning, match="a batch has 6 singular values"):
        idle = FeatureTuner(epochs=2, top_k=6, singular=10.0).fit(x, y)
    without = FeatureTuner(epochs=2, singular=0).fit(x, y)
    np.testing.assert_allclose(idle.predict_proba(x), without.predict_proba(x), rtol=1e-4)


def test_seeds_and_global_random_state():
    x, y = examples(60)
    before = torch.random.get_rng_state()
    first, again = (clone(FeatureTuner(epochs=2)).fit(x, y).predict_proba(x) for _ in range(2))
    other = FeatureTuner(epochs=2, random_state=1).fit(x, y).predict_proba(x)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("count", [65, 129])
def test_no_batch_of_one_is_left_over(count):
    x, y = examples(count)
    assert np.isfinite(FeatureTuner(epochs=1).fit(x, y).predict_proba(x)).all()


def test_wrong_settings_are_told_at_fit():
    x, y = examples(30)
    for changes, match in (
        ({"epochs": 0}, "epochs: is 0"),
        ({"batch_size": 1}, "batch_size: is 1"),
        ({"learning_rate": 0}, "learning_rate: is 0"),
        ({"warmup": 1.0}, "warmup: is 1.0"),
        ({"hidden_ratio": -1}, "hidden_ratio: is -1"),
        ({"hidden_ratio": 0}, "regularizers act on what the perceptron changes"),
        ({"singular": -1}, "singular: is -1"),
        ({"normalization": "group"}, "normalization: is 'group'"),
    ):
        with pytest.raises(InputError, match=match):
            FeatureTuner(**changes).fit(x, y)
    with pytest.raises(NotFittedError):
        FeatureTuner().predict(x)
    with pytest.raises(TrainingDiverged, match="Lower the learning rate"):
        FeatureTuner(covariance=1e30, epochs=3).fit(1e10 * x, y)
