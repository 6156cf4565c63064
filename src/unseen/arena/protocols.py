"""The tasks of the arena. Each reads a candidate's features or trains a copy of it, and gives raw scores.

Detection, which reads feature maps and boxes, is in `unseen.arena.detection`; of the paper's tasks segmentation is
left out. `RegressionProbe` with the place of an object as target asks what a pooled feature tells of places.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from unseen.arena.backbones import Candidate, Reads
from unseen.arena.measures import masked_accuracy, retrieval_scores
from unseen.arena.probe import Standardise, Tuned, best_trial, fine_tune, train_heads
from unseen.errors import InputError, nearest
from unseen.networks.feature_cache import content_hash
from unseen.shifts.sampling import derive_seed
from unseen.shifts.shift import Shift

SHARES = (0.6, 0.2, 0.2)
"""Of each class: training, ID validation (which chooses the learning rate), test."""


@dataclass(frozen=True)
class Budget:
    """What every backbone gets for each task and seed.

    trials  learning rates tried; the best one by ID validation counts
    steps   steps of a linear head;  tuning_steps of fine-tuning;  batch  examples a step
    detector_steps, detector_batch  steps of a detector's head on frozen maps, and images a step
    """

    trials: int = 5
    steps: int = 300
    tuning_steps: int = 60
    batch: int = 128
    detector_steps: int = 200
    detector_batch: int = 16

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or value < 1:
                raise InputError(f"budget's {name}", f"is {value!r}", "Give a whole number from 1.")

    def rates(self, low: float, high: float) -> Tensor:
        """As many learning rates as trials, evenly in the logarithm; the middle of the range for one."""
        ends = (math.log10(low), math.log10(high))
        return torch.logspace(*ends, self.trials) if self.trials > 1 else torch.tensor([(low * high) ** 0.5])


class Score(NamedTuple):
    """One raw number, and what the budget chose for it ("rate 0.03")."""

    setting: str
    metric: str
    value: float
    chosen: str = ""


class Task:
    """What a backbone is judged by. `group` is what scores are averaged within, `setting` names the data.

    identity  hash of data and options: a stored score is used again only for the same
    """

    group: ClassVar[str]
    setting: str
    reads: Reads
    example: Any
    """Raw inputs of which the first is counted for FLOPs."""

    @property
    def identity(self) -> str:
        raise TypeError(f"{type(self).__name__} must define identity")

    def measure(self, candidate: Candidate, budget: Budget, seed: int) -> list[Score]:
        raise TypeError(f"{type(self).__name__} must define measure")


class ShiftTask(Task):
    """A task on one shift of images, texts or arrays."""

    def __init__(self, shift: Shift, setting: str | None = None):
        if shift.kind not in ("image", "text", "array"):
            problem = f"holds inputs of kind {shift.kind!r}"
            raise InputError(f"shift {shift.name!r}", problem, "Backbones read images, texts or arrays.")
        self.shift, self.setting, self.reads = shift, setting or shift.name, shift.kind  # type: ignore[assignment]
        self.example = shift.inputs

    @property
    def identity(self) -> str:
        options = {k: v for k, v in vars(self).items() if isinstance(v, (int, float, str, tuple))}
        return f"{type(self).__name__} {sorted(options.items())} {self.shift.fingerprint}"


class _Classified(ShiftTask):
    """Training, choice by ID validation and accuracy on test rows: what probes and fine-tuning share."""

    fine_tuned: bool = False
    layer_decay: float = 0.75

    def _fit(
        self, candidate: Candidate, train: Tensor, validation: Tensor, budget: Budget, seed: int
    ) -> tuple[_Head | Tuned, str]:
        """A classifier of the shift's classes, and the learning rate that ID validation chose for it."""
        labels, classes = self.shift.labels, len(self.shift.classes)
        rates = budget.rates(*((1e-4, 1e-2) if self.fine_tuned else (1e-3, 1.0)))
        if self.fine_tuned:
            models = [
                fine_tune(
                    candidate, self.shift.inputs, train, labels[train], classes, rate, steps=budget.tuning_steps,
                    batch=budget.batch, layer_decay=self.layer_decay, seed=seed,
                )
                for rate in rates.tolist()
            ]  # fmt: skip
            logits = torch.stack([model.logits(self.shift.inputs, validation) for model in models])
            best = best_trial(logits, labels[validation])
            return models[best], f"rate {rates[best]:.2g}"
        features = candidate.features(self.shift.inputs)
        standardise = Standardise.fit(features[train])
        generator = torch.Generator().manual_seed(seed)
        weight, bias = train_heads(
            standardise(features[train]), labels[train], classes, rates, steps=budget.steps, batch=budget.batch,
            generator=generator,
        )  # fmt: skip
        best = best_trial(standardise(features[validation]) @ weight + bias, labels[validation])
        return _Head(candidate, standardise, weight[best], bias[best]), f"rate {rates[best]:.2g}"


@dataclass
class _Head:
    """A trained linear head on a candidate's frozen features."""

    candidate: Candidate
    standardise: Standardise
    weight: Tensor
    bias: Tensor

    def logits(self, inputs: Any, rows: Tensor) -> Tensor:
        return self.standardise(self.candidate.features(inputs)[rows]) @ self.weight + self.bias


class LinearProbe(_Classified):
    """Accuracy of a linear head on frozen features, on held-out rows of the same domains."""

    group = "probe"

    def measure(self, candidate: Candidate, budget: Budget, seed: int) -> list[Score]:
        generator = torch.Generator().manual_seed(derive_seed(seed, 1))
        train, validation, test = stratified(self.shift, SHARES, generator)
        model, chosen = self._fit(candidate, train, validation, budget, derive_seed(seed, 2))
        logits = model.logits(self.shift.inputs, test)
        accuracy = masked_accuracy(logits, self.shift.labels[test])
        return [Score(self.setting, "accuracy", accuracy, chosen)]


class FineTune(LinearProbe):
    """Accuracy after training the whole backbone. layer_decay: a block's learning rate against the next one's."""

    group = "fine-tune"
    fine_tuned = True

    def __init__(self, shift: Shift, setting: str | None = None, layer_decay: float = 0.75):
        super().__init__(shift, setting)
        if not 0 < layer_decay <= 1:
            raise InputError("layer_decay", f"is {layer_decay}", "Give a number in (0, 1].")
        self.layer_decay = layer_decay


class FewShot(_Classified):
    """Accuracy of a linear head on frozen features from `n` examples a class; `n` more choose the learning rate."""

    group = "few-shot"

    def __init__(self, shift: Shift, n: int = 5, setting: str | None = None):
        super().__init__(shift, setting or f"{shift.name}, {n} a class")
        least = int(shift.labels.bincount(minlength=len(shift.classes)).min())
        if not 1 <= n <= (least - 1) // 2:
            problem = f"is {n}, but the rarest class has {least} examples"
            remedy = f"Each class needs 2 n + 1. Give n from 1 to {(least - 1) // 2}."
            raise InputError("n", problem, remedy if least > 2 else "Bring more examples.")
        self.n = n

    def measure(self, candidate: Candidate, budget: Budget, seed: int) -> list[Score]:
        generator = torch.Generator().manual_seed(derive_seed(seed, 3))
        parts: list[list[Tensor]] = [[], [], []]
        for rows in _by_class(self.shift, generator):
            for part, chosen in zip(parts, rows.tensor_split([self.n, 2 * self.n]), strict=True):
                part.append(chosen)
        train, validation, test = (torch.cat(part) for part in parts)
        model, rate = self._fit(candidate, train, validation, budget, derive_seed(seed, 4))
        logits = model.logits(self.shift.inputs, test)
        return [Score(self.setting, "accuracy", masked_accuracy(logits, self.shift.labels[test]), rate)]


class OODEval(_Classified):
    """Accuracy on domains or data sets that neither training nor the choice of the learning rate has seen.

    train_on   domains to train on
    test_sets  names of other domains of the shift, or other shifts whose classes, by name, are among this one's:
               logits of classes that such a set does not have are masked
    tune       fine-tune the backbone instead of training a head
    """

    group = "ood"

    def __init__(
        self,
        shift: Shift,
        train_on: Sequence[str],
        test_sets: Sequence[str | Shift],
        *,
        tune: bool = False,
        setting: str | None = None,
    ):
        super().__init__(shift, setting)
        self.train_on, self.fine_tuned = tuple(train_on), tune
        names = [each for each in test_sets if isinstance(each, str)]
        for name in [*train_on, *names]:
            if name not in shift.domains:
                raise InputError(f"domain {name!r}", "is not in the data", nearest(name, shift.domains))
        if not train_on or not test_sets:
            raise InputError("train_on and test_sets", "name nothing", "Give at least one of each.")
        both = sorted(set(train_on) & set(names))
        if both:
            raise InputError(
                f"domain {both[0]!r}", "is trained on and tested on", "Take it out of one of them."
            )
        self.test_sets = [_TestSet.of(shift, each) for each in test_sets]

    @property
    def identity(self) -> str:
        return f"{super().identity} {self.fine_tuned} {[t.identity for t in self.test_sets]}"

    def measure(self, candidate: Candidate, budget: Budget, seed: int) -> list[Score]:
        generator = torch.Generator().manual_seed(derive_seed(seed, 5))
        numbers = torch.tensor([self.shift.domains.index(name) for name in self.train_on])
        inside = torch.isin(self.shift.domain, numbers).nonzero().squeeze(1)
        train, validation = stratified(self.shift, (0.8, 0.2), generator, inside)
        model, chosen = self._fit(candidate, train, validation, budget, derive_seed(seed, 6))
        scores = []
        for test in self.test_sets:
            logits = model.logits(test.inputs, test.rows)
            accuracy = masked_accuracy(logits, test.labels, test.valid)
            scores.append(Score(f"{self.setting}: {test.name}", "accuracy", accuracy, chosen))
        return scores


@dataclass
class _TestSet:
    """Rows to test on with labels in the training shift's numbering, and the classes that can be."""

    name: str
    inputs: Any
    rows: Tensor
    labels: Tensor
    valid: list[int] | None
    identity: str

    @classmethod
    def of(cls, shift: Shift, source: str | Shift) -> _TestSet:
        if isinstance(source, str):
            rows = (shift.domain == shift.domains.index(source)).nonzero().squeeze(1)
            return cls(source, shift.inputs, rows, shift.labels[rows], None, source)
        known = [name for name in source.classes if name in shift.classes]
        if not known:
            raise InputError(
                f"label mask of test set {source.name!r}", "has no valid class",
                f"Name its classes as those of {shift.name!r}: {', '.join(shift.classes[:10])}.",
            )  # fmt: skip
        if len(known) < len(source.classes):
            strange = next(name for name in source.classes if name not in shift.classes)
            problem = f"is in test set {source.name!r}, but was not trained on"
            raise InputError(f"class {strange!r}", problem, "Leave its examples out.")
        valid = torch.tensor([shift.classes.index(name) for name in source.classes])
        rows = torch.arange(len(source))
        return cls(source.name, source.inputs, rows, valid[source.labels], valid.tolist(), source.fingerprint)


class Retrieval(ShiftTask):
    """mAP, MRR and recall@k of frozen features by cosine similarity; relevant is what has the query's class.

    queries  a domain whose examples search all other domains; None: every example searches all others
    most     examples at most, drawn by the seed
    """

    group = "retrieval"

    def __init__(
        self,
        shift: Shift,
        queries: str | None = None,
        recall_at: Sequence[int] = (1, 5),
        most: int = 2000,
        setting: str | None = None,
    ):
        super().__init__(shift, setting or (shift.name if queries is None else f"{shift.name}: {queries}"))
        if queries is not None and (queries not in shift.domains or len(shift.domains) < 2):
            raise InputError(f"domain {queries!r}", "cannot search others", nearest(queries, shift.domains))
        if not recall_at or min(recall_at) < 1 or most < 2:
            raise InputError("recall_at and most", "are too small", "Give k from 1, and 2 examples or more.")
        self.queries, self.recall_at, self.most = queries, tuple(recall_at), most

    def measure(self, candidate: Candidate, budget: Budget, seed: int) -> list[Score]:
        generator = torch.Generator().manual_seed(derive_seed(seed, 7))
        rows = torch.randperm(len(self.shift), generator=generator)[: self.most]
        features, labels = candidate.features(self.shift.inputs)[rows], self.shift.labels[rows]
        if self.queries is None:
            found = retrieval_scores(features, labels, recall_at=self.recall_at)
        else:
            ask = self.shift.domain[rows] == self.shift.domains.index(self.queries)
            found = retrieval_scores(
                features[ask], labels[ask], features[~ask], labels[~ask], recall_at=self.recall_at
            )
        return [Score(self.setting, metric, value) for metric, value in found.items()]


class RegressionProbe(Task):
    """R^2 of ridge regression from frozen features to numbers, mean over targets.

    inputs   N raw inputs;  targets (N, T), for example the centre of the object in pixels
    The penalty is chosen by ID validation among as many as the budget has trials.
    """

    group = "regression"

    def __init__(self, inputs: Any, targets: Tensor, setting: str, reads: Reads = "image"):
        if targets.dim() != 2 or len(targets) != len(inputs) or len(targets) < 10:
            problem = f"have shape {tuple(targets.shape)} for {len(inputs)} inputs"
            raise InputError("targets", problem, "Give (N, targets), at least ten rows.")
        if not bool(torch.isfinite(targets).all()) or not bool((targets.std(0) > 0).all()):
            raise InputError("targets", "are constant, NaN or infinite", "R^2 needs numbers that vary.")
        self.inputs, self.example, self.targets = inputs, inputs, targets.double()
        self.setting, self.reads = setting, reads

    @property
    def identity(self) -> str:
        targets = hashlib.sha256(self.targets.numpy().tobytes()).hexdigest()
        return f"{type(self).__name__} {self.setting} {content_hash(self.inputs)} {targets}"

    def measure(self, candidate: Candidate, budget: Budget, seed: int) -> list[Score]:
        features = candidate.features(self.inputs)
        generator = torch.Generator().manual_seed(derive_seed(seed, 8))
        order = torch.randperm(len(features), generator=generator)
        sizes = [round(share * len(features)) for share in SHARES[:2]]
        train, validation, test = order.tensor_split([sizes[0], sum(sizes)])
        inputs = Standardise.fit(features[train])(features).double()
        centre = self.targets[train].mean(0)
        u, s, vt = torch.linalg.svd(inputs[train], full_matrices=False)
        within = u.T @ (self.targets[train] - centre)
        best = (-torch.inf, -torch.inf, 0.0)
        for penalty in torch.logspace(-1, 4, budget.trials).tolist():
            weight = vt.T @ (within * (s / (s.square() + penalty))[:, None])
            on_validation, on_test = (
                _r2(inputs[rows] @ weight + centre, self.targets[rows]) for rows in (validation, test)
            )
            best = max(best, (on_validation, on_test, penalty), key=lambda found: found[0])
        return [Score(self.setting, "R2", best[1], f"penalty {best[2]:.2g}")]


def _r2(predicted: Tensor, true: Tensor) -> float:
    rest = (true - predicted).square().sum(0)
    return float((1 - rest / (true - true.mean(0)).square().sum(0)).mean())


def stratified(
    shift: Shift, shares: Sequence[float], generator: torch.Generator, within: Tensor | None = None
) -> list[Tensor]:
    """Disjoint rows, in the given shares of every class; `within` restricts them to some rows.

    Raises InputError when a class has too few examples for each part to get one.
    """
    parts: list[list[Tensor]] = [[] for _ in shares]
    for label, rows in enumerate(_by_class(shift, generator, within)):
        if len(rows) < len(shares):
            raise InputError(
                f"class {shift.classes[label]!r}",
                f"has {len(rows)} example(s) where the backbones are trained",
                f"Bring {len(shares)} or more, or remove the class.",
            )
        sizes = [max(1, round(share * len(rows))) for share in shares[1:]]
        first = len(rows) - sum(sizes)
        for part, chosen in zip(parts, rows.split([first, *sizes]), strict=True):
            part.append(chosen)
    return [torch.cat(part).sort().values for part in parts]


def _by_class(shift: Shift, generator: torch.Generator, within: Tensor | None = None) -> list[Tensor]:
    """Rows of each class in a random order."""
    rows = torch.arange(len(shift)) if within is None else within
    rows = rows[torch.randperm(len(rows), generator=generator)]
    return [rows[shift.labels[rows] == label] for label in range(len(shift.classes))]
