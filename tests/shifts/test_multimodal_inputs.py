import json

import numpy as np
import pytest
import torch

from unseen.errors import InputError
from unseen.shifts.multimodal import from_modalities
from unseen.shifts.preprocessing import Preprocessing, fit_preprocessing

LABELS, DOMAIN = np.array(["no", "yes"] * 6), np.array(["a", "b", "c"] * 4)


def arrays(seed=0):
    generator = np.random.default_rng(seed)
    return {"text": generator.integers(0, 9, (12, 5)), "sound": generator.normal(3, 2, (12, 4, 2))}


def test_numbers_are_standardised_over_training_rows_and_tokens_stay():
    shift = from_modalities(arrays(), LABELS, DOMAIN)
    rows = torch.arange(8)
    made = fit_preprocessing(shift, rows)
    assert made.shape == {"text": [5], "sound": [4, 2]}
    encoded = Preprocessing.from_json(json.loads(json.dumps(made.to_json()))).encode(shift.inputs)
    assert torch.equal(encoded["text"], torch.from_numpy(arrays()["text"]))
    inside = encoded["sound"][:8].flatten(0, 1)
    torch.testing.assert_close(inside.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(inside.std(0, correction=0), torch.ones(2), atol=1e-5, rtol=0)


def test_splits_and_fingerprints_work():
    shift = from_modalities(arrays(), LABELS, DOMAIN)
    split = shift.split("c")
    assert split.unseen_domains == ("c",) and set(split.unseen.tolist()) == {2, 5, 8, 11}
    assert shift.fingerprint != from_modalities(arrays(1), LABELS, DOMAIN).fingerprint


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"text": np.zeros((12, 5))}, "modality 'text': has shape"),
        ({"text": np.full((12, 5), -1)}, "negative tokens"),
        ({"sound": np.zeros((11, 4, 2))}, "different numbers of rows"),
    ],
)
def test_other_arrays_are_told(changes, match):
    with pytest.raises(InputError, match=match):
        from_modalities(arrays() | changes, LABELS, DOMAIN)


def test_other_inputs_than_in_training_are_told():
    shift = from_modalities(arrays(), LABELS, DOMAIN)
    made = fit_preprocessing(shift, torch.arange(12))
    with pytest.raises(InputError, match=r"modalities: are \['text'\]"):
        made.encode({"text": arrays()["text"]})
    with pytest.raises(InputError, match="modality 'sound': has examples of shape"):
        made.encode(arrays() | {"sound": np.zeros((12, 3, 2))})
    with pytest.raises(InputError, match="NaN"):
        made.encode(arrays() | {"sound": np.full((12, 4, 2), np.nan)})
