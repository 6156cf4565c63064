"""A model of small digits with its reference, and streams of digits for it."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from unseen.shifts.opening import open_shift
from unseen.training import Learner, Predictor, fit
from unseen.training.data import TrainingData
from unseen.training.reference import Reference


@dataclass
class Digits:
    predictor: Predictor
    calm: np.ndarray
    """(300, C, H, W) uint8: digits of the training domains, held out."""
    moved: np.ndarray
    """(300, C, H, W) uint8: digits of a domain that was held out whole."""


@pytest.fixture(scope="session")
def digits() -> Digits:
    shift = open_shift("digits")
    split = shift.split("photo", seed=0)
    data = TrainingData(split)
    predictor = fit(Learner(network="mlp", steps=60, learning_rate=0.01, batch_size=32), split, data=data)
    validation = data.bank(predictor.network, "validation")
    order = torch.randperm(len(validation), generator=torch.Generator().manual_seed(0))
    known, calm = validation.take(order[:300]), split.validation[order[300:]]
    predictor.know_familiar("knn", data.bank(predictor.network, "train"), known)
    predictor.reference = Reference.of(known, predictor.familiarity)
    moved = split.unseen[torch.randperm(len(split.unseen), generator=torch.Generator().manual_seed(1))[:300]]
    return Digits(predictor, shift.inputs[calm].numpy(), shift.inputs[moved].numpy())
