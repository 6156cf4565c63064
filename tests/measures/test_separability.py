import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from unseen.errors import InputError
from unseen.measures.separability import linear_separability


def blobs(spread=1.0, classes=4, count=30, seed=0, width=6):
    generator = np.random.default_rng(seed)
    y = np.repeat(np.arange(classes), count)
    return generator.normal(size=(len(y), width)) + spread * np.eye(width)[y], y


def test_cross_validated_accuracies_are_those_of_a_plain_loop():
    x, y = blobs(2.0)
    outside = y >= 2
    found = linear_separability(x, y, outside, folds=3)
    predicted, told = np.empty_like(y), np.empty(len(y), dtype=bool)
    for train, test in StratifiedKFold(3, shuffle=True, random_state=0).split(x, y):
        scaler = StandardScaler().fit(x[train])
        model = LogisticRegression(max_iter=2000).fit(scaler.transform(x[train]), y[train])
        predicted[test] = model.predict(scaler.transform(x[test]))
        binary = LogisticRegression(class_weight="balanced", max_iter=2000)
        binary.fit(scaler.transform(x[train]), outside[train])
        told[test] = binary.predict(scaler.transform(x[test]))
    right = [np.mean(predicted[y == c] == c) for c in range(4)]
    assert found.classes == pytest.approx(np.mean(right))
    assert found.unfamiliar == pytest.approx(np.mean(right[2:]))
    assert found.id_vs_ood == pytest.approx(np.mean([told[outside].mean(), (~told[~outside]).mean()]))


def test_far_classes_are_separable_and_equal_ones_are_at_chance():
    far, y = blobs(20.0)
    found = linear_separability(far, y, y >= 2)
    assert found.classes == found.unfamiliar == found.id_vs_ood == found.few_shot == 1
    same = [blobs(0.0, count=50, seed=seed) for seed in range(10)]
    found = [linear_separability(x, y, y >= 2) for x, y in same]
    for name, chance in (("classes", 0.25), ("unfamiliar", 0.25), ("id_vs_ood", 0.5), ("few_shot", 0.25)):
        assert abs(np.mean([getattr(each, name) for each in found]) - chance) < 0.06, name


def test_random_features_of_what_was_learned_from_do_not_look_separable():
    """In as many dimensions as examples a hyperplane fits anything; held-out examples say so."""
    x, y = blobs(0.0, classes=2, count=30, width=60)
    assert LogisticRegression(C=1e4, max_iter=2000).fit(x, y).score(x, y) == 1
    assert linear_separability(x, y, C=1e4).classes < 0.7


def test_more_shots_tell_more_and_unequal_classes_count_alike():
    x, y = blobs(1.5, count=60)
    few, many = (linear_separability(x, y, shots=shots).few_shot for shots in (1, 30))
    assert many > few + 0.1
    x, y = blobs(0.0, classes=2, count=200)
    kept = (y == 0) | (np.arange(400) % 10 == 0)
    assert abs(linear_separability(x[kept], y[kept]).classes - 0.5) < 0.1  # not the share of the larger


def test_names_scales_and_the_seed():
    x, y = blobs(1.0)
    first = linear_separability(x, y, seed=1)
    named = linear_separability(x * 7 + 3, np.array(list("abcd"))[y], seed=1)
    assert first.classes == named.classes and first.few_shot == pytest.approx(named.few_shot)
    assert np.isnan(first.unfamiliar) and np.isnan(first.id_vs_ood)
    assert linear_separability(x, y, seed=2) != first


def test_what_does_not_fit_is_refused():
    x, y = blobs()
    with pytest.raises(InputError, match="one class"):
        linear_separability(x, np.zeros(len(x)))
    with pytest.raises(InputError, match="class 1.*familiar and the unfamiliar"):
        linear_separability(x, y, np.arange(len(y)) >= 45)
    with pytest.raises(InputError, match="groups.*one value"):
        linear_separability(x, y, np.ones(len(y)))
    with pytest.raises(InputError, match="groups.*119"):
        linear_separability(x, y, (y > 1)[:-1])
    with pytest.raises(InputError, match="class 0.*30 example.*31"):
        linear_separability(x, y, shots=30)
    with pytest.raises(InputError, match="folds"):
        linear_separability(x, y, folds=1)
    with pytest.raises(InputError, match="labels.*119"):
        linear_separability(x, y[:-1])
