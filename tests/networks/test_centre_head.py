import math

import pytest
import torch

from unseen.networks.centre_head import CentreHead, centre_loss, centre_targets, decode

BOXES = [
    torch.tensor([[0.1, 0.2, 0.4, 0.5], [0.5, 0.6, 1.0, 0.9]]),
    torch.zeros(0, 4),
    torch.tensor([[0.0, 0, 1, 1]]),
]
LABELS = [torch.tensor([1, 0]), torch.zeros(0).long(), torch.tensor([2])]


def said_by(targets):
    """What a head says that has learnt its targets by heart."""
    count, _, side, _ = targets.centres.shape
    box = torch.zeros(count * side * side, 4)
    box[targets.place] = targets.box
    return targets.centres.logit(1e-6), box.view(count, side, side, 4).permute(0, 3, 1, 2)


def test_what_is_encoded_is_decoded():
    targets = centre_targets(BOXES, LABELS, classes=3, side=8)
    for found, boxes, labels in zip(decode(*said_by(targets)), BOXES, LABELS, strict=True):
        sure = found.scores > 0.99
        order = found.labels[sure].argsort()
        torch.testing.assert_close(found.boxes[sure][order], boxes[labels.argsort()])
        assert torch.equal(found.labels[sure][order], labels.sort().values)
        assert (found.scores[:-1] >= found.scores[1:]).all()


def test_soft_targets_are_bells_of_the_form_of_the_box():
    side = 16
    targets = centre_targets([torch.tensor([[0.1, 0.3, 0.9, 0.5]])], [torch.tensor([0])], 2, side)
    x, y = 8, 6  # the places of 0.5 and of 0.4
    for row, column in ((y, x), (y, x + 2), (y + 1, x), (y - 1, x + 3), (0, 0)):
        across, down = 0.54 * 0.8 * side / 6, 0.54 * 0.2 * side / 6
        expected = math.exp(-((column - x) ** 2) / (2 * across**2) - (row - y) ** 2 / (2 * down**2))
        assert targets.centres[0, 0, row, column].item() == pytest.approx(expected, abs=1e-6)
    assert targets.centres[0, 1].abs().sum() == 0
    torch.testing.assert_close(targets.box[0], torch.tensor([0.0, 0.4, math.log(12.8), math.log(3.2)]))


def test_a_centre_on_the_right_edge_belongs_to_the_last_place():
    targets = centre_targets([torch.tensor([[0.99999994, 0.0, 1.0, 0.5]])], [torch.tensor([0])], 1, 4)
    assert targets.place.tolist() == [1 * 4 + 3]


def slow_loss(centre, box, targets):
    """Place by place, as equations 1 to 4 of the paper say; sizes as logarithms and with weight 1."""
    total, objects = 0.0, len(targets.place)
    count, classes, side, _ = centre.shape
    for b in range(count):
        for k in range(classes):
            for y in range(side):
                for x in range(side):
                    p, wanted = torch.sigmoid(centre[b, k, y, x]).item(), targets.centres[b, k, y, x].item()
                    if wanted == 1:
                        total -= (1 - p) ** 2 * math.log(p)
                    else:
                        total -= (1 - wanted) ** 4 * p**2 * math.log(1 - p)
    for place, wanted in zip(targets.place.tolist(), targets.box, strict=True):
        b, y, x = place // side**2, place // side % side, place % side
        total += (box[b, :, y, x] - wanted).abs().sum().item()
    return total / objects


def test_the_loss_is_the_papers(generator):
    targets = centre_targets(BOXES, LABELS, classes=3, side=5)
    centre, box = (torch.randn(3, channels, 5, 5, generator=generator) for channels in (3, 4))
    assert centre_loss(centre, box, targets).item() == pytest.approx(
        slow_loss(centre, box, targets), rel=1e-4
    )


def test_the_loss_of_images_without_objects_is_finite(generator):
    targets = centre_targets([torch.zeros(0, 4)] * 2, [torch.zeros(0).long()] * 2, 3, 4)
    centre, box = (
        torch.randn(2, channels, 4, 4, generator=generator, requires_grad=True) for channels in (3, 4)
    )
    loss = centre_loss(centre, box, targets)
    loss.backward()
    assert loss.item() > 0 and torch.isfinite(centre.grad).all()


def test_only_peaks_are_found_and_no_more_than_asked_for():
    centre = torch.full((1, 1, 6, 6), -9.0)
    centre[0, 0, 2, 2], centre[0, 0, 2, 3], centre[0, 0, 5, 5] = 3.0, 2.0, 1.0
    (found,) = decode(centre, torch.zeros(1, 4, 6, 6), most=2)
    assert found.scores.tolist() == pytest.approx([1 / (1 + math.exp(-3)), 1 / (1 + math.exp(-1))])
    torch.testing.assert_close(found.boxes[0] * 6, torch.tensor([1.5, 1.5, 2.5, 2.5]))
    torch.testing.assert_close(found.boxes[1] * 6, torch.tensor([4.5, 4.5, 5.5, 5.5]))


def test_boxes_end_at_the_edges():
    box = torch.zeros(1, 4, 2, 2)
    box[:, 2:] = 5.0
    for found in decode(torch.zeros(1, 1, 2, 2), box):
        assert found.boxes.min() == 0 and found.boxes.max() == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_head_that_diverged_finds_nothing_and_spoils_no_other_image(bad):
    centre, box = torch.zeros(2, 1, 3, 3), torch.zeros(2, 4, 3, 3)
    centre[0, 0, 1, 1] = bad
    first, second = decode(centre, box)
    assert len(first.boxes) == 0 < len(second.boxes)
    box[1, 2, 0, 0] = bad
    assert len(decode(torch.zeros(2, 1, 3, 3), box)[1].boxes) == 0


def test_the_head_says_what_the_finest_map_has_room_for(generator):
    head = CentreHead([6, 10], classes=3, width=16)
    maps = [torch.randn(2, 6, 7, 7, generator=generator), torch.randn(2, 10, 4, 4, generator=generator)]
    centre, box = head(maps)
    assert centre.shape == (2, 3, 7, 7) and box.shape == (2, 4, 7, 7)
    moved = head([maps[0], maps[1] + 1])[0]
    assert not torch.allclose(moved, centre)  # the coarse map is heard


def test_a_head_learns_where_bright_squares_are(generator):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = CentreHead([3], classes=1, width=16)
    corners = torch.randint(0, 9, (32, 2), generator=generator)
    image = 0.1 * torch.randn(32, 3, 12, 12, generator=generator)
    for row, (y, x) in enumerate(corners.tolist()):
        image[row, :, y : y + 3, x : x + 3] += 2
    boxes = [torch.tensor([[x, y, x + 3, y + 3]]) / 12 for y, x in corners.tolist()]
    targets = centre_targets(boxes, [torch.zeros(1).long()] * 32, 1, 12)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(150):
        loss = centre_loss(*head([image]), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    best = torch.cat([found.boxes[:1] for found in decode(*head([image]))])
    assert (best - torch.cat(boxes)).abs().max(1).values.median() < 0.5 / 12
