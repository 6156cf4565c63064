import warnings

import numpy as np
import pytest
import torch
from torch import nn

from unseen.errors import InputError, UnseenWarning
from unseen.networks import build_network
from unseen.networks.causal_head import class_prototypes
from unseen.objectives.cider import (
    CIDer,
    attention_distillation,
    feature_distillation,
    reconstruction_loss,
    set_prototypes,
)
from unseen.registry import Spec
from unseen.shifts import Batch
from unseen.shifts.multimodal import from_modalities
from unseen.training import Learner, fit

SHAPES = {"text": (5,), "sound": (4, 3)}


class TestLosses:
    def test_features(self, generator):
        student, teacher = torch.randn(2, 6, 4, generator=generator)
        expected = 1 - (nn.functional.normalize(student) * nn.functional.normalize(teacher)).sum(1).mean()
        torch.testing.assert_close(feature_distillation(student, teacher), expected)
        assert feature_distillation(3 * teacher, teacher) < 1e-6

    def test_attention_is_the_divergence_from_the_teacher(self, generator):
        student, teacher = torch.randn(2, 3, 2, 5, 5, generator=generator).double()
        expected = torch.distributions.kl_divergence(
            torch.distributions.Categorical(logits=teacher), torch.distributions.Categorical(logits=student)
        )
        torch.testing.assert_close(attention_distillation(student, teacher), expected.mean())
        assert attention_distillation(teacher + 7, teacher) < 1e-9

    def test_reconstruction_counts_missing_positions_only(self):
        original, decoded = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)
        decoded[0, 1], decoded[1, 2] = 3.0, 100.0
        missing = torch.tensor([[False, True, True], [False, False, False]])
        assert reconstruction_loss(decoded, original, missing) == pytest.approx((2.5 + 0) / 2)
        assert reconstruction_loss(decoded, original, torch.zeros_like(missing)) == 0

    def test_teachers_are_fixed(self, generator):
        for loss in (feature_distillation, attention_distillation):
            student, teacher = (torch.randn(3, 4, generator=generator).requires_grad_() for _ in range(2))
            loss(student, teacher).backward()
            assert teacher.grad is None and student.grad.any()


def batch_of(count=9):
    generator = torch.Generator().manual_seed(0)
    x = {
        "text": torch.randint(2, 20, (count, 5), generator=generator),
        "sound": torch.randn(count, 4, 3, generator=generator),
    }
    return Batch(x, torch.arange(count) % 3, torch.zeros(count, dtype=torch.int64), 1)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_network("multimodal(vocabulary=20, width=8)", SHAPES, 3)


class TestObjective:
    def prepared(self, objective, seed=0):
        return objective.prepare(batch_of(), torch.Generator().manual_seed(seed))

    def test_both_views_of_each_example_are_kept(self):
        batch = batch_of()
        ready = self.prepared(CIDer())
        for name, value in batch.x.items():
            assert torch.equal(ready.x[name][:, 0], value)
            masked = ready.x[name][:, 1]
            gone = (masked == 0).flatten(2).all(2) if masked.dim() > 2 else masked == 0
            assert 0.2 < gone.double().mean() < 0.8
            assert torch.equal(masked[~gone], value[~gone])
        assert len(ready.take(torch.tensor([1, 4]))) == 2

    def test_masks_are_of_the_batch_generator(self):
        first, again, other = (self.prepared(CIDer(), seed).x["sound"] for seed in (0, 0, 1))
        assert torch.equal(first, again) and not torch.equal(first, other)

    def test_the_total_is_the_weighted_sum_of_all_levels(self, network):
        objective = CIDer(0.5, 0.1, 0.6)
        ready = self.prepared(objective)
        loss = objective(network, ready)
        views = [{name: value[:, i] for name, value in ready.x.items()} for i in (0, 1)]
        teacher, student = (network.featurizer.outputs(view) for view in views)
        risks = [
            nn.functional.cross_entropy(network.head(o["features"]), ready.y) for o in (teacher, student)
        ]
        gone = {"text": views[0]["text"] != views[1]["text"]}
        gone["sound"] = (views[0]["sound"] != views[1]["sound"]).any(-1)
        expected = {
            "complete": risks[0],
            "masked": risks[1],
            "feature": feature_distillation(student["features"], teacher["features"]),
            "attention": attention_distillation(student["attention"], teacher["attention"]),
            "reconstruction": sum(
                reconstruction_loss(student["reconstruction"][n], teacher["originals"][n], gone[n])
                for n in gone
            ),
        }
        torch.testing.assert_close(loss.parts, expected)
        weights = {"complete": 1, "masked": 1, "feature": 0.5, "attention": 0.1, "reconstruction": 0.6}
        torch.testing.assert_close(loss.total, sum(w * expected[n] for n, w in weights.items()))

    def test_without_weights_it_is_augmentation(self, network):
        objective = CIDer(0, 0, 0)
        assert set(objective(network, self.prepared(objective)).parts) == {"complete", "masked"}

    def test_nothing_missing_teaches_nothing(self, network):
        objective = CIDer(rate=0.0)
        parts = objective(network, self.prepared(objective)).parts
        for name in ("feature", "attention", "reconstruction"):
            assert parts[name].abs() < 1e-6

    def test_networks_without_levels_say_so(self):
        plain = build_network("mlp(width=4, depth=1)", (6,), 3)
        batch = Batch(torch.ones(4, 6), torch.zeros(4).long(), torch.zeros(4).long(), 1)
        objective = CIDer()
        with pytest.warns(UnseenWarning, match="does not name attention and reconstruction"):
            loss = objective(plain, objective.prepare(batch, torch.Generator()))
        assert set(loss.parts) == {"complete", "masked", "feature"}

    def test_wrong_settings_are_told(self):
        with pytest.raises(InputError, match="attention: is -1"):
            CIDer(attention=-1)
        with pytest.raises(InputError, match="Nothing would be left"):
            CIDer(rate=1)
        with pytest.raises(InputError, match="rate: is 2"):
            CIDer(rate=2)


@pytest.fixture
def shift():
    generator = np.random.default_rng(0)
    labels, domain = np.arange(120) % 3, np.arange(120) // 3 % 2
    sound = generator.normal(size=(120, 4, 3))
    sound[np.arange(120), :, labels] += 2
    text = generator.integers(5, 20, (120, 5))
    text[:, 0] = 2 + labels
    return from_modalities({"text": text, "sound": sound}, labels, domain)


def test_a_learner_trains_through_missing_inputs(shift):
    learner = Learner(
        objective="cider", network=Spec.make("multimodal", vocabulary=20, width=8), steps=60,
        learning_rate=0.01, evaluations=2,
    )  # fmt: skip
    predictor = fit(learner, shift.split("1"))
    assert [r["value"] for r in predictor.history if r["metric"] == "accuracy"][-1] > 0.9
    assert "loss/reconstruction" in {r["metric"] for r in predictor.history}


def test_prototypes_are_of_training_rows_alone(shift):
    split = shift.split("1")
    learner = Learner(
        objective="cider", network=Spec.make("multimodal", vocabulary=20, width=8, causal=True), steps=2,
        evaluations=1,
    )  # fmt: skip
    predictor = fit(learner, split)
    head = predictor.network.head
    encoded = predictor.preprocessing.encode(shift.inputs)
    x = {name: value[split.train] for name, value in encoded.items()}
    expected = class_prototypes(x, shift.labels[split.train], 3, 20)
    torch.testing.assert_close(head.prototypes_text, expected["text"])
    torch.testing.assert_close(head.prototypes_sound, expected["sound"])
    counts = torch.bincount(shift.labels[split.train], minlength=3).float()
    torch.testing.assert_close(head.prior, counts / counts.sum())


def test_plain_training_of_a_causal_head_has_prototypes_by_cider_and_is_warned_of_without(shift):
    short = {"network": Spec.make("multimodal", vocabulary=20, width=8, causal=True), "steps": 2}
    with pytest.warns(UnseenWarning, match="trains without prototypes"):
        fit(Learner(objective="erm", **short), shift.split("1"))
    plain = "cider(feature=0.0, attention=0.0, reconstruction=0.0, rate=0.0)"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnseenWarning)
        head = fit(Learner(objective=plain, **short), shift.split("1")).network.head
    assert head.prototypes_text.any()


def test_prototypes_can_be_set_without_a_learner(network):
    network = build_network("multimodal(vocabulary=20, width=8, causal=True)", SHAPES, 3)
    batch = batch_of()
    set_prototypes(network.head, batch.x, batch.y)
    assert network.head.prototypes_text.sum() == pytest.approx(3)
