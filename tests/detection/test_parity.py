"""Parity with pytorch-ood, called where it is installed (extra `peers`): every detector that both have.

Its scores are higher for unfamiliar inputs. Where it computes something else than ours, the case says what, and what
is left when that is taken away.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are beside the package, not in it

from benchmarks.peers import pytorch_ood

from unseen.networks import Bank, Network, build_network
from unseen.registry import detectors
from unseen.shifts.preprocessing import Preprocessing
from unseen.training.data import network_outputs
from unseen.training.system import seeded

CLASSES = 4


@pytest.fixture(scope="module")
def peer():
    found = pytorch_ood()
    if found is None:
        pytest.skip("pytorch-ood is not installed (extra `peers`): no parity check of the detectors")
    return found


@dataclass
class Case:
    """A detector here, its counterpart's scores, and our scores from those.

    theirs  called with the peer's module, the training outputs and those to score
    value   our scores from theirs
    near    allclose's tolerances, relative and absolute
    soft    compared on a quarter of the logits: theirs clamps probabilities at 1e-7
    """

    ours: str
    theirs: Callable[..., Tensor]
    value: Callable[[Tensor], Tensor] = torch.neg
    near: tuple[float, float] = (1e-5, 1e-6)
    soft: bool = False


def of_logits(name: str, **options) -> Callable[..., Tensor]:
    def scores(peer, train: Bank, bank: Bank) -> Tensor:
        detector = getattr(peer, name)(None, **options)
        if getattr(detector, "requires_fit", False):
            detector.fit_logits(train.logits, train.labels)
        return detector.predict_logits(bank.logits)

    return scores


def of_features(name: str, *, head: Callable[[nn.Linear], dict] = lambda head: {}, **options):
    def scores(peer, train: Bank, bank: Bank) -> Tensor:
        detector = getattr(peer, name)(None, **options, **head(train.head))
        if detector.requires_fit:
            detector.fit_features(train.features, train.labels)
        return detector.predict_features(bank.features)

    return scores


def of_maps(name: str, **options) -> Callable[..., Tensor]:
    def scores(peer, train: Bank, bank: Bank) -> Tensor:
        maps = [each.features[:, :, None, None] for each in (train, bank)]
        detector = getattr(peer, name)(None, lambda shaped: train.head(shaped.flatten(1)), **options)
        if detector.requires_fit:
            detector.fit_feature_maps(maps[0], train.labels)
        return detector.predict_feature_maps(maps[1])

    return scores


def with_head(head: nn.Linear) -> dict:
    return {"head": head}


def with_weights(head: nn.Linear) -> dict:
    return {"w": head.weight, "b": head.bias}


def of_gradients(peer, train: Bank, bank: Bank) -> Tensor:
    return peer.GradNorm(train.head, param_filter=lambda name: name == "weight").predict(bank.features)


def residual(peer, train: Bank, bank: Bank) -> Tensor:
    """The part of its ViM that is not the energy."""
    fitted = peer.ViM(None, 8, train.head.weight, train.head.bias).fit_features(train.features, train.labels)
    return ((bank.features - fitted.u) @ fitted.principal_subspace).norm(dim=1)


def clipped_alike(peer, train: Bank, bank: Bank) -> Tensor:
    """Its VRA with the same two thresholds for every feature; low activations are lifted, where the paper zeroes."""
    low, high = (float(np.quantile(train.features.numpy(), share)) for share in (0.0, 0.9))
    detector = peer.VRA(None, lambda maps: train.head(maps.flatten(1)))
    detector._lower_threshold, detector._upper_threshold = torch.tensor(low), torch.tensor(high)
    return detector.predict_feature_maps(bank.features[:, :, None, None])


TRAINING = 240
"""Examples of the training outputs: the peer's covariances are sums, ours means."""

CASES = {
    "MaxSoftmax": Case("msp", of_logits("MaxSoftmax")),
    "MaxLogit": Case("max-logit", of_logits("MaxLogit")),
    "EnergyBased": Case("energy", of_logits("EnergyBased")),
    "EnergyBased, T = 4": Case("energy(temperature=4)", of_logits("EnergyBased", t=4.0)),
    "Entropy": Case("entropy", of_logits("Entropy"), near=(1e-4, 1e-5), soft=True),
    "GEN": Case("gen", of_logits("GEN"), lambda s: -s * CLASSES, (1e-4, 1e-6), soft=True),  # a mean for a sum
    "GEN, largest two": Case("gen(top=2)", of_logits("GEN", M=2), lambda s: -s * 2, (1e-4, 1e-6), soft=True),
    "KLMatching": Case("kl-matching", of_logits("KLMatching"), near=(1e-3, 1e-5)),
    "MCM": Case("mcm", of_features("MCM", head=lambda head: {"text_embeddings": head.weight})),
    "KNN": Case("knn(k=5)", of_features("KNN", k=5), near=(1e-4, 1e-5)),
    "Mahalanobis": Case("mahalanobis(shrinkage=1e-12)", of_features("Mahalanobis"),
                        lambda s: -2 * TRAINING * s, (1e-4, 1e-4)),
    "RMD": Case("relative-mahalanobis(shrinkage=1e-12)", of_features("RMD"), lambda s: -TRAINING * s,
                (1e-3, 1e-3)),
    "ViM": Case("vim(dimensions=8)", of_features("ViM", d=8, head=with_weights), near=(1e-3, 1e-3)),
    "ViM, its residual": Case("residual(dimensions=8)", residual, near=(1e-4, 1e-4)),
    "SHE": Case("she", of_features("SHE", head=with_head)),
    "fDBD": Case("fdbd", of_features("fDBD", head=with_head), near=(1e-4, 1e-5)),
    "NCI": Case("nci(alpha=0)", of_features("NCI", head=with_head), near=(1e-4, 1e-5)),
    "NCI, with the norm": Case("nci(alpha=0.01)", of_features("NCI", alpha=0.01, head=with_head),
                               near=(1e-4, 1e-5)),
    "NNGuide": Case("nnguide", of_features("NNGuide", head=with_head), near=(1e-4, 1e-4)),
    "PNML": Case("pnml(shrinkage=1e-12)", of_features("PNML", head=with_head),
                 lambda s: -s * math.log(CLASSES), (1e-2, 1e-6)),  # divides by log C
    "DICE": Case("dice(sparsity=0.7)", of_features("DICE", p=0.7, head=with_weights), near=(1e-4, 1e-4)),
    "GradNorm": Case("gradnorm", of_gradients, near=(1e-4, 1e-6)),
    "ReAct": Case("react", of_maps("ReAct"), near=(1e-4, 1e-4)),
    "VRA": Case("vra(low=0)", clipped_alike, near=(1e-4, 1e-4)),
    "ASH": Case("ash", of_maps("ASH"), near=(1e-4, 1e-4)),
    "ASH, pruned only": Case("ash(variant='p')", of_maps("ASH", variant="ash-p"), near=(1e-4, 1e-4)),
    "ASH, binary": Case("ash(variant='b')", of_maps("ASH", variant="ash-b"), near=(1e-4, 1e-4)),
    "SCALE": Case("scale", of_maps("SCALE", percentile=0.85), near=(1e-4, 1e-4)),
}  # fmt: skip
APART = {
    "GMM",
    "OpenMax",
    "TemperatureScaling",
    "Gram",
    "NACUE",
    "MCD",
    "MultiMahalanobis",
    "ODIN",
    "RankFeat",
}
THEIRS_ONLY = {"GradUncertainty", "LTS", "MahalanobisODIN", "WeightedEBO", "odin_preprocessing"}


def test_every_detector_of_pytorch_ood_is_compared(peer):
    assert set(peer.__all__) - THEIRS_ONLY == {name.partition(",")[0] for name in CASES} | APART


def rank_correlation(ours: Tensor, theirs: Tensor) -> float:
    """Of ours and the other's negated, which is 1 up to rounding of near ties where they agree."""
    return spearmanr(ours.detach().numpy(), -theirs.detach().numpy()).statistic


def assert_same_ranks(ours: Tensor, theirs: Tensor) -> None:
    assert rank_correlation(ours, theirs) > 1 - 1e-5


@pytest.mark.parametrize("name", CASES)
def test_scores_are_the_same(name, peer, train, familiar):
    case = CASES[name]
    assert len(train) == TRAINING and train.logits.shape[1] == CLASSES
    if case.soft:
        familiar = replace(familiar, logits=familiar.logits / 4)
    theirs = case.theirs(peer, train, familiar).detach()
    ours = detectors.build(case.ours).fit(train).score(familiar)
    assert_same_ranks(ours, theirs)
    np.testing.assert_allclose(ours, case.value(theirs), *case.near)


# ---- what a fit decides by other means ----


def test_temperature_scaling(peer, train, familiar):
    """Its 50 small steps end before the best temperature."""
    theirs = peer.TemperatureScaling(None).fit_logits(train.logits, train.labels)
    ours = detectors.build("temperature-scaling").fit(train)
    loss = [nn.functional.cross_entropy(train.logits / t, train.labels) for t in (ours.temperature, theirs.t)]
    assert loss[0] <= loss[1]
    ours.keep(temperature=theirs.t)
    np.testing.assert_allclose(ours.score(familiar), -theirs.predict_logits(familiar.logits).detach(), 1e-5)


def test_openmax(peer, train, familiar):
    """It models all training examples, right or wrong, and its general optimizer stops early."""
    right = train.take(train.correct)
    theirs = peer.OpenMax(None, tailsize=20, alpha=4).fit_logits(right.logits, right.labels)
    p = theirs.predict_logits(familiar.logits)
    ours = detectors.build("openmax").fit(right).score(familiar)
    assert_same_ranks(ours, p)
    np.testing.assert_allclose(torch.sigmoid(-ours), p, atol=1e-2)
    wrong = peer.OpenMax(None, tailsize=20, alpha=4).fit_logits(train.logits, train.labels)
    assert rank_correlation(detectors.build("openmax").fit(train).score(familiar), p) > 1 - 1e-5
    assert not torch.equal(wrong.predict_logits(familiar.logits), p)


def test_gaussians_of_classes(peer, train, familiar):
    """Up to the constant, and with the ridge that it adds in absolute units."""
    theirs = peer.GMM(None, reg=1e-6).fit_features(train.features, train.labels)
    scores = theirs.predict_features(familiar.features)
    ours = detectors.build("gmm(shrinkage=1e-6)").fit(train).score(familiar)
    assert_same_ranks(ours, scores)
    assert (-scores - ours).std() < 1e-2


# ---- scores that read more than features and logits ----

COUNT = 60


def network(kind="cnn(width=8)", shape=(1, 8, 8)) -> Network:
    with seeded(0):
        return build_network(kind, shape, CLASSES).eval()


def images(seed=0) -> Tensor:
    return torch.randn(COUNT, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def bank_of(model: Network, inputs: Tensor, *observers) -> Bank:
    made = network_outputs(model, Preprocessing(), inputs, observers=observers)
    made.labels = torch.arange(len(inputs)) % CLASSES
    return made


def batches(*tensors: Tensor) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*tensors), batch_size=COUNT)


def test_odin(peer):
    model = network()
    detector = detectors.build("odin(temperature=1000, noise=0.01)")
    ours = detector.score(bank_of(model, images(), detector))
    theirs = peer.ODIN(model, eps=0.01, temperature=1000)(images())
    assert_same_ranks(ours, theirs)  # of its probabilities float32 keeps few digits: all are nearly 1 / C


def test_rankfeat(peer):
    model, detector = network(), detectors.build("rankfeat")
    ours = detector.score(bank_of(model, images(), detector))
    before, after = model.featurizer[:-2], nn.Sequential(*model.featurizer[-2:], model.head)
    theirs = peer.RankFeat(before, after)(images())
    assert_same_ranks(ours, theirs)
    np.testing.assert_allclose(ours, -theirs, rtol=1e-4, atol=1e-5)


def test_gram_matrices(peer):
    """With its ranges: of the labels where ours are of the predictions, and of nine tenths of the examples."""
    model, powers = network(), 3
    layers = [model.featurizer[:3], model.featurizer[3:6], model.featurizer[6:9]]
    head = nn.Sequential(*model.featurizer[9:], model.head)
    detector = detectors.build(f"gram(powers={powers})")
    train, bank = (bank_of(model, images(seed), detector) for seed in (0, 1))
    theirs = peer.Gram(head, layers, CLASSES, num_poles_list=list(range(1, powers + 1)))
    with seeded(0):
        theirs.fit(batches(images(0), train.labels))
    detector.fit(train)
    own = detector.score(bank)
    detector.keep(
        lowest=torch.cat([torch.cat(each, 1) for each in theirs.feature_min], 1),
        highest=torch.cat([torch.cat(each, 1) for each in theirs.feature_max], 1),
        expected=theirs.layer_norm,
    )
    scores = theirs(images(1))
    assert_same_ranks(detector.score(bank), scores)
    np.testing.assert_allclose(detector.score(bank), -scores, rtol=1e-3)
    assert rank_correlation(own, scores) < 1 - 1e-3


def test_neuron_coverage(peer, monkeypatch):
    """With equally wide bins, as in the paper: its are narrow near 0 and 1. It sums over layers, ours is the mean."""
    model = network("mlp(width=16, depth=2)")
    detector = detectors.build("nac(bins=20, full=0.05)")
    train, bank = (bank_of(model, images(seed), detector) for seed in (0, 1))
    ours = detector.fit(train).score(bank)
    layers = [module for module in model.featurizer.modules() if isinstance(module, nn.ReLU)]
    sizes = detector.size.view(len(layers), -1)[:, 0]
    options = {"m_bins": 20, "o_star": round(0.05 * COUNT), "alpha": (1 / sizes).tolist()}
    geometric = peer.NACUE(model, layers, **options).fit(batches(images(0)))(images(1))
    monkeypatch.setattr(sys.modules["pytorch_ood.detector.nac"], "_bin_indices_geometric",
                        sys.modules["pytorch_ood.detector.nac"]._bin_indices)  # fmt: skip
    theirs = peer.NACUE(model, layers, **options).fit(batches(images(0)))(images(1))
    assert_same_ranks(
        ours.round(decimals=5), theirs.round(decimals=5)
    )  # shares of few neurons: many are equal
    np.testing.assert_allclose(ours, -theirs / len(layers), rtol=1e-5)
    assert rank_correlation(ours, geometric) < 0.99


def test_dropout(peer):
    """With the same units dropped, which are the same for all inputs here. Its default is the variance of answers."""
    from unseen.networks.taps import dropping

    model, passes = network("mlp(dropout=0.3, width=16)"), 8
    detector = detectors.build(f"mc-dropout(passes={passes}, seed=2)")
    ours = detector.score(bank_of(model, images(), detector))

    class Dropping(nn.Module):
        """Keeps the network out of its modules: the peer's `train()` would drop units of its own."""

        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            with dropping(model, 2 * passes + self.calls - 1):
                return model(x)

    theirs = peer.MCD(Dropping(), samples=passes, mode="mean").predict(images())
    assert_same_ranks(ours, theirs)
    np.testing.assert_allclose(ours, -theirs, rtol=1e-5)
    assert rank_correlation(ours, peer.MCD(Dropping(), samples=passes).predict(images())) < 0.99


def test_mahalanobis_of_layers(peer):
    """With the weights of ours, the inverse of each layer's spread: its own are equal, so that one layer may rule."""
    model = network()
    layers = [model.featurizer[:3], model.featurizer[3:6], model.featurizer[6:9]]
    detector = detectors.build("mahalanobis-ensemble(of='mahalanobis(shrinkage=1e-9)')")
    train, bank = (bank_of(model, images(seed), detector) for seed in (0, 1))
    ours = detector.fit(train).score(bank)
    weights = (2 * COUNT / len(layers) / detector.deviation).tolist()
    theirs = peer.MultiMahalanobis(layers, alpha=weights).fit(batches(images(0), train.labels))(images(1))
    assert_same_ranks(ours, theirs)
    constant = (detector.mean / detector.deviation).mean()
    np.testing.assert_allclose(ours, -theirs - constant, rtol=1e-2, atol=1e-2)
    equal = peer.MultiMahalanobis(layers).fit(batches(images(0), train.labels))(images(1))
    assert rank_correlation(ours, equal) < 1 - 1e-3


# ---- where the two differ on purpose ----


def test_entropies_of_confident_answers(peer, familiar):
    """Theirs clamp probabilities at 1e-7, so that confident answers tie; ours keep their order."""
    for name, theirs in (("gen", peer.GEN(None)), ("entropy", peer.Entropy(None))):
        confident = replace(familiar, logits=40 * familiar.logits)
        ours, scores = detectors.build(name).score(confident), theirs.predict_logits(confident.logits)
        assert len(ours.unique()) > len(scores.unique())
        assert rank_correlation(ours, scores) < 1 - 1e-3


def test_vra_zeroes_low_activations(peer, train, familiar):
    """Theirs lifts them to the threshold, and has thresholds for each feature: another score."""
    theirs = of_maps("VRA", lower_percentile=0.1, upper_percentile=0.9)(peer, train, familiar)
    ours = detectors.build("vra").fit(train).score(familiar)
    assert 0.5 < rank_correlation(ours, theirs) < 1 - 1e-3


def test_neighbours_of_a_bank_that_is_thinned(peer, train, familiar):
    """Ours keeps 10,000 rows unless told otherwise; theirs keeps all."""
    theirs = of_features("KNN", k=5)(peer, train, familiar)
    thinned = detectors.build("knn(k=5, largest=60)").fit(train)
    assert len(thinned.bank) == 60
    assert rank_correlation(thinned.score(familiar), theirs) < 1 - 1e-3
