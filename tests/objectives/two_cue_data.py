"""Two coordinates that training cannot tell apart: an easy cue and the label."""

import torch

from unseen.shifts.arrays import from_arrays

SMALL = {
    "network": "mlp(width=16, depth=1)",
    "batch_size": 64,
    "steps": 200,
    "learning_rate": 0.01,
    "keep": "last",
    "evaluations": 1,
}


def two_cues(ratio: float, seed: int = 0):
    """A shift, and its split: cue and label agree in training, without labels with the given probability."""
    generator = torch.Generator().manual_seed(seed)
    label, domain = torch.arange(900) % 2, torch.arange(900) // 300
    chance = torch.where(domain == 1, ratio, 0.5)
    agrees = (domain == 0) | (torch.rand(900, generator=generator) < chance)
    cue = torch.where(agrees, label, 1 - label)
    noise = torch.randn(900, 2, generator=generator) * torch.tensor([0.1, 0.6])
    x = torch.stack([2.0 * cue - 1, 2.0 * label - 1], 1) + noise
    shift = from_arrays(x.numpy(), label.numpy(), domain.numpy())
    return shift, shift.split(["1", "2"], unlabelled=(domain == 1).nonzero().squeeze(1))


def accuracies(predictor, shift, split):
    """Of every hypothesis, where cue and label are independent."""
    x = predictor.preprocessing.finish(predictor.preprocessing.encode(shift.take(split.unseen)))
    with torch.no_grad():
        predicted = predictor.network.all_logits(x).argmax(-1)
    return [float((own == shift.labels[split.unseen]).float().mean()) for own in predicted]
