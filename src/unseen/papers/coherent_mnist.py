"""m-coherence along the training of a convolutional network on all of MNIST, with some labels replaced."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from unseen.measures.coherence import coherence
from unseen.networks import build_network
from unseen.networks.example_gradients import ExampleGradients
from unseen.shifts.builtin.data_folder import data_file
from unseen.shifts.sampling import derive_seed
from unseen.training.system import seeded


def all_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images, uint8 (N, 28, 28), and labels of $UNSEEN_DATA/mnist.npz."""
    with np.load(data_file("mnist.npz")) as stored:
        parts = [torch.from_numpy(stored[name]) for name in ("x_train", "y_train", "x_test", "y_test")]
    return parts[0], parts[1].long(), parts[2], parts[3].long()


def coherence_in_training(
    images: Tensor,
    labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    noise: float,
    seed: int,
    *,
    network: str = "resnet",
    epochs: int = 10,
    sample: int = 10_000,
    batch: int = 128,
) -> tuple[list[float], float]:
    """m-coherence of the first `sample` examples before training and after each epoch; final test accuracy.

    A share `noise` of the training labels is replaced by uniform ones. SGD with momentum 0.9, rate 0.05.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(derive_seed(seed, 45))
    other = torch.randint(10, labels.shape, generator=generator)
    labels = torch.where(torch.rand(len(labels), generator=generator) < noise, other, labels)
    x, test_x = ((part.unsqueeze(1) / 255.0) for part in (images, test_images))
    with seeded(seed):
        model = build_network(network, tuple(x.shape[1:]), 10).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    gradients, shown = ExampleGradients(model), (x[:sample], labels[:sample])
    found = [coherence(gradients, shown).whole.m_coherence]
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows].to(device)), labels[rows].to(device)).backward()
            optimizer.step()
        found.append(coherence(gradients, shown).whole.m_coherence)
    with torch.inference_mode():
        guesses = torch.cat([model(part.to(device)).argmax(1).cpu() for part in test_x.split(1024)])
    return found, float((guesses == test_labels).float().mean())
