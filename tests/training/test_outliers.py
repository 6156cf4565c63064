"""Known outliers on their way: from the shift, a file or the command line to the batch of an objective."""

import numpy as np
import pandas as pd
import pytest
import torch

import unseen
from unseen.errors import InputError
from unseen.shifts.arrays import from_arrays
from unseen.training import Learner, fit
from unseen.training.data import TrainingData
from unseen.training.fit import train

RUN = Learner(
    objective="oe", network="mlp(width=8, depth=1)", steps=6, batch_size=4, evaluations=1, keep="last"
)


def shift(count=48):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, generator=generator) * 5 + 2
    return from_arrays(x, torch.arange(count) % 2, torch.arange(count) // 2 % 3)


def test_they_are_encoded_as_examples_are_and_change_nothing_else():
    plain = shift()
    outliers = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
    exposed = plain.with_outliers(outliers)
    assert exposed.fingerprint != plain.fingerprint == shift().fingerprint
    assert exposed.fingerprint != plain.with_outliers(outliers + 1).fingerprint
    assert exposed.subset(torch.arange(12)).outliers is outliers
    one, two = (TrainingData(s.split("2")) for s in (plain, exposed))
    assert torch.equal(one.stored, two.stored) and torch.equal(one.split.train, two.split.train)
    torch.testing.assert_close(two.stored_outliers, one.preprocessing.encode(outliers))
    batch = two.batch(torch.arange(4), 0, outliers=torch.tensor([7, 2]))
    torch.testing.assert_close(batch.auxiliary, two.stored_outliers[[7, 2]])
    assert two.batch(torch.arange(4), 0).auxiliary is None


def test_every_step_has_as_many_as_examples_and_a_small_set_starts_over():
    data = TrainingData(shift().with_outliers(torch.randn(5, 3)).split("2"))
    sampler = data.outlier_sampler(4, seed=1)
    drawn = torch.cat([sampler.rows(step) for step in range(10)])
    assert all(len(sampler.rows(step)) == 8 for step in range(3))
    assert drawn.bincount().tolist() == [16] * 5  # 80 draws of 5: none is left out, none comes more often
    assert torch.equal(sampler.rows(3), data.outlier_sampler(4, seed=1).rows(3))


def test_only_objectives_that_ask_for_them_feel_them():
    states = {}
    for name, outliers in (("a", torch.zeros(4, 3)), ("b", 9 * torch.ones(4, 3))):
        data = TrainingData(shift().with_outliers(outliers).split("2"))
        for objective in ("oe", "erm"):
            states[name, objective] = train(RUN.replace(objective=objective), data).state["head.weight"]
    assert torch.equal(states["a", "erm"], states["b", "erm"])
    assert not torch.equal(states["a", "oe"], states["b", "oe"])


def test_none_and_wrong_ones_are_refused():
    with pytest.raises(InputError, match="outliers: are none"):
        shift().with_outliers(torch.zeros(0, 3))
    with pytest.raises(InputError, match=r"outliers: have examples of shape \(4,\)"):
        shift().with_outliers(torch.zeros(5, 4))
    with pytest.raises(InputError, match="objective 'oe': learns from known outliers"):
        fit(RUN, shift().split("2"))


def table(path, count, seed=0):
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame(generator.normal(size=(count, 2)), columns=["a", "b"])
    frame["y"], frame["d"] = np.arange(count) % 2, np.arange(count) // 2 % 3
    frame.to_csv(path, index=False)
    return path


def test_files_are_opened_in_the_form_of_the_data_and_named_for_the_record(tmp_path):
    data, others = table(tmp_path / "data.csv", 40), table(tmp_path / "others.csv", 9, seed=1)
    opened = unseen.open_shift(data, label="y", domain="d", outliers=others)
    assert len(opened.outliers) == 9 and len(opened) == 40
    again = unseen.open_shift(**opened.source)
    assert again.fingerprint == opened.fingerprint
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 1, 8, 8), dtype=np.uint8))
    with pytest.raises(InputError, match="outliers: data"):
        unseen.open_shift(data, label="y", domain="d", outliers=tmp_path / "x.npz")
    with pytest.raises(InputError, match="does not exist"):
        unseen.open_shift(data, label="y", domain="d", outliers=tmp_path / "none.csv")
    table(tmp_path / "empty.csv", 0)
    with pytest.raises(InputError):
        unseen.open_shift(data, label="y", domain="d", outliers=tmp_path / "empty.csv")


def test_the_command_line_takes_them(tmp_path):
    from typer.testing import CliRunner

    from unseen.cli import app

    data, others = table(tmp_path / "data.csv", 60), table(tmp_path / "others.csv", 20, seed=1)
    arguments = ["run", str(data), "--label", "y", "--domain", "d", "--unseen", "2", "--learners", "oe,erm"]
    arguments += ["--seeds", "1", "--steps", "4", "--batch-size", "4", "--engine", "serial"]
    arguments += ["--outliers", str(others), "--out", str(tmp_path / "run")]
    outcome = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    assert (tmp_path / "run" / "model").is_dir() and "oe" in outcome.output
