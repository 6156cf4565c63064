"""Data-free extrapolation at full scale: a language model proposes, a text-to-image model draws."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unseen.errors import InputError
from unseen.extrapolation import (
    ChatEndpoint,
    DiffusersGenerator,
    LLMProposer,
    extrapolate,
    mix,
    read_manifest,
)
from unseen.extrapolation.mixing import of_domains
from unseen.extrapolation.proposals import named
from unseen.papers.left_out_domains import image_folder
from unseen.registry import Spec
from unseen.shifts.opening import open_shift
from unseen.shifts.shift import Shift
from unseen.training.data import TrainingData
from unseen.training.fit import fit
from unseen.training.learner import Learner

SHARES = {"collected images": 0.0, "collected and generated images": 0.5, "generated images": 1.0}
"""Condition -> part of the training examples that is generated."""
IMAGES_A_STEP = 96


def left_out_accuracies(
    condition: str, seed: int, real: Shift | None = None, synthetic: Shift | None = None, **settings: Any
) -> dict[str, float]:
    """Accuracy on every real domain when it is left out (all of them, for generated images alone).

    The budget is the number of collected training images, or of generated ones when they are fewer. Generated
    domains whose name or description names the left-out domain are left out with it.

    real       default: the folder of `image_folder`
    synthetic  default: `generated_images` of its classes
    settings   of the `Learner`, in place of DomainBed's defaults
    """
    real = open_shift(image_folder()) if real is None else real
    synthetic = generated_images(real) if synthetic is None else synthetic
    defaults: dict[str, Any] = {
        "network": Spec.make("pretrained", name=os.environ.get("UNSEEN_BACKBONE", "efficientnet-lite0")),
        "learning_rate": 5e-5,
        "steps": 5000,
        "evaluations": 17,
    }
    share = SHARES[condition]
    found = {}
    for number, name in enumerate(real.domains):
        honest = _without(synthetic, name)
        budget = min(int((real.domain != number).sum()), len(honest))
        unseen = real.domains if share == 1 else (name,)
        mixed = mix(real, honest, share=share, budget=budget, unseen=unseen, as_domain="generated", seed=seed)
        split = mixed.split(unseen=unseen, seed=seed)
        batch_size = IMAGES_A_STEP // len(split.train_domains)
        data = TrainingData(split)
        learner = Learner(objective=Spec("erm"), **{**defaults, "batch_size": batch_size, **settings})
        network = fit(learner, split, seed=seed, data=data).network
        judged = split.unseen[mixed.domain[split.unseen] == number]
        found[name] = float(np.mean(data.bank(network, judged).correct.numpy()))
    return found


def generated_images(real: Shift, domains: int = 64, per_cell: int = 20) -> Shift:
    """Images of the classes of `real`, made (or found) in $UNSEEN_DATA/extrapolated.

    $UNSEEN_ENDPOINT and $UNSEEN_LANGUAGE_MODEL name a chat model, $UNSEEN_TEXT_TO_IMAGE a model of diffusers.
    """
    names = ("UNSEEN_DATA", "UNSEEN_ENDPOINT", "UNSEEN_LANGUAGE_MODEL", "UNSEEN_TEXT_TO_IMAGE")
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise InputError(
            "full scale",
            f"needs {', '.join(missing)}",
            "Set UNSEEN_DATA to a folder, UNSEEN_ENDPOINT to an OpenAI-compatible address, UNSEEN_LANGUAGE_MODEL "
            "to its model, UNSEEN_TEXT_TO_IMAGE to a model of diffusers.",
        )
    folder, endpoint, language_model, image_model = (os.environ[name] for name in names)
    place = Path(folder) / "extrapolated"
    proposer = LLMProposer(
        ChatEndpoint(endpoint, language_model), style="role", per_class=False, answers=place / "answers"
    )
    synthetic = extrapolate(
        "classification of pictures of objects",
        real.classes,
        proposer,
        DiffusersGenerator(image_model),
        domains=domains,
        per_cell=per_cell,
        folder=place,
    )
    said = {d["name"]: f"{d['name']} {d['description']}" for d in read_manifest(place)["domains"]}
    return replace(synthetic, domains=tuple(said[name] for name in synthetic.domains))


def _without(synthetic: Shift, unseen: str) -> Shift:
    """The synthetic domains that do not name the unseen one."""
    kept = [d for d, text in enumerate(synthetic.domains) if named(text, (unseen,)) is None]
    if not kept:
        raise InputError("generated domains", f"all name {unseen!r}", "Let other domains be proposed.")
    return of_domains(synthetic, kept)
