"""Plan a study: which learners, unseen domains, hyperparameter draws and seeds make its cells."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any, Literal, NamedTuple

from unseen.errors import InputError, nearest
from unseen.registry import Spec, averaging, detectors, objectives, updates
from unseen.shifts import Shift
from unseen.studies.unfamiliar import Tuning, Unfamiliar, hold_out_classes, opened
from unseen.training import Learner
from unseen.training.data import TrainingData
from unseen.training.system import build_system, check_learner

Rule = Literal["id-validation", "leave-one-domain-out", "oracle"]
RULES: tuple[Rule, ...] = ("id-validation", "leave-one-domain-out", "oracle")
DETECTORS = ("msp", "energy", "mahalanobis", "relative-mahalanobis", "knn")
"""Detectors that every study scores, unless told otherwise."""


@dataclass(frozen=True)
class Cell:
    """One training run: a learner on a split with a seed.

    method  name of the learner as it was asked for; the draws of a search share it
    draw    0 for the given hyperparameters, 1, 2, ... for random draws
    unseen  held-out domains; two of them where one stands in for the unseen one (leave-one-domain-out)
    """

    method: str
    learner: Learner
    draw: int
    unseen: tuple[str, ...]
    seed: int
    shift_key: str
    after: Any = None
    validation: float = 0.2
    unlabelled: float | None = None
    judged_by: str | None = None
    """Detectors, unfamiliar and tuning data, where they are not the usual ones."""

    @cached_property
    def key(self) -> str:
        """Hash of everything that decides the result."""
        parts = [self.learner.key, self.unseen, self.seed, self.shift_key, str(self.after), self.validation]
        if self.unlabelled is not None:
            parts.append(self.unlabelled)
        if self.judged_by is not None:
            parts.append(self.judged_by)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


class Judging(NamedTuple):
    """What judges the network of every cell, besides its data."""

    detectors: tuple[str, ...]
    unfamiliar: tuple[Unfamiliar, ...]
    tuning: Tuning | None


@dataclass(frozen=True)
class Plan:
    """What a study runs.

    unseen     the held-out domains, each a tuple of names that are held out together
    after      hold out what is later than this, besides (or instead of) whole domains
    rule       how hyperparameters are selected
    detectors  scored on every cell
    unlabelled share of the unseen examples that training sees without labels and that do not judge, or None
    unfamiliar further data, near and far, on which the detectors are judged
    held_out_classes  classes that `shift` lacks, and whose examples are among `unfamiliar`
    tuning     what options of detectors are chosen on, anew for each cell, or None
    """

    shift: Shift
    learners: tuple[Learner, ...]
    unseen: tuple[tuple[str, ...], ...]
    seeds: int = 3
    search: int = 0
    rule: Rule = "id-validation"
    detectors: tuple[str, ...] = DETECTORS
    after: Any = None
    validation: float = 0.2
    unlabelled: float | None = None
    unfamiliar: tuple[Unfamiliar, ...] = ()
    held_out_classes: tuple[str, ...] = ()
    tuning: Tuning | None = None
    cells: tuple[Cell, ...] = field(default=(), compare=False)

    @classmethod
    def make(
        cls,
        shift: Shift,
        learners: Iterable[str | Learner],
        *,
        unseen: str | Sequence[str] | None = None,
        after: Any = None,
        seeds: int = 3,
        search: int = 0,
        rule: Rule = "id-validation",
        detectors: Sequence[str] = DETECTORS,
        validation: float = 0.2,
        unlabelled: float | None = None,
        near: Sequence[str | Shift | Unfamiliar] = (),
        far: Sequence[str | Shift | Unfamiliar] = (),
        held_out_classes: Sequence[str] = (),
        tune_detectors: str | Shift | Unfamiliar | None = None,
        tuning_draws: int = 20,
        **settings: Any,
    ) -> Plan:
        """Plan a study; every name is checked here, before anything is trained.

        unseen    domains to hold out, together; None holds each domain out in turn (or, with `after`, none)
        search    random hyperparameter draws beside the given ones
        near, far  data of other classes, by name or path, that detectors are judged on (see `Unfamiliar.open`)
        held_out_classes  classes that nothing learns, whose examples are near unfamiliar data
        tune_detectors    data of other classes, kept apart from those, on which options of the detectors are chosen
                          from their ranges; each such detector is judged as given, and tuned
        tuning_draws      candidates besides the given options
        settings  fields of `Learner` for learners that are given by name
        """
        held: list[Unfamiliar] = []
        if held_out_classes:
            shift, classes = hold_out_classes(shift, held_out_classes)
            held.append(classes)
        unfamiliar = opened([*held, *near], far, shift)
        tuning = None
        if tune_detectors is not None:
            tuning = Tuning.open(tune_detectors, tuning_draws, shift, unfamiliar)
        made = tuple(x if isinstance(x, Learner) else Learner.parse(x, **settings) for x in learners)
        if not made:
            raise InputError("learners", "are none", "Name at least one, such as erm.")
        if len({learner.name for learner in made}) < len(made):
            raise InputError("learners", "hold the same one twice", "Name each learner once.")
        for learner in made:
            learner.check()
        if rule not in RULES:
            raise InputError(f"selection rule {rule!r}", "is not known", nearest(rule, RULES))
        if seeds < 1 or search < 0:
            raise InputError("seeds, search", f"are {seeds}, {search}", "Give seeds >= 1 and search >= 0.")
        held_out: tuple[tuple[str, ...], ...]
        if unseen is not None:
            held_out = ((unseen,) if isinstance(unseen, str) else tuple(unseen),)
        elif after is not None:
            held_out = ((),)
        else:
            held_out = tuple((name,) for name in shift.domains)
        if len(shift.domains) < 2 and after is None:
            raise InputError(
                f"shift {shift.name!r}",
                f"has one domain only ({shift.domains[0]!r})",
                "Judging generalization needs at least two: check the domain column or folder layout.",
            )
        options: dict[str, Any] = {"after": after, "validation": validation, "unlabelled": unlabelled}
        for names in held_out:
            shift.split(names, **options)  # raises on unknown names, absent classes
        fewest_left = max(_held_out_sets(shift, held_out, rule), key=len)
        for learner in made:
            check_learner(learner, shift.split(fewest_left, **options))
        names = tuple(dict.fromkeys(detectors))
        _check_detectors(names, made, shift.split(held_out[0], **options))
        if tuning is not None and not tunable(names):
            raise InputError(
                "detectors to tune",
                f"are none: of {', '.join(names) or 'no detectors'}, none has options with a search range",
                f"Add one that has: {', '.join(_with_ranges())}.",
            )
        judged_by = None
        if (names, unfamiliar, tuning) != (DETECTORS, (), None):
            judged_by = _judged_by(names, unfamiliar, tuning)
        cells: list[Cell] = []
        for learner in made:
            for draw in range(search + 1):
                drawn = draw_learner(learner, draw)
                for names_out in _held_out_sets(shift, held_out, rule):
                    for seed in range(seeds):
                        cells.append(
                            Cell(
                                learner.name,
                                drawn,
                                draw,
                                names_out,
                                seed,
                                shift.fingerprint,
                                **options,
                                judged_by=judged_by,
                            )
                        )
        return cls(
            shift,
            made,
            held_out,
            seeds,
            search,
            rule,
            names,
            unfamiliar=unfamiliar,
            held_out_classes=tuple(held_out_classes),
            tuning=tuning,
            cells=tuple(cells),
            **options,
        )

    @property
    def judging(self) -> Judging:
        return Judging(self.detectors, self.unfamiliar, self.tuning)

    def check_detector(self, name: str) -> None:
        """Raise `InputError` for a detector that does not find what it looks for in the learners' networks."""
        options = {"after": self.after, "validation": self.validation, "unlabelled": self.unlabelled}
        _check_detectors((name,), self.learners, self.shift.split(self.unseen[0], **options))

    def to_json(self) -> dict[str, Any]:
        """What was asked for, for the store and the report."""
        return {
            "shift": {
                "name": self.shift.name,
                "kind": self.shift.kind,
                "examples": len(self.shift),
                "domains": list(self.shift.domains),
                "classes": list(self.shift.classes),
                "groups": list(self.shift.groups),
                "fingerprint": self.shift.fingerprint,
                "source": self.shift.source,
                "description": self.shift.description,
                "counts": self.shift.counts().to_dict("split"),
            },
            "learners": {learner.name: learner.to_json() for learner in self.learners},
            "unseen": [list(names) for names in self.unseen],
            "after": None if self.after is None else str(self.after),
            "seeds": self.seeds,
            "search": self.search,
            "rule": self.rule,
            "validation": self.validation,
            "unlabelled": self.unlabelled,
            "detectors": list(self.detectors),
            "held_out_classes": list(self.held_out_classes),
            "unfamiliar": [
                {
                    "name": u.name,
                    "nearness": u.nearness,
                    "examples": len(u),
                    "overlap": u.overlap,
                    "source": u.source,
                }
                for u in self.unfamiliar
            ],
            "tuning": None
            if self.tuning is None
            else {
                "name": self.tuning.data.name,
                "examples": len(self.tuning.data),
                "source": self.tuning.data.source,
                "draws": self.tuning.draws,
                "detectors": list(tunable(self.detectors)),
            },
        }


def tunable(names: Iterable[str | Spec]) -> tuple[str, ...]:
    """Those detectors that have options with a search range."""
    return tuple(str(name) for name in names if detectors.check(name).search)


def _with_ranges() -> list[str]:
    return sorted(entry.name for entry in detectors if entry.search)


def _judged_by(names: tuple[str, ...], unfamiliar: tuple[Unfamiliar, ...], tuning: Tuning | None) -> str:
    parts: list[Any] = [names, [(each.name, each.key) for each in unfamiliar]]
    if tuning is not None:
        parts.append(tuning.key)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _check_detectors(names: tuple[str, ...], learners: tuple[Learner, ...], split: Any) -> None:
    """Names, and whether each finds what it looks for in each learner's network: one input is shown to it."""
    observers = [each for each in map(detectors.build, names) if each.observes]
    for learner in learners if observers else ():
        data = TrainingData(split, learner.backbone)
        network = build_system(learner, data, 0).network
        for observer in observers:
            data.bank(network, split.train[:1], observers=[observer])


def _held_out_sets(
    shift: Shift, held_out: tuple[tuple[str, ...], ...], rule: Rule
) -> Iterable[tuple[str, ...]]:
    """The asked-for sets; for leave-one-domain-out selection also each of them with one further domain."""
    sets = dict.fromkeys(held_out)
    if rule == "leave-one-domain-out":
        for names in held_out:
            rest = [name for name in shift.domains if name not in names]
            if len(rest) < 2:
                raise InputError(
                    "leave-one-domain-out selection",
                    f"leaves no domain to train on when {', '.join(names)} is unseen",
                    "It needs at least three domains; choose id-validation.",
                )
            for (stand_in,) in combinations(rest, 1):
                ordered = tuple(name for name in shift.domains if name in {*names, stand_in})
                sets.setdefault(ordered)
    return sets


SEARCH: dict[str, Any] = {
    "learning_rate": ("log", 1e-4, 1e-2),
    "weight_decay": ("log", 1e-6, 1e-2),
}
"""Ranges of the settings that every learner has; methods declare their own beside their class."""


def draw_learner(learner: Learner, draw: int) -> Learner:
    """The learner itself for draw 0, else its settings and methods' options drawn from their ranges.

    Every option has a stream of its own (named and seeded by the draw), so that adding a method or an
    option changes no other draw.
    """
    if draw == 0:
        return learner
    changes: dict[str, Any] = {name: drawn_value(SEARCH[name], name, draw) for name in SEARCH}
    for name, registry in (("objective", objectives), ("update", updates), ("averaging", averaging)):
        spec = getattr(learner, name)
        if spec is not None and registry[spec.name].search:
            drawn = {
                o: drawn_value(d, f"{spec.name}.{o}", draw) for o, d in registry[spec.name].search.items()
            }
            changes[name] = spec.with_options(**drawn)
    return learner.replace(**changes)


def drawn_value(distribution: tuple[Any, ...], name: str, draw: int) -> Any:
    kind, *arguments = distribution
    stream = random.Random(f"{name} {draw}")
    if kind == "choice":
        return stream.choice(arguments[0])
    low, high = arguments
    if kind == "log":
        return float(f"{math.exp(stream.uniform(math.log(low), math.log(high))):.4g}")
    if kind == "uniform":
        return float(f"{stream.uniform(low, high):.4g}")
    if kind == "integer":
        return stream.randint(low, high)
    raise InputError(
        f"search range of {name!r}", f"has kind {kind!r}", "Use log, uniform, integer or choice."
    )
