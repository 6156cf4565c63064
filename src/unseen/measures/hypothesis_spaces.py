"""Test losses of hypotheses drawn from a space and fitted to training data: Gaussian processes, neural networks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg
from scipy.sparse.linalg import cg
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from unseen.errors import InputError, UnseenWarning
from unseen.measures.arrays import as_array, same_length
from unseen.shifts.sampling import derive_seed

Array = NDArray[np.float64]
Kernel = Callable[[Array, Array], Array]
Fit = Callable[[nn.Module, Tensor, Tensor, int], Any]
Loss = Callable[[Tensor, Tensor], Tensor]

NUMBERS_AT_A_TIME = 2**24


def sample_gp_losses(
    X: Any,
    y: Any,
    X_test: Any,
    y_test: Any,
    kernel: Literal["rbf"] | Kernel = "rbf",
    lengthscale: float = 1.0,
    n_samples: int = 10_000,
    jitter: float = 1e-6,
    solver: Literal["cholesky", "cg"] = "cholesky",
    *,
    seed: int = 0,
) -> Array:
    """(n_samples,) test losses of functions drawn from a Gaussian process that interpolate the training data.

    X, X_test    (N, ...), (T, ...), flattened
    y, y_test    (N,), (T,) or (N, C), (T, C): outputs are independent processes (one-hot targets, say)
    kernel       "rbf": exp(-|a - b|^2 / (2 lengthscale^2)), or a function of (N, D), (M, D) that gives (N, M)
    jitter       added to the diagonal of the training kernel: noise variance of the interpolation
    solver       "cg": conjugate gradients, one column at a time, without a factorisation of the (N, N) kernel

    A loss is the squared error, averaged over test points and outputs. Source: Boopathy et al., IJCAI 2024, whose code
    solves the same systems by Adam. Raises InputError where the kernel is not positive definite or does not converge.
    """
    train, test = _rows("X", X), _rows("X_test", X_test)
    targets, truth = _outputs("y", y, len(train)), _outputs("y_test", y_test, len(test))
    if targets.shape[1] != truth.shape[1]:
        raise InputError(
            "y_test", f"has {truth.shape[1]} outputs, y {targets.shape[1]}", "Give the same ones."
        )
    if not lengthscale > 0 or n_samples < 1 or jitter < 0:
        raise InputError(
            f"lengthscale {lengthscale}, n_samples {n_samples}, jitter {jitter}", "are out of range",
            "Give a positive lengthscale, one sample at least, and a jitter from 0.",
        )  # fmt: skip
    if solver not in ("cholesky", "cg"):
        raise InputError(f"solver {solver!r}", "is not known", "Give 'cholesky' or 'cg'.")
    k = _rbf(lengthscale) if kernel == "rbf" else kernel
    if not callable(k):
        raise InputError(
            f"kernel {kernel!r}", "is not known", "Give 'rbf' or a function of two sets of points."
        )
    cross = k(test, train)
    solved = _solve(k(train, train) + jitter * np.eye(len(train)), np.hstack([targets, cross.T]), solver)
    mean, reduction = cross @ solved[:, : targets.shape[1]], cross @ solved[:, targets.shape[1] :]
    covariance = k(test, test) - reduction
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    # rounding leaves small negative eigenvalues; norms do not change in the basis of the eigenvectors
    spread = np.sqrt(np.clip(values, 0, None))[:, None]
    error = vectors.T @ (mean - truth)
    random = np.random.default_rng(seed)
    size = max(1, NUMBERS_AT_A_TIME // error.size)
    return np.concatenate([
        ((error + spread * random.normal(size=(min(size, n_samples - start), *error.shape))) ** 2).mean((1, 2))
        for start in range(0, n_samples, size)
    ])  # fmt: skip


def _rbf(lengthscale: float) -> Kernel:
    from sklearn.metrics.pairwise import rbf_kernel

    return lambda a, b: rbf_kernel(a, b, gamma=1 / (2 * lengthscale**2))


def _solve(matrix: Array, columns: Array, solver: str) -> Array:
    try:
        if solver == "cholesky":
            return linalg.cho_solve(linalg.cho_factor(matrix, lower=True), columns)
    except linalg.LinAlgError:
        raise InputError(
            "kernel", "is not positive definite on X", "Raise jitter, or leave out repeated points."
        ) from None
    found = [cg(matrix, column, rtol=1e-8, maxiter=10 * len(matrix)) for column in columns.T]
    if any(failed for _, failed in found):
        raise InputError("kernel", "is too ill conditioned for conjugate gradients", "Raise jitter.")
    return np.stack([solution for solution, _ in found], 1)


def sample_network_losses(
    build_model: Callable[[], nn.Module],
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    n_models: int = 60,
    fit: Fit | None = None,
    loss: Loss = nn.functional.mse_loss,
    *,
    epochs: int = 100,
    learning_rate: float = 1e-3,
    batch_size: int = 32,
    train_loss_at_most: float | None = None,
    processes: int = 1,
    seed: int = 0,
) -> Array:
    """(K,) test losses of `n_models` networks that differ in initial weights and order of data.

    build_model   makes one, from torch's global generator, which is seeded for each
    train, test   inputs (N, ...) and targets, on the device to train on
    fit           (model, inputs, targets, seed) trains one in place, in `processes` at a time. None: all are trained
                  at once by Adam (epochs, learning_rate, batch_size), as one stack of weights; they need one
                  architecture without random layers or buffers that change (dropout, BatchNorm)
    loss          of outputs and targets, a mean over both (squared error, against one-hot targets in the paper)
    train_loss_at_most
                  networks with a larger training loss do not fit the data and do not count: K <= n_models. None counts
                  all, and then nothing says that the condition "fits the training data" holds

    Raises InputError if no network fits; warns if some do not. Source: Boopathy et al., IJCAI 2024.
    """
    if n_models < 1 or epochs < 1 or batch_size < 1 or not learning_rate > 0:
        raise InputError("n_models, epochs, batch_size or learning_rate", "are not positive", "Raise them.")
    same_length("train targets", train[1], "the inputs", len(train[0]))  # type: ignore[arg-type]
    same_length("test targets", test[1], "the inputs", len(test[0]))  # type: ignore[arg-type]
    seeds = [derive_seed(seed, index) for index in range(n_models)]
    if fit is None:
        models = [_built(build_model, each).to(train[0].device) for each in seeds]
        found = _train_stacked(models, train, test, seeds, loss, epochs, learning_rate, batch_size)
    else:
        run = joblib.delayed(_train_one)
        found = np.array(
            joblib.Parallel(n_jobs=processes)(
                run(build_model, fit, train, test, loss, each) for each in seeds
            )
        )
    if not np.isfinite(found).all():
        raise InputError("fit", "gave losses that are not finite", "Lower the learning rate.")
    if train_loss_at_most is None:
        return found[:, 1]
    fits = found[:, 0] <= train_loss_at_most
    if not fits.any():
        raise InputError(
            "train_loss_at_most", f"is {train_loss_at_most:g}, but the least training loss is {found[:, 0].min():.3g}",
            "Train for longer, or allow more.",
        )  # fmt: skip
    if not fits.all():
        warnings.warn(
            f"hypothesis spaces: {(~fits).sum()} of {n_models} networks do not fit the training data and are left out.",
            UnseenWarning,
            stacklevel=2,
        )
    return found[fits, 1]


def _built(build_model: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model()


def _train_one(
    build_model: Callable[[], nn.Module], fit: Fit, train: Any, test: Any, loss: Loss, seed: int
) -> list[float]:
    """Training and test loss."""
    model = _built(build_model, seed).to(train[0].device)
    inputs, targets = train
    fit(model, inputs, targets, seed)
    model.eval()
    with torch.no_grad():
        return [float(loss(model(x), y)) for x, y in (train, test)]


def _train_stacked(
    models: Sequence[nn.Module],
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    seeds: Sequence[int],
    loss: Loss,
    epochs: int,
    learning_rate: float,
    batch_size: int,
) -> Array:
    """(R, 2) training and test losses of R networks; Adam moves each number by itself, so a stack is as good."""
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
    template = models[0]
    optimizer = torch.optim.Adam(parameters.values(), learning_rate)

    def one(own: Any, fixed: Any, x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(template, (own, fixed), (x,)), y)

    template.train()
    for rows in _orders(len(train[0]), seeds, epochs, batch_size):
        rows = rows.to(train[0].device)
        optimizer.zero_grad()
        vmap(one)(parameters, buffers, train[0][rows], train[1][rows]).sum().backward()
        optimizer.step()
    template.eval()
    with torch.no_grad():
        found = [vmap(one, (0, 0, None, None))(parameters, buffers, x, y) for x, y in (train, test)]
    return torch.stack(found, 1).double().cpu().numpy()


def _orders(count: int, seeds: Sequence[int], epochs: int, batch_size: int) -> Iterator[Tensor]:
    """(R, B) rows of each batch: every network visits the data in an order of its own."""
    generators = [torch.Generator().manual_seed(each) for each in seeds]
    for _ in range(epochs):
        order = torch.stack([torch.randperm(count, generator=generator) for generator in generators])
        yield from order.split(batch_size, 1)


def _rows(subject: str, points: Any) -> Array:
    array = as_array(points)
    array = array.reshape(len(array), -1).astype(np.float64)
    if not array.size or not np.isfinite(array).all():
        raise InputError(subject, "is empty or holds values that are not finite", "Give rows of numbers.")
    return array


def _outputs(subject: str, targets: Any, count: int) -> Array:
    array = _rows(subject, targets)
    same_length(subject, array, "the inputs", count)
    return array
