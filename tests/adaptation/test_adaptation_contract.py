"""Variants of registered methods keep the contract; a broken one is told what it broke."""

import pytest
import torch

from unseen.adaptation.batch_statistics import BatchStatistics
from unseen.adaptation.source import Source
from unseen.adaptation.tent import Tent
from unseen.errors import InputError
from unseen.registry import Spec, adaptation
from unseen.testing import CHECKS, ContractError, check_adaptation

VARIANTS = [
    "tent(steps=2, optimizer='sgd', prior=16)",
    "eta(similarity=0.9, learning_rate=0.01)",
    "sar(recovery=0.001)",
    "roid(steps=2, prior=4)",
    "rotta(memory_size=5, update_every=7)",
    "cotta(augmentations=1, restore=0.5, augment='augmix-unmirrored')",
    "lame(affinity='rbf')",
    "t3a(keep=1)",
]
LEARN = {"cotta", "deyo", "eata", "eta", "memo", "roid", "rotta", "shot", "shot-im", "t3a", "tent"}


@pytest.mark.parametrize("spec", [*(n for n in adaptation.names() if n != "memo"), *VARIANTS])
def test_methods_keep_their_contract(spec):
    report = check_adaptation(spec)
    assert len(report.passed) == 8 and report.name == f"adaptation {spec!r}"
    assert report.facts["learns"] or Spec.of(spec).name not in LEARN
    assert report.facts["batch"] is True


def test_facts_of_the_report():
    assert CHECKS["adaptation"] is check_adaptation
    report = check_adaptation("bn-batch")
    assert "no batch normalisation" in report.facts["group"] and "no batch" in report.facts["layer"]
    assert report.facts["batch of one"] == "refused, with batch normalisation"
    assert "batch of one" not in check_adaptation("bn-mixed").facts
    assert check_adaptation(Tent).facts == check_adaptation("tent").facts


def test_the_check_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check_adaptation("source")
    assert torch.equal(before, torch.get_rng_state())


class HoldsTheModel(Tent):
    def __init__(self, network, *, seed=0):
        super().__init__(network, seed=seed)
        self.given = network

    def answer(self, x):
        with torch.no_grad():
            self.given.head.bias.add_(1e-3)
        return super().answer(x)


class SwitchesTheModel(Source):
    def __init__(self, network, *, seed=0):
        super().__init__(network, seed=seed)
        network.eval()


class GlobalRandom(Source):
    def answer(self, x):
        return super().answer(x + 1e-3 * torch.randn(x.shape))


class ForgetsToForget(Tent):
    def reset(self):
        self.memory = self.begin()
        self.optimizer = self.make_optimizer()
        self.generator = torch.Generator().manual_seed(self.seed)


class HiddenState(Source):
    calls = 0

    def answer(self, x):
        self.calls += 1
        return super().answer(x) + self.calls

    def reset(self):
        super().reset()
        self.calls = 0


class AnotherSeedEachTime(Source):
    made = 0

    def __init__(self, network, *, seed=0):
        AnotherSeedEachTime.made += 1
        super().__init__(network, seed=AnotherSeedEachTime.made)

    def answer(self, x):
        return super().answer(x) + torch.rand(len(x), 1, generator=self.generator)


class Carries(Source):
    def adapt(self, x):
        return super().adapt(x).requires_grad_()


class Trains(Source):
    def answer(self, x):
        self.network.train()
        return super().answer(x)


class ChangesInputs(Source):
    def answer(self, x):
        return super().answer(x.mul_(1.5))


class AcceptsNan(Source):
    def adapt(self, x):
        return self.answer(x).nan_to_num()


class Probabilities(Source):
    def answer(self, x):
        return super().answer(x).argmax(1)


class WantsLabels(Source):
    def adapt(self, x, labels):
        return super().adapt(x)


class TakesNothing(BatchStatistics):
    def __init__(self, network, *, seed=0):
        raise InputError("network", "is no good")


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (HoldsTheModel, "changes the weights or buffers of the network"),
        (SwitchesTheModel, "leaves modes, layers or gradients of the network changed"),
        (GlobalRandom, "uses torch's global random state"),
        (ForgetsToForget, "has another state after reset"),
        (HiddenState, "goes on otherwise from its state_dict"),
        (AnotherSeedEachTime, "has another state after reset|answers otherwise with the same seed"),
        (Carries, "carry a gradient"),
        (Trains, "leaves its network in training mode"),
        (ChangesInputs, "changes its inputs"),
        (AcceptsNan, "answers NaN without an InputError"),
        (Probabilities, r"answers \(16,\) to 16 examples"),
        (TakesNothing, "takes no network: network: is no good"),
    ],
)
def test_a_broken_method_is_told_what_it_broke(broken, sentence):
    with pytest.raises(ContractError, match=f"adaptation '{broken.__name__}' .*({sentence})"):
        check_adaptation(broken)


def test_a_method_that_wants_labels_is_no_test_time_adaptation():
    with pytest.raises((ContractError, TypeError), match="labels"):
        check_adaptation(WantsLabels)
