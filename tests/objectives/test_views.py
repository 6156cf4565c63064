import torch

from unseen.objectives.views import corrupted, random_part, two_views


def test_vectors_keep_most_values_and_take_others_from_the_same_place(generator):
    x = torch.arange(40.0)[:, None] + 1000 * torch.arange(30.0)
    views = two_views(x, generator)
    assert views.shape == (40, 2, 30)
    assert torch.equal(views // 1000, (x // 1000)[:, None].expand_as(views))  # values stay in their column
    changed = (views != x[:, None]).float().mean((0, 2))
    assert ((changed > 0.2) & (changed < 0.4)).all() and not torch.equal(views[:, 0], views[:, 1])


def test_no_corruption_and_one_example_change_nothing(generator):
    x = torch.randn(5, 4, generator=generator)
    assert torch.equal(corrupted(x, 0.0, generator), x)
    assert torch.equal(corrupted(x[:1], 0.9, generator), x[:1])


def test_images_are_cropped_within_bounds_and_the_whole_stays_itself(generator):
    x = torch.rand(6, 3, 8, 8, generator=generator)
    views = two_views(x, generator)
    assert views.shape == (6, 2, 3, 8, 8) and not torch.equal(views[:, 0], views[:, 1])
    ramp = torch.linspace(0, 1, 64).expand(200, 1, 64, 64)
    parts = random_part(ramp, 0.5, generator)
    width = (parts[:, 0, 0, -1] - parts[:, 0, 0, 0]).clamp(max=1)
    assert width.min() > 0.55 and width.max() <= 1 and width.std() > 0.05  # sqrt(0.5 * 3 / 4) = 0.61
    square = random_part(ramp, 1.0, generator)
    torch.testing.assert_close(square.mean((1, 2, 3)), torch.full((200,), 0.5), atol=0.08, rtol=0)


def test_token_ids_masks_and_structure_stay(generator):
    x = {
        "tokens": torch.arange(12).view(4, 3),
        "mask": torch.rand(4, 3, generator=generator),
        "audio": torch.randn(4, 3, 2, generator=generator),
    }
    views = two_views(x, generator, corruption=0.9)
    for name in ("tokens", "mask"):
        assert torch.equal(views[name], torch.stack([x[name], x[name]], 1))
    assert views["audio"].shape == (4, 2, 3, 2) and not torch.equal(views["audio"][:, 0], x["audio"])


def test_the_generator_decides_and_double_stays_double():
    x = torch.rand(4, 1, 8, 8).double()
    one, two = (two_views(x, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two) and one.dtype == torch.float64
