import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from unseen.detection import Familiarity
from unseen.errors import InputError
from unseen.networks import Bank
from unseen.shifts.arrays import from_arrays
from unseen.training import Learner, Predictor, fit
from unseen.training.data import TrainingData
from unseen.training.model_folder import load, save
from unseen.training.reference import Reference, read_reference


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    x = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
    split = from_arrays(x.numpy(), (x[:, 0] > 0).long().numpy(), torch.arange(90).numpy() % 3).split("2")
    data = TrainingData(split)
    made = fit(Learner(steps=5, batch_size=8), split, data=data)
    validation = data.bank(made.network, "validation")
    made.know_familiar("msp", data.bank(made.network, "train"), validation)
    made.reference = Reference.of(validation, made.familiarity)
    return made


def test_a_reference_is_a_sample_of_validation_with_its_scores(predictor):
    bank = Bank(torch.arange(50.0)[:, None].expand(50, 3), torch.randn(50, 2), torch.arange(50) % 2)
    known = Familiarity.fit("msp", bank, bank)
    part = Reference.of(bank, known, most=20, seed=1)
    rows = part.features[:, 0].long()
    assert len(part) == 20 and len(rows.unique()) == 20
    assert torch.equal(part.logits, bank.logits[rows]) and torch.equal(part.labels, bank.labels[rows])
    assert torch.equal(part.scores, known.score(bank.take(rows)))
    assert torch.equal(part.features, Reference.of(bank, known, most=20, seed=1).features)
    assert not torch.equal(part.features, Reference.of(bank, known, most=20, seed=2).features)
    assert torch.equal(Reference.of(bank, known).features, bank.features), "all there is, in order"


def test_a_bank_without_labels(predictor):
    bank = Bank(torch.randn(5, 3), torch.randn(5, 2))
    with pytest.raises(InputError, match="validation: has no labels"):
        Reference.of(bank, predictor.familiarity)


def test_the_model_folder_keeps_it_and_reads_it_when_asked(predictor, tmp_path):
    folder = save(predictor, tmp_path / "model")
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert (folder / "reference.safetensors").is_file() and len(modes) == 1
    loaded = load(folder)
    for name in ("features", "logits", "labels", "scores"):
        assert torch.equal(getattr(loaded.reference, name), getattr(predictor.reference, name))
    lazy = load(folder)
    os.remove(folder / "reference.safetensors")
    with pytest.raises(InputError, match=r"reference\.safetensors.*cannot be read"):
        lazy.reference  # noqa: B018
    assert load(folder).reference is None, "folders of earlier versions have none"


def test_saving_a_loaded_model_over_itself_keeps_it(predictor, tmp_path):
    folder = save(predictor, tmp_path / "model")
    save(load(folder), folder)
    assert torch.equal(load(folder).reference.scores, predictor.reference.scores)


def test_files_that_are_no_reference(predictor, tmp_path):
    folder = save(predictor, tmp_path / "model")
    path = folder / "reference.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "scores": tensors["scores"][1:].contiguous()}, path)
    with pytest.raises(InputError, match="of equal length"):
        read_reference(path)
    shutil.copy(folder / "weights.safetensors", path)
    with pytest.raises(InputError, match="has the parts"):
        load(folder).reference  # noqa: B018
    path.write_bytes(b"half")
    with pytest.raises(InputError, match="cannot be read"):
        load(folder).reference  # noqa: B018
