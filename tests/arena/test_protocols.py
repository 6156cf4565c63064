from functools import partial

import pytest
import torch

from unseen.arena import Budget, FewShot, FineTune, LinearProbe, OODEval, RegressionProbe, Retrieval
from unseen.arena.protocols import stratified
from unseen.errors import InputError

BUDGET = Budget(trials=3, steps=60, tuning_steps=30, batch=32)


@pytest.mark.parametrize(
    "task", [LinearProbe, FewShot, partial(Retrieval, most=150)], ids=["probe", "few-shot", "retrieval"]
)
def test_what_tells_the_classes_scores_higher_than_what_does_not(task, toy, toy_shift):
    shift = toy_shift()
    good, poor = (task(shift).measure(toy(str(k), k), BUDGET, 0) for k in (6, 1))
    assert [s.metric for s in good] == [s.metric for s in poor]
    assert good[0].value > poor[0].value + 0.1
    assert task(shift).measure(toy("again"), BUDGET, 0) == good  # the seed decides all of it
    assert task(shift).measure(toy("again"), BUDGET, 1) != good


def test_a_probe_is_accurate_and_says_what_was_chosen(toy, toy_shift):
    (score,) = LinearProbe(toy_shift()).measure(toy("all"), BUDGET, 0)
    assert score.value > 0.9 and score.metric == "accuracy" and score.chosen.startswith("rate ")


def test_labels_of_test_rows_do_not_reach_training_or_choice(toy, toy_shift):
    shift, other = toy_shift(), toy_shift()
    *_, test = stratified(shift, (0.6, 0.2, 0.2), torch.Generator().manual_seed(0))
    assert len(test) == 48
    task = OODEval(shift, ["d0"], ["d1"])
    (before,) = task.measure(toy("a"), BUDGET, 0)
    other.labels[other.domain == 1] = (other.labels[other.domain == 1] + 1) % 3
    (after,) = OODEval(other, ["d0"], ["d1"]).measure(toy("a"), BUDGET, 0)
    assert after.chosen == before.chosen and after.value < 0.2 < 0.8 < before.value


def test_fine_tuning_beats_a_probe_of_features_that_tell_little(toy, toy_shift):
    shift = toy_shift()
    (frozen,) = LinearProbe(shift).measure(toy("one", 1), BUDGET, 0)
    (tuned,) = FineTune(shift, layer_decay=1.0).measure(
        toy("one", 1), Budget(trials=2, tuning_steps=500, batch=64), 0
    )
    assert tuned.value > frozen.value + 0.05


def test_the_budget_is_how_many_rates_are_tried(toy, toy_shift):
    assert Budget(trials=3).rates(0.01, 1).tolist() == pytest.approx([0.01, 0.1, 1])
    assert Budget(trials=1).rates(0.01, 1).tolist() == pytest.approx([0.1])
    with pytest.raises(InputError, match="budget's trials"):
        Budget(trials=0)


def test_unseen_domains_are_scored_one_by_one(toy, toy_shift):
    scores = OODEval(toy_shift(domains=3), ["d0"], ["d1", "d2"]).measure(toy("a"), BUDGET, 0)
    assert [score.setting for score in scores] == ["toy: d1", "toy: d2"]


def test_other_data_sets_are_masked_to_their_own_classes(toy, toy_shift):
    shift = toy_shift(classes=4)
    other = toy_shift(count=60, classes=2, seed=5, name="other")
    other.inputs[:, 2:4] += 6  # in training these axes are the classes c2 and c3, which the test set lacks
    (score,) = OODEval(shift, ["d0", "d1"], [other]).measure(toy("a"), BUDGET, 0)
    assert score.setting == "toy: other" and score.value > 0.85


def test_class_names_map_labels_between_data_sets(toy, toy_shift):
    shift, other = toy_shift(), toy_shift(seed=5, name="other")
    other.classes, other.labels = ("c2", "c0", "c1"), (other.labels + 1) % 3
    (score,) = OODEval(shift, ["d0", "d1"], [other]).measure(toy("a"), BUDGET, 0)
    assert score.value > 0.9


def test_ood_that_cannot_be(toy_shift):
    shift, other = toy_shift(), toy_shift(name="other")
    other.classes = ("x", "y", "z")
    with pytest.raises(InputError, match="label mask of test set 'other': has no valid class"):
        OODEval(shift, ["d0"], [other])
    other.classes = ("c0", "c1", "z")
    with pytest.raises(InputError, match="class 'z': is in test set 'other'"):
        OODEval(shift, ["d0"], [other])
    with pytest.raises(InputError, match="trained on and tested on"):
        OODEval(shift, ["d0"], ["d0"])
    with pytest.raises(InputError, match="is not in the data"):
        OODEval(shift, ["d0"], ["d7"])
    with pytest.raises(InputError, match="name nothing"):
        OODEval(shift, ["d0"], [])


def test_few_shots_are_n_a_class(toy, toy_shift, monkeypatch):
    seen = []
    monkeypatch.setattr(FewShot, "_fit", lambda self, c, train, val, *_: seen.append((train, val)) or 1 / 0)
    shift = toy_shift()
    with pytest.raises(ZeroDivisionError):
        FewShot(shift, 4).measure(toy("a"), BUDGET, 0)
    ((train, validation),) = seen
    assert (
        shift.labels[train].bincount().tolist() == shift.labels[validation].bincount().tolist() == [4, 4, 4]
    )
    assert not set(train.tolist()) & set(validation.tolist())
    with pytest.raises(InputError, match="rarest class has 80"):
        FewShot(shift, 40)


def test_stratified_parts_are_disjoint_whole_and_of_every_class(toy_shift):
    shift = toy_shift()
    parts = stratified(shift, (0.6, 0.2, 0.2), torch.Generator().manual_seed(0))
    assert torch.cat(parts).sort().values.tolist() == list(range(240))
    assert [shift.labels[rows].bincount().tolist() for rows in parts] == [[48] * 3, [16] * 3, [16] * 3]
    with pytest.raises(InputError, match=r"class 'c0': has 2 example\(s\)"):
        stratified(toy_shift(6), (0.6, 0.2, 0.2), torch.Generator().manual_seed(0))


def test_retrieval_across_domains_and_what_it_refuses(toy, toy_shift):
    shift = toy_shift()
    found = {s.metric: s.value for s in Retrieval(shift, queries="d1").measure(toy("a"), BUDGET, 0)}
    assert set(found) == {"mAP", "MRR", "recall@1", "recall@5"} and found["mAP"] > 0.6
    with pytest.raises(InputError, match="domain 'd9'"):
        Retrieval(shift, queries="d9")
    with pytest.raises(InputError, match="too small"):
        Retrieval(shift, recall_at=(0,))


def test_ridge_probe_is_sklearns(toy, toy_shift):
    from sklearn.linear_model import Ridge
    from sklearn.metrics import r2_score

    from unseen.arena.probe import Standardise
    from unseen.shifts.sampling import derive_seed

    inputs = toy_shift().inputs
    targets = inputs[:, :2] @ torch.tensor([[1.0, 0.3], [2.0, -1.0]]) + 0.1 * inputs[:, 2:4] ** 2
    (score,) = RegressionProbe(inputs, targets, "numbers", reads="array").measure(
        toy("a"), Budget(trials=1), 0
    )
    order = torch.randperm(240, generator=torch.Generator().manual_seed(derive_seed(0, 8)))
    train, test = order[:144], order[192:]
    scaled = Standardise.fit(inputs[train])(inputs)
    ridge = Ridge(alpha=0.1).fit(scaled[train], targets[train])
    assert score.value == pytest.approx(r2_score(targets[test], ridge.predict(scaled[test])), abs=1e-4)


def test_regressions_that_cannot_be(toy_shift):
    inputs = toy_shift().inputs
    with pytest.raises(InputError, match="have shape"):
        RegressionProbe(inputs, torch.zeros(240), "numbers", reads="array")
    with pytest.raises(InputError, match="are constant"):
        RegressionProbe(inputs, torch.zeros(240, 1), "numbers", reads="array")


def test_identity_changes_with_data_and_options(toy_shift):
    shift = toy_shift()
    tasks = [
        LinearProbe(shift),
        LinearProbe(toy_shift(seed=1)),
        LinearProbe(shift, setting="other"),
        FineTune(shift),
        FineTune(shift, layer_decay=0.5),
        FewShot(shift, 3),
        FewShot(shift, 4, setting=FewShot(shift, 3).setting),
        OODEval(shift, ["d0"], ["d1"]),
        OODEval(shift, ["d1"], ["d0"]),
        OODEval(shift, ["d0"], ["d1"], tune=True),
        Retrieval(shift),
        Retrieval(shift, queries="d0", setting="toy"),
        Retrieval(shift, recall_at=(2,)),
        RegressionProbe(shift.inputs, shift.inputs[:, :1], "x", reads="array"),
        RegressionProbe(shift.inputs, shift.inputs[:, 1:2], "x", reads="array"),
    ]
    assert len({task.identity for task in tasks}) == len(tasks)
    assert LinearProbe(shift).identity == LinearProbe(toy_shift()).identity


def test_tables_are_no_inputs_for_backbones(toy_shift):
    shift = toy_shift()
    shift.kind = "table"
    with pytest.raises(InputError, match="of kind 'table'"):
        LinearProbe(shift)
