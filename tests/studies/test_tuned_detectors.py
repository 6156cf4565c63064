"""Options chosen on tuning data: by their AUROC alone, and judged on data that the choice has not seen."""

import numpy as np
import pytest
import torch

from unseen.detection.metrics import ood_metrics
from unseen.errors import InputError
from unseen.networks import build_network
from unseen.registry import detectors
from unseen.shifts import Shift
from unseen.shifts.preprocessing import ArrayPreprocessing
from unseen.studies.tuned_detectors import require_apart, tune_detector
from unseen.training.data import network_outputs
from unseen.training.system import seeded


def points(count: int, seed: int, offset: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)) + offset


@pytest.fixture(scope="module")
def world():
    x, y = points(120, 0), torch.arange(120) % 3
    x[torch.arange(120), y] += 3
    shift = Shift("toy", "array", x, y, torch.zeros(120), "xyz", "a")
    with seeded(0):
        network = build_network("mlp(width=8)", (6,), 3).eval()
    return {
        "network": network,
        "preprocessing": ArrayPreprocessing.fit(shift, torch.arange(120)),
        "train": (x, y),
        "familiar": (points(40, 1), points(40, 2)),
        "tuning": points(40, 3, 1.5),
        "test": {"near": points(40, 4, 1.0), "far": points(30, 5, 4.0)},
    }


@pytest.mark.parametrize("name", ["relation", "odin"])  # of features, and one that observes the pass
def test_the_best_on_tuning_data_is_kept_and_judged_on_the_test(name, world):
    tuned = tune_detector(name, draws=4, **world)
    assert list(tuned.draws.draw) == [0, 1, 2, 3, 4] and tuned.draws.detector[0] == name
    assert tuned.draws.detector[tuned.draws.tuning_auroc.argmax()] == str(tuned.spec)
    assert tuned.draws.detector.nunique() > 2
    fresh = detectors.build(tuned.spec)

    def bank(x):
        pre = world["preprocessing"]
        return network_outputs(world["network"], pre, pre.encode(x), observers=[fresh])

    learnt = bank(world["train"][0])
    learnt.labels = world["train"][1]
    fresh.fit(learnt)
    (one, two), test = world["familiar"], world["test"]
    expected = ood_metrics(fresh.score(bank(one)), fresh.score(bank(world["tuning"]))).auroc
    assert tuned.draws.tuning_auroc.max() == pytest.approx(expected)
    for row in tuned.judged.itertuples():
        other = bank(test[row.set])
        assert row.auroc == pytest.approx(ood_metrics(fresh.score(bank(two)), fresh.score(other)).auroc)
        assert row.auroc_low <= row.auroc <= row.auroc_high and row.n == len(test[row.set])
    assert list(tuned.judged.set) == ["near", "far"]


def test_test_data_do_not_change_the_choice(world):
    other = {**world, "test": {"other": points(25, 9, -2.0)}}
    one, two = (tune_detector("relation", draws=4, **each) for each in (world, other))
    assert one.spec == two.spec and one.draws.equals(two.draws)


@pytest.mark.parametrize("used", ["tuning", "train"])
def test_test_data_that_were_used_are_refused(used, world):
    taken = world["train"][0] if used == "train" else world[used]
    mixed = torch.cat([world["test"]["near"], taken[:3]])
    with pytest.raises(InputError, match=rf"'near': share 3 of 43 examples with the {used}"):
        tune_detector("relation", **{**world, "test": {"near": mixed}})


def test_familiar_inputs_are_kept_apart_too(world):
    own = world["familiar"][0]
    with pytest.raises(InputError, match="familiar data.*share 40 of 40"):
        tune_detector("relation", **{**world, "familiar": (own, own)})
    require_apart({"a": np.zeros((2, 3))}, {"b": np.ones((2, 3))})


def test_errors(world):
    with pytest.raises(InputError, match="has no options with a search range"):
        tune_detector("msp", **world)
    with pytest.raises(InputError, match="draws: are 0"):
        tune_detector("relation", draws=0, **world)
    with pytest.raises(InputError, match="has no unfamiliar data"):
        tune_detector("relation", **{**world, "test": {}})
