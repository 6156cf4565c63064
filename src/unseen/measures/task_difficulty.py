"""Inductive bias complexity: the bits that a designer must add so that a task can be generalized from its data."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from unseen.errors import InputError, UnseenWarning
from unseen.measures.class_separation import class_separation
from unseen.measures.intrinsic_dimension import as_points, intrinsic_dimension

LN2 = math.log(2)


@dataclass(frozen=True)
class Task:
    """What the measure knows of a task.

    n              training points
    intrinsic_dim  m, of the inputs; need not be whole
    radius         R, the greatest norm of an input
    delta          least distance between inputs of different classes
    num_classes    d
    """

    n: float
    intrinsic_dim: float
    radius: float
    delta: float
    num_classes: int


@dataclass(frozen=True)
class Difficulty:
    """Bits of inductive bias that a task asks for.

    log10_bits     always finite, unless the difficulty is 0: then -inf
    bits           10 ** log10_bits; inf where no float holds it
    cutoff         K, in eigenfunctions of the sphere
    log10_eigenfunctions, log10_dim
                   of E, the number of eigenfunctions below the cutoff, and of the dimensions that n points leave free
    log_ratio      bits a dimension: how far the error must come down
    task           None for tasks that are no classification
    """

    log10_bits: float
    cutoff: float
    log10_eigenfunctions: float
    log10_dim: float
    log_ratio: float
    task: Task | None = None

    @property
    def bits(self) -> float:
        return 10.0**self.log10_bits if self.log10_bits < 308 else math.inf


def inductive_bias_complexity(
    n: float,
    intrinsic_dim: float,
    radius: float,
    delta: float,
    num_classes: int,
    target_error: float,
    *,
    bound: float = 1.0,
) -> Difficulty:
    """Bits needed for a classification task (Boopathy et al., ICML 2023, Theorem 2 and its code).

    n, intrinsic_dim, radius, delta, num_classes
                  see `Task`
    target_error  to be reached on test data, in (0, 1), divided by the Lipschitz constant of the loss (1 there)
    bound         B, largest absolute value of an output

    An upper bound without its constants: compare orders of magnitude. Grows exponentially with the dimension,
    polynomially with 1 / delta, logarithmically with 1 / target_error, and does not change with the scale of the
    inputs. Where the data already determine the function, or any function reaches the error, it is 0, with a warning.
    """
    if num_classes < 2:
        raise InputError("num_classes", f"is {num_classes}", "Give two at least.")
    found = _difficulty(
        n, intrinsic_dim, radius, delta, target_error,
        outputs=num_classes - 1.0, discrete=num_classes, bound=bound,
    )  # fmt: skip
    return replace(found, task=Task(n, intrinsic_dim, radius, delta, num_classes))


def task_difficulty(
    points: Any,
    labels: Any,
    target_error: float = 0.01,
    *,
    intrinsic_dim: float | Literal["mle"] = "mle",
    delta: float | Literal["evt", "min"] = "evt",
    k: int = 5,
    max_samples: int = 10_000,
    rounded: bool = False,
    seed: int = 0,
) -> Difficulty:
    """`inductive_bias_complexity` of data: points (N, ...), flattened, and labels (N,).

    intrinsic_dim  a number, or "mle" by `k` neighbours of `max_samples` points
    delta          a number, or how to estimate it, see `class_separation`
    rounded        round the dimension, as the paper's code does; the measure jumps then

    Noise raises delta as well as the dimension, so with both estimated anew the measure is not monotone in it. Hold
    delta (and radius) fixed to compare versions of one data set.
    """
    rows = _flattened(points)
    radius = float(np.linalg.norm(rows, axis=1).max())
    dimension = (
        intrinsic_dimension(rows, k, max_samples=max_samples, seed=seed)
        if intrinsic_dim == "mle"
        else float(intrinsic_dim)
    )
    separation = class_separation(rows, labels, delta, seed=seed) if isinstance(delta, str) else float(delta)
    if separation == 0:
        raise InputError(
            "points", "hold equal ones with different labels", "Leave these out, or give delta as a number."
        )
    return inductive_bias_complexity(
        len(rows), round(dimension) if rounded else dimension, radius, separation,
        len(np.unique(np.asarray(labels))), target_error,
    )  # fmt: skip


def bias_supplied(task: Task, error_of_model: float) -> Difficulty:
    """Bits that an architecture supplies when it reaches this test error on the task (same source, section 5)."""
    return inductive_bias_complexity(
        task.n, task.intrinsic_dim, task.radius, task.delta, task.num_classes, error_of_model
    )


def union_difficulty(first: Task, second: Task, target_error: float) -> Difficulty:
    """Of the task whose inputs are pairs, one input of each task.

    n = n1 n2, m = m1 + m2, R^2 = R1^2 + R2^2, d1 d2 combinations of classes with d1 outputs, as in the paper's code;
    delta is the smaller one, by which pairs of different classes are apart at least (the code takes the first's).
    """
    return _difficulty(
        first.n * second.n, first.intrinsic_dim + second.intrinsic_dim,
        math.hypot(first.radius, second.radius), min(first.delta, second.delta), target_error,
        outputs=float(first.num_classes), discrete=first.num_classes * second.num_classes, bound=1.0,
    )  # fmt: skip


def meta_difficulty(
    n: float,
    within_dim: float,
    across_dim: float,
    radius: float,
    delta: float,
    target_error: float,
    ways: int = 20,
) -> Difficulty:
    """Of one-shot classification among `ways` classes, learnt from many such tasks (Omniglot in the paper).

    within_dim  dimension of inputs within a task's family (an alphabet); across_dim: across families
    The input is a whole task: dimension across_dim + (ways - 1) within_dim, radius sqrt(ways) R; the output is a
    function on it, of as many dimensions as the inner hypothesis space.
    """
    if ways < 2:
        raise InputError("ways", f"is {ways}", "Give two at least.")
    outputs = (
        2 * ways * (ways - 1) * math.exp(_log_eigenfunctions(within_dim, 2 * math.pi * radius / delta)[1])
    )
    return _difficulty(
        n, across_dim + (ways - 1) * within_dim, radius * math.sqrt(ways), delta, target_error,
        outputs=outputs, discrete=1, bound=math.sqrt(ways * (ways - 1)),
    )  # fmt: skip


def rl_difficulty(
    kind: Literal["mdp", "pomdp"],
    observations: int,
    *,
    actions: int = 1,
    history: int = 1,
    n: float = 1e6,
    delta: float = 1e-3,
    target_error: float = 1e-3,
) -> Difficulty:
    """Of a control task whose policy is a function on a box of observations (same source, appendix on RL).

    kind          "mdp": of the present observation; "pomdp": of the last `history` ones
    observations  numbers in one observation; actions: numbers in an action
    n             training points; delta: resolution of observations in [0, 1]
    """
    if kind not in ("mdp", "pomdp"):
        raise InputError(f"kind {kind!r}", "is not known", "Give 'mdp' or 'pomdp'.")
    if kind == "mdp" and history != 1:
        raise InputError("history", f"is {history} for an MDP", "Give kind='pomdp'.")
    if min(observations, actions, history) < 1:
        raise InputError("observations, actions or history", "are below 1", "Give whole numbers from 1.")
    _check(n, observations * history, 1.0, delta, target_error)
    m = observations * history
    log_frequencies = m * math.log(2 * math.pi / delta) + m / 2 * math.log(math.pi) - math.lgamma(m / 2 + 1)
    log_ratio = (
        math.log2(4 * math.pi**2 / math.sqrt(6)) + math.log2(actions) + math.log2(m) / 2
        - math.log2(delta) - math.log2(n) / m - math.log2(target_error)
    )  # fmt: skip
    cutoff = 2 * math.pi / delta
    return _result(cutoff, log_frequencies, LN2 + log_frequencies, n, float(actions), log_ratio)


def _difficulty(
    n: float,
    m: float,
    radius: float,
    delta: float,
    error: float,
    *,
    outputs: float,
    discrete: int,
    bound: float,
) -> Difficulty:
    _check(n, m, radius, delta, error)
    if not bound > 0:
        raise InputError("bound", f"is {bound}", "Give a positive number.")
    cutoff, log_eigenfunctions = _log_eigenfunctions(m, 2 * math.pi * radius / delta)
    log_distance = (
        0.5 * math.log(m / 6) + math.log(radius) - math.log(n) / m
        + (LN2 + (m + 1) / 2 * math.log(math.pi) + math.log(discrete) - math.lgamma((m + 1) / 2)) / m
    )  # fmt: skip
    slope = cutoff * math.sqrt(outputs) / radius
    log_ratio = (
        math.log(bound) + 0.5 * math.log(outputs) + 0.5 * math.log(discrete) - math.log(error)
        + math.log(slope) + log_distance
    ) / LN2  # fmt: skip
    return _result(
        cutoff, log_eigenfunctions, math.log(2 * discrete) + log_eigenfunctions, n, outputs, log_ratio
    )


def _log_eigenfunctions(m: float, frequency: float) -> tuple[float, float]:
    """K, and ln of the number of eigenfunctions of the m-sphere up to it: C(m + K, m) + C(m + K - 1, m)."""
    cutoff = (math.hypot(m - 1, 2 * frequency) - (m - 1)) / 2
    first = math.lgamma(m + cutoff + 1) - math.lgamma(m + 1) - math.lgamma(cutoff + 1)
    # C(m + K - 1, m) = C(m + K, m) K / (m + K)
    return cutoff, first + math.log1p(cutoff / (m + cutoff))


def _result(
    cutoff: float, log_eigenfunctions: float, log_free: float, n: float, outputs: float, log_ratio: float
) -> Difficulty:
    """outputs * (exp(log_free) - n) dimensions times the bits of each."""
    taken = math.exp(min(math.log(n) - log_free, 700.0))
    log_dim = math.log(outputs) + log_free + math.log1p(-taken) if taken < 1 else -math.inf
    if log_dim == -math.inf or log_ratio <= 0:
        why = "the data already determine the function" if taken >= 1 else "any function reaches the error"
        warnings.warn(f"task difficulty: it is 0, because {why}.", UnseenWarning, stacklevel=4)
        total = -math.inf
    else:
        total = log_dim / math.log(10) + math.log10(log_ratio)
    return Difficulty(total, cutoff, log_eigenfunctions / math.log(10), log_dim / math.log(10), log_ratio)


def _check(n: float, m: float, radius: float, delta: float, error: float) -> None:
    for name, value in (("n", n), ("intrinsic_dim", m), ("radius", radius), ("delta", delta)):
        if not 0 < value < math.inf:
            raise InputError(name, f"is {value}", "Give a positive number.")
    if not 0 < error < 1:
        raise InputError("target_error", f"is {error}", "Give a number between 0 and 1, such as 0.01.")


def _flattened(points: Any) -> Any:
    """(N, D) as it was given, checked: norms are about the origin of the data."""
    as_points(points)
    array = np.asarray(points.detach().cpu() if hasattr(points, "detach") else points)
    return array.reshape(len(array), -1).astype(np.float64)
