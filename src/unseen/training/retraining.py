"""Training a pruned network further with a learner: the `train` of `unseen.merging.sparse_soups.SparseSoup`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from unseen.averaging import snapshot
from unseen.errors import InputError, nearest
from unseen.registry import Spec
from unseen.shifts import Split
from unseen.shifts.sampling import derive_seed
from unseen.training.data import TrainingData
from unseen.training.fit import train
from unseen.training.hardware import Hardware
from unseen.training.learner import Learner


def retrainer(
    learner: Learner, split: Split, *, data: TrainingData | None = None, hardware: Hardware = Hardware()
) -> Callable[[nn.Module, Mapping[str, Any]], nn.Module]:
    """Function (network, setting) -> the network, trained on by `learner` with its zeros kept.

    A setting changes fields of the learner (`weight_decay`, `steps`, `learning_rate`, ...) and the `seed` (default
    0); each phase draws its own batches. The network must be of the learner's own form: begin with `fit`'s.

        soup = SparseSoup(retrainer(learner, split), 0.9, phases=3, vary={"seed": (0, 1, 2)})
        sparse = soup.run(fit(learner, split).network)
    """
    data = data or TrainingData(split, learner.backbone)
    fields = {field.name for field in dataclasses.fields(Learner)}

    def further(network: nn.Module, setting: Mapping[str, Any]) -> nn.Module:
        changes = {name: value for name, value in setting.items() if name not in _OTHERS}
        for name in changes:
            if name not in fields:
                raise InputError(f"setting {name!r}", "is no field of a learner", nearest(name, fields))
        changed = learner.replace(**changes)
        changed = changed.replace(update=Spec.make("keep-zeros", base=str(changed.update)))
        seed = derive_seed(setting.get("seed", 0), setting.get("phase", 0))
        result = train(changed, data, seed=seed, start=snapshot(network), hardware=hardware)
        network.load_state_dict(result.state)
        return network

    return further


_OTHERS = ("seed", "phase", "pruned_norm")
"""What a setting may have beside fields of the learner."""
