from typing import ClassVar

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from unseen.errors import InputError
from unseen.measures.feature_spectrum import spectrum_report
from unseen.studies.pretraining_noise import TransferTask, pretraining_noise_study
from unseen.training.feature_tuner import FeatureTuner

LABELS = np.arange(60) % 2
X = np.random.default_rng(0).normal(size=(60, 4)) + 3 * np.eye(2, 4)[LABELS]
TASK = TransferTask((X, LABELS), (X[:20], LABELS[:20]), {"turned": (X[:, ::-1], LABELS)}, strong=X + 0.1)


def encoder(rate):
    return lambda x: x * np.array([1 - rate, 1, 1, 1])


class Recording(LogisticRegression):
    seen: ClassVar[list] = []

    def fit(self, X, y, strong=None):
        Recording.seen.append(strong)
        return super().fit(X, y)


def test_it_is_a_tidy_table_of_every_rate_task_and_tuner():
    tuners = {"probe": LogisticRegression(), "nmtune": FeatureTuner(epochs=2)}
    table = pretraining_noise_study(encoder, [0, 0.5], {"toy": TASK, "again": TASK}, tuners)
    assert list(table.columns) == ["rate", "task", "tuner", "split", "metric", "value"]
    accuracy = table[table.metric == "accuracy"]
    assert len(accuracy) == 2 * 2 * 2 * 2 and accuracy.value.between(0, 1).all()
    spectra = table[table.metric == "entropy"].groupby("tuner").size()
    assert spectra.to_dict() == {"frozen": 4, "nmtune": 4}  # a probe has no features of its own
    expected = LogisticRegression().fit(encoder(0.5)(X), LABELS).score(encoder(0.5)(X[:, ::-1]), LABELS)
    at = accuracy.query("rate == 0.5 and task == 'toy' and tuner == 'probe' and split == 'turned'")
    assert at.value.item() == expected
    frozen = table.query("rate == 0.5 and task == 'toy' and tuner == 'frozen' and metric == 'largest_ratio'")
    assert frozen.value.item() == spectrum_report(encoder(0.5)(X[:20])).largest_ratio


def test_second_views_are_encoded_and_reach_those_who_take_them():
    Recording.seen.clear()
    search = GridSearchCV(FeatureTuner(epochs=1), {"learning_rate": [1e-3]}, cv=2)
    pretraining_noise_study(encoder, [0.5], {"toy": TASK}, {"own": Recording(), "search": search})
    np.testing.assert_allclose(Recording.seen[0], encoder(0.5)(X + 0.1))


def test_tuners_are_not_fitted_in_place():
    tuner = LogisticRegression()
    pretraining_noise_study(encoder, [0], {"toy": TASK}, {"probe": tuner})
    assert not hasattr(tuner, "coef_")


def test_nothing_to_do_is_told():
    with pytest.raises(InputError, match="rates: are empty"):
        pretraining_noise_study(encoder, [], {"toy": TASK}, {"probe": LogisticRegression()})
    with pytest.raises(InputError, match="tuners: are empty"):
        pretraining_noise_study(encoder, [0], {"toy": TASK}, {})
