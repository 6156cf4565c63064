import pytest
import torch

from unseen.adaptation.augmentations import augment_images, shuffle_patches
from unseen.errors import InputError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_images_change_a_little_and_by_the_seed():
    x = torch.randn(6, 3, 12, 12, generator=generator(1)).cumsum(2).cumsum(3) / 5  # smooth
    first, again, other = (augment_images(x, generator(seed), flip=False) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == x.shape and torch.isfinite(first).all()
    for before, after, stranger in zip(x, first, x.roll(1, 0), strict=True):
        likeness = [
            torch.corrcoef(torch.stack([t.flatten(), after.flatten()]))[0, 1] for t in (before, stranger)
        ]
        assert likeness[0] > 0.7 and likeness[0] > likeness[1]
    assert float(first.amin()) >= float(x.amin()) - 1e-4 and float(first.amax()) <= float(x.amax()) + 1e-4


def test_flat_images_stay_flat():
    x = torch.full((2, 1, 9, 9), 3.0)
    torch.testing.assert_close(augment_images(x, generator()), x, rtol=0, atol=1e-4)


def test_half_of_the_images_are_mirrored():
    x = torch.zeros(200, 1, 16, 16)
    x[:, :, :, :8] = 1  # bright on the left
    changed = augment_images(x, generator())
    mirrored = (changed[..., 8:].mean((1, 2, 3)) > changed[..., :8].mean((1, 2, 3))).float().mean()
    assert 0.35 < mirrored < 0.65
    kept = augment_images(x, generator(), flip=False)
    assert (kept[..., 8:].mean((1, 2, 3)) < kept[..., :8].mean((1, 2, 3))).all()


def test_patches_are_moved_not_changed():
    x = torch.arange(2 * 3 * 8 * 8.0).view(2, 3, 8, 8)
    shuffled = shuffle_patches(x, 4, generator())

    def tiles(images):
        cut = images.unfold(2, 2, 2).unfold(3, 2, 2)  # (B, C, 4, 4, 2, 2)
        return [
            {tuple(t.flatten().tolist()) for t in image.permute(1, 2, 0, 3, 4).flatten(0, 1)} for image in cut
        ]

    assert tiles(x) == tiles(shuffled) and not torch.equal(x, shuffled)
    orders = [shuffled[i, 0, ::2, ::2].flatten() - x[i, 0, 0, 0] for i in range(2)]
    assert not torch.equal(*orders)  # each image has an order of its own
    assert torch.equal(shuffle_patches(x, 1, generator()), x)


def test_sides_that_do_not_divide_are_scaled():
    assert shuffle_patches(torch.rand(2, 1, 9, 11), 4, generator()).shape == (2, 1, 9, 11)
    with pytest.raises(InputError, match=r"have 3 x 8 pixels.*4 x 4 patches"):
        shuffle_patches(torch.rand(2, 1, 3, 8), 4, generator())


@pytest.mark.parametrize(
    "x", [torch.rand(3, 5), {"a": torch.rand(2, 3, 8, 8)}, torch.zeros(2, 3, 8, 8).byte()]
)
def test_only_images_can_be_augmented(x):
    with pytest.raises(InputError, match="no augmentation is known.*`augment`"):
        augment_images(x, generator())
