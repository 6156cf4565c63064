import dataclasses
import warnings

import numpy as np
import pytest
import torch

from unseen.errors import InputError, UnseenWarning
from unseen.measures.accuracy_estimates import estimate_accuracy
from unseen.measures.online_drift import DriftState
from unseen.measures.permutation_tests import mmd
from unseen.training import Predictor
from unseen.training.reference import Reference
from unseen.watch import Watcher


def test_calm_chunks_are_quiet_and_a_new_domain_alarms(digits):
    watcher = Watcher(digits.predictor)
    for stream in (digits.calm, digits.moved):
        for start in range(0, 300, 100):
            watcher.observe(stream[start : start + 100])
    calm, moved = watcher.chunks[:3], watcher.chunks[3:]
    assert sum(bool(chunk.alarms) for chunk in calm) <= 1
    for chunk in moved:
        assert any("features differ" in reason and "p = 0.001" in reason for reason in chunk.alarms)
        assert any("accepted, of the reference 9" in reason for reason in chunk.alarms)
    assert any("fell within the stream, noticed at 3" in reason for reason in moved[0].alarms)
    assert max(c.drift_effect for c in calm) < 0.2 < min(c.drift_effect for c in moved)
    assert min(c.familiarity for c in calm) > max(c.familiarity for c in moved)
    assert [(c.number, c.first, c.last) for c in watcher.chunks[:2]] == [(1, "0", "99"), (2, "100", "199")]


@pytest.mark.parametrize(
    ("changes", "more"), [((3,), None), ((3, 5), "1 more place"), ((3, 5, 8), "2 more places")]
)
def test_one_change_within_the_stream_is_told_once(changes, more, digits):
    class Told:
        """Finds changes at the given examples; the mean has just fallen."""

        seen, mean = 0, 0.5

        def update(self, value):
            found = DriftState.DRIFT if self.seen in changes else DriftState.STABLE
            self.seen, self.mean = self.seen + 1, 0.5 - 0.01 * self.seen
            return found

    watcher = Watcher(digits.predictor)
    watcher._within = Told()
    alarms = [a for a in watcher.observe(digits.calm[:20]).alarms if "features" not in a and "ATC" not in a]
    expected = ["familiarity fell within the stream, noticed at 3 (ADWIN)"]
    assert alarms == expected + ([f"and so at {more}"] if more else [])


def test_numbers_are_those_of_the_measures(digits):
    watcher, predictor = Watcher(digits.predictor, seed=5), digits.predictor
    chunk = watcher.observe(digits.moved[:50], [f"n{i}" for i in range(50)])
    bank, reference = predictor.outputs(digits.moved[:50]), predictor.reference
    table = predictor.predict(digits.moved[:50])
    found = mmd(reference.features, bank.features, seed=6)
    assert (chunk.drift_p_value, chunk.drift_effect) == (found.p_value, found.effect)
    assert chunk.accepted == pytest.approx(table.accept.mean())
    assert chunk.familiarity == pytest.approx(table.familiarity.mean(), rel=1e-5)
    probabilities = torch.softmax(reference.logits.double(), -1)
    expected = estimate_accuracy(probabilities, reference.labels, torch.softmax(bank.logits.double(), -1))
    assert chunk.accuracy == pytest.approx(expected, abs=1e-5)
    assert chunk.accuracy_range == (min(chunk.accuracy.values()), max(chunk.accuracy.values()))
    assert (chunk.first, chunk.last, chunk.examples) == ("n0", "n49", 50)


def test_false_alarms_of_calm_chunks_are_within_alpha(digits):
    """Reference and chunks of one distribution, drawn anew each time; 0.05 of 40 chunks is 2."""
    predictor = digits.predictor
    known, calm = predictor.reference.bank, predictor.outputs(digits.calm)
    features, logits = torch.cat([known.features, calm.features]), torch.cat([known.logits, calm.logits])
    labels = torch.cat([known.labels, calm.predictions])  # pretended: their accuracy plays no role here
    copy = Predictor(predictor.network, predictor.preprocessing, predictor.classes)
    copy.familiarity = predictor.familiarity
    alarms = 0
    for seed in range(20):
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
        bank = dataclasses.replace(
            known, features=features[order], logits=logits[order], labels=labels[order]
        )
        copy.reference = Reference.of(bank.take(torch.arange(400)), copy.familiarity)
        watcher = Watcher(copy, alpha=0.05, permutations=99, seed=seed)
        alarms += sum(
            bool(watcher.observe_outputs(bank.take(torch.arange(a, a + 60))).alarms) for a in (400, 460)
        )
    assert alarms <= 6


def test_the_same_seed_gives_the_same(digits):
    first, second = (Watcher(digits.predictor, seed=3).observe(digits.calm[:40]) for _ in range(2))
    assert first == second


def test_a_stream_in_runs_warns_once(digits):
    bank = digits.predictor.outputs(digits.calm)
    runs = bank.take(bank.predictions.argsort(stable=True))
    watcher = Watcher(digits.predictor)
    with pytest.warns(UnseenWarning, match="neighbours resemble each other") as told:
        for rows in torch.arange(300).split(150):
            watcher.observe_outputs(runs.take(rows))
    assert len(told) == 1
    assert all(chunk.serial_correlation > 0.1 for chunk in watcher.chunks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shuffled = torch.from_numpy(np.random.default_rng(0).permutation(300))
        assert Watcher(digits.predictor).observe_outputs(bank.take(shuffled)).serial_correlation is None


def test_models_that_cannot_watch(digits):
    predictor = digits.predictor
    bare = Predictor(predictor.network, predictor.preprocessing, predictor.classes)
    with pytest.raises(InputError, match="no sense of the familiar"):
        Watcher(bare)
    bare.familiarity = predictor.familiarity
    with pytest.raises(InputError, match="no reference sample .* Run `unseen run` again"):
        Watcher(bare)


def test_options_that_make_no_sense(digits):
    with pytest.raises(InputError, match="alpha: is 0"):
        Watcher(digits.predictor, alpha=0)
    assert Watcher(digits.predictor, alpha=0.001).permutations == 2999
    with pytest.raises(InputError, match="permutations: is 100. Give 299"):
        Watcher(digits.predictor, permutations=100)


def test_a_single_example_is_no_chunk(digits):
    with pytest.raises(InputError, match="chunk: has 1 example"):
        Watcher(digits.predictor).observe(digits.calm[:1])
