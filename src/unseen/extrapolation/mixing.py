"""Real and synthetic examples in one training set of a fixed size: only then does more domains not mean more data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unseen.errors import InputError, nearest
from unseen.extrapolation.joined_images import join_images
from unseen.shifts.sampling import derive_seed
from unseen.shifts.shift import Shift


def mix(
    real: Shift,
    synthetic: Shift,
    *,
    share: float = 0.5,
    budget: int,
    unseen: str | Iterable[str] = (),
    as_domain: str | None = None,
    seed: int = 0,
) -> Shift:
    """A shift with `budget` examples to train and validate on, real and synthetic, and the unseen domains whole.

    share      part of the budget, in [0, 1], that is synthetic: 0 is the control of the same budget without
               synthesis, 1 is data-free training (hold all real domains out)
    unseen     real domains to hold out, in `split(unseen=...)` of the result, too
    as_domain  make all synthetic examples one domain of this name; None keeps their domains apart
    seed       of the choice of examples, which is as even over domain x class as what there is allows

    Training draws `batch_size` examples of every domain at each step. So divide it by the number of domains when
    runs are compared, or more domains are more compute; and give `as_domain` where one real domain would drown
    among many synthetic ones. Batch normalisation, as fine-tuned backbones have it, averages two very different
    sources; `cnn`, `resnet` and `transformer` normalise each example by itself. Choose the share by real validation
    examples; accuracy on synthetic ones says little. Real groups and weights stay (synthetic examples are of group
    "synthetic", weight 1), times don't.

    Raises `InputError` for other classes or another kind of data on one side, a domain of the same name on both,
    a budget smaller than the number of cells or larger than what there is.
    """
    held_out = (unseen,) if isinstance(unseen, str) else tuple(unseen)
    for name in held_out:
        if name not in real.domains:
            raise InputError(f"unseen domain {name!r}", "is not a real domain", nearest(name, real.domains))
    if not 0 <= share <= 1:
        raise InputError("share", f"is {share}", "Give the synthetic part, from 0 to 1.")
    if budget < 1:
        raise InputError(
            "budget", f"is {budget}", "Give the number of examples, real and synthetic together."
        )
    _require_compatible(real, synthetic, synthetic.domains if as_domain is None else (as_domain,))
    is_unseen = torch.isin(
        real.domain, torch.tensor([real.domains.index(n) for n in held_out], dtype=torch.int64)
    )
    from_synthetic = round(share * budget)
    if from_synthetic < budget and is_unseen.all():
        raise InputError("share", f"is {share}, but no real domain is left to train on", "Give 1.")
    rows = balanced_rows(real, budget - from_synthetic, derive_seed(seed, 0), among=~is_unseen)
    kept = torch.cat([rows, is_unseen.nonzero().squeeze(1)]).sort().values
    if from_synthetic == 0:
        return replace(real.subset(kept), time=None, source={})
    added = synthetic.subset(balanced_rows(synthetic, from_synthetic, derive_seed(seed, 1)))
    if as_domain is not None:
        added = replace(added, domain=torch.zeros_like(added.domain), domains=(as_domain,))
    return _joined(real.subset(kept), added) if len(kept) else added


def balanced_rows(shift: Shift, count: int, seed: int, among: Tensor | None = None) -> Tensor:
    """`count` rows, as even over domain x class as there are examples, in ascending order.

    among  (N,) bool: the rows to choose from; None takes all
    Raises `InputError` when `count` is above 0 and below the number of cells, or more than there is.
    """
    if count == 0:
        return torch.zeros(0, dtype=torch.int64)
    rows = torch.arange(len(shift)) if among is None else among.nonzero().squeeze(1)
    generator = torch.Generator().manual_seed(seed)
    rows = rows[torch.randperm(len(rows), generator=generator)]
    cell = shift.domain[rows] * len(shift.classes) + shift.labels[rows]
    sizes = torch.bincount(cell, minlength=len(shift.domains) * len(shift.classes))
    cells = int((sizes > 0).sum())
    if count < cells:
        raise InputError(
            f"budget of {count} from {shift.name!r}",
            f"is less than one example for each of {cells} cells (domain x class)",
            f"Give {cells} or more, or fewer domains.",
        )
    if count > len(rows):
        raise InputError(
            f"budget of {count} from {shift.name!r}",
            f"is more than the {len(rows)} examples there are",
            "Give a smaller budget or another share, or generate more.",
        )
    quota = _even(sizes, count, generator)
    order = cell.argsort(stable=True)  # random within a cell, because rows are
    place = torch.arange(len(rows)) - (sizes.cumsum(0) - sizes)[cell[order]]
    return rows[order[place < quota[cell[order]]]].sort().values


def _even(sizes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """How many of each cell, at most its size, `count` in all; cells with enough differ by one at most."""
    level = 0
    while int(sizes.clamp(max=level + 1).sum()) <= count:
        level += 1
        if level >= int(sizes.max()):
            return sizes
    quota = sizes.clamp(max=level)
    larger = (sizes > level).nonzero().squeeze(1)
    quota[larger[torch.randperm(len(larger), generator=generator)][: count - int(quota.sum())]] += 1
    return quota


def scaling_curve(
    synthetic: Shift,
    evaluate: Callable[[Shift, int], float],
    domains: Sequence[int] = (1, 4, 16),
    *,
    fixed_budget: bool = True,
    seeds: Sequence[int] = (0, 1, 2),
) -> pd.DataFrame:
    """What the number of synthetic domains does: columns domains, seed, examples, value.

    evaluate      (shift of that many domains, seed) -> a number, such as the accuracy on real domains
    domains       numbers of domains; with one seed, fewer domains are among the more
    fixed_budget  True gives every number of domains as many examples as the fewest one has, the paper's question
                  with the amount of data held fixed; False lets the examples grow with the domains
    """
    counts = sorted(set(domains))
    if not counts or counts[0] < 1 or counts[-1] > len(synthetic.domains):
        raise InputError(
            "domains", f"are {list(domains)}", f"Give numbers from 1 to {len(synthetic.domains)}."
        )
    rows = []
    for seed in seeds:
        order = torch.randperm(len(synthetic.domains), generator=torch.Generator().manual_seed(seed))
        parts = {count: of_domains(synthetic, order[:count].tolist()) for count in counts}
        budget = min(len(part) for part in parts.values())
        for count, part in parts.items():
            if fixed_budget:
                part = part.subset(balanced_rows(part, budget, derive_seed(seed, count)))
            rows.append((count, seed, len(part), float(evaluate(part, seed))))
    return pd.DataFrame(rows, columns=["domains", "seed", "examples", "value"])


def of_domains(shift: Shift, domains: Sequence[int]) -> Shift:
    """The examples of some domains (their numbers), and the names of these alone."""
    chosen = sorted(domains)
    number = torch.full((len(shift.domains),), -1, dtype=torch.int64)
    number[chosen] = torch.arange(len(chosen))
    part = shift.subset((number[shift.domain] >= 0).nonzero().squeeze(1))
    return replace(
        part, domain=number[part.domain], domains=tuple(shift.domains[d] for d in chosen), source={}
    )


def _require_compatible(real: Shift, synthetic: Shift, domains: Sequence[str]) -> None:
    if set(real.classes) != set(synthetic.classes):
        odd = sorted(set(real.classes) ^ set(synthetic.classes))[0]
        lacks = "synthetic" if odd in real.classes else "real"
        raise InputError(
            "classes of real and synthetic examples",
            f"differ: {odd!r} is missing among the {lacks} ones",
            "Generate the classes of the real data, under the same names.",
        )
    if real.kind != synthetic.kind:
        raise InputError(
            "real and synthetic examples",
            f"are of kinds {real.kind!r} and {synthetic.kind!r}",
            "Generate examples of the kind that was collected.",
        )
    if same := set(real.domains) & set(domains):
        raise InputError(
            f"domain {min(same)!r}",
            "is real and synthetic",
            "Propose domains that nobody has collected, or rename it.",
        )


def _joined(real: Shift, synthetic: Shift) -> Shift:
    """All examples of both; classes are numbered as in `real`, synthetic domains after the real ones."""
    renumber = torch.tensor([real.classes.index(name) for name in synthetic.classes])
    group: Tensor | None = None
    groups: tuple[str, ...] = ()
    if real.group is not None:
        groups = (*real.groups, "synthetic")
        group = torch.cat([real.group, torch.full((len(synthetic),), len(real.groups))])
    weight = None
    if real.weight is not None:
        weight = torch.cat([real.weight, torch.ones(len(synthetic))])
    ids = [(s.ids if s.ids is not None else range(len(s))) for s in (real, synthetic)]
    return Shift(
        name=f"{real.name}+synthetic",
        kind=real.kind,
        inputs=_joined_inputs(real, synthetic),
        labels=torch.cat([real.labels, renumber[synthetic.labels]]),
        domain=torch.cat([real.domain, synthetic.domain + len(real.domains)]),
        classes=real.classes,
        domains=(*real.domains, *synthetic.domains),
        ids=[*(f"real/{name}" for name in ids[0]), *(f"synthetic/{name}" for name in ids[1])],
        group=group,
        groups=groups,
        weight=weight,
        description=f"{real.description} With synthetic domains.".strip(),
    )


def _joined_inputs(real: Shift, synthetic: Shift) -> Any:
    first, second = real.inputs, synthetic.inputs
    if real.kind == "image":
        return join_images(first, second)
    if real.kind == "text":
        return [*first, *second]
    if real.kind == "table":
        if list(first.columns) != list(second.columns):
            raise InputError(
                "tables", "have other columns", f"Generate {', '.join(map(str, first.columns))}."
            )
        return pd.concat([first, second], ignore_index=True)
    if real.kind == "array":
        arrays = [torch.as_tensor(np.asarray(x)) for x in (first, second)]
        if arrays[0].shape[1:] != arrays[1].shape[1:]:
            raise InputError(
                "real and synthetic rows",
                f"have shapes {tuple(arrays[0].shape[1:])} and {tuple(arrays[1].shape[1:])}",
                "Generate rows of the real shape.",
            )
        return torch.cat(arrays)
    raise InputError(f"data of kind {real.kind!r}", "cannot be mixed", "Mix arrays, images, tables or texts.")
