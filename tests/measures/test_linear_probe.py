import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from unseen.errors import InputError
from unseen.measures.linear_probe import STRENGTHS, LinearProbe


def data(classes=3, count=90, seed=0):
    generator = np.random.default_rng(seed)
    y = np.arange(count) % classes
    x = generator.normal(size=(count, 5)) + 1.5 * np.eye(5)[y]
    return x * [1, 10, 0.1, 1, 1] + [0, 100, 0, 0, 5], y


@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_is_standardising_and_logistic_regression_in_one(classes):
    x, y = data(classes)
    probe = LinearProbe(C=0.3).fit(x, y)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=2000)).fit(x, y)
    np.testing.assert_allclose(probe.predict_proba(x), model.predict_proba(x), atol=1e-4)
    assert (probe.predict(x) == model.predict(x)).all() and probe.decision_function(x).shape == (90, classes)
    logits = probe.head_(torch.from_numpy(x).float())
    np.testing.assert_allclose(logits.numpy(), probe.decision_function(x), atol=1e-3)


def test_scales_of_features_do_not_matter():
    x, y = data()
    first, second = LinearProbe(C=1.0).fit(x, y), LinearProbe(C=1.0).fit(x * 50 - 3, y)
    np.testing.assert_allclose(first.predict_proba(x), second.predict_proba(x * 50 - 3), atol=1e-3)


def test_the_strength_is_that_of_least_cross_validated_loss():
    x, y = data(count=60)
    probe = LinearProbe().fit(x, y)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    losses = {}
    for C in STRENGTHS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=2000))
        losses[C] = log_loss(y, cross_val_predict(model, x, y, cv=folds, method="predict_proba"))
    assert min(losses, key=losses.get) == probe.C_ and STRENGTHS[0] < probe.C_ < STRENGTHS[-1]


def test_regularizers():
    x, y = data(count=60)
    size = {name: LinearProbe(regularizer=name, C=0.05).fit(x, y) for name in ("l2", "l1", "none")}
    scaled = {name: probe.head_.weight.numpy() * x.std(0) for name, probe in size.items()}
    assert (np.abs(scaled["l1"]) < 1e-6).sum() > (np.abs(scaled["l2"]) < 1e-6).sum() == 0
    assert np.abs(scaled["none"]).sum() > np.abs(scaled["l2"]).sum() and np.inf == size["none"].C_


def test_as_a_head_and_a_bank():
    x, y = data()
    names = np.array(["a", "b", "c"])[y]
    probe = LinearProbe(C=1.0).fit(torch.from_numpy(x), names)
    features = torch.from_numpy(x).float()
    network = probe.network(nn.Identity())
    torch.testing.assert_close(network(features), probe.head_(features))
    bank = probe.bank(features, names)
    assert torch.equal(bank.labels, torch.from_numpy(y)) and bank.head is probe.head_
    assert (probe.classes_[bank.predictions.numpy()] == probe.predict(x)).all()
    assert probe.bank(features).labels is None


def test_it_is_an_estimator():
    x, y = data()
    probe = clone(LinearProbe(C=0.5, folds=3))
    assert probe.get_params()["C"] == 0.5 and probe.fit(x, y).score(x, y) > 0.7
    constant = np.column_stack([x, np.ones(len(x))])
    assert np.isfinite(probe.fit(constant, y).decision_function(constant)).all()


def test_what_does_not_fit_is_refused():
    x, y = data()
    with pytest.raises(InputError, match="labels.*one class"):
        LinearProbe().fit(x, np.zeros(90))
    with pytest.raises(InputError, match="labels.*89 entries"):
        LinearProbe().fit(x, y[:-1])
    with pytest.raises(InputError, match="regularizer"):
        LinearProbe(regularizer="lasso").fit(x, y)
    with pytest.raises(InputError, match="C"):
        LinearProbe(C=0).fit(x, y)
    with pytest.raises(InputError, match="folds"):
        LinearProbe(folds=1).fit(x, y)
    with pytest.raises(InputError, match="class 2.*one example"):
        LinearProbe().fit(np.vstack([x[y < 2], x[y == 2][:1]]), np.append(y[y < 2], 2))
    with pytest.raises(InputError, match="features.*NaN"):
        LinearProbe().fit(np.full_like(x, np.nan), y)
