"""Training a model on corrected labels, and on its own first ones where they were found right."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from unseen.errors import InputError, TrainingDiverged
from unseen.networks import Network
from unseen.relabelling.labeler import RelabelResult


def therapy_finetune(
    model: Network,
    images: Tensor,
    relabels: RelabelResult,
    keep_confident: bool = True,
    lr: float = 5e-7,
    *,
    weight_decay: float = 5e-7,
    batch_size: int = 16,
    epochs: int = 3,
    seed: int = 0,
) -> Network:
    """A copy of `model` whose featurizer learns the corrected labels; its head (CLIP's texts) stays as it is.

    relabels        of these images (N, ...)
    keep_confident  images whose label was accepted are learnt with the label of the model as it was at first;
                    otherwise they are left out
    lr              of Adam, falling to a tenth by a cosine. The paper's 5e-7 is for CLIP: at usual rates a large
                    model follows wrong labels; small models need more
    The images are the target's own, so accuracy on them is transductive: judge on others (`therapy_report`).
    Raises `InputError` when nothing is left to learn, and `TrainingDiverged`.
    """
    if len(images) != len(relabels.label):
        raise InputError(
            "relabels", f"are of {len(relabels.label)} images", f"There are {len(images)} images."
        )
    if not lr > 0 or epochs < 1 or batch_size < 1:
        raise InputError("lr, epochs, batch_size", f"are {lr}, {epochs}, {batch_size}", "Give positive ones.")
    targets = torch.where(relabels.accepted, relabels.predicted, relabels.label)
    used = torch.arange(len(images)) if keep_confident else (~relabels.accepted).nonzero().flatten().cpu()
    if not len(used):
        raise InputError("relabels", "accept every label", "Keep confident images, or raise accept.")
    network = copy.deepcopy(model).eval()  # batch statistics and dropout stay as in pretraining
    network.head.requires_grad_(False)
    trained = [p for p in network.featurizer.parameters() if p.requires_grad or not p.is_leaf]
    if not trained:
        network.featurizer.requires_grad_(True)
        trained = list(network.featurizer.parameters())
    optimizer = torch.optim.Adam(trained, lr=lr, weight_decay=weight_decay)
    steps = epochs * -(-len(used) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=lr / 10)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in used[torch.randperm(len(used), generator=generator)].split(batch_size):
            rows = rows.to(images.device)
            loss = cross_entropy(network(images[rows]), targets[rows])
            if not torch.isfinite(loss):
                raise TrainingDiverged(f"the loss is {float(loss.detach())}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network


@torch.no_grad()
def therapy_report(
    model: Network, used: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], batch_size: int = 256
) -> dict[str, Any]:
    """Accuracy on the images that were learnt from (transductive) and on others of the same domain."""
    found = {}
    for name, (x, y) in (("used", used), ("held out", held_out)):
        answers = torch.cat([model(part).argmax(1) for part in x.split(batch_size)])
        found[name] = float((answers == y).double().mean())
    return found
