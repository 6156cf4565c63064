"""Detectors that keep more of a pass than features and logits: by their formulas, on a small network of maps."""

import math

import pytest
import torch
from torch import nn

from unseen.detection.gram_matrices import gram_sums
from unseen.detection.rank_one import without_rank_one
from unseen.detection.several_answers import join_members
from unseen.errors import InputError
from unseen.networks import Bank, Network, build_network
from unseen.networks.hypotheses import with_heads
from unseen.networks.taps import as_map, tap_points, tapped
from unseen.objectives.discrepancy import head_discrepancy
from unseen.registry import detectors
from unseen.shifts.preprocessing import Preprocessing
from unseen.training.data import network_outputs
from unseen.training.system import seeded

OBSERVING = [name for name in detectors.names() if detectors.build(name).observes]
COUNT, CLASSES = 60, 3


def network(kind="cnn(width=8)", shape=(1, 8, 8), seed=0) -> Network:
    with seeded(seed):
        return build_network(kind, shape, CLASSES).eval()


def images(seed=0, size=1.0) -> torch.Tensor:
    return size * torch.randn(COUNT, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def bank_of(model, inputs, *observers) -> Bank:
    made = network_outputs(model, Preprocessing(), inputs, observers=observers)
    made.labels = torch.arange(len(inputs)) % CLASSES
    return made


def suitable(name: str) -> Network:
    """A network with what the detector looks for."""
    model = network("mlp(dropout=0.3, width=16)") if name == "mc-dropout" else network()
    return with_heads(model, 3).eval() if name == "deep-ensemble" else model


@pytest.mark.parametrize("name", OBSERVING)
def test_scores_do_not_depend_on_batches_and_need_the_observer(name):
    detector, model = detectors.build(name), suitable(name)
    train, bank = (bank_of(model, images(seed), detector) for seed in (0, 1))
    detector.fit(train)
    scores = detector.score(bank)
    assert torch.isfinite(scores).all() and len(scores.unique()) > 1
    parts = [bank_of(model, part, detector) for part in images(1).split(7)]
    apart = torch.cat([detector.score(part) for part in parts])
    assert torch.allclose(scores, apart, rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match=r"bank: lacks .* as an observer"):
        detector.score(bank_of(model, images(1)))
    none = bank_of(model, images()[:0], detector)
    assert detector.score(none).shape == (0,)


def test_twenty_detectors_are_one_pass_of_the_featurizer():
    """Of those that read layers, too; only those that change inputs or layers run the network again."""
    model, calls = network(), []
    model.featurizer.register_forward_hook(lambda *_: calls.append(1))
    names = [name for name in detectors.names() if name not in (*OBSERVING,)] + ["gram", "multi-layer"]
    built = [detectors.build(name) for name in names]
    bank = bank_of(model, images(), *built)
    assert len(names) >= 20 and len(calls) == 1
    scores = [detector.fit(bank).score(bank) for detector in built if not hasattr(detector, "encoder")]
    assert len(calls) == 1 and all(torch.isfinite(each).all() for each in scores)


def test_layers_end_before_pooling_and_are_mapped_by_channel():
    cnn = network()
    with tapped(cnn) as layers:
        cnn(images()[:5])
    assert [tuple(v.shape) for v in layers.values()] == [(5, 8, 4, 4), (5, 16, 2, 2), (5, 32, 2, 2)]
    assert all(isinstance(module, nn.ReLU) for module in tap_points(cnn).values())  # after the normalization
    assert torch.allclose(as_map(layers["6"]).mean(2), cnn.featurizer(images()[:5]))
    assert tap_points(network("linear")) == {}
    tokens = torch.randn(2, 7, 3)
    assert torch.equal(as_map(tokens)[:, 1], tokens[:, :, 1])
    assert not any(module._forward_hooks for module in cnn.modules())


def test_odin_is_its_formula():
    model, x = network(), images()
    x.requires_grad_()
    loss = torch.log_softmax(model(x) / 50, 1).max(1).values.sum()
    (gradient,) = torch.autograd.grad(loss, x)
    with torch.no_grad():
        expected = torch.softmax(model(x + 0.1 * gradient.sign()) / 50, 1).amax(1)
    detector = detectors.build("odin(temperature=50, noise=0.1)")
    scores = detector.score(bank_of(model, images(), detector))
    assert torch.allclose(torch.exp(scores / 50 - math.log(CLASSES)), expected, atol=1e-5)
    plain = detectors.build("odin(temperature=1, noise=0)")
    bank = bank_of(model, images(), plain)
    msp = detectors.build("msp").score(bank)
    assert torch.equal(plain.score(bank).argsort(), msp.argsort())


def test_inputs_without_a_gradient_are_refused():
    for name in ("odin", "adascale"):
        with pytest.raises(InputError, match="along a gradient"):
            detectors.build(name).observe(network(), {"nodes": images()}, {})


def test_adascale_is_scale_when_all_inputs_lose_the_same_share():
    model = network()
    detector = detectors.build("adascale(low=0.85, high=0.85)")
    train = bank_of(model, images(), detector)
    bank = bank_of(model, images(1), detector)
    assert torch.allclose(detector.fit(train).score(bank), detectors.build("scale").score(bank), rtol=1e-4)


def test_adascale_scales_less_what_moves_more():
    """Features that the moved pixels change much have a large sum, above those of training: the least share."""
    model = network()
    detector = detectors.build("adascale")
    train = bank_of(model, images(), detector)
    bank = bank_of(model, images(1), detector)
    moved = Bank(bank.features, bank.logits, head=bank.head, layers={detector.name: bank.features + 1e3})
    expected = detectors.build("scale(pruned=0.6)").score(bank)
    assert torch.allclose(detector.fit(train).score(moved), expected, rtol=1e-4)


@pytest.mark.parametrize("power", [1, 3])
def test_gram_sums_are_those_of_matrices(power):
    output = torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(0)).abs()
    found = gram_sums(output, power)[:, -5:]
    raised = output.flatten(2).double() ** power
    expected = (raised @ raised.mT).sum(2) ** (1 / power)
    assert torch.allclose(found.double(), expected, rtol=1e-4)
    assert torch.isfinite(gram_sums(1e8 * output, 10)).all()


def test_gram_deviation_is_the_slow_loop():
    """With the expectation from training inputs left out one at a time."""
    model, detector = network(), detectors.build("gram(powers=2)")
    train, bank = bank_of(model, images(), detector), bank_of(model, images(1, size=1.5), detector)
    scores = detector.fit(train).score(bank)

    def deviations(of, others_sums, others_classes, leave_out=None):
        """(layers,) of one input against the ranges of the others of its class."""
        values, number = of
        found = []
        for name, sums in others_sums.items():
            keep = others_classes == number
            if leave_out is not None:
                keep = keep.clone()
                keep[leave_out] = False
            low, high = sums[keep].amin(0), sums[keep].amax(0)
            below, above = (low - values[name]).clamp(min=0), (values[name] - high).clamp(min=0)
            least = [1e-6 * bound.abs().max() for bound in (low, high)]
            found.append(
                (below / low.abs().clamp(min=least[0]) + above / high.abs().clamp(min=least[1])).sum()
            )
        return torch.stack(found)

    sums, classes = train.layers, train.predictions
    rows = [row for row in range(COUNT) if (classes == classes[row]).sum() > 1]
    expected = sum(
        deviations(({n: v[row] for n, v in sums.items()}, classes[row]), sums, classes, row) for row in rows
    )
    expected = expected / COUNT
    new = bank.predictions
    for row in (r for r in range(20) if (classes == new[r]).sum() > 1):
        own = deviations(({n: v[row] for n, v in bank.layers.items()}, new[row]), sums, classes)
        assert float(-(own / expected).sum()) == pytest.approx(float(scores[row]), rel=1e-3, abs=1e-4)


def test_rankfeat_takes_the_largest_singular_value():
    maps = torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    rest = without_rank_one(maps)
    before, after = (torch.linalg.svdvals(m.flatten(2)) for m in (maps, rest))
    assert torch.allclose(after[:, :-1], before[:, 1:], atol=1e-5) and (after[:, -1] < 1e-5).all()
    model, detector = network(), detectors.build("rankfeat")
    bank = bank_of(model, images(), detector)
    with tapped(model) as layers, torch.no_grad():
        model(images())
        expected = model.head(without_rank_one(layers["6"]).mean((2, 3))).logsumexp(1)
    assert torch.allclose(detector.score(bank), expected, atol=1e-5)
    with pytest.raises(InputError, match="needs a layer that is a map"):
        bank_of(network("mlp"), images(), detector)


def test_neuron_coverage_is_the_slow_loop():
    model, detector = network("mlp(width=6)"), detectors.build("nac(bins=7, full=0.1)")
    train, bank = bank_of(model, images(), detector), bank_of(model, images(1), detector)
    scores = detector.fit(train).score(bank)

    def states(x):
        values = []
        first = x.flatten(1) @ model.featurizer[1].weight.T + model.featurizer[1].bias
        hidden = first.relu().detach().requires_grad_()
        last = (hidden @ model.featurizer[3].weight.T + model.featurizer[3].bias).relu()
        divergence = -torch.log_softmax(model.head(last), 1).mean(1).sum()
        for layer, gradient in zip(
            (hidden, last), torch.autograd.grad(divergence, (hidden, last)), strict=True
        ):
            values.append((layer * gradient).detach())
        return values

    known, new = states(images()), states(images(1))
    total = torch.zeros(COUNT)
    for before, after in zip(known, new, strict=True):
        size = before.abs().mean()
        for neuron in range(6):
            bins = [(torch.sigmoid(v[:, neuron] / size) * 7).long().clamp(max=6) for v in (before, after)]
            share = torch.bincount(bins[0], minlength=7) / COUNT
            total += (share[bins[1]] / 0.1).clamp(max=1)
    assert torch.allclose(scores, total / 12, atol=1e-5)


def test_frozen_networks_have_states_too():
    model, detector = network().requires_grad_(False), detectors.build("nac")
    thawed = bank_of(network(), images(), detector)
    frozen = bank_of(model, images(), detector)
    assert torch.allclose(thawed.layers["nac/6"], frozen.layers["nac/6"], atol=1e-6)


def test_dropout_answers_are_those_of_passes_and_leave_the_network_alone():
    model = network("mlp(dropout=0.5, width=16)")
    detector = detectors.build("mc-dropout(passes=200)")
    state = torch.get_rng_state()
    bank = bank_of(model, images(), detector)
    assert torch.equal(state, torch.get_rng_state()) and not model.training
    again = bank_of(model, images(), detector)
    assert torch.equal(bank.layers[detector.name], again.layers[detector.name])
    model.train()
    torch.manual_seed(0)
    with torch.no_grad():
        mean = torch.stack([torch.softmax(model(images()), 1) for _ in range(400)]).mean(0)
    ours = torch.softmax(bank.layers[detector.name], -1).mean(1)
    assert (ours - mean).abs().mean() < 0.02
    with pytest.raises(InputError, match="needs a network with dropout"):
        bank_of(network(), images(), detector)


def test_mutual_information_vanishes_when_all_agree():
    logits = torch.randn(5, 1, CLASSES).expand(-1, 4, -1)
    bank = Bank(torch.zeros(5, 2), logits[:, 0], layers={"members": logits})
    information = detectors.build("deep-ensemble(by='information')").score(bank)
    assert torch.allclose(information, torch.zeros(5), atol=1e-6)
    entropy = detectors.build("entropy").score(bank)
    assert torch.allclose(detectors.build("deep-ensemble(by='entropy')").score(bank), entropy, atol=1e-6)
    split = torch.tensor([[[20.0, 0, 0], [0, 20.0, 0]]])
    undecided = Bank(torch.zeros(1, 2), split[:, 0], layers={"members": split})
    information = detectors.build("deep-ensemble(by='information')").score(undecided)
    assert information.item() == pytest.approx(-math.log(2), abs=1e-3)


@pytest.mark.parametrize("members", [1, 2, 5])
def test_discrepancy_is_the_mean_over_pairs_of_answers(members):
    logits = torch.randn(6, members, CLASSES, generator=torch.Generator().manual_seed(members))
    bank = Bank(torch.zeros(6, 2), logits[:, 0], layers={"members": logits})
    found = detectors.build("deep-ensemble(by='discrepancy')").score(bank)
    p = logits.softmax(-1)
    pairs = [(p[:, a] - p[:, b]).abs().sum(1) for a in range(members) for b in range(a)]
    expected = torch.stack(pairs).mean(0) if pairs else torch.zeros(6)
    torch.testing.assert_close(found, -expected, rtol=1e-4, atol=1e-6)
    if members == 2:
        torch.testing.assert_close(found, -head_discrepancy(logits.movedim(1, 0)), rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="Did you mean 'discrepancy'"):
        detectors.build("deep-ensemble(by='discrepency')")


def test_members_are_joined_from_their_outputs():
    banks = [bank_of(network(seed=seed), images()) for seed in range(3)]
    joined = join_members(banks)
    mean = torch.stack([bank.probabilities for bank in banks]).mean(0)
    assert torch.allclose(joined.probabilities, mean, atol=1e-6)
    assert torch.allclose(detectors.build("deep-ensemble").score(joined), mean.amax(1), atol=1e-6)
    with pytest.raises(InputError, match="members: are 1"):
        join_members(banks[:1])
    with pytest.raises(InputError, match="differ in inputs"):
        join_members([banks[0], banks[1].take(torch.arange(5))])
    with pytest.raises(InputError, match="there is one"):
        bank_of(network(), images(), detectors.build("deep-ensemble"))


def test_layers_are_scored_apart_and_averaged():
    model, detector = network(), detectors.build("multi-layer(of='mahalanobis')")
    train, bank = bank_of(model, images(), detector), bank_of(model, images(1), detector)
    scores = detector.fit(train).score(bank)
    total = torch.zeros(COUNT)
    for name in train.layers:
        own = [Bank(b.layers[name], b.logits, b.labels) for b in (train, bank)]
        single = detectors.build("mahalanobis").fit(own[0])
        known = single.score(own[0])
        total += (single.score(own[1]) - known.mean()) / known.std(correction=0)
    assert torch.allclose(scores, total / 3, rtol=1e-4, atol=1e-4)
    assert torch.equal(detectors.build("mahalanobis-ensemble").fit(train).score(bank), scores)
    with pytest.raises(InputError, match="reads more than features"):
        detectors.build("multi-layer(of='energy')")
    with pytest.raises(InputError, match="the network has none"):
        bank_of(network("linear"), images(), detector)
