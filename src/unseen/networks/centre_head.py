"""Objects as points: a light head that finds boxes on feature maps (Zhou et al. 2019, CenterNet, arXiv 1904.07850).

The head says for each place and class how likely the centre of an object is there, and for each place where in it
the centre lies and how large the box is. Boxes are peaks of that map: no anchors, and nothing to suppress. Several
maps are brought together from the coarsest to the finest (Lin et al. 2017, feature pyramids, arXiv 1612.03144).

Two things differ from the paper, as heads here train for hundreds of steps and not for days: sizes are learnt as
logarithms, in which small and large boxes weigh the same, and the soft targets around a centre have the form of the
box (Liu et al. 2020, TTFNet, arXiv 1909.00700). Boxes are (left, top, right, bottom) in shares of the image, [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, l1_loss, logsigmoid, max_pool2d

SPREAD = 0.54 / 6
"""Standard deviation of the soft target around a centre, as a share of the box (TTFNet)."""
RARE = -2.19
"""First logit of an object, which is 0.1: most places hold none (Lin et al. 2017, focal loss, section 4.1)."""


class CentreHead(nn.Module):
    """Maps (B, C, side, side), finest first, to what `decode` reads.

    channels  C of each map;  classes K;  width  channels inside, a multiple of 8
    """

    def __init__(self, channels: Sequence[int], classes: int, width: int = 64):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.tower = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.GroupNorm(8, width),
            nn.ReLU(),
        )
        self.centre, self.box = nn.Conv2d(width, classes, 1), nn.Conv2d(width, 4, 1)
        nn.init.constant_(self.centre.bias, RARE)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits of centres (B, K, S, S) and, for each place of the finest map, (B, 4, S, S): right and down of its
        corner to the centre, and the logarithms of width and height, all in places."""
        merged: Tensor | None = None
        for lateral, each in zip(reversed(self.lateral), reversed(maps), strict=True):
            level = lateral(each)
            merged = level if merged is None else level + interpolate(merged, level.shape[2:])
        assert merged is not None
        hidden = self.tower(merged)
        return self.centre(hidden), self.box(hidden)


@dataclass(frozen=True)
class CentreTargets:
    """What the head should say of B images with n boxes in all.

    centres  (B, K, S, S) in [0, 1], 1 where an object's centre is
    place    (n,) index of each box's place among B S S
    box      (n, 4) as the head gives it
    """

    centres: Tensor
    place: Tensor
    box: Tensor

    def to(self, device: torch.device) -> CentreTargets:
        return CentreTargets(self.centres.to(device), self.place.to(device), self.box.to(device))


def centre_targets(
    boxes: Sequence[Tensor], labels: Sequence[Tensor], classes: int, side: int
) -> CentreTargets:
    """Targets of B images with boxes (n_i, 4) and labels (n_i,) on a map of `side` places a side."""
    image = torch.arange(len(boxes)).repeat_interleave(torch.tensor([len(each) for each in boxes]))
    box, label = torch.cat(list(boxes)).float() * side, torch.cat(list(labels))
    middle, size = (box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]
    corner = middle.floor().clamp(max=side - 1)  # a centre on the right edge belongs to the last place
    steps = torch.arange(side)
    bells = [  # (n, side) across and down: 1 at the place of the centre itself
        torch.exp(-((steps - corner[:, axis, None]) ** 2) / (2 * (SPREAD * size[:, axis, None]) ** 2))
        for axis in (0, 1)
    ]
    centres = torch.zeros(len(boxes), classes, side, side)
    for index, (where, kind) in enumerate(zip(image.tolist(), label.tolist(), strict=True)):
        bell = bells[1][index, :, None] * bells[0][index]
        torch.maximum(centres[where, kind], bell, out=centres[where, kind])
    place = (image * side + corner[:, 1].long()) * side + corner[:, 0].long()
    return CentreTargets(centres, place, torch.cat([middle - corner, size.log()], 1))


def centre_loss(centre: Tensor, box: Tensor, targets: CentreTargets) -> Tensor:
    """The paper's focal loss of centres plus the mean absolute error of boxes, both an object (its equations 1 to 4).

    centre (B, K, S, S) logits and box (B, 4, S, S), as the head gives them
    """
    objects = max(len(targets.place), 1)
    wanted = targets.centres
    present, absent = logsigmoid(centre), logsigmoid(-centre)
    hit = (1 - present.exp()).square() * present
    miss = (1 - wanted) ** 4 * present.exp().square() * absent
    focal = -torch.where(wanted == 1, hit, miss).sum() / objects
    said = box.permute(0, 2, 3, 1).reshape(-1, 4)[targets.place]
    return focal + l1_loss(said, targets.box, reduction="sum") / objects


@dataclass(frozen=True)
class Found:
    """Boxes (n, 4) found in one image, their classes (n,) and scores (n,) in [0, 1], the greatest score first."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor


def decode(centre: Tensor, box: Tensor, most: int = 100) -> list[Found]:
    """What the head has found in each of B images: `most` peaks at most, boxes cut at the image's edges.

    A place is a peak of a class when none of its eight neighbours has a greater logit. An image for which the head
    gives NaN or infinity has no box.
    """
    side = centre.shape[2]
    peaks = centre.masked_fill(centre != max_pool2d(centre, 3, stride=1, padding=1), -torch.inf)
    logits, order = peaks.flatten(1).topk(min(most, peaks[0].numel()))
    label, place = order // side**2, order % side**2
    said = box.flatten(2).transpose(1, 2).gather(1, place[..., None].expand(-1, -1, 4))
    middle = torch.stack([place % side, place // side], -1) + said[..., :2]
    half = said[..., 2:].exp() / 2
    boxes = (torch.cat([middle - half, middle + half], -1) / side).clamp(0, 1)
    finite = (centre.isfinite().flatten(1).all(1) & box.isfinite().flatten(1).all(1))[:, None]
    keep = (logits > -torch.inf) & (boxes[..., 2:] > boxes[..., :2]).all(-1) & finite
    return [Found(boxes[i, kept], label[i, kept], logits[i, kept].sigmoid()) for i, kept in enumerate(keep)]
