"""A network whose pretrained part stays as it is, but for low-rank updates; its head is trained as always."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unseen.errors import InputError
from unseen.networks.base import Network, build_network
from unseen.networks.low_rank import QUERY_AND_VALUE, inject_low_rank, low_rank_updates, merge_low_rank
from unseen.registry import Spec, networks


class LowRankNetwork(Network):
    """A network made by `low_rank`. Unlike other modules with parametrizations it can be pickled."""

    input_shape: Any

    def merged(self) -> Self:
        """A copy without updates: what they do is in its weights, all of which are trainable again.

        Its names are those of the base network. (ONNX export needs the gradients: without any, PyTorch's transformer
        layers call a fused kernel that ONNX does not know.)
        """
        twin = copy.deepcopy(self)
        if low_rank_updates(twin):
            merge_low_rank(twin)
        return twin.requires_grad_(True)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __reduce__(self) -> Any:
        state = {name: value.detach() for name, value in self.state_dict().items()}
        return _rebuilt, (self.spec, self.input_shape, self.classes, state, self.training)


def _rebuilt(
    spec: Spec, shape: Any, classes: int, state: Mapping[str, Tensor], training: bool
) -> LowRankNetwork:
    with torch.random.fork_rng():
        network: Any = build_network(spec, shape, classes)
    if not any("parametrizations" in name for name in state):
        network = network.merged()
    network.load_state_dict(state)
    return network.train(training)


@networks.register(
    "low-rank",
    summary="A frozen network (`of`), its attention tuned by low-rank updates (LoRA) or groups of them",
    paper="Hu et al. 2022, arXiv 2106.09685",
)
def low_rank(
    *,
    input_shape: Any,
    classes: int,
    of: str = "transformer",
    rank: int = 4,
    groups: int = 1,
    alpha: float | None = None,
    targets: str | Sequence[str] = QUERY_AND_VALUE,
    weights: str | None = None,
) -> LowRankNetwork:
    """Everything before the head of network `of` is frozen and gets updates; the head is new and trained.

    of       specification of a network: "transformer(width=64, depth=4)", "pretrained(name='efficientnet-lite0')"
    rank, groups, alpha, targets
             as for `inject_low_rank`; convolutions are named by a regular expression, such as ".*_project_conv"
    weights  a model folder that `unseen` saved, or a safetensors file, whose tensors named featurizer.* the frozen
             part takes. Saved models hold their weights: loading one does not need the file again. Without it, and
             unless `of` brings weights, what is frozen is the random initialisation.
    Raises `InputError` when `of` has no such targets or the weights do not fit.
    """
    if Spec.of(of).name == "low-rank":
        raise InputError(f"low-rank network of {of!r}", "would be updated twice", "Name another network.")
    base = build_network(of, input_shape, classes)
    if weights is not None:
        load_featurizer(base.featurizer, weights)
    inject_low_rank(base.featurizer, targets, rank=rank, groups=groups, alpha=alpha)
    network = LowRankNetwork(base.featurizer, base.features, classes)
    network.input_shape = input_shape
    network.spec = Spec.make(
        "low-rank", of=str(of), rank=rank, groups=groups, alpha=alpha, targets=targets
    )  # without weights: a saved model brings its own
    return network


def load_featurizer(featurizer: nn.Module, source: str | Path) -> None:
    """Load the tensors featurizer.* (or network.featurizer.*) of a model folder or safetensors file.

    Raises `InputError` that names what does not fit; updates must be merged before (`LowRankNetwork.merged`).
    """
    path = Path(source)
    path = path / "weights.safetensors" if path.is_dir() else path
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"weights {str(source)!r}",
            f"cannot be read ({error})",
            "Give a model folder or safetensors file.",
        ) from None
    own = {}
    for name, value in stored.items():
        prefix, found, rest = name.removeprefix("network.").partition("featurizer.")
        if found and not prefix:
            own[rest] = value
    try:
        featurizer.load_state_dict(own)
    except RuntimeError as error:
        raise InputError(
            f"weights {str(source)!r}",
            f"do not fit the network ({str(error).splitlines()[-1].strip()})",
            "Give weights of the same network and input shape.",
        ) from None
