"""Generated shifts with a dial: `strength` 0 means that all domains are one distribution.

Every function draws from its own `torch.Generator`, seeded by `seed`, and returns a `Shift` of kind "array"
with float32 inputs (N, features), `size` examples per domain, and the last domain farthest from the others:
hold that one out. Raises `InputError` for a dial, size or number of domains out of range.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from unseen.errors import InputError
from unseen.registry import Spec
from unseen.shifts.shift import Shift

SIGNAL = 1.5  # distance of a class mean from zero, in standard deviations


def gaussian_shift(
    strength: float = 1.0, domains: int = 4, size: int = 500, features: int = 10, seed: int = 0
) -> Shift:
    """Covariate shift: Gaussian clouds slide along a curved boundary, P(y | x) stays.

    The label is 1 where x[0] > x[1]^2 / 8. Domain k is centred on that parabola at x[1] = strength * k, so
    that classes stay near balance: a straight line fitted to some domains leaves the curve the more, the
    larger the steps, until it guesses (from about 2 on). The other features are noise.

    strength  step between neighbouring domains in standard deviations, 0 or more
    features  2 or more
    """
    generator = _start(domains, size, seed, strength)
    _require_features(features, 2)
    domain = _domain(domains, size)
    along = strength * domain.float()
    x = torch.randn(domains * size, features, generator=generator)
    x[:, 1] += along
    x[:, 0] += along.square() / 8
    labels = (x[:, 0] > x[:, 1].square() / 8).long()
    spec = Spec.make(
        "gaussian-shift", strength=strength, domains=domains, size=size, features=features, seed=seed
    )
    return _shift(x, labels, domain, spec, "Covariate shift along a curved class boundary.")


def spurious(
    strength: float = 1.0,
    agreement: tuple[float, ...] = (0.9, 0.8, 0.1),
    label_noise: float = 0.25,
    size: int = 1000,
    features: int = 10,
    seed: int = 0,
) -> Shift:
    """Half of the features cause the label, the other half agree with it only by the domain's custom.

    Colored MNIST (Arjovsky et al. 2019, section 5.2) without images: a hidden class moves the first half by
    +-1.5 in all; the label is the hidden class, flipped with probability `label_noise`; the second half is
    moved in the same way by a bit that agrees with the label with probability 1/2 + strength * (agreement -
    1/2). `group` says whether the bit agrees with the label.

    strength     in [0, 1]; at 0 the second half says nothing about the label in any domain
    agreement    per domain, each in [0, 1]; the domains are named agree-0.9 and so on
    label_noise  in [0, 0.5]
    features     2 or more
    """
    if isinstance(agreement, (int, float)):
        raise InputError("agreement", f"is {agreement}", "Give a sequence of probabilities, one per domain.")
    generator = _start(len(agreement), size, seed, strength, most=1)
    _require_features(features, 2)
    if not all(0 <= share <= 1 for share in agreement) or len(set(agreement)) < len(agreement):
        raise InputError("agreement", f"is {agreement}", "Give different probabilities in [0, 1].")
    if not 0 <= label_noise <= 0.5:
        raise InputError("label_noise", f"is {label_noise}", "Give a probability in [0, 0.5].")
    domain = _domain(len(agreement), size)
    count = len(domain)
    hidden = torch.rand(count, generator=generator) < 0.5
    labels = hidden ^ (torch.rand(count, generator=generator) < label_noise)
    wanted = 0.5 + strength * (torch.tensor(agreement)[domain] - 0.5)
    agrees = torch.rand(count, generator=generator) < wanted
    bit = labels == agrees
    causes = features // 2
    x = torch.randn(count, features, generator=generator)
    x[:, :causes] += _signs(hidden) * SIGNAL / math.sqrt(causes)
    x[:, causes:] += _signs(bit) * SIGNAL / math.sqrt(features - causes)
    spec = Spec.make(
        "spurious",
        strength=strength,
        agreement=agreement,
        label_noise=label_noise,
        size=size,
        features=features,
        seed=seed,
    )
    return _shift(
        x,
        labels.long(),
        domain,
        spec,
        "A spurious feature whose agreement differs by domain.",
        domains=tuple(f"agree-{share:g}" for share in agreement),
        group=agrees.long(),
        groups=("differ", "agree"),
    )


def concept_shift(
    strength: float = 0.5, domains: int = 4, size: int = 500, features: int = 10, seed: int = 0
) -> Shift:
    """Concept shift: P(x) stays, the class boundary turns from the first domain to the last.

    The label is 1 on one side of a plane through zero; its normal turns by strength * 180 degrees in all.

    strength  in [0, 1]; at 1 the last domain has the labels of the first reversed
    features  2 or more
    """
    generator = _start(domains, size, seed, strength, most=1)
    _require_features(features, 2)
    domain = _domain(domains, size)
    x = torch.randn(domains * size, features, generator=generator)
    labels = _side(x, strength * math.pi * domain / max(1, domains - 1))
    spec = Spec.make(
        "concept-shift", strength=strength, domains=domains, size=size, features=features, seed=seed
    )
    return _shift(x, labels, domain, spec, "The class boundary turns from domain to domain.")


def label_shift(
    strength: float = 0.5,
    domains: int = 4,
    classes: int = 3,
    size: int = 500,
    features: int = 10,
    seed: int = 0,
) -> Shift:
    """Label shift: P(x | y) stays, the frequencies of the classes differ.

    Classes are Gaussian clouds, 1.5 standard deviations from zero. In domain k, classes have frequencies in
    proportion to exp(6 * strength * place(k) * place(class)), both places running from -1/2 to 1/2: the
    first domain prefers the first classes, the last domain the last. Counts are exact, and at least 2 of
    each class.

    strength  0 or more; at 1 and with two classes, about 95 % and 5 % are of class 0 in the first and last
    domain features  `classes` or more
    """
    generator = _start(domains, size, seed, strength)
    if classes < 2 or size < 2 * classes:
        raise InputError(
            "classes", f"is {classes} with size {size}", "Give 2 or more, and 2 examples of each or more."
        )
    _require_features(features, classes)
    place = torch.linspace(-0.5, 0.5, classes)
    labels = torch.cat(
        [
            _counts_of(torch.softmax(6 * strength * k * place, 0), size)
            for k in torch.linspace(-0.5, 0.5, domains)
        ]
    )
    x = torch.randn(domains * size, features, generator=generator)
    x[torch.arange(len(labels)), labels] += SIGNAL
    spec = Spec.make(
        "label-shift",
        strength=strength,
        domains=domains,
        classes=classes,
        size=size,
        features=features,
        seed=seed,
    )
    return _shift(x, labels, _domain(domains, size), spec, "Class frequencies differ by domain.")


def drift(
    strength: float = 0.5, domains: int = 5, size: int = 400, features: int = 10, seed: int = 0
) -> Shift:
    """A boundary that turns all the time: `time` runs from 0 to 1, and each domain is one period of it.

    At time t the normal of the class boundary has turned by strength * t * 180 degrees, the inputs stay
    standard normal. `shift.split(after=0.6)` trains on what came before; holding the last period out does
    the same.

    strength  in [0, 1]
    features  2 or more
    """
    generator = _start(domains, size, seed, strength, most=1)
    _require_features(features, 2)
    time = torch.linspace(0, 1, domains * size, dtype=torch.float64)
    x = torch.randn(domains * size, features, generator=generator)
    labels = _side(x, strength * math.pi * time.float())
    spec = Spec.make("drift", strength=strength, domains=domains, size=size, features=features, seed=seed)
    return _shift(
        x,
        labels,
        _domain(domains, size),
        spec,
        "A class boundary that turns with time.",
        domains=tuple(f"period-{number}" for number in range(1, domains + 1)),
        time=time.numpy(),
    )


def _start(domains: int, size: int, seed: int, strength: float, most: float = math.inf) -> torch.Generator:
    if domains < 2:
        raise InputError("domains", f"is {domains}", "Give 2 or more.")
    if size < 20:
        raise InputError("size", f"is {size}", "Give 20 examples per domain or more.")
    if not 0 <= strength <= most or math.isinf(strength):
        bound = "0 or more" if math.isinf(most) else f"a number from 0 to {most:g}"
        raise InputError("strength", f"is {strength}", f"Give {bound}.")
    return torch.Generator().manual_seed(seed)


def _require_features(features: int, least: int) -> None:
    if features < least:
        raise InputError("features", f"is {features}", f"Give {least} or more.")


def _domain(domains: int, size: int) -> Tensor:
    return torch.arange(domains).repeat_interleave(size)


def _signs(bits: Tensor) -> Tensor:
    """Booleans (N,) as a column of +1 and -1."""
    return (2.0 * bits - 1)[:, None]


def _side(x: Tensor, angle: Tensor) -> Tensor:
    """1 on the positive side of a plane whose normal has turned by `angle` in the first two axes."""
    return (x[:, 0] * angle.cos() + x[:, 1] * angle.sin() > 0).long()


def _counts_of(shares: Tensor, size: int) -> Tensor:
    """`size` labels in the given shares, at least 2 of each class; the largest takes what rounding leaves."""
    counts = 2 + (shares * (size - 2 * len(shares))).long()
    counts[counts.argmax()] += size - counts.sum()
    return torch.arange(len(shares)).repeat_interleave(counts)


def _shift(x: Tensor, labels: Tensor, domain: Tensor, spec: Spec, description: str, **more: Any) -> Shift:
    names = tuple(f"domain-{number}" for number in range(1, int(domain.max()) + 2))
    return Shift(
        name=spec.name,
        kind="array",
        inputs=x,
        labels=labels,
        domain=domain,
        classes=tuple(str(label) for label in range(int(labels.max()) + 1)),
        description=description,
        source={"source": str(spec)},
        **{"domains": names, **more},
    )
