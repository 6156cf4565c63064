import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import Network
from unseen.networks.domain_heads import DomainHeads
from unseen.objectives.drm import DRM
from unseen.registry import objectives
from unseen.shifts import Batch
from unseen.shifts.arrays import from_arrays
from unseen.testing import check_objective
from unseen.training import Learner, fit
from unseen.training.batched import can_batch
from unseen.training.data import TrainingData

D, C, M = 4, 3, 3


def ready(**options):
    torch.manual_seed(0)
    objective = DRM(**options)
    build = lambda: Network(nn.Sequential(nn.Linear(5, D), nn.Tanh()), D, C)  # noqa: E731
    network = objective.make_network(build, domains=M)
    objective.setup(features=D, classes=C, domains=M)
    return objective, network


def batch(per_domain=4, **more):
    generator = torch.Generator().manual_seed(1)
    domain = torch.arange(M).repeat_interleave(per_domain)
    x = torch.randn(len(domain), 5, generator=generator)
    return Batch(x=x, y=torch.arange(len(domain)) % C, domain=domain, domains=M, **more)


def test_the_loss_is_what_a_loop_over_domains_gives():
    objective, network = ready()
    one, cross_entropy = batch(), nn.functional.cross_entropy
    expected = 0.0
    for d in range(M):
        part = one.of_domain(d)
        features = network.featurizer(part.x)
        own, shared = (features @ network.head.weights[k].T + network.head.biases[k] for k in (d, M))
        expected = expected + (cross_entropy(own, part.y) + cross_entropy(shared, part.y)) / 2 / M
    loss = objective(network, one)
    torch.testing.assert_close(loss.total, expected)
    parameters = list(network.parameters())
    for fast, slow in zip(*(torch.autograd.grad(v, parameters) for v in (loss.total, expected)), strict=True):
        torch.testing.assert_close(fast, slow)


def test_a_head_whose_domain_is_missing_is_not_trained():
    objective, network = ready()
    objective(network, batch().take(batch().domain != 1)).total.backward()
    reached = network.head.weights.grad.flatten(1).any(1)
    assert reached.tolist() == [True, False, True, True] and network.seen.tolist() == [1, 0, 1]


def test_domains_that_have_no_head_are_refused():
    objective, network = ready()
    one = batch()
    one.domains = M + 1
    with pytest.raises(InputError, match="are 4, but the network has heads for 3"):
        objective(network, one)
    one = batch()
    one.domain[0] = M  # the shared head is nobody's own
    with pytest.raises(RuntimeError):
        objective(network, one)


def test_prototypes_do_not_move_when_a_batch_repeats():
    objective, network = ready()
    objective(network, batch())
    before = network.prototypes.clone()
    objective(network, batch().again())
    assert torch.equal(network.prototypes, before) and before.any()


def test_the_discriminator_learns_and_leaves_the_features_alone():
    objective, network = ready(discriminator=6)
    loss = objective(network, batch())
    trained = list(network.discriminator.parameters())
    assert all(g.any() for g in torch.autograd.grad(loss.parts["domain"], trained, retain_graph=True))
    with pytest.raises(RuntimeError):
        torch.autograd.grad(loss.parts["domain"], list(network.featurizer.parameters()))
    plain, alone = ready()
    alone.load_state_dict(network.state_dict(), strict=False)
    without = plain(alone, batch()).total
    torch.testing.assert_close(loss.total, without + loss.parts["domain"])


def test_a_penalty_is_that_of_the_base_on_the_shared_head():
    objective, network = ready(base="irm(penalty_weight=3.0)")
    loss = objective(network, batch())
    base = objectives.build("irm(penalty_weight=3.0)")
    expected = base(network, batch())  # the network answers with the shared head
    torch.testing.assert_close(loss.parts["shared"], expected.total)
    torch.testing.assert_close(loss.parts["penalty"], expected.parts["penalty"])
    torch.testing.assert_close(loss.total, (loss.parts["own"] + expected.total) / 2)


@pytest.mark.parametrize("spec", ["drm(discriminator=8)", "drm(base='coral')"])
def test_variants_keep_the_contract(spec):
    assert check_objective(spec).facts["vmap"] is True


@pytest.mark.parametrize("base", ["mixup", "divdis", "d-bat", "jtt", "oe"])
def test_a_base_that_does_more_than_add_a_penalty_is_refused(base):
    with pytest.raises(InputError, match=f"base '{base}' of drm"):
        DRM(base=base)
    with pytest.raises(InputError, match="is not known"):
        DRM(base="coraal")


def shift(domains=4):
    generator = torch.Generator().manual_seed(0)
    labels, domain = torch.arange(40 * domains) % 2, torch.arange(40 * domains) // 40
    x = torch.randn(len(labels), 3, generator=generator) + labels[:, None]
    return from_arrays(x.numpy(), labels.numpy(), domain.numpy())


def test_a_learner_trains_it_stacked_or_alone():
    split = shift().split("3")
    learner = Learner.parse("drm+sam+swad", network="mlp(width=8)", steps=6, batch_size=4)
    predictor = fit(learner, split)
    assert isinstance(predictor.network, DomainHeads) and predictor.network.count == 4
    assert predictor.network.head.mixture.tolist() == [0, 0, 0, 1]
    plain = Learner(objective="drm", network="mlp(width=8)", steps=6, batch_size=4)
    assert can_batch(plain, TrainingData(split)) is None


def test_one_training_domain_is_an_error():
    with pytest.raises(InputError, match="two domains"):
        fit(Learner(objective="drm", steps=2), shift(2).split("1"))
