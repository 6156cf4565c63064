import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import Network, build_network
from unseen.networks.domain_heads import MEMORY, with_domain_heads


def plain():
    torch.manual_seed(0)
    return Network(nn.Sequential(nn.Linear(5, 4), nn.Tanh()), 4, 3)


def test_there_is_a_head_for_each_domain_and_the_shared_one_answers():
    network, x = with_domain_heads(plain(), 3), torch.randn(7, 5)
    assert (network.count, network.domains) == (4, 3) and network.all_logits(x).shape == (4, 7, 3)
    torch.testing.assert_close(network(x), network.all_logits(x)[3])
    torch.testing.assert_close(network(x)[:2], network(x[:2]))  # nothing but the example decides


def test_prototypes_are_means_of_the_domains_and_then_forget():
    network = with_domain_heads(plain(), 3)
    domain = torch.tensor([0, 0, 1])
    history = []
    for step in range(3):
        features = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
        network.remember(features, domain)
        history.append(features)
    expected = torch.stack(history).mean(0)
    torch.testing.assert_close(network.prototypes[0], expected[:2].mean(0))
    torch.testing.assert_close(network.prototypes[1], expected[2])
    assert network.seen.tolist() == [3, 3, 0] and not network.prototypes[2].any()
    network.seen.fill_(1000)
    before = network.prototypes[1].clone()
    network.remember(torch.ones(1, 4), torch.tensor([1]))
    torch.testing.assert_close(network.prototypes[1], before + (1 - before) / MEMORY)


def test_an_example_of_weight_zero_leaves_no_trace():
    weighted, without = (with_domain_heads(plain(), 2) for _ in range(2))
    features, domain = torch.randn(4, 4), torch.tensor([0, 0, 1, 1])
    weighted.remember(features, domain, torch.tensor([1.0, 0.0, 2.0, 0.0]))
    without.remember(features[::2], domain[::2])
    torch.testing.assert_close(weighted.prototypes, without.prototypes)


def test_the_network_is_built_by_name_again():
    first = with_domain_heads(build_network("mlp(width=6)", (5,), 3), 2, discriminator=7)
    again = build_network(first.spec, (5,), 3)
    again.load_state_dict(first.state_dict())
    x = torch.randn(4, 5)
    torch.testing.assert_close(again.all_logits(x), first.all_logits(x))
    assert again.discriminator(again.featurizer(x)).shape == (4, 2)
    assert build_network("domain-heads(domains=3)", (1, 8, 8), 2).count == 4  # the shape decides the network


def test_numbers_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="at least two domains"):
        with_domain_heads(plain(), 1)
    with pytest.raises(InputError, match="discriminator: has width -1"):
        with_domain_heads(plain(), 2, -1)
