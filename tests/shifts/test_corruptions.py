import io
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from unseen.errors import InputError
from unseen.shifts import Shift
from unseen.shifts.corruptions import CORRUPTIONS, corrupt, corruption_shift
from unseen.shifts.corruptions.apply import _VALUES_AT_ONCE
from unseen.shifts.corruptions.filters import gaussian_matrix, luminance, motion, zoom
from unseen.shifts.corruptions.frost import frost_panes
from unseen.shifts.corruptions.glass import shuffle_pixels
from unseen.shifts.corruptions.randomness import RandomStream
from unseen.shifts.corruptions.reference import clipped_zoom
from unseen.shifts.corruptions.spatter import distance_to
from unseen.shifts.corruptions.weather import plasma_fractal

KINDS = sorted(CORRUPTIONS)
COLOUR_ONLY = {"saturate"}
RANDOM = [
    name
    for name in KINDS
    if CORRUPTIONS[name].family == "noise"
    or name in {"glass_blur", "motion_blur", "snow", "frost", "fog", "elastic_transform", "spatter"}
]

# The published strengths of these are not in the order of damage (they change character between severities,
# such as desaturation and then oversaturation): the strongest must damage more than the weakest.
ENDS_ONLY = {"snow", "frost", "spatter", "saturate"}
# Neither end is stronger: a strong affine map with smooth waves against a weak one with rough waves; and glass
# blur on CIFAR-C's scale, whose severities trade smoothing against shuffling.
UNORDERED = {"elastic_transform", "glass_blur"}


def photos(count: int, side: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Random pictures with the 1/f spectrum of natural images, uint8."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, channels, side, side, generator=generator)
    frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.fftfreq(side)[: side // 2 + 1].abs())
    spectrum = torch.fft.rfft2(noise) / frequency.clamp(min=1 / side)
    pictures = torch.fft.irfft2(spectrum, s=(side, side))
    shared = pictures.mean(1, keepdim=True)  # colours of natural images are correlated
    pictures = shared + 0.3 * pictures
    pictures = 0.45 + 0.18 * (pictures - pictures.mean((1, 2, 3), keepdim=True)) / pictures.std(
        (1, 2, 3), keepdim=True
    )
    return (pictures.clamp(0, 1) * 255).round().to(torch.uint8)


def psnr(first: torch.Tensor, second: torch.Tensor) -> float:
    error = (first.double() - second.double()).div(255).square().mean()
    return float(-10 * torch.log10(error.clamp(min=1e-10)))


def as_numpy(image: torch.Tensor) -> np.ndarray:
    """(C, H, W) uint8 to (H, W, C) float64 in [0, 1], as the published code holds images."""
    return image.permute(1, 2, 0).numpy() / 255.0


def levels(first: torch.Tensor, second: np.ndarray) -> float:
    """Largest difference in 8-bit levels between (C, H, W) uint8 and (H, W, C) in [0, 1]."""
    return float(np.abs(first.permute(1, 2, 0).numpy() - np.clip(second, 0, 1) * 255).max())


def test_every_published_kind_is_there_with_five_strengths_for_both_sizes():
    assert len(CORRUPTIONS) == 19
    assert sum(not kind.extra for kind in CORRUPTIONS.values()) == 15
    for kind in CORRUPTIONS.values():
        assert len(kind.imagenet) == len(kind.cifar) == 5
    assert CORRUPTIONS["gaussian_noise"].parameters(5, side=32) == (0.10,)
    assert CORRUPTIONS["gaussian_noise"].parameters(5, side=63) == (0.10,)
    assert CORRUPTIONS["gaussian_noise"].parameters(5, side=64) == (0.38,)
    with pytest.raises(TypeError):
        CORRUPTIONS["mine"] = CORRUPTIONS["fog"]


@pytest.mark.parametrize("side", [8, 28, 32, 64, 224])
@pytest.mark.parametrize("kind", KINDS)
def test_damage_grows_with_severity(kind, side):
    images = photos(2 if side == 224 else 8, side)
    quality = [psnr(images, corrupt(images, kind, severity)) for severity in range(1, 6)]
    assert all(value < 45 for value in quality), quality  # every severity does something
    if kind in UNORDERED:
        assert max(quality) < 35
    elif kind in ENDS_ONLY:
        assert quality[4] < quality[0]
    else:
        slack = 0.15  # dB: random directions and whole-pixel rounding
        assert all(b <= a + slack for a, b in itertools.pairwise(quality)), quality
        assert quality[4] < quality[0] - 0.1


@given(
    kind=st.sampled_from(KINDS),
    severity=st.integers(1, 5),
    height=st.integers(8, 80),
    width=st.integers(8, 80),
    channels=st.sampled_from([1, 3]),
    batch=st.integers(1, 3),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float64, torch.float16]),
    reference=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_size_channels_and_dtype(kind, severity, height, width, channels, batch, dtype, reference):
    if kind in COLOUR_ONLY:
        channels = 3
    images = torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(0))
    images = (images * 255).to(torch.uint8) if dtype == torch.uint8 else images.to(dtype)
    before = images.clone()
    damaged = corrupt(images, kind, severity, reference=reference)
    assert damaged.shape == images.shape and damaged.dtype == dtype
    assert torch.equal(images, before)
    assert float(damaged.min()) >= 0 and float(damaged.max()) <= (255 if dtype == torch.uint8 else 1)
    assert bool(torch.isfinite(damaged.float()).all())


@pytest.mark.parametrize("kind", RANDOM)
def test_seed_and_ids_decide_what_is_drawn(kind):
    images = photos(4, 32)
    damaged = corrupt(images, kind, 3, seed=5)
    assert torch.equal(damaged, corrupt(images, kind, 3, seed=5))
    assert not torch.equal(damaged, corrupt(images, kind, 3, seed=6))
    alone = torch.cat([corrupt(images[i : i + 1], kind, 3, seed=5, ids=[i]) for i in range(4)])
    torch.testing.assert_close(damaged.int(), alone.int(), atol=1, rtol=0)  # products of other shapes round
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        damaged[order].int(), corrupt(images[order], kind, 3, seed=5, ids=order).int(), atol=1, rtol=0
    )
    same = images[:1].expand(2, -1, -1, -1).contiguous()
    twice = corrupt(same, kind, 3)
    assert not torch.equal(twice[0], twice[1])


def test_the_global_random_state_is_neither_read_nor_changed():
    state = torch.get_rng_state()
    torch.manual_seed(1)
    first = corrupt(photos(1, 16), "snow", 2)
    torch.manual_seed(2)
    assert torch.equal(first, corrupt(photos(1, 16), "snow", 2))
    torch.set_rng_state(state)
    corrupt(photos(1, 16), "spatter", 2)
    assert torch.equal(state, torch.get_rng_state())


def test_pieces_of_a_large_batch_do_not_show(monkeypatch):
    images = photos(7, 16)
    whole = corrupt(images, "impulse_noise", 3)
    monkeypatch.setitem(_VALUES_AT_ONCE, "cpu", 2 * images[0].numel())
    assert torch.equal(whole, corrupt(images, "impulse_noise", 3))
    assert corrupt(images[:0], "fog", 1).shape == (0, 3, 16, 16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu(kind):
    images = photos(3, 64)
    on_gpu = corrupt(images.cuda(), kind, 3)
    assert on_gpu.is_cuda
    if kind not in RANDOM:
        torch.testing.assert_close(on_gpu.cpu().int(), corrupt(images, kind, 3).int(), atol=1, rtol=0)


# What is not random agrees with obvious implementations.


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("severity", [1, 3, 5])
class TestAgainstObviousImplementations:
    def parameters(self, kind, severity, side):
        return CORRUPTIONS[kind].parameters(severity, side)

    def test_contrast(self, severity, side):
        (image,) = images = photos(1, side)
        (factor,) = self.parameters("contrast", severity, side)
        x = as_numpy(image)
        mean = x.mean((0, 1))
        assert levels(corrupt(images, "contrast", severity)[0], (x - mean) * factor + mean) < 0.51

    def test_brightness(self, severity, side):
        color = pytest.importorskip("skimage.color")
        images = photos(1, side)
        images[0, :, 0, 0] = 0
        (offset,) = self.parameters("brightness", severity, side)
        hsv = color.rgb2hsv(as_numpy(images[0]))
        hsv[..., 2] = np.clip(hsv[..., 2] + offset, 0, 1)
        assert levels(corrupt(images, "brightness", severity)[0], color.hsv2rgb(hsv)) < 0.51

    def test_saturate(self, severity, side):
        color = pytest.importorskip("skimage.color")
        images = photos(1, side)
        images[0, :, 0, 0] = 77  # grey: the published code turns it red where the offset is not 0
        factor, offset = self.parameters("saturate", severity, side)
        hsv = color.rgb2hsv(as_numpy(images[0]))
        hsv[..., 1] = np.clip(hsv[..., 1] * factor + offset, 0, 1)
        expected = color.hsv2rgb(hsv)
        assert levels(corrupt(images, "saturate", severity, reference=True)[0], expected - 0.5 / 255) < 0.52
        damaged = corrupt(images, "saturate", severity)
        assert damaged[0, :, 0, 0].tolist() == [77, 77, 77]
        grey = (images == images.amax(1, keepdim=True)).all(1)[0]
        expected[grey.numpy()] = damaged[0].permute(1, 2, 0)[grey].numpy() / 255
        assert levels(damaged[0], expected) < 0.51

    def test_gaussian_blur(self, severity, side):
        filters = pytest.importorskip("skimage.filters")
        images = photos(1, side)
        (sigma,) = self.parameters("gaussian_blur", severity, side)
        expected = filters.gaussian(as_numpy(images[0]), sigma=sigma, channel_axis=-1)
        assert levels(corrupt(images, "gaussian_blur", severity)[0], expected) < 0.51

    def test_defocus_blur(self, severity, side):
        images = photos(1, side)
        radius, alias = self.parameters("defocus_blur", severity, side)
        axis = np.arange(-20, 21)
        disk = (axis[:, None] ** 2 + axis**2 <= radius**2).astype(float)
        taps = np.exp(-0.5 * (np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)) ** 2 / alias**2)
        kernel = ndimage.convolve(disk / disk.sum(), np.outer(taps, taps) / taps.sum() ** 2, mode="constant")
        expected = ndimage.correlate(as_numpy(images[0]), kernel[..., None], mode="mirror")
        assert levels(corrupt(images, "defocus_blur", severity)[0], expected) < 0.52

    def test_pixelate(self, severity, side):
        images = photos(1, side)
        (scale,) = self.parameters("pixelate", severity, side)
        small = (int(side * scale), int(side * scale))
        picture = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize(small, Image.Resampling.BOX)
        expected = np.asarray(picture.resize((side, side), Image.Resampling.BOX)) / 255
        assert levels(corrupt(images, "pixelate", severity)[0], expected) <= 1.01  # Pillow rounds in between

    @pytest.mark.parametrize("channels", [1, 3])
    def test_jpeg(self, severity, side, channels):
        images = photos(2, side, channels)
        (quality,) = self.parameters("jpeg_compression", severity, side)
        damaged = corrupt(images, "jpeg_compression", severity)
        for image, result in zip(images, damaged, strict=True):
            file = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).numpy().squeeze()).save(file, "JPEG", quality=quality)
            expected = np.asarray(Image.open(file)).reshape(side, side, channels)
            assert np.array_equal(result.permute(1, 2, 0).numpy(), expected)

    def test_published_zoom_blur(self, severity, side):
        images = photos(1, side)
        x = as_numpy(images[0])
        stop, step = self.parameters("zoom_blur", severity, side)
        total = x.copy()
        factors = np.arange(1, stop, step)
        for factor in factors:
            cut = math.ceil(side / factor)
            top = (side - cut) // 2
            big = ndimage.zoom(x[top : top + cut, top : top + cut], (factor, factor, 1), order=1)
            trim = (big.shape[0] - side) // 2
            total += big[trim : trim + side, trim : trim + side]
        expected = total / (len(factors) + 1)
        assert levels(corrupt(images, "zoom_blur", severity, reference=True)[0], expected - 0.5 / 255) < 0.53


def test_exact_and_published_zoom_agree_where_the_published_crop_is_exact():
    images = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    smooth_image = torch.nn.functional.interpolate(images[..., ::8, ::8], size=(64, 64), mode="bicubic")
    inside = (..., slice(8, 56), slice(8, 56))
    difference = (zoom(smooth_image, 2.0) - clipped_zoom(smooth_image, 2.0))[inside].abs().mean()
    assert difference < 0.03 < (zoom(smooth_image, 2.0) - smooth_image)[inside].abs().mean()


def test_zoom_keeps_the_centre_and_enlarges_by_the_factor():
    row = torch.linspace(-1, 1, 33).expand(1, 1, 33, 33).contiguous()
    torch.testing.assert_close(zoom(row, 1.25), row / 1.25)


@pytest.mark.parametrize("edge", ["nearest", "reflect"])
@pytest.mark.parametrize(("size", "sigma"), [(9, 0.05), (9, 0.7), (8, 5.0), (30, 12.0)])
def test_gaussian_matrix_is_scipys_filter(size, sigma, edge):
    line = np.random.default_rng(0).random(size)
    expected = ndimage.gaussian_filter1d(line, sigma, mode=edge, truncate=3)
    matrix = gaussian_matrix(size, sigma, truncate=3, edge=edge).double().numpy()
    np.testing.assert_allclose(matrix @ line, expected, atol=1e-6)


def test_motion_is_the_published_sum_of_shifted_images():
    images = torch.rand(2, 3, 12, 15, generator=torch.Generator().manual_seed(0))
    angles = torch.tensor([30.0, -110.0])
    radius, sigma = 4, 2.0
    blurred = motion(images, radius, sigma, angles)
    kernel = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    for b, angle in enumerate(np.deg2rad(angles.numpy().astype(float))):
        expected = np.zeros((3, 12, 15))
        for y in range(12):
            for x in range(15):
                for i, weight in enumerate(kernel):
                    y_from = np.clip(y + math.ceil(i * math.sin(angle) - 0.5), 0, 11)
                    x_from = np.clip(x + math.ceil(i * math.cos(angle) - 0.5), 0, 14)
                    expected[:, y, x] += weight * images[b, :, y_from, x_from].numpy()
        np.testing.assert_allclose(blurred[b].numpy(), expected, atol=1e-5)


def test_plasma_fractal_is_the_published_diamond_square():
    size, decay = 16, 1.7
    noise = torch.rand(2, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for ours, u in zip(plasma_fractal(noise, decay).numpy(), noise.double().numpy(), strict=True):
        heights = np.zeros((size, size))
        step, wobble = size, 100.0
        while step >= 2:
            half = step // 2
            for y in range(0, size, step):
                for x in range(0, size, step):
                    around = [(y, x), (y + step, x), (y, x + step), (y + step, x + step)]
                    mean = sum(heights[a % size, b % size] for a, b in around) / 4
                    heights[y + half, x + half] = mean + wobble * (wobble * u[y + half, x + half])
            for y in range(0, size, half):
                for x in range(half if y % step == 0 else 0, size, step):
                    around = [(y - half, x), (y + half, x), (y, x - half), (y, x + half)]
                    mean = sum(heights[a % size, b % size] for a, b in around) / 4
                    heights[y, x] = mean + wobble * (wobble * u[y, x])
            step, wobble = half, wobble / decay
        heights -= heights.min()
        np.testing.assert_allclose(ours, heights / heights.max(), atol=1e-5)


def test_fog_keeps_the_brightest_value_as_the_ceiling():
    images = torch.full((2, 1, 32, 32), 0.6)
    damaged = corrupt(images, "fog", 5)
    assert float(damaged.max()) <= 0.6 + 1e-6
    assert float(damaged.std()) > 0.02


def test_elastic_transform_moves_pixels_as_a_loop_over_them_does():
    kind, severity, side = "elastic_transform", 4, 20
    images = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0))
    strength, sigma, affine = CORRUPTIONS[kind].parameters(severity, side)
    stream = RandomStream(3, [7])
    centre, reach = side // 2, side // 3
    points = np.array([[centre + reach] * 2, [centre + reach, centre - reach], [centre - reach] * 2], float)
    moved = points + stream.uniform(3, 2, low=-affine * side, high=affine * side)[0].numpy()
    field = stream.uniform(2, side, side, low=-1, high=1)[0].double().numpy()
    field = [
        ndimage.gaussian_filter(f, sigma * side, mode="reflect", truncate=3) * strength * side for f in field
    ]
    back = np.linalg.solve(np.c_[moved, np.ones(3)], points)
    y, x = np.mgrid[:side, :side]
    source = np.stack([x + field[0], y + field[1], np.ones_like(field[0])], -1) @ back
    expected = ndimage.map_coordinates(
        images[0, 0].numpy(), [source[..., 1], source[..., 0]], order=1, mode="mirror"
    )
    damaged = corrupt(images, kind, severity, seed=3, ids=[7])
    np.testing.assert_allclose(damaged[0, 0].numpy(), expected, atol=2e-4)


# Glass blur


def loop_over_pixels(image: np.ndarray, offsets, reach: int, published: bool) -> np.ndarray:
    """(H, W, C): the published double loop, literally; with copies, the swap that was meant."""
    image = image.copy()
    height, width = image.shape[:2]
    last = 1 if published else 0
    for one_round in offsets:
        draws = iter(one_round.tolist())
        for h in range(height - reach - 1 + last, reach - 1 + last, -1):
            for w in range(width - reach - 1 + last, reach - 1 + last, -1):
                dx, dy = next(draws)
                if published:
                    image[h, w], image[h + dy, w + dx] = image[h + dy, w + dx], image[h, w]
                else:
                    here, there = image[h, w].copy(), image[h + dy, w + dx].copy()
                    image[h, w], image[h + dy, w + dx] = there, here
    return image


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize(
    ("height", "width", "reach", "rounds"), [(8, 8, 1, 1), (14, 11, 2, 3), (20, 16, 4, 2)]
)
def test_shuffled_pixels_are_those_of_the_literal_loop(height, width, reach, rounds, published):
    visited = (height - 2 * reach) * (width - 2 * reach)
    offsets = RandomStream(0, [0, 1]).integers(-reach, reach if published else reach + 1, rounds, visited, 2)
    source = shuffle_pixels(offsets, height, width, reach, duplicate=published)
    assert not torch.equal(source[0], source[1])
    for b in range(2):
        image = np.random.default_rng(b).random((height, width, 3))
        expected = loop_over_pixels(image, offsets[b], reach, published)
        assert np.array_equal(image.reshape(-1, 3)[source[b].numpy()].reshape(image.shape), expected)
        pixels = len(set(source[b].tolist()))
        assert pixels < height * width if published else pixels == height * width


@pytest.mark.parametrize("severity", [1, 2, 5])
def test_published_glass_blur_is_the_published_pipeline(severity):
    images = photos(1, 32)
    sigma, reach, rounds = CORRUPTIONS["glass_blur"].cifar[severity - 1]
    offsets = RandomStream(4, [0]).integers(-reach, reach, rounds, (32 - 2 * reach) ** 2, 2)

    def blurred(x):
        return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest")

    x = np.uint8(blurred(as_numpy(images[0])) * 255 + 1e-3)
    x = loop_over_pixels(x, offsets[0], reach, published=True)
    expected = np.clip(blurred(x / 255.0), 0, 1)
    damaged = corrupt(images, "glass_blur", severity, seed=4, reference=True)
    difference = np.abs(damaged[0].permute(1, 2, 0).numpy() - (expected * 255 - 0.5))
    assert float(difference.max()) < 1.6  # where float32 and float64 are cut to neighbouring whole numbers
    assert float((difference > 0.55).mean()) < 0.01
    assert not torch.equal(damaged, corrupt(images, "glass_blur", severity, seed=4))


def test_published_glass_blur_drifts_and_the_right_one_does_not():
    ramp = torch.linspace(0.2, 0.8, 64).expand(8, 1, 64, 64).contiguous()
    middle = (..., slice(16, 48), slice(16, 48))
    right = (corrupt(ramp, "glass_blur", 5) - ramp)[middle].mean() * 63 / 0.6
    published = (corrupt(ramp, "glass_blur", 5, reference=True) - ramp)[middle].mean() * 63 / 0.6
    assert abs(float(right)) < 0.15 < 0.5 < abs(float(published))  # pixels


# Noise


def flat(value: float) -> torch.Tensor:
    return torch.full((4, 3, 64, 64), value)


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_noises_have_their_distributions(severity):
    def of(kind):
        return CORRUPTIONS[kind].parameters(severity, 64)[0]

    noisy = corrupt(flat(0.5), "gaussian_noise", 1)
    assert float(noisy.mean()) == pytest.approx(0.5, abs=0.002)
    assert float(noisy.std()) == pytest.approx(0.08, rel=0.02)

    noisy = corrupt(flat(0.2), "speckle_noise", severity)
    inside = noisy[(noisy > 0) & (noisy < 1)]
    assert float(noisy.median()) == pytest.approx(0.2, abs=0.005)
    quartiles = torch.quantile(inside[:40000], torch.tensor([0.25, 0.75]))
    assert float(quartiles[1] - quartiles[0]) == pytest.approx(
        2 * 0.6745 * 0.2 * of("speckle_noise"), rel=0.1
    )

    photons = of("shot_noise")
    counts = corrupt(flat(0.3), "shot_noise", severity) * photons
    torch.testing.assert_close(counts, counts.round(), atol=1e-3, rtol=0)
    empty = float((counts == 0).float().mean())
    assert empty == pytest.approx(math.exp(-0.3 * photons), abs=0.01)

    amount = of("impulse_noise")
    noisy = corrupt(flat(0.5), "impulse_noise", severity)
    for extreme in (0, 1):
        share = float((noisy == extreme).float().mean())
        assert share == pytest.approx(amount / 2, abs=0.005)
    assert set(noisy.unique().tolist()) == {0, 0.5, 1}


def test_rows_of_a_stream_are_independent():
    drawn = RandomStream(0, range(200)).normal(50)
    correlation = torch.corrcoef(drawn)
    off = correlation[~torch.eye(200, dtype=torch.bool)]
    assert float(off.mean()) == pytest.approx(0, abs=0.01)
    assert float(off.std()) == pytest.approx(50**-0.5, rel=0.1)
    stream = RandomStream(0, [0])
    assert not torch.equal(stream.normal(10), stream.normal(10))


# Frost, spatter


def test_frost_panes_have_the_colours_of_frost_and_cover_two_images():
    panes = frost_panes(32)
    assert panes.shape == (5, 3, 64, 64)
    assert torch.equal(panes, frost_panes.__wrapped__(32))
    assert float(panes[1].mean()) == pytest.approx(0.81, abs=0.02)
    assert bool((panes.mean((2, 3))[:, 2] > panes.mean((2, 3))[:, 0]).all())  # bluish
    assert float(panes.std((2, 3)).min()) > 0.04
    assert torch.equal(luminance(panes[:, :1]), panes[:, :1])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05])
def test_distance_is_scipys_up_to_twenty_pixels(share):
    marked = torch.rand(2, 1, 40, 33, generator=torch.Generator().manual_seed(0)) < share
    for ours, mask in zip(distance_to(marked)[:, 0].numpy(), marked[:, 0].numpy(), strict=True):
        exact = ndimage.distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, 99.0)
        np.testing.assert_allclose(ours, np.minimum(exact, 20), atol=1e-5)


def test_water_brightens_and_mud_browns():
    images = flat(0.5)
    water, mud = corrupt(images, "spatter", 3), corrupt(images, "spatter", 5)
    assert bool((water >= images).all()) and float((water > images).float().mean()) > 0.02
    assert bool((mud <= images).all()) and float((mud < images).float().mean()) > 0.02
    brown = mud[:, :, 0].new_tensor([63, 42, 20]) / 255
    assert bool(((mud - brown.view(1, 3, 1, 1)).abs().amax(1) < 0.02).any())


# Errors


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 32, 32), "four dimensions"),
        (torch.zeros(1, 4, 32, 32), "4 channels"),
        (torch.zeros(1, 3, 7, 32), "at least 8"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.int64), "uint8, or float"),
        (torch.full((1, 3, 32, 32), 1.5), "1.5"),
        (torch.full((1, 3, 32, 32), -0.1), "-0.1"),
        (torch.full((1, 3, 32, 32), float("nan")), "nan"),
        (np.zeros((1, 3, 32, 32), np.uint8), "ndarray"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, message):
    with pytest.raises(InputError, match=message):
        corrupt(images, "fog", 1)


@pytest.mark.parametrize("severity", [0, 6, 2.0, True, "3", None])
def test_severity_outside_one_to_five_is_refused(severity):
    with pytest.raises(InputError, match="severity"):
        corrupt(photos(1, 8), "fog", severity)


def test_other_mistakes_are_refused():
    images = photos(2, 8)
    with pytest.raises(InputError, match="'gaussian_noise'"):
        corrupt(images, "gausian_noise", 1)
    with pytest.raises(InputError, match="seed"):
        corrupt(images, "fog", 1, seed=1.5)
    with pytest.raises(InputError, match="3 for 2 images"):
        corrupt(images, "fog", 1, ids=[1, 2, 3])
    with pytest.raises(InputError, match="no saturation"):
        corrupt(images[:, :1], "saturate", 1)


# Corruption as a shift


@pytest.fixture
def pictures() -> Shift:
    labels = torch.arange(40) % 4
    return Shift(
        name="pictures",
        kind="image",
        inputs=photos(40, 12),
        labels=labels,
        domain=torch.arange(40) // 20,
        classes=("a", "b", "c", "d"),
        domains=("here", "there"),
        ids=[f"photo{i}" for i in range(40)],
        time=np.arange(40),
    )


def test_corruption_shift_has_a_domain_for_each_kind_and_severity(pictures):
    shift = corruption_shift(pictures, ("fog", "contrast"), (1, 5), corrupted=0.4)
    assert shift.domains == ("clean", "fog-1", "fog-5", "contrast-1", "contrast-5")
    assert shift.counts().to_numpy().tolist() == [[6] * 4] + [[4] * 4] * 4
    assert shift.groups == ("here", "there") and len(set(shift.ids)) == len(shift)
    shown = [set(shift.inputs.row[shift.domain == d].tolist()) for d in range(5)]
    assert shown[0].isdisjoint(shown[1]) and shown[0] | shown[1] == set(range(40))
    assert shown[1] == shown[2] == shown[3] == shown[4]
    for row in (0, 25, 60):
        origin = int(shift.inputs.row[row])
        assert shift.ids[row] == f"{shift.domains[shift.domain[row]]}/photo{origin}"
        assert shift.labels[row] == pictures.labels[origin] and shift.time[row] == origin


def test_corruption_shift_shows_the_same_damage_in_any_company(pictures):
    shift = corruption_shift(pictures, ("gaussian_noise", "snow"), (2, 4), seed=3)
    assert shift.inputs.channels == 3 and shift.inputs.size == (12, 12)
    everything = shift.take(torch.arange(len(shift)))
    rows = torch.randperm(len(shift), generator=torch.Generator().manual_seed(0))[:30]
    assert everything.dtype == torch.uint8
    torch.testing.assert_close(everything[rows].int(), shift.take(rows).int(), atol=1, rtol=0)
    clean = shift.domain == 0
    assert torch.equal(everything[clean], pictures.inputs[shift.inputs.row[clean]])
    row = int((shift.domain == 2).nonzero()[0])
    origin = int(shift.inputs.row[row])
    assert torch.equal(
        everything[row],
        corrupt(pictures.inputs[origin : origin + 1], "gaussian_noise", 4, seed=3, ids=[origin])[0],
    )
    assert torch.equal(pictures.inputs, photos(40, 12))


def test_corruption_shift_can_be_split_and_told_apart(pictures):
    shift = corruption_shift(pictures, "fog", 3)
    split = shift.split("fog-3")
    assert split.train_domains == ("clean",)
    assert corruption_shift(pictures, "fog", 3).fingerprint == shift.fingerprint
    assert corruption_shift(pictures, "fog", 3, seed=1).fingerprint != shift.fingerprint
    assert corruption_shift(pictures, "fog", 2).fingerprint != shift.fingerprint
    assert len(corruption_shift(pictures).domains) == 1 + 15 * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": "fogg"}, "'fog'"),
        ({"kinds": ()}, "at least one"),
        ({"severities": (1, 1)}, "each once"),
        ({"severities": 6}, "severity"),
        ({"corrupted": 1.0}, "share"),
    ],
)
def test_corruption_shift_refuses(pictures, options, message):
    with pytest.raises(InputError, match=message):
        corruption_shift(pictures, **options)


def test_corruption_shift_needs_images_that_can_be_corrupted(pictures):
    pictures.kind = "array"
    with pytest.raises(InputError, match="Only images"):
        corruption_shift(pictures)
    pictures.kind, pictures.inputs = "image", pictures.inputs[:, :, :6]
    with pytest.raises(InputError, match="at least 8"):
        corruption_shift(pictures)
