"""RFC: models that are right where earlier ones are wrong, distilled into one featurizer to begin from."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unseen.errors import InputError, UnseenWarning
from unseen.networks import Network
from unseen.networks.freezing import freeze as frozen
from unseen.objectives.base import example_losses
from unseen.objectives.distillation import MultiHeadDistiller, average_heads, check_targets
from unseen.objectives.whole_data import WholeData, minimise, outputs_of
from unseen.objectives.worst_group import WorstGroup, check_kind, is_right, right_and_wrong, squared_errors
from unseen.shifts import Batch
from unseen.shifts.sampling import derive_seed


@dataclass(frozen=True)
class Round:
    """What came of a discovery round, on the training examples.

    accuracy       share that its model gets right
    worst_group    the same in the worst of the groups that it was trained on; None in round 0, which has none
    shared_errors  share of its errors that every earlier model makes, too; None in round 0, or without an error
    kept           whether its model is distilled: False where the worst group is not above chance
    imitation      agreement of its head with the model, see `MultiHeadDistiller.agreement`; None if not kept
    """

    accuracy: float
    worst_group: float | None
    shared_errors: float | None
    kept: bool
    imitation: float | None = None


@dataclass(frozen=True)
class RichRepresentation:
    """What `RichFeatures.fit` gives.

    models      the models of the kept rounds
    groups      (G, N) bool: members of the groups that the last round was trained on; none after a single round
    distilled   featurizer with a head for each model
    init_head   mean of these heads
    report      a `Round` for each round
    """

    models: list[Network]
    groups: Tensor
    distilled: Network
    init_head: nn.Linear
    report: list[Round]

    @property
    def featurizer(self) -> nn.Module:
        return self.distilled.featurizer

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors featurizer.* and head.*, as those of a network: `initialize` and `load_featurizer` take them."""
        parts = {"featurizer": self.featurizer, "head": self.init_head}
        return {
            f"{part}.{name}": value.detach().cpu()
            for part, module in parts.items()
            for name, value in module.state_dict().items()
        }


class RichFeatures:
    """Rich feature construction (Zhang, Lopez-Paz and Bottou 2022, arXiv 2203.15516, Algorithm 1 and section 5).

    Round 0 minimises the mean loss. After each round its model divides the training examples in those that it
    gets right and wrong; the next round, from new weights, minimises the loss of the worst of all groups so far.
    Then one network learns, with a head for each round, what the models say.

    make_model      builds a network with new weights, from torch's global generator, which is seeded
    rounds          R, from 1; the paper's third round does harm on Camelyon17
    first_steps     updates of round 0: few, or what it gets wrong is nothing but noise of the labels
    steps           updates of each later round, and of the distillation
    discovery       loss of the worst group, see `WorstGroup`
    targets         "hard" or "soft", with `temperature`, see `MultiHeadDistiller`
    balance         examples on which models differ in being right count as much as those where they do not
    by_domain       cross the groups with the domain
    smallest_group  groups of fewer examples are left out
    stop            leave out a round whose worst group is not right above chance (1 / classes), and end there
    threshold       regression: the squared error up to which an output is right; None for classification
    rescale_heads   see `average_heads`
    batch_size      examples of an update, or None for all of them, as in the paper's Colored MNIST
    learning_rate, l2
                    of Adam, and the weight of the squared norm of all weights in the loss. Defaults as in the
                    paper's Colored MNIST
    overfitted      what to do when a round gets so much right that no group of wrong examples is left: "error", or
                    "warn" and end there
    seed            decides initial weights and the order of examples
    Raises `InputError` for a setting out of range.
    """

    def __init__(
        self,
        make_model: Callable[[], Network],
        *,
        rounds: int = 2,
        first_steps: int = 51,
        steps: int = 501,
        discovery: Literal["hardmax", "groupdro"] = "hardmax",
        targets: Literal["hard", "soft"] = "hard",
        balance: bool = True,
        by_domain: bool = False,
        smallest_group: int = 1,
        stop: bool = True,
        temperature: float = 1.0,
        threshold: float | None = None,
        rescale_heads: bool = False,
        batch_size: int | None = None,
        learning_rate: float = 5e-4,
        l2: float = 1.1e-3,
        overfitted: Literal["error", "warn"] = "error",
        seed: int = 0,
    ):
        sizes = {
            "rounds": rounds,
            "first_steps": first_steps,
            "steps": steps,
            "smallest_group": smallest_group,
        }
        for name, value in sizes.items():
            if value < 1:
                raise InputError(name, f"is {value}", "Give a whole number from 1.")
        if threshold is not None and not threshold > 0:
            raise InputError("threshold", f"is {threshold}", "Give a positive squared error.")
        check_kind(discovery)
        check_targets(targets, temperature)
        self.make_model, self.rounds, self.first_steps, self.steps = make_model, rounds, first_steps, steps
        self.discovery, self.targets, self.temperature = discovery, targets, temperature
        self.balance, self.by_domain, self.smallest_group = balance, by_domain, smallest_group
        self.stop, self.threshold, self.rescale_heads = stop, threshold, rescale_heads
        self.descent: dict[str, Any] = {"batch_size": batch_size, "learning_rate": learning_rate, "l2": l2}
        self.overfitted, self.seed = overfitted, seed

    def fit(self, data: Any, device: torch.device | str = "cpu") -> RichRepresentation:
        """Discover and distil, on `device`; `data` as for `WholeData.of`.

        Raises `InputError` when a round leaves too few examples wrong for another one, unless `overfitted` is "warn".
        """
        data = WholeData.of(data, device)
        read = [(batch.y.cpu(), batch.domain.cpu()) for batch in data.in_order()]
        labels, domain = (torch.cat(parts) for parts in zip(*read, strict=True))
        device = data.batch(torch.arange(1)).domain.device
        models: list[Network] = []
        rights: list[Tensor] = []
        groups = torch.zeros(0, data.size, dtype=torch.bool)
        report: list[Round] = []
        for index in range(self.rounds):
            if index:
                found = self._groups(index - 1, rights[-1], domain)
                if found is None:
                    break
                groups = torch.cat([groups, found])
            model = self._discover(index, data, groups, device)
            outputs = outputs_of(model, data)
            right = is_right(outputs, labels, self.threshold)
            chance = None
            if self.stop:
                chance = 1 / outputs.shape[-1] if self.threshold is None else 0.0
            report.append(_judged(right, rights, groups, chance))
            if not report[-1].kept:
                break
            models.append(model)
            rights.append(right)
        student = self._new_model(self.rounds, device)
        with self._seeded(self.rounds + 1):
            distiller = MultiHeadDistiller(
                models, student, self.targets, self.temperature, regression=self.threshold is not None
            )
            distiller.fit(
                data,
                steps=self.steps,
                shares=disagreement_shares(torch.stack(rights)) if self.balance else None,
                generator=self._generator(self.rounds),
                **self.descent,
            )
        for index, agreement in enumerate(distiller.agreement(data)):
            report[index] = replace(report[index], imitation=agreement)
        head = average_heads(distiller.heads, rescale=self.rescale_heads)
        return RichRepresentation(models, groups, distiller.network, head, report)

    def _discover(self, index: int, data: WholeData, groups: Tensor, device: torch.device | str) -> Network:
        model = self._new_model(index, device)
        worst = WorstGroup(groups, self.discovery).to(device) if len(groups) else None

        def loss(batch: Batch) -> Tensor:
            outputs = model(batch.x)
            losses = (
                example_losses(outputs, batch) if self.threshold is None else squared_errors(outputs, batch.y)
            )
            return losses.mean() if worst is None else worst(losses, batch)

        with self._seeded(index, 1):
            minimise(
                model,
                loss,
                data,
                steps=self.steps if index else self.first_steps,
                generator=self._generator(index),
                **self.descent,
            )
        return model

    def _groups(self, index: int, right: Tensor, domain: Tensor) -> Tensor | None:
        """The groups of a round's model that are large enough; None when all of them are of right examples."""
        groups = right_and_wrong(right, domain if self.by_domain else None)
        groups = groups[groups.sum(1) >= self.smallest_group]
        if (groups & ~right).any():
            return groups
        error = InputError(
            f"discovery round {index}",
            f"is overfitted: it leaves {int((~right).sum())} of {len(right)} training examples wrong",
            "Train it less: fewer first_steps (a smaller `first` of bonsai), or more weight decay.",
        )
        if self.overfitted == "error":
            raise error
        warnings.warn(f"{error} Later rounds are left out.", UnseenWarning, stacklevel=4)
        return None

    def _new_model(self, index: int, device: torch.device | str) -> Network:
        with self._seeded(index):
            return self.make_model().to(device)

    @contextlib.contextmanager
    def _seeded(self, *numbers: int) -> Iterator[None]:
        """Initial weights and dropout draw from torch's global generator: seed it, and restore it afterwards."""
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.seed, *numbers))
            yield

    def _generator(self, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, index, 2))


def disagreement_shares(rights: Tensor) -> Tensor | None:
    """(N,) chances with which examples that all models (R, N) get right, or all wrong, are drawn as often as the
    rest; None when there are only examples of one kind."""
    settled = rights.all(0) | ~rights.any(0)
    count = int(settled.sum())
    if count in (0, len(settled)):
        return None
    return torch.where(settled, 0.5 / count, 0.5 / (len(settled) - count))


def initialize(model: Network, rich: RichRepresentation, freeze: bool = False) -> Network:
    """Give a network the rich features and the mean of their heads, in place; returns it.

    freeze  only the head is trained from here on, and batch statistics stay ("RFC (cf)" of the paper)
    Raises `InputError` where the network is of another architecture.
    """
    try:
        model.load_state_dict(rich.state_dict())
    except RuntimeError as error:
        raise InputError(
            "network",
            f"does not fit the rich features ({str(error).splitlines()[-1].strip()})",
            "Give one as make_model builds it, with a plain linear head.",
        ) from None
    if freeze:
        frozen(model.featurizer)
    return model


def _judged(right: Tensor, earlier: list[Tensor], groups: Tensor, chance: float | None) -> Round:
    """A round by what its model gets right (N,); its worst group has to be above chance, unless that is None."""
    accuracy = float(right.double().mean())
    if not earlier:
        return Round(accuracy, None, None, kept=True)
    worst = min(float(right[group].double().mean()) for group in groups)
    wrong = ~right
    shared = float((wrong & ~torch.stack(earlier).any(0)).sum() / wrong.sum()) if wrong.any() else None
    return Round(accuracy, worst, shared, kept=chance is None or worst > chance)
