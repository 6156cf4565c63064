"""Steering for a predictor: raw inputs of one place, or of named groups, choose the heads that answer them."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from unseen.errors import InputError
from unseen.networks.domain_heads import DomainHeads
from unseen.networks.steering import Steered, Steering
from unseen.training.predictor import Predictor

SHARED = "all"
"""Name of the head that was trained on all domains."""


def predict_steered(
    predictor: Predictor,
    inputs: Any,
    groups: Sequence[Hashable] | None = None,
    steering: Steering = Steering(),
) -> pd.DataFrame:
    """One row an example: label, a probability a class, and the head (a training domain, or "all") that counts most.

    predictor  trained with the objective drm
    inputs     raw, as for `Predictor.predict`
    groups     a name for each example, such as its patient or camera: each group chooses by itself. None takes
               all inputs for one group, so they should come from one place
    """
    _, steered = _steer(predictor, inputs, groups, steering)
    names = head_names(predictor)
    table = pd.DataFrame({"label": [predictor.classes[i] for i in steered.predictions.tolist()]})
    for index, name in enumerate(predictor.classes):
        table[f"p({name})"] = steered.probabilities[:, index].numpy()
    table["head"] = [names[i] for i in steered.head.tolist()]
    return table


def settle(predictor: Predictor, inputs: Any, steering: Steering = Steering()) -> Predictor:
    """A predictor that answers, from now on, with the head that unlabelled `inputs` of one place choose.

    It is saved and exported like any other, and its answers depend on one example each. It has no sense of the
    familiar, whose threshold belonged to the answers of another head, and no evaluation: fit and judge it anew.
    Its facts hold the head's name as "head".
    """
    if steering.unit != "batch" or steering.gamma is not None:
        raise InputError(
            "steering to settle by",
            f"chooses for each {steering.unit} with gamma {steering.gamma}",
            'Use unit="batch" and gamma=None, which choose one head for all inputs.',
        )
    network, steered = _steer(predictor, inputs, None, steering)
    chosen = int(steered.head[0])
    network = copy.deepcopy(network)
    network.head.choose(chosen)
    facts = {name: fact for name, fact in predictor.facts.items() if name != "evaluation"}
    facts["head"] = head_names(predictor)[chosen]
    return Predictor(network, predictor.preprocessing, predictor.classes, facts=facts)


def head_names(predictor: Predictor) -> list[str]:
    """The training domains in the order of their heads, and "all" for the shared head, which is the last."""
    network = _domain_heads(predictor)
    known = predictor.facts.get("train_domains", [f"domain {i}" for i in range(network.domains)])
    return [*known, SHARED]


def _steer(
    predictor: Predictor, inputs: Any, groups: Sequence[Hashable] | None, steering: Steering
) -> tuple[DomainHeads, Steered]:
    network, number = _domain_heads(predictor), None
    features = predictor.outputs(inputs).features
    if groups is not None:
        if len(groups) != len(features):
            problem = f"are {len(groups)} for {len(features)} examples"
            raise InputError("groups", problem, "Name one for each example.")
        names = {name: index for index, name in enumerate(dict.fromkeys(groups))}
        number = torch.tensor([names[name] for name in groups], device=predictor.device)
        steering = replace(steering, unit="group")
    with torch.no_grad():
        steered = steering.steer(network, features.to(predictor.device), number)
    return network, Steered(**{name: value.cpu() for name, value in vars(steered).items()})


def _domain_heads(predictor: Predictor) -> DomainHeads:
    if not isinstance(predictor.network, DomainHeads):
        raise InputError(
            f"network {type(predictor.network).__name__}",
            "has no heads of domains",
            "Train it with the objective drm.",
        )
    return predictor.network
