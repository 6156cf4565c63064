import pytest
import torch
import torch.nn.functional as F

from unseen.errors import InputError
from unseen.sequences.mixture_of_experts import MixtureOfExperts, MoEDecoder


def test_a_mixture_equals_a_loop_over_tokens_and_experts():
    torch.manual_seed(0)
    layer = MixtureOfExperts(8, experts=5, top_k=2, hidden=3)
    x = torch.randn(2, 4, 8)
    y = layer(x)
    for token, out in zip(x.flatten(0, 1), y.flatten(0, 1), strict=True):
        weights = layer.router(token).softmax(-1)
        chosen = weights.argsort(descending=True)[:2].tolist()
        expected = torch.zeros(8)
        for k in chosen:
            rows = slice(3 * k, 3 * k + 3)
            hidden = F.gelu(layer.up.weight[rows] @ token + layer.up.bias[rows])
            expected += weights[k] / weights[chosen].sum() * (layer.down.weight[:, rows] @ hidden)
        torch.testing.assert_close(out, expected)


def test_balance_is_one_for_even_loads_and_more_for_a_favourite():
    layer = MixtureOfExperts(4, experts=4, top_k=1, hidden=2)
    with torch.no_grad():
        layer.router.weight.copy_(torch.eye(4))
    layer(100 * torch.eye(4))  # each token to an expert of its own
    assert float(layer.balance.detach()) == pytest.approx(1.0)
    layer(100 * torch.eye(4)[:1])
    assert float(layer.balance.detach()) == pytest.approx(4.0)


def test_balance_moves_the_router_towards_even_loads():
    torch.manual_seed(0)
    layer, x = MixtureOfExperts(8, experts=4, top_k=2, hidden=2), torch.randn(64, 8) + 1
    with torch.no_grad():
        layer.router.weight[0] += 0.5  # a favourite
    layer(x)
    before = float(layer.balance.detach())
    optimizer = torch.optim.SGD([layer.router.weight], lr=0.1)
    for _ in range(100):
        layer(x)
        optimizer.zero_grad()
        layer.balance.backward()
        optimizer.step()
    assert before > 1.3
    assert float(layer.balance.detach()) < 1.1


def test_a_decoder_learns_repeats_and_its_seed_decides():
    one, other, third = (MoEDecoder(8, width=16, layers=2, heads=2, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not torch.equal(one.blocks[0].feedforward.router.weight, third.blocks[0].feedforward.router.weight)
    tokens = torch.tensor([[0, 1, 2, 3] * 4, [4, 5, 6, 7] * 4])
    optimizer = torch.optim.Adam(one.parameters(), lr=1e-2)
    for _ in range(60):
        loss = one.loss(tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
    assert torch.equal(one.generate(tokens[:, :6], 4), tokens[:, :10])


def test_later_tokens_change_nothing_before_them():
    model = MoEDecoder(32, width=16, layers=2, heads=2, seed=0)
    tokens = torch.randint(32, (2, 8), generator=torch.Generator().manual_seed(0))
    changed = torch.cat([tokens[:, :5], (tokens[:, 5:] + 1) % 32], dim=1)
    torch.testing.assert_close(model(tokens)[:, :5], model(changed)[:, :5])


@pytest.mark.parametrize("top_k", [0, 4])
def test_top_k_is_at_most_the_experts(top_k):
    with pytest.raises(InputError, match="top_k"):
        MixtureOfExperts(8, experts=3, top_k=top_k, hidden=2)
