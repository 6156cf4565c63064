"""The feature cache: nothing computed twice, nothing half written, nothing mixed up."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

from unseen.errors import InputError
from unseen.networks.feature_cache import BATCH, cache_folder, cached_features, content_hash


class Encoder:
    """Sums of rows and squares; counts rows; fails when asked for more than `limit` rows."""

    def __init__(self, limit: int = 10**9):
        self.rows, self.limit = 0, limit

    def __call__(self, raw: torch.Tensor) -> torch.Tensor:
        if self.rows + len(raw) > self.limit:
            raise KeyboardInterrupt
        self.rows += len(raw)
        return torch.stack([raw.sum(1), raw.square().sum(1), raw[:, 0]], 1)


@pytest.fixture
def data(generator) -> torch.Tensor:
    return torch.randn(3 * BATCH + 7, 5, generator=generator)


def expected(data: torch.Tensor) -> np.ndarray:
    return Encoder()(data).numpy()


def test_features_are_right_and_a_second_call_computes_nothing(data, tmp_path):
    first, second = Encoder(), Encoder()
    seen = []
    features = cached_features(
        first, data, 3, "key", folder=tmp_path, progress=lambda done, of: seen.append((done, of))
    )
    np.testing.assert_array_equal(features, expected(data))
    assert first.rows == len(data)
    assert seen == [(BATCH, 199), (2 * BATCH, 199), (3 * BATCH, 199), (199, 199)]
    again = cached_features(second, data.clone(), 3, "key", folder=tmp_path)
    assert second.rows == 0
    np.testing.assert_array_equal(again, features)
    assert isinstance(again, np.memmap) and not again.flags.writeable


def test_a_killed_computation_goes_on_where_it_was(data, tmp_path):
    killed = Encoder(limit=2 * BATCH)
    with pytest.raises(KeyboardInterrupt):
        cached_features(killed, data, 3, "key", folder=tmp_path)
    assert not list(tmp_path.glob("*.npy"))
    rest = Encoder()
    features = cached_features(rest, data, 3, "key", folder=tmp_path)
    assert rest.rows == len(data) - 2 * BATCH
    np.testing.assert_array_equal(features, expected(data))
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("left", [0, 5, 60, 128, 131, 128 + 12 * 70 + 5])
def test_a_file_cut_at_any_byte_is_repaired(data, tmp_path, left):
    """The header has 128 bytes and a row 12: cut inside the header, behind it, inside rows."""
    with pytest.raises(KeyboardInterrupt):
        cached_features(Encoder(limit=2 * BATCH), data, 3, "key", folder=tmp_path)
    (part,) = tmp_path.glob("*.part")
    part.write_bytes(part.read_bytes()[:left])
    rest = Encoder()
    np.testing.assert_array_equal(cached_features(rest, data, 3, "key", folder=tmp_path), expected(data))
    assert rest.rows == len(data) - max(0, left - 128) // 12


def test_another_key_dataset_order_or_precision_is_another_file(data, tmp_path):
    variants = [
        (data, "key", "float32"),
        (data, "other weights", "float32"),
        (data.flip(0), "key", "float32"),
        (data + 1e-6, "key", "float32"),
        (data, "key", "float16"),
    ]
    for count, (inputs, key, dtype) in enumerate(variants, 1):
        encoder = Encoder()
        features = cached_features(encoder, inputs, 3, key, dtype=dtype, folder=tmp_path)
        assert encoder.rows == len(data) and features.dtype == dtype
        assert len(list(tmp_path.glob("*.npy"))) == count
    np.testing.assert_allclose(features, expected(data), rtol=1e-3, atol=1e-3)


def test_content_hash_tells_texts_shapes_and_types_apart():
    inputs = [
        ["ab", "c"],
        ["a", "bc"],
        ["abc"],
        torch.zeros(2, 3),
        torch.zeros(3, 2),
        torch.zeros(2, 3, dtype=torch.int32),
    ]
    assert len({content_hash(value) for value in inputs}) == len(inputs)
    assert content_hash(torch.arange(6).view(2, 3).T) == content_hash(np.arange(6).reshape(2, 3).T)


def _compute(folder: Path, barrier, counts) -> None:
    data = torch.randn(3 * BATCH, 5, generator=torch.Generator().manual_seed(0))
    encoder = Encoder()
    barrier.wait()
    features = cached_features(encoder, data, 3, "key", folder=folder)
    counts.put((encoder.rows, bool((features == expected(data)).all())))


def test_processes_that_want_the_same_features_share_one_computation(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, counts = context.Barrier(3), context.Queue()
    workers = [context.Process(target=_compute, args=(tmp_path, barrier, counts)) for _ in range(3)]
    for worker in workers:
        worker.start()
    found = [counts.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join(30)
    assert sorted(rows for rows, _ in found) == [0, 0, 3 * BATCH]
    assert all(right for _, right in found)


def test_folder_comes_from_the_environment(monkeypatch, tmp_path, data):
    monkeypatch.setenv("UNSEEN_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    cached_features(Encoder(), data, 3, "key")
    assert len(list((tmp_path / "here" / "features").glob("*.npy"))) == 1
    monkeypatch.delenv("UNSEEN_CACHE")
    assert cache_folder().name == "unseen"


def test_errors(data, tmp_path):
    with pytest.raises(InputError, match="float64"):
        cached_features(Encoder(), data, 3, "key", dtype="float64", folder=tmp_path)
    with pytest.raises(InputError, match="3 columns"):
        cached_features(Encoder(), data, 4, "key", folder=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="UNSEEN_CACHE"):
        cached_features(Encoder(), data, 3, "key", folder=tmp_path / "file" / "folder")
