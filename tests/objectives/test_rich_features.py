import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from unseen.errors import InputError, UnseenWarning
from unseen.networks import Network, build_network
from unseen.networks.freezing import is_frozen
from unseen.objectives.rich_features import RichFeatures, disagreement_shares, initialize
from unseen.shifts import Batch

MODEL = partial(build_network, "mlp(width=16, depth=1)", (4,), 2)
FAST = {"first_steps": 15, "steps": 120, "learning_rate": 0.01, "l2": 1e-4}


def two_cues(count=800, seed=0, noise=0.1, agree=0.9):
    """An easy cue (0) that has the label in most cases, a hard one (1) that has it but for noise of the labels."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, 2, (count,), generator=generator)
    y = torch.where(torch.rand(count, generator=generator) < noise, 1 - clean, clean)
    cue = torch.where(torch.rand(count, generator=generator) < agree, y, 1 - y)
    x = torch.randn(count, 4, generator=generator)
    x[:, 0] = 3 * (2 * cue - 1) + 0.3 * x[:, 0]
    x[:, 1] = 0.5 * (2 * clean - 1) + 0.1 * x[:, 1]
    return Batch(x=x, y=y, domain=torch.arange(count) % 2, domains=2)


DATA, TURNED = two_cues(), two_cues(seed=1, agree=0.0)


def accuracy(model, batch):
    return float((model(batch.x).argmax(1) == batch.y).float().mean())


@pytest.fixture(scope="module")
def rich():
    return RichFeatures(MODEL, **FAST).fit(DATA)


def test_the_second_round_is_right_where_the_first_is_wrong(rich):
    first, second = rich.models
    assert accuracy(first, DATA) > 0.85 and accuracy(first, TURNED) < 0.15
    assert accuracy(second, TURNED) > 0.6
    wrong = first(DATA.x).argmax(1) != DATA.y
    assert accuracy(second, DATA.take(wrong)) > 0.7
    assert torch.equal(rich.groups, torch.stack([~wrong, wrong]))


def test_the_report_says_what_the_models_do(rich):
    first, second = rich.report
    assert first.accuracy == pytest.approx(accuracy(rich.models[0], DATA))
    assert first.worst_group is None and first.shared_errors is None
    own = [accuracy(rich.models[1], DATA.take(group)) for group in rich.groups]
    assert second.worst_group == pytest.approx(min(own))
    wrong = [model(DATA.x).argmax(1) != DATA.y for model in rich.models]
    assert second.shared_errors == pytest.approx(float((wrong[0] & wrong[1]).sum() / wrong[1].sum()))
    assert first.kept and second.kept and min(first.imitation, second.imitation) > 0.9


def test_both_cues_are_linear_in_the_rich_features(rich):
    """A head on them reaches what a head on the first model's features does not: the other cue."""
    first = rich.models[0]

    def best_head(featurizer):
        features, test = featurizer(TURNED.x).detach(), featurizer(two_cues(seed=2, agree=0.0).x).detach()
        head = nn.Linear(16, 2)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
        for _ in range(150):
            optimizer.zero_grad()
            # labels of the hard cue: with the easy one turned, what is learned of it does harm
            nn.functional.cross_entropy(head(features), (TURNED.x[:, 1] > 0).long()).backward()
            optimizer.step()
        return float((head(test).argmax(1) == (two_cues(seed=2, agree=0.0).x[:, 1] > 0)).float().mean())

    assert best_head(rich.featurizer) > best_head(first.featurizer) - 0.02
    assert best_head(rich.featurizer) > 0.95


def test_initialising_copies_features_and_the_mean_head(rich):
    network = initialize(MODEL(), rich)
    torch.testing.assert_close(network(DATA.x), rich.distilled(DATA.x))
    assert all(p.requires_grad for p in network.parameters())
    frozen = initialize(MODEL(), rich, freeze=True)
    assert is_frozen(frozen.featurizer) and not is_frozen(frozen.head)
    assert [name for name, p in frozen.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    with pytest.raises(InputError, match="does not fit"):
        initialize(build_network("mlp(width=8, depth=1)", (4,), 2), rich)


def test_a_seed_decides_all_and_global_state_none(rich):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = RichFeatures(MODEL, **FAST).fit(DATA)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in rich.state_dict().items())
    other = RichFeatures(MODEL, **FAST, seed=1).fit(DATA)
    assert not torch.equal(other.init_head.weight, rich.init_head.weight)


def test_datasets_and_small_batches_will_do():
    options = {
        **FAST,
        "steps": 60,
        "batch_size": 100,
        "discovery": "groupdro",
        "targets": "soft",
        "temperature": 2.0,
    }
    found = RichFeatures(MODEL, **options).fit(TensorDataset(DATA.x, DATA.y))
    assert len(found.report) == 2 and accuracy(found.models[0], DATA) > 0.8


def test_groups_of_all_earlier_rounds_are_kept_and_may_be_crossed_with_domains():
    options = {**FAST, "steps": 20, "stop": False}
    found = RichFeatures(MODEL, rounds=3, **options).fit(DATA)
    assert found.groups.shape == (4, 800) and len(found.models) == 3
    for pair, model in zip(found.groups.split(2), found.models, strict=False):
        assert torch.equal(pair[0], model(DATA.x).argmax(1) == DATA.y) and torch.equal(pair[1], ~pair[0])
    crossed = RichFeatures(MODEL, by_domain=True, **options).fit(DATA)
    assert torch.equal(crossed.groups.sum(0), torch.ones(800).long()) and len(crossed.groups) == 4


def test_discovery_ends_when_nothing_but_noise_is_left():
    """With one cue of two values, who is right where the first model is wrong is wrong where it was right."""
    noise = two_cues()
    noise.x[:, 0], noise.x[:, 1:] = noise.x[:, 0].sign(), 0
    found = RichFeatures(MODEL, rounds=3, **FAST).fit(noise)
    assert not found.report[-1].kept and found.report[-1].worst_group <= 0.5
    assert found.report[-1].imitation is None and len(found.models) == len(found.report) - 1 < 3
    kept = RichFeatures(MODEL, rounds=3, stop=False, **FAST).fit(noise)
    assert len(kept.models) == 3 and all(one.kept for one in kept.report)


def test_a_first_round_that_knows_everything_is_an_error():
    easy = two_cues(noise=0.0, agree=1.0)
    rich = RichFeatures(MODEL, **{**FAST, "first_steps": 100, "steps": 1})
    with pytest.raises(InputError, match="discovery round 0: is overfitted.*Train it less"):
        rich.fit(easy)
    rich = RichFeatures(MODEL, **{**FAST, "first_steps": 100, "steps": 1}, overfitted="warn")
    with pytest.warns(UnseenWarning, match="overfitted"):
        assert len(rich.fit(easy).models) == 1
    with pytest.raises(InputError, match="overfitted"):  # too few are wrong to make a group
        RichFeatures(MODEL, smallest_group=500, **FAST).fit(DATA)


def test_numbers_are_right_below_the_threshold():
    """A strong cue up to a few examples whose value another one gives."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 4, generator=generator)
    rare = torch.arange(400) % 5 == 0
    y = torch.where(rare, x[:, 1], x[:, 0])
    x[:, 2] = rare.float() * 2
    data = Batch(x=x, y=y, domain=torch.zeros(400).long(), domains=1)
    make = partial(build_network, "mlp(width=32, depth=2)", (4,), 1)
    options = {**FAST, "first_steps": 40, "threshold": 0.1, "l2": 0.0}
    found = RichFeatures(make, **options).fit(data)
    first, second = (((model(x).squeeze(1) - y) ** 2 <= 0.1) for model in found.models)
    assert torch.equal(found.groups[0], first)
    assert second[~first].float().mean() > 0.4
    assert found.report[1].imitation > 0.8


def test_disagreement_counts_half():
    rights = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 0, 1]]).bool()
    torch.testing.assert_close(disagreement_shares(rights), torch.tensor([0.125, 0.125, 0.125, 0.125, 0.5]))
    assert disagreement_shares(rights[:1]) is None
    assert disagreement_shares(torch.stack([rights[0], ~rights[0]])) is None


class Normed(Network):
    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1)), 8, 2)


def test_frozen_features_keep_their_batch_statistics():
    found = RichFeatures(Normed, **{**FAST, "steps": 20}).fit(DATA)
    network = initialize(Normed(), found, freeze=True).train()
    before = copy.deepcopy(network.featurizer.state_dict())
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    nn.functional.cross_entropy(network(DATA.x), DATA.y).backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in network.featurizer.state_dict().items())


@pytest.mark.parametrize(
    "wrong",
    [{"rounds": 0}, {"steps": 0}, {"first_steps": 0}, {"smallest_group": 0}, {"threshold": 0.0},
     {"discovery": "softmax"}, {"targets": "smooth"}, {"temperature": 0}],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        RichFeatures(MODEL, **wrong)
