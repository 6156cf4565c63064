"""Banks in folders: the same bits, memory-mapped, whole or not there, and no other network's."""

import json
import multiprocessing
import os
import signal
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.networks import Bank
from unseen.networks.bank_files import DESCRIPTION, write_bank

MAPS = Path("/proc/self/maps")
"""Files that are mapped into memory, where the system says so."""


def made(count: int = 50, hash_: int | None = 7, seed: int = 0) -> Bank:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = nn.Linear(6, 3)
    features = torch.randn(count, 6, generator=generator) * 30
    return Bank(
        features,
        head(features).detach(),
        torch.arange(count) % 3,
        torch.arange(count) % 2,
        torch.arange(count) + 100,
        head,
        {"odin(1000, 0.01)": torch.randn(count, 2, 3, generator=generator), "flags": torch.arange(count) > 4},
        ("north", "south"),
        hash_,
    )


def assert_equal(one: Bank, other: Bank) -> None:
    for name in ("features", "logits", "labels", "domain", "ids"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert getattr(one, name).dtype == getattr(other, name).dtype
    assert one.layers.keys() == other.layers.keys()
    assert all(torch.equal(value, other.layers[name]) for name, value in one.layers.items())
    assert (one.domains, one.network_hash) == (other.domains, other.network_hash)
    assert torch.equal(one.head.weight, other.head.weight) and torch.equal(one.head.bias, other.head.bias)


def files(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".lock")


def test_float32_comes_back_bit_by_bit_and_memory_mapped(tmp_path):
    bank = made()
    folder = bank.save(tmp_path / "bank")
    found = Bank.open(folder, network=7)
    assert_equal(bank, found)
    if MAPS.exists():
        assert f"{folder}/000.npy" in MAPS.read_text() and f"{folder}/006.npy" in MAPS.read_text()
    found.features.zero_()  # the memory of this bank, and not the file
    assert_equal(bank, Bank.open(folder))
    assert files(tmp_path) == ["bank", *(f"bank/{i:03d}.npy" for i in range(7)), "bank/bank.json",
                               "bank/head_bias.npy", "bank/head_weight.npy"]  # fmt: skip


def test_float16_rounds_to_11_digits(tmp_path):
    bank = made(2000)
    found = Bank.open(bank.save(tmp_path / "bank", dtype="float16"))
    for name in ("features", "logits"):
        exact, rounded = getattr(bank, name), getattr(found, name)
        assert rounded.dtype == torch.float16
        error = (rounded.double() - exact.double()).abs()
        assert (error <= exact.double().abs() * 2**-11 + 3e-8).all() and error.max() > 0
    assert torch.equal(found.layers["odin(1000, 0.01)"], bank.layers["odin(1000, 0.01)"])
    assert found.probabilities.dtype == torch.float32
    assert torch.allclose(found.probabilities, bank.probabilities, atol=5e-2)
    size = sum(path.stat().st_size for path in (tmp_path / "bank").glob("000.npy"))
    assert size == 128 + 2000 * 6 * 2
    with pytest.raises(InputError, match="features: have values up to 7e.04, which float16 cannot hold"):
        replace(bank, features=bank.features.clamp(min=7e4)).save(tmp_path / "other", dtype="float16")
    assert files(tmp_path / "other") == []


@pytest.mark.parametrize("sizes", [(50,), (20, 20, 10), (0, 50), (1,) * 50])
def test_parts_make_the_same_bank(sizes, tmp_path):
    bank, start, parts = made(), 0, []
    for size in sizes:
        parts.append(bank.take(slice(start, start + size)))
        start += size
    assert_equal(bank, Bank.open(write_bank(tmp_path / "bank", iter(parts), 50)))


@pytest.mark.parametrize("count", [0, 1])
def test_none_and_one_example(count, tmp_path):
    bank = made(count)
    assert_equal(bank, Bank.open(bank.save(tmp_path / "bank")))


def test_optional_parts_may_be_missing(tmp_path):
    bank = Bank(torch.randn(4, 2), torch.randn(4, 3))
    found = Bank.open(bank.save(tmp_path / "bank"))
    assert (found.labels, found.domain, found.ids, found.head, found.network_hash) == (None,) * 5
    assert found.layers == {} and torch.equal(found.features, bank.features)
    bare = replace(made(), head=nn.Linear(6, 3, bias=False))
    assert Bank.open(bare.save(tmp_path / "bare")).head.bias is None


def test_the_outputs_of_another_network_or_of_other_inputs_are_refused(tmp_path):
    folder = write_bank(tmp_path / "bank", [made()], 50, data="abc")
    assert len(Bank.open(folder, network=7, data="abc")) == 50
    with pytest.raises(InputError, match="holds outputs of another network"):
        Bank.open(folder, network=8)
    with pytest.raises(InputError, match="holds outputs for other inputs"):
        Bank.open(folder, data="abd")
    unknown = made(hash_=None).save(tmp_path / "unknown")
    with pytest.raises(InputError, match="holds outputs, perhaps of another network"):
        Bank.open(unknown, network=7)


@pytest.mark.parametrize("cut", [1, 100, -1])
def test_a_file_that_is_cut_short_is_refused(cut, tmp_path):
    folder = made().save(tmp_path / "bank")
    path = folder / "000.npy"
    content = path.read_bytes()
    path.write_bytes(content + b"x" if cut < 0 else content[:-cut] if cut < 100 else content[:cut])
    with pytest.raises(InputError, match=r"000.npy.*is not whole"):
        Bank.open(folder)
    path.unlink()
    with pytest.raises(InputError, match="is not whole .No such file"):
        Bank.open(folder)


def test_what_is_no_bank_is_refused_and_never_overwritten(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        Bank.open(tmp_path / "nothing")
    with pytest.raises(InputError, match="holds no bank"):
        Bank.open(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds more than a bank .notes.txt."):
        made().save(tmp_path)
    with pytest.raises(InputError, match="holds more than a bank"):
        made().save(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    folder = made().save(tmp_path / "bank")
    description = json.loads((folder / DESCRIPTION).read_text())
    for text, problem in (
        ("{", "does not describe a bank"),
        (json.dumps({**description, "format": 2}), "has format 2"),
        (json.dumps({**description, "parts": {}}), "does not describe a bank"),
        (json.dumps({"format": 1, "parts": description["parts"]}), "does not describe a bank"),
    ):
        (folder / DESCRIPTION).write_text(text)
        with pytest.raises(InputError, match=problem):
            Bank.open(folder)


def test_an_older_bank_is_replaced_and_stays_readable_where_it_is_open(tmp_path):
    folder = made().save(tmp_path / "bank")
    before = Bank.open(folder)
    made(20, seed=1).save(folder)
    assert_equal(Bank.open(folder), made(20, seed=1))
    assert_equal(before, made())
    before.save(folder, dtype="float16")  # from the file that it replaces
    assert Bank.open(folder).features.dtype == torch.float16


def test_parts_that_differ_or_do_not_add_up_leave_nothing(tmp_path):
    bank, folder = made(), tmp_path / "bank"
    for other in (
        replace(bank, network_hash=8),
        replace(bank, labels=None),
        replace(bank, layers={}),
        replace(bank, features=bank.features[:, :5]),
        replace(bank, domains=("north",)),
    ):
        with pytest.raises(InputError, match="differ in what they hold"):
            write_bank(folder, [bank, other], 100)
    for parts, rows in (([bank], 51), ([bank, bank], 99), ([], 0)):
        with pytest.raises(InputError, match=f"{rows} were announced"):
            write_bank(folder, parts, rows)
    with pytest.raises(InputError, match="dtype: is 'float64'"):
        write_bank(folder, [bank], 50, dtype="float64")
    assert files(tmp_path) == []


def test_no_more_than_one_part_is_in_memory(tmp_path):
    alive: list[weakref.ref] = []

    def parts():
        for number in range(6):
            bank = made(10, seed=number)
            assert sum(reference() is not None for reference in alive) <= 2  # features of the last part
            alive.extend(weakref.ref(value) for value in (bank.features, bank.logits))
            yield bank

    write_bank(tmp_path / "bank", parts(), 60)
    assert len(alive) == 12


def _killed(folder) -> None:
    def parts():
        yield made()
        os.kill(os.getpid(), signal.SIGKILL)

    write_bank(folder, parts(), 100)


def test_a_killed_writer_leaves_no_bank_and_does_not_stop_the_next(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(tmp_path / "bank",))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "bank").exists() and (tmp_path / ".bank.part").exists()
    assert_equal(made(), Bank.open(made().save(tmp_path / "bank")))
    assert not (tmp_path / ".bank.part").exists()
