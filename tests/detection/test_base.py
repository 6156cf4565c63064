"""Large banks are scored block by block, with the same scores, whatever the detector."""

import pytest
import torch

from unseen.detection import Detector, bank_parts, base
from unseen.detection.base import require_finite
from unseen.errors import InputError
from unseen.networks import Bank
from unseen.registry import detectors
from unseen.testing import check_detector


class Recorder(Detector):
    def __init__(self):
        super().__init__()
        self.sizes: list[int] = []

    def score(self, bank: Bank) -> torch.Tensor:
        """Sum of features."""
        self.sizes.append(len(bank))
        return bank.features.sum(1)


class Twice(Recorder):
    def score(self, bank: Bank) -> torch.Tensor:
        return 2 * super().score(bank)


@pytest.fixture
def blocks_of_16(monkeypatch):
    monkeypatch.setattr(base, "BLOCK", 16)


def test_a_large_bank_comes_in_blocks_and_a_small_one_whole(blocks_of_16, tmp_path):
    bank = Bank(torch.randn(40, 3), torch.randn(40, 2))
    mapped = Bank.open(bank.save(tmp_path / "bank"))
    for given in (bank, mapped):
        detector = Recorder()
        assert torch.equal(detector.score(given), bank.features.sum(1)) and detector.sizes == [16, 16, 8]
    twice = Twice()
    assert torch.equal(twice.score(bank), 2 * bank.features.sum(1)) and twice.sizes == [16, 16, 8]
    for count in (0, 16):
        detector = Recorder()
        assert detector.score(bank.take(slice(count))).shape == (count,) and detector.sizes == [count]
    assert Recorder.score.__doc__ == "Sum of features."


@pytest.mark.parametrize("name", [entry.name for entry in detectors])
def test_every_detector_keeps_its_contract_in_blocks(name, blocks_of_16):
    """Among it: that scores are those of another order, a smaller batch and an input alone."""
    check_detector(name)


def test_a_value_that_is_not_finite_is_found_in_every_block(blocks_of_16):
    features = torch.zeros(40, 3)
    features[37, 1] = features[38, 2] = float("inf")
    with pytest.raises(InputError, match=r"2 row\(s\), first in row 37"):
        require_finite(features, "features")
    with pytest.raises(InputError, match=r"logits \(rows from 32\): has .* first in row 5"):
        detectors.build("msp").score(Bank(features, features))
    assert require_finite(features[:0], "features").shape == (0, 3)


def test_means_of_features_are_summed_in_blocks_of_float64(monkeypatch):
    monkeypatch.setattr(bank_parts, "BLOCK", 16)
    features = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) + 1e4
    labels = torch.arange(40) % 4
    assert torch.allclose(bank_parts.mean_feature(features), features.double().mean(0), rtol=1e-14)
    expected = torch.stack([features[labels == c].double().mean(0) for c in range(4)])
    assert torch.allclose(bank_parts.class_means(features, labels, 4), expected, rtol=1e-14)
    assert bank_parts.mean_feature(features.half()).dtype == torch.float64
