"""36 classes for test-time adaptation: handwritten digits and printed letters, and a CNN with batch normalisation."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from unseen.networks import Network
from unseen.papers.printed_letters import LETTERS, letters
from unseen.shifts import Shift
from unseen.shifts.builtin.digit_images import at_most, mnist, stratified_parts
from unseen.shifts.preprocessing import ImagePreprocessing
from unseen.shifts.sampling import derive_seed
from unseen.training.system import seeded


def digits_and_letters(seed: int, each: int) -> list[Shift]:
    """Digits and letters for training, for the test and, half as many, for choosing rates, none twice: uint8 images
    (N, 1, 14, 14), `each` of each of 36 classes (of the letters, which are drawn at random, on average)."""
    generator = torch.Generator().manual_seed(derive_seed(seed, 1))
    images, labels = mnist()
    small = nn.functional.avg_pool2d(images.unsqueeze(1).float(), 2).round().to(torch.uint8)
    fifths = stratified_parts(labels, 5, generator)
    parts = {"train": fifths[:2], "test": fifths[2:4], "tuning": fifths[4:]}
    found = []
    for name, part in parts.items():
        count = each * len(part) // 2
        rows = at_most(torch.cat(part), labels, 10 * count)
        printed, numbers = letters(len(LETTERS) * count, generator)
        pixels = ((printed * 0.3 + 0.15).clamp(0, 1) * 255).round().to(torch.uint8)
        found.append(_shift(name, torch.cat([small[rows], pixels]), torch.cat([labels[rows], numbers + 10])))
    return found


def normalised_cnn(shape: list[int], classes: int, width: int = 16) -> Network:
    """The registry's cnn with batch in place of group normalisation."""
    layers: list[nn.Module] = []
    channels = shape[0]
    for outer, kernel, stride in ((width, 5, 2), (2 * width, 3, 2), (4 * width, 3, 1)):
        convolution = nn.Conv2d(channels, outer, kernel, stride=stride, padding=kernel // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(outer), nn.ReLU()]
        channels = outer
    return Network(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels, classes)


def trained(train: Shift, preprocessing: ImagePreprocessing, epochs: int, seed: int) -> Network:
    with seeded(derive_seed(seed, 2)):
        network = normalised_cnn(preprocessing.shape, len(train.classes)).train()
    generator = torch.Generator().manual_seed(derive_seed(seed, 3))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    parts = [
        rows for _ in range(epochs) for rows in torch.randperm(len(train), generator=generator).split(64)
    ]
    batches = [rows for rows in parts if len(rows) > 1]  # batch normalisation needs two
    for step, rows in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / len(batches))
        optimizer.zero_grad(set_to_none=True)
        x = preprocessing.finish(torch.as_tensor(train.take(rows)))
        nn.functional.cross_entropy(network(x), train.labels[rows]).backward()
        optimizer.step()
    return network.eval()


def corrupted_once(shift: Shift) -> Shift:
    """The corrupted images themselves, which would be made anew whenever they arrive."""
    return replace(shift, inputs=shift.inputs.take(torch.arange(len(shift))))


def _shift(name: str, images: Tensor, labels: Tensor) -> Shift:
    domain = torch.zeros_like(labels)
    return Shift(name, "image", images, labels, domain, (*map(str, range(10)), *LETTERS), ("clean",))
