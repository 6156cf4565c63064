"""Each hypothesis learns by itself: the mean of own losses, whatever their number; ERM for a single one."""

import torch
from torch.nn.functional import cross_entropy

from unseen.networks import build_network
from unseen.networks.hypotheses import with_heads
from unseen.objectives.each_hypothesis import EachHypothesis
from unseen.objectives.erm import ERM
from unseen.shifts import Batch

BATCH = Batch(x=torch.randn(6, 4), y=torch.arange(6) % 3, domain=torch.zeros(6).long(), domains=1)


def test_it_is_the_mean_of_each_ones_loss_and_not_the_loss_of_the_mean():
    model = with_heads(build_network("mlp(width=8)", (4,), 3), 3)
    own = [cross_entropy(logits, BATCH.y) for logits in model.all_logits(BATCH.x)]
    total = EachHypothesis()(model, BATCH).total
    assert torch.allclose(total, torch.stack(own).mean())
    assert total > ERM()(model, BATCH).total


def test_a_single_hypothesis_learns_by_erm():
    model = build_network("mlp(width=8)", (4,), 3)
    assert torch.equal(EachHypothesis()(model, BATCH).total, ERM()(model, BATCH).total)
