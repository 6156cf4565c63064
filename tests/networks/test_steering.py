import pytest
import torch
from torch import nn

from unseen.errors import InputError, UnseenWarning
from unseen.networks import Network
from unseen.networks.domain_heads import with_domain_heads
from unseen.networks.hypotheses import with_heads
from unseen.networks.steering import Steering, SteeringStream, predict_stream, prototype_gaps

D, C, M = 4, 3, 3


@pytest.fixture
def network():
    """M domains with known prototypes; features are the inputs themselves."""
    torch.manual_seed(0)
    made = with_domain_heads(Network(nn.Identity(), D, C), M, discriminator=6)
    made.prototypes.copy_(3 * torch.eye(M, D))
    made.seen.fill_(1)
    with torch.no_grad():
        made.head.weights.mul_(8)
    return made


@pytest.fixture
def x():
    return torch.randn(12, D, generator=torch.Generator().manual_seed(3))


def entropies(network, x):
    p = torch.softmax(network.all_logits(x), -1)
    return -(p * p.log()).sum(-1)


def test_a_batch_takes_the_head_of_least_mean_entropy(network, x):
    found = Steering().answer(network, x)
    best = int(entropies(network, x).mean(1).argmin())
    torch.testing.assert_close(found.gaps, entropies(network, x).mean(1, keepdim=True).expand(M + 1, 12))
    assert found.head.tolist() == [best] * 12 and found.weights[best].tolist() == [1.0] * 12
    torch.testing.assert_close(found.probabilities, network.all_logits(x)[best].softmax(-1))


def test_the_unit_decides_and_groups_are_whatever_the_user_says(network, x):
    alone = Steering(unit="example").answer(network, x)
    assert torch.equal(alone.head, entropies(network, x).argmin(0)) and len(alone.head.unique()) > 1
    group = torch.tensor([1_000_000_007, -5, 3] * 4)  # patient numbers need not be small
    found = Steering(unit="group").answer(network, x, group)
    for name in group.unique():
        inside = group == name
        by_itself = Steering().answer(network, x[inside])
        assert torch.equal(found.head[inside], by_itself.head)
    with pytest.raises(InputError, match="group: is not given"):
        Steering(unit="group").answer(network, x)
    with pytest.raises(InputError, match="has shape"):
        Steering(unit="group").answer(network, x, group[:3])


@pytest.mark.parametrize("by", ["entropy", "discriminator", "prototype", "uniform", "shared"])
@pytest.mark.parametrize("gamma", [None, 0.0, 1.5])
def test_weights_sum_to_one_over_the_heads_that_are_mixed(network, x, by, gamma):
    """The authors' weights are normalized over one head more than they mix: their mixture is no distribution."""
    found = Steering(by=by, gamma=gamma).answer(network, x)
    torch.testing.assert_close(found.weights.sum(0), torch.ones(12))
    torch.testing.assert_close(found.probabilities.sum(-1), torch.ones(12))
    mixture = sum(
        w[:, None] * logits.softmax(-1) for w, logits in zip(found.weights, found.logits, strict=True)
    )
    torch.testing.assert_close(found.probabilities, mixture)
    if by in ("discriminator", "prototype"):
        assert not found.weights[M].any()  # estimates of the domain say nothing of the shared head
    if by == "shared":
        torch.testing.assert_close(found.probabilities, network(x).softmax(-1))
    if by == "uniform":
        torch.testing.assert_close(found.probabilities, network.all_logits(x).softmax(-1).mean(0))


def test_soft_weights_are_powers_of_entropy_and_large_powers_choose(network, x):
    mean = entropies(network, x).mean(1)
    found = Steering(gamma=2.0).answer(network, x).weights[:, 0]
    torch.testing.assert_close(found, mean**-2 / (mean**-2).sum())
    assert torch.equal(Steering(gamma=500.0).answer(network, x).head, Steering().answer(network, x).head)


def test_an_entropy_of_zero_gives_finite_weights(network, x):
    with torch.no_grad():
        network.head.biases[1, 0] = 1e4
    found = Steering(gamma=1.0).answer(network, x)
    assert torch.isfinite(found.probabilities).all() and found.head.tolist() == [1] * 12


def test_cosine_takes_the_most_similar_domain(network):
    """The authors' code takes the least similar one, and weighs heads by similarities that may be negative."""
    towards = torch.tensor([[0.1, 5.0, 0.2, 0.0], [-0.3, 2.0, 0.1, 0.4]])
    for metric in ("cosine", "l2", "l1"):
        assert Steering(by="prototype", metric=metric).answer(network, towards).head.tolist() == [1, 1]
    similarity = torch.cosine_similarity(network.prototypes[:, None], towards, dim=-1)
    assert similarity.argmin(0).tolist() != [1, 1] and similarity.min() < 0
    gaps = prototype_gaps(towards, network.prototypes, "cosine")
    torch.testing.assert_close(gaps, 1 - similarity)
    weights = (
        Steering(by="prototype", metric="cosine", unit="example", gamma=2.0).answer(network, towards).weights
    )
    torch.testing.assert_close(weights[:M], torch.softmax(2 * similarity, 0))


def test_the_discriminator_decides_for_a_batch_not_for_the_largest_single_score(network):
    """The authors' argmax runs over the flattened scores: with several examples it is no domain."""
    with torch.no_grad():
        for layer in (network.discriminator[0], network.discriminator[2]):
            layer.weight.zero_()
            layer.bias.zero_()
        network.discriminator[0].weight[:M, :M] = torch.eye(M)
        network.discriminator[2].weight[:, :M] = torch.eye(M)
    x = torch.tensor([[2.0, 0, 0, 0], [0, 3.0, 0, 0], [0, 2.0, 0, 0]])
    scores = network.discriminator(x)
    assert Steering(by="discriminator").answer(network, x).head.tolist() == [1, 1, 1]
    assert Steering(by="discriminator", unit="example").answer(network, x).head.tolist() == [0, 1, 1]
    assert int(scores.argmax()) == 4  # what that argmax gives: head 4 of 3


def test_a_single_example_goes_by_prototypes_with_a_warning(network, x):
    towards = torch.tensor([[0.1, 5.0, 0.2, 0.0]])
    with pytest.warns(UnseenWarning, match="single example"):
        found = Steering().answer(network, towards)
    assert found.head.tolist() == [1]
    group = torch.tensor([0, 0, 7])
    with pytest.warns(UnseenWarning, match="single example"):
        found = Steering(unit="group").answer(network, torch.cat([x[:2], towards]), group)
    assert found.head[2] == 1 and torch.equal(found.head[:2], Steering().answer(network, x[:2]).head)
    network.seen.zero_()
    with pytest.warns(UnseenWarning), pytest.raises(InputError, match="prototypes: of domains"):
        Steering().answer(network, towards)


def test_a_function_of_the_user_steers(network, x):
    def second(features, logits):
        assert features.shape == (12, D) and logits.shape == (M + 1, 12, C)
        return torch.tensor([[0.3], [-1.0], [0.2], [0.1]]).expand(4, 12)

    assert Steering(by=second).answer(network, x).head.tolist() == [1] * 12
    weights = Steering(by=second, gamma=1.0).answer(network, x).weights[:, 0]
    torch.testing.assert_close(weights, torch.softmax(torch.tensor([-0.3, 1.0, -0.2, -0.1]), 0))
    with pytest.raises(InputError, match="gap function: gives"):
        Steering(by=lambda features, logits: logits.mean(-1)[:2]).answer(network, x)


def test_the_adaptivity_gap_is_what_the_best_head_gains(network, x):
    found = Steering(by="shared").answer(network, x)
    labels = found.logits[1].argmax(-1)
    used = (found.logits[M].argmax(-1) == labels).double().mean()
    assert found.adaptivity_gap(labels) == pytest.approx(1 - float(used)) and used < 1


def test_a_stream_remembers_groups_and_equals_one_choice_over_all_at_the_end(network, x):
    names = ["a", ("b", 2)] * 6
    stream = SteeringStream(network)
    answers = [stream.answer(part, names[i : i + 4]) for i, part in zip((0, 4, 8), x.split(4), strict=True)]
    group = torch.tensor([0, 1] * 6)
    whole = Steering(unit="group").answer(network, x, group)
    torch.testing.assert_close(answers[2].weights, whole.weights[:, 8:])
    first = Steering(unit="group").answer(network, x[:4], group[:4])  # nothing of later batches is known
    torch.testing.assert_close(answers[0].weights, first.weights)
    again = list(predict_stream(network, [(x[:4], names[:4]), (x[4:8], names[4:8])]))
    for one, other in zip(again, answers, strict=False):
        assert torch.equal(one.probabilities, other.probabilities)


def test_a_stream_can_take_examples_one_by_one(network, x):
    stream = SteeringStream(network)
    with pytest.warns(UnseenWarning):
        stream.answer(x[:1], ["a"])
    for row in range(1, 12):
        found = stream.answer(
            x[row : row + 1], ["a"]
        )  # no longer alone: no warning, which tests make an error
    torch.testing.assert_close(found.weights[:, 0], Steering().answer(network, x).weights[:, 0])
    with pytest.raises(InputError, match="are 2 for 1 examples"):
        stream.answer(x[:1], ["a", "b"])


def test_mixed_batches_force_one_head_on_all_and_groups_do_not():
    """Two domains whose heads are right, and sure, on their own inputs only."""
    network = with_domain_heads(Network(nn.Identity(), 2, 2), 2)
    with torch.no_grad():
        network.head.weights.zero_()
        network.head.biases.zero_()
        network.head.weights[0] = torch.tensor([[9.0, 0.0], [-9.0, 0.0]])
        network.head.weights[1] = torch.tensor([[0.0, 9.0], [0.0, -9.0]])
    labels, domain = torch.tensor([0, 1] * 6), torch.tensor([0, 0, 1, 1] * 3)
    sign = 1.0 - 2 * labels
    x = torch.stack([torch.where(domain == 0, sign, -0.01), torch.where(domain == 1, sign, 0.01)], 1)
    one = Steering().answer(network, x)
    grouped = Steering(unit="group").answer(network, x, domain)
    assert len(one.head.unique()) == 1 and torch.equal(grouped.head, domain)
    assert (one.predictions == labels).float().mean() < 1 and torch.equal(grouped.predictions, labels)


def test_answers_are_in_evaluation_mode_and_leave_the_mode(network, x):
    network.featurizer = nn.Dropout(0.5)
    network.train()
    first, second = (Steering().answer(network, x).probabilities for _ in range(2))
    assert torch.equal(first, second) and network.training and not first.requires_grad


def test_what_cannot_steer_says_so(network, x):
    plain = with_heads(Network(nn.Identity(), D, C), 2)
    assert len(Steering().answer(plain, x).probabilities) == 12  # entropy needs nothing but heads
    with pytest.warns(UnseenWarning, match=r"single example to choose a head by\."):
        alone = Steering().answer(plain, x[:1])
    assert torch.equal(alone.head, alone.gaps.argmin(0))
    for by in ("prototype", "discriminator", "shared"):
        with pytest.raises(InputError, match="no heads of domains"):
            Steering(by=by).answer(plain, x)
    network.discriminator = None
    with pytest.raises(InputError, match="discriminator=64"):
        Steering(by="discriminator").answer(network, x)
    x[2, 1] = float("nan")
    with pytest.raises(InputError, match="not finite for heads"):
        Steering().answer(network, x)
    with pytest.raises(InputError, match="inputs: are none"):
        Steering().answer(network, x[:0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "entrop"}, "Did you mean 'entropy'"),
        ({"unit": "sample"}, "unit 'sample'"),
        ({"metric": "l3"}, "metric 'l3'"),
        ({"gamma": -1.0}, "gamma: is -1.0"),
        ({"gamma": float("inf")}, "gamma: is inf"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Steering(**options)
