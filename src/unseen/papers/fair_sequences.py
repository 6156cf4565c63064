"""Runs of the CDSAE reproduction: people on a half circle with known counterfactuals, and Adult by age."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unseen.measures.fairness import counterfactual_effect, demographic_parity_diff, total_effect
from unseen.networks.causal_autoencoder import CausalAutoencoder
from unseen.networks.gaussian_latents import kl_gaussian
from unseen.registry import Spec
from unseen.shifts import Shift
from unseen.shifts.builtin.data_folder import data_file
from unseen.shifts.fair_circle import fair_circle, people
from unseen.shifts.sequence import by_time
from unseen.shifts.tables import from_dataframe
from unseen.training.data import TrainingData
from unseen.training.fit import fit
from unseen.training.learner import Learner

BANDS = 8


def learner(objective: Spec, steps: int) -> Learner:
    return Learner(
        objective=objective,
        network=Spec.make("mlp", width=64),
        learning_rate=2e-3,
        steps=steps,
        evaluations=1,
        keep="last",
    )


def circle_run(
    objective: Spec, seed: int, *, steps: int, size: int, observed: bool = True, shuffled: bool = False
) -> dict[str, float]:
    """Train on the first two thirds of 12 domains; effects on the last third are the simulator's, hence true.

    observed  whether the attribute is among the inputs
    shuffled  the objective sees the groups in random order
    """
    hidden, shift = people(size=size, seed=seed), fair_circle(size=size, seed=seed, observed=observed)
    if shuffled:
        order = torch.randperm(len(shift), generator=torch.Generator().manual_seed(seed))
        shift.group = hidden.attribute[order]
    split = shift.split(unseen=shift.domains[8:], seed=seed)
    data = TrainingData(split)
    network = fit(learner(objective, steps), split, seed=seed, data=data).network
    rows = split.unseen

    def encoded(value: int) -> Tensor:
        return data.preprocessing.encode(hidden.inputs(value, observed)[rows])

    with torch.no_grad():
        one, zero = (torch.softmax(network(encoded(value)), 1)[:, 1] for value in (1, 0))
    found = {
        "accuracy": float(data.bank(network, rows).correct.double().mean()),
        "validation": float(data.bank(network, "validation").correct.double().mean()),
        "CE": counterfactual_effect(one, zero),
        "TE": abs(total_effect(one, zero)),
    }
    if isinstance(network, CausalAutoencoder) and not shuffled:
        found |= inside(network, data.stored[rows], hidden.attribute[rows])
    return found


def inside(network: CausalAutoencoder, x: Tensor, attribute: Tensor) -> dict[str, float]:
    """What the model itself says of its effect, whether its free latents hide the attribute, and how many are used."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score

    _, changed = network.counterfactual(x, 1 - attribute, attribute)
    named = network.latents(x)
    free = torch.cat([named["semantic"], named["environment"]], 1).numpy()
    half, truth = len(free) // 2, attribute.numpy()
    order = np.random.default_rng(0).permutation(len(free))
    train, test = order[:half], order[half:]
    probe = LogisticRegression(max_iter=500).fit(free[train], truth[train])
    with torch.no_grad():
        semantic = network.encode(x).semantic
        each = [kl_gaussian(semantic._replace(mean=m, log_variance=v)) for m, v in _columns(semantic)]
    return {
        "estimated CE": counterfactual_effect(changed[:, 1], network.predict_proba(x)[:, 1]),
        "probe": float(balanced_accuracy_score(truth[test], probe.predict(free[test]))),
        "used latents": float(sum(float(kl.mean()) > 0.05 for kl in each)),
    }


def _columns(gaussian: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(gaussian[0].split(1, 1), gaussian[1].split(1, 1), strict=True))


def adult(seed: int, size: int | None) -> Shift:
    """Income above 50,000 dollars in the census of 1994, in eight bands of age; the group is the sex.

    The age makes the domains and is no feature. `size` people drawn at random; None takes all.
    """
    frame = pd.read_parquet(data_file("adult_income.parquet")).replace("?", "unknown")
    if size is not None:
        frame = frame.sample(min(size, len(frame)), random_state=seed)
    features = [c for c in frame if c not in ("fnlwgt", "education_num", "split", "income", "age")]
    shift = from_dataframe(frame, "income", "sex", group="sex", time="age", features=features, name="adult")
    return by_time(shift, BANDS)


def adult_run(
    objective: Spec, shift: Shift, seed: int, *, steps: int, aware: bool = True
) -> dict[str, float]:
    """Train on the five youngest bands and judge on the three oldest.

    aware  False leaves the sex out of the features
    """
    if not aware:
        shift = Shift(**{**vars(shift), "inputs": shift.inputs.drop(columns="sex")})
    split = shift.split(unseen=shift.domains[5:], seed=seed)
    data = TrainingData(split)
    network = fit(learner(objective, steps), split, seed=seed, data=data).network
    bank = data.bank(network, "unseen")
    assert shift.group is not None
    return {
        "adult accuracy": float(bank.correct.double().mean()),
        "adult validation": float(data.bank(network, "validation").correct.double().mean()),
        "adult parity": demographic_parity_diff(bank.predictions, shift.group[split.unseen]),
    }
