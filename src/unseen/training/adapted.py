"""Test-time adaptation for a predictor: raw inputs are answered in the order in which they come."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

from unseen.errors import InputError
from unseen.registry import Spec, adaptation
from unseen.shifts import Shift
from unseen.shifts.batch import map_tensors
from unseen.shifts.shift import count_rows, take
from unseen.training.predictor import Predictor


def predict_adapted(
    predictor: Predictor, inputs: Any, method: str | Spec, *, batch_size: int = 64, seed: int = 0
) -> pd.DataFrame:
    """One row an example: label and a probability a class, by a copy of the network that adapts batch by batch.

    inputs      raw, as for `Predictor.predict`, in order of arrival
    method      name of an adaptation (`unseen list adaptation`), with options; one that needs inputs of the training
                distribution is refused, because a model folder holds none
    batch_size  examples that are answered, and learnt from, together
    There is no familiarity: its threshold belongs to the network as it was. The predictor is not changed.
    """
    if batch_size < 1:
        raise InputError("batch_size", f"is {batch_size}", "Give a whole number from 1, such as 64.")
    adapted = adaptation.build(method, network=predictor.network, seed=seed)
    if adapted.needs_source:
        raise InputError(
            f"adaptation {str(method)!r}",
            "needs inputs of the training distribution, which a model folder does not hold",
            "Build it in Python and call prepare(source), or choose one that needs none, such as tent.",
        )
    preprocessing, device = predictor.preprocessing, predictor.device
    stored = preprocessing.encode(inputs.inputs if isinstance(inputs, Shift) else inputs)
    logits = [torch.zeros(0, predictor.network.classes)]
    for rows in torch.arange(count_rows(stored)).split(batch_size):
        if len(rows):
            x = preprocessing.finish(map_tensors(lambda t: t.to(device), take(stored, rows)))
            logits.append(adapted.adapt(x).float().cpu())
    probabilities = torch.cat(logits).softmax(1)
    table = pd.DataFrame({"label": [predictor.classes[i] for i in probabilities.argmax(1).tolist()]})
    for index, name in enumerate(predictor.classes):
        table[f"p({name})"] = probabilities[:, index].numpy()
    return table
