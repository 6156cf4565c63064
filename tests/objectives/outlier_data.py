"""Three classes around the origin, and outliers far away in one direction: small, and learned in a moment."""

import torch

from unseen.shifts.arrays import from_arrays
from unseen.training import Learner, fit
from unseen.training.data import TrainingData

SMALL = Learner(network="mlp(width=32, depth=1)", steps=150, batch_size=32, learning_rate=1e-2, keep="last")
CENTRES = torch.tensor([[2.0, 0.0, 0.0, 0.0], [-1.0, 1.7, 0.0, 0.0], [-1.0, -1.7, 0.0, 0.0]])


def blobs(seed=0, count=300):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    x = CENTRES[y] + 0.4 * torch.randn(count, 4, generator=generator)
    shift = from_arrays(x, y, torch.zeros(count, dtype=torch.int64))
    return shift.with_outliers(outliers(100, seed))


def outliers(count, seed):
    generator = torch.Generator().manual_seed(seed + 50)
    return torch.tensor([2.0, 0.0, 4.0, 0.0]) + 0.6 * torch.randn(count, 4, generator=generator)


def trained(objective, **changes):
    """Network, its data, and a function from raw inputs to logits."""
    data = TrainingData(blobs().split(seed=0))
    network = fit(SMALL.replace(objective=objective, **changes), data.split, data=data).network.eval()

    def logits(x):
        with torch.no_grad():
            return network(data.preprocessing.finish(data.preprocessing.encode(x)))

    return network, data, logits


def accuracy(logits):
    test = blobs(seed=1)
    return float((logits(test.inputs).argmax(1) == test.labels).float().mean())
