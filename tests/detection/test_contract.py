"""Every registered detector keeps its contract; a broken one is told what it broke."""

import pytest
import torch

from unseen.detection import Detector, require_finite
from unseen.registry import Spec, detectors
from unseen.testing import CHECKS, ContractError, check_detector

VARIANTS = [
    "energy(temperature=10)",
    "knn(k=1)",
    "knn(k=7, largest=50)",
    "mahalanobis(shrinkage=0.1)",
    "relative-mahalanobis(shrinkage=0.01)",
]


@pytest.mark.parametrize("spec", [*detectors.names(), *VARIANTS])
def test_registered_detectors_keep_their_contract(spec):
    report = check_detector(spec)
    assert len(report.passed) == 7 and report.name == f"detector {spec!r}"


def test_names_specs_factories_and_detectors_are_taken():
    assert CHECKS["detectors"] is check_detector
    detector = detectors.build("knn(k=2)")
    check_detector(detector)
    assert not detector.state_dict()  # it was copied, not fitted
    assert check_detector(Spec.make("knn", k=2)).name == "detector 'knn(k=2)'"
    assert check_detector(detectors["knn"].target).name == "detector 'NearestNeighbours'"


def test_the_check_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check_detector("mahalanobis")
    assert torch.equal(before, torch.get_rng_state())


class Centroid(Detector):
    """Keeps the contract: minus the distance to the nearest class mean."""

    def fit(self, bank):
        features = require_finite(bank.features, "features").float()
        self.keep(means=torch.stack([features[bank.labels == c].mean(0) for c in bank.labels.unique()]))
        return self

    def score(self, bank):
        return -torch.cdist(require_finite(bank.features, "features").float(), self.means).amin(1)


class ForgetsSelf(Centroid):
    def fit(self, bank):
        super().fit(bank)


class ChangesOutputs(Centroid):
    def fit(self, bank):
        bank.features.mul_(1.5)
        return super().fit(bank)


class Distance(Centroid):
    def score(self, bank):
        return -super().score(bank)


class Column(Centroid):
    def score(self, bank):
        return super().score(bank)[:, None]


class Double(Centroid):
    def score(self, bank):
        return super().score(bank).double()


class Carries(Centroid):
    def score(self, bank):
        return bank.head(bank.features.float()).amax(1)


class Random(Centroid):
    def score(self, bank):
        return super().score(bank) + 1e-3 * torch.rand(len(bank))


class Counts(Centroid):
    def fit(self, bank):
        self.keep(calls=torch.zeros(()))
        return super().fit(bank)

    def score(self, bank):
        self.calls.add_(1)
        return super().score(bank)


class RandomFit(Centroid):
    def fit(self, bank):
        super().fit(bank)
        self.means.add_(1e-3 * torch.randn(self.means.shape))
        return self


class BatchScaled(Centroid):
    def score(self, bank):
        score = super().score(bank)
        return score / score.abs().amax() if len(score) else score


class ForgetsState(Centroid):
    def fit(self, bank):
        super().fit(bank)
        self.shift = bank.features.float().mean()
        return self

    def score(self, bank):
        return super().score(bank) + getattr(self, "shift", 0)


class SinglePrecision(Centroid):
    def score(self, bank):
        return super().score(bank) + (bank.features.dtype == torch.float64)


class AcceptsNan(Centroid):
    def score(self, bank):
        return -torch.cdist(bank.features.float(), self.means).amin(1)


class FitsNan(Centroid):
    def fit(self, bank):
        self.keep(
            means=torch.stack([bank.features[bank.labels == c].float().mean(0) for c in bank.labels.unique()])
        )
        return self


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (ForgetsSelf, "does not return itself from fit"),
        (ChangesOutputs, "changes the outputs that it is fitted on"),
        (Distance, "higher means more familiar"),
        (Column, r"gives scores of shape \(120, 1\)"),
        (Double, "gives torch.float64 instead of float32"),
        (Carries, "carry a gradient"),
        (Random, "gives other scores when asked again"),
        (Counts, "changes its state when it scores"),
        (RandomFit, "gives other scores when it is fitted again"),
        (BatchScaled, "gives other scores in a smaller batch"),
        (ForgetsState, "gives other scores when it is restored"),
        (SinglePrecision, "gives other scores for outputs in torch.float64"),
        (AcceptsNan, "scores NaN without an InputError"),
        (FitsNan, "is fitted on NaN without an InputError"),
    ],
)
def test_a_broken_detector_is_told_what_it_broke(broken, sentence):
    check_detector(Centroid)
    with pytest.raises(ContractError, match=f"detector '{broken.__name__}' .*{sentence}"):
        check_detector(broken)
