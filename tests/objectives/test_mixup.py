import torch
from torch import nn

from unseen.networks import Network
from unseen.objectives.mixup import Mixup
from unseen.shifts import Batch


def built(alpha=0.4):
    objective = Mixup(alpha)
    objective.setup(features=4, classes=3, domains=2)
    return objective


def batch_of(generator, x=None):
    return Batch(
        x=torch.randn(8, 4, generator=generator) if x is None else x,
        y=torch.randint(3, (8,), generator=generator),
        domain=torch.arange(8) % 2,
        domains=2,
    )


def partners_and_share(batch, mixed):
    """Found by search: the only partner and share that explain each mixed example's input."""
    found = []
    for i in range(len(batch)):
        options = []
        for j in range(len(batch)):
            direction = batch.x[i] - batch.x[j]
            if j == i:
                continue
            share = float((mixed.x[i] - batch.x[j]) @ direction / (direction @ direction))
            if torch.allclose(share * batch.x[i] + (1 - share) * batch.x[j], mixed.x[i], atol=1e-5):
                options.append((j, share))
        found.append(options)
    return found


def test_each_example_is_one_convex_combination_with_the_same_labels_share(generator):
    batch = batch_of(generator)
    mixed = built().prepare(batch, torch.Generator().manual_seed(3))
    shares = set()
    for i, options in enumerate(partners_and_share(batch, mixed)):
        if torch.allclose(mixed.x[i], batch.x[i]):  # its own partner
            continue
        ((j, share),) = options
        expected = share * nn.functional.one_hot(batch.y[i], 3) + (1 - share) * nn.functional.one_hot(
            batch.y[j], 3
        )
        torch.testing.assert_close(mixed.y[i], expected.float(), atol=1e-4, rtol=0)
        shares.add(round(share, 3))
    assert len(shares) == 1 and 0 < shares.pop() < 1


def test_loss_is_the_mixture_of_the_two_cross_entropies(generator):
    model, batch = Network(nn.Identity(), 4, 3), batch_of(generator)
    mixed = built().prepare(batch, torch.Generator().manual_seed(3))
    log_probabilities = torch.log_softmax(model(mixed.x), 1)
    expected = torch.stack([-(mixed.y[i] * log_probabilities[i]).sum() for i in range(8)]).mean()
    torch.testing.assert_close(built()(model, mixed).total, expected)


def test_the_generator_decides_and_the_batch_stays(generator):
    batch = batch_of(generator)
    before = batch.x.clone()
    first, second, other = (built().prepare(batch, torch.Generator().manual_seed(s)).x for s in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(batch.x, before)


def test_shares_have_the_moments_of_a_beta_distribution(generator):
    batch = batch_of(generator, x=torch.eye(8))
    batch.y = torch.arange(8) % 3
    shares = []
    for seed in range(2000):
        mixed = built(2.0).prepare(batch, torch.Generator().manual_seed(seed)).x
        own = mixed.diagonal()
        shares.append(float(own.min()))  # an example that is its own partner keeps all of itself
    shares = torch.tensor([s for s in shares if s < 1])
    assert abs(shares.mean() - 0.5) < 0.02
    assert abs(shares.var() - 1 / (4 * (2 * 2.0 + 1))) < 0.005  # alpha^2 / ((2 alpha)^2 (2 alpha + 1))


def test_several_inputs_are_mixed_with_the_same_share_and_partner(generator):
    x = torch.randn(8, 4, generator=generator)
    batch = batch_of(generator, x={"left": x, "right": 2 * x})
    mixed = built().prepare(batch, torch.Generator().manual_seed(0)).x
    torch.testing.assert_close(2 * mixed["left"], mixed["right"])
