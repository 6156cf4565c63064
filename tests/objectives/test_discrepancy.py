from dataclasses import replace

import pytest
import torch
from outlier_data import accuracy, blobs, outliers, trained
from torch import nn

from unseen.errors import InputError
from unseen.networks.hypotheses import with_heads
from unseen.objectives.discrepancy import MCD, entropy, head_discrepancy


def test_the_loss_is_the_published_formula(model, batch):
    torch.manual_seed(2)
    network = with_heads(model, 2).double()
    generator = torch.Generator().manual_seed(1)
    others = torch.randn(30, 6, generator=generator).double()
    loss = MCD(weight=0.5, margin=1.2)(network, replace(batch, auxiliary=others))
    first, second = network.all_logits(batch.x)
    ce = nn.functional.cross_entropy
    p, q = (own.softmax(1) for own in network.all_logits(others))
    gap = (-(p * p.log()).sum(1) + (q * q.log()).sum(1)).mean()
    assert float(1.2 - gap) > 0
    torch.testing.assert_close(loss.total, ce(first, batch.y) + ce(second, batch.y) + 0.5 * (1.2 - gap))
    torch.testing.assert_close(head_discrepancy(network.all_logits(others)), (p - q).abs().sum(1))
    early = MCD(warmup_steps=10**9)(network, replace(batch, auxiliary=others))
    torch.testing.assert_close(early.total, early.parts["risk"])


def test_heads_come_apart_on_outliers_alone():
    network, data, logits = trained("mcd(margin=0.8)")
    assert accuracy(logits) > 0.95

    def heads(x):
        with torch.no_grad():
            return network.all_logits(data.preprocessing.finish(data.preprocessing.encode(x)))

    far, near = heads(outliers(200, 9)), heads(blobs(1).inputs)
    assert (entropy(far[0]) - entropy(far[1])).mean() > 0.6
    assert head_discrepancy(far).mean() > 5 * head_discrepancy(near).mean()


def test_errors(model, batch):
    with pytest.raises(InputError, match="without outliers"):
        MCD()(with_heads(model, 2).double(), batch)
    for match, wrong in {
        "weight": {"weight": -1},
        "margin": {"margin": 0},
        "warmup_steps": {"warmup_steps": -1},
    }.items():
        with pytest.raises(InputError, match=match):
            MCD(**wrong)
