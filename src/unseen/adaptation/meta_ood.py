"""MOL: weights from which a few labelled examples of a new distribution teach to classify and to reject.

    method = MetaOOD(network, inner_lr=0.1, inner_steps=3)
    method.meta_fit(transform_tasks(x, y, transforms, outliers=others), steps=600)
    method.adapt(task.support)            # as new distributions arrive
    method.predict(x), method.score(x)

Wu, Lu, Fang & Zhang, ICCV 2023 (arXiv 2309.11705). Only the abstract was at hand: the losses and their weights are
reconstructed on the pattern of MAML (Finn et al. 2017, arXiv 1703.03400). Without `meta_fit` it is plain
fine-tuning on the support, the baseline.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, log_softmax, relu

from unseen.adaptation.adapted_view import AdaptedView, Tensors
from unseen.adaptation.meta_tasks import MetaTask
from unseen.errors import InputError, TrainingDiverged, UnseenWarning
from unseen.registry import Spec
from unseen.shifts.task_streams import Labelled

OODLoss = Literal["oe", "energy"]


def uniform_loss(logits: Tensor) -> Tensor:
    """Cross-entropy of the uniform distribution and the softmax of logits (M, C) of outliers, mean over M.

    Outlier exposure: Hendrycks et al. 2019, arXiv 1812.04606.
    """
    return -log_softmax(logits, 1).mean()


def energy_margin_loss(familiar: Tensor, unfamiliar: Tensor, margins: tuple[float, float]) -> Tensor:
    """Squared hinges on energies E = -log-sum-exp: those of ID logits (N, C) above margins[0], of OOD logits (M, C)
    below margins[1].

    Liu et al. 2020, arXiv 2010.03759, eq. 8.
    """
    inside, outside = -familiar.logsumexp(1), -unfamiliar.logsumexp(1)
    return relu(inside - margins[0]).square().mean() + relu(margins[1] - outside).square().mean()


class MetaOOD:
    """Learns an initialisation (`meta_fit`), and adapts it to one distribution after the other (`adapt`).

    model         gives logits (B, C); copied, never changed. Inner steps run in the mode that it is in; answers are
                  given in evaluation mode
    inner_lr      alpha, the rate of the gradient steps on a support
    inner_steps   k, from 0; may be set anew after `meta_fit`
    order         2 differentiates through the inner steps, 1 takes their gradients for constants, "reptile" replaces
                  the query's gradient by the mean gradient of the inner steps (Nichol et al. 2018, arXiv 1803.02999)
    ood_loss      "oe" (`uniform_loss`) or "energy" (`energy_margin_loss`, with `margins` for ID and OOD energies;
                  those here were published for CIFAR-10)
    ood_weight    lambda, the weight of that loss in the outer loss, from 0
    learn_rates   also learn a rate for every parameter tensor, from `inner_lr` on
    outer_lr      of Adam on the outer loss
    clip          largest norm of an outer gradient, or None
    detector      what `score` computes, by name (`unseen list detectors`): "msp", "energy", or one that reads
                  features, such as "knn(k=1)", which is fitted on each support
    seed          of dropout

    `model` holds the meta-learned weights after `meta_fit`, `outer_losses` the outer loss of each step.
    Raises InputError for settings out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float = 0.1,
        inner_steps: int = 3,
        order: Literal[1, 2, "reptile"] = 2,
        ood_loss: OODLoss = "oe",
        ood_weight: float = 0.5,
        margins: tuple[float, float] = (-23.0, -5.0),
        learn_rates: bool = False,
        outer_lr: float = 1e-3,
        clip: float | None = 10.0,
        detector: str | Spec = "msp",
        seed: int = 0,
    ):
        if not (inner_lr > 0 and outer_lr > 0):
            raise InputError("inner_lr or outer_lr", f"are {inner_lr} and {outer_lr}", "Give positive rates.")
        if inner_steps < 0:
            raise InputError("inner_steps", f"is {inner_steps}", "Give 0 (no adaptation) or more.")
        if order not in (1, 2, "reptile"):
            raise InputError("order", f"is {order!r}", "Give 2, 1 or 'reptile'.")
        if ood_loss not in ("oe", "energy"):
            raise InputError("ood_loss", f"is {ood_loss!r}", "Give 'oe' or 'energy'.")
        if ood_weight < 0 or (clip is not None and clip <= 0):
            raise InputError(
                "ood_weight or clip",
                f"are {ood_weight} and {clip}",
                "Give a weight from 0, and a positive norm.",
            )
        if not margins[0] < margins[1]:
            raise InputError("margins", f"are {margins}", "Give that of ID energies first, below the other.")
        if learn_rates and order == "reptile":
            raise InputError("learn_rates", "has no gradient in Reptile", "Use order=1 or order=2.")
        self.model = copy.deepcopy(model)
        self.inner_lr, self.inner_steps, self.order = inner_lr, inner_steps, order
        self.ood_loss, self.ood_weight, self.margins = ood_loss, ood_weight, margins
        self.outer_lr, self.clip, self.detector, self.seed = outer_lr, clip, detector, seed
        self.outer_losses: list[float] = []
        parameters = dict(self.model.named_parameters())
        self.learned: Tensors = {name: p for name, p in parameters.items() if p.requires_grad}
        if not self.learned:
            raise InputError("model", "has no parameter that requires gradients", "Unfreeze some.")
        self.rates = {name: p.new_tensor(inner_lr) for name, p in self.learned.items()}
        if learn_rates:
            self.rates = {name: rate.requires_grad_() for name, rate in self.rates.items()}
        self._view: AdaptedView | None = None

    def meta_fit(self, tasks: Iterator[MetaTask], *, steps: int = 600, meta_batch: int = 1) -> Self:
        """Outer steps of Adam, each on the mean loss of `meta_batch` tasks.

        tasks  such as `unseen.adaptation.meta_tasks.transform_tasks`
        Raises InputError for a task without outliers or with too small a support, for a model whose forward pass
        changes buffers where second-order gradients pass through it, and when the tasks run out; `TrainingDiverged`
        with the number of the step when an inner or outer loss is not finite.
        """
        if min(steps, meta_batch) < 1:
            raise InputError("steps or meta_batch", f"are {steps} and {meta_batch}", "Give numbers from 1.")
        learned = [*self.learned.values(), *(rate for rate in self.rates.values() if rate.requires_grad)]
        optimizer = torch.optim.Adam(learned, lr=self.outer_lr)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            for step in range(steps):
                optimizer.zero_grad()
                self.outer_losses.append(0.0)
                for _ in range(meta_batch):
                    task = self._checked(next(tasks, None), first=step == 0)
                    self.outer_losses[-1] += self._accumulate(task, 1 / meta_batch)
                if self.clip is not None:
                    nn.utils.clip_grad_norm_(learned, self.clip)
                optimizer.step()
                with torch.no_grad():
                    for rate in self.rates.values():
                        rate.clamp_(min=0)
        optimizer.zero_grad()
        self._view = None
        return self

    def adapt(self, support: Labelled, reset: bool = False) -> AdaptedView:
        """`inner_steps` gradient steps on the cross-entropy of a labelled support, (B, ...) and (B,).

        reset  start from the meta-learned weights, instead of where the last call ended
        Warns where the support lacks a class. Returns what `predict` and `score` answer with from now on.
        Raises InputError for a support that is empty or too small, or whose labels are no classes of the model.
        """
        support = self._on_device(support)
        view = self._start() if reset or self._view is None else self._view
        self._check_support(support)
        classes = view.bank(support.x[:1]).logits.shape[1]
        if support.y.is_floating_point() or not 0 <= int(support.y.min()) <= int(support.y.max()) < classes:
            raise InputError(
                "labels of the support",
                f"are {support.y.dtype} from {support.y.min().item()} to {support.y.max().item()}",
                f"Number the classes from 0 to {classes - 1}; unfamiliar inputs belong in no support.",
            )
        absent = sorted(set(range(classes)) - set(support.y.tolist()))
        if absent:
            warnings.warn(
                f"support lacks class number(s) {absent}: adapting to it may forget them",
                UnseenWarning,
                stacklevel=2,
            )
        buffers = {name: buffer.clone() for name, buffer in view.buffers.items()}
        fixed = {name: p for name, p in view.parameters.items() if name not in self.learned}
        begin = {name: view.parameters[name].clone().requires_grad_() for name in self.learned}
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(self.seed)
            found = self._inner(begin, {**fixed, **buffers}, support, create_graph=False)
        adapted = {name: p.detach() for name, p in found.items()}
        self._view = AdaptedView(self.model, {**fixed, **adapted}, buffers, self.detector)
        return self._view.fit_detector(support)

    def predict(self, x: Tensor) -> Tensor:
        """Classes (N,) int64 of inputs (N, ...); before `adapt`, by the meta-learned weights."""
        return (self._view or self._start()).predict(self._moved(x))

    def score(self, x: Tensor) -> Tensor:
        """(N,) float32, higher = more familiar."""
        return (self._view or self._start()).score(self._moved(x))

    def _start(self) -> AdaptedView:
        parameters = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        buffers = {name: b.detach().clone() for name, b in self.model.named_buffers()}
        return AdaptedView(self.model, parameters, buffers, self.detector)

    def _inner(self, begin: Tensors, constant: Tensors, support: Labelled, create_graph: bool) -> Tensors:
        """Parameters after the inner steps; their gradients are constants unless `create_graph`."""
        parameters = begin
        for step in range(self.inner_steps):
            logits = functional_call(self.model, {**parameters, **constant}, (support.x,))
            loss = cross_entropy(logits, support.y)
            if not bool(torch.isfinite(loss)):
                raise TrainingDiverged(
                    f"the inner loss is {loss.item()} in step {step} (from 0): lower inner_lr={self.inner_lr}"
                )
            gradients = torch.autograd.grad(
                loss, list(parameters.values()), create_graph=create_graph, materialize_grads=True
            )
            parameters = {
                name: p - self.rates[name] * gradient
                for (name, p), gradient in zip(parameters.items(), gradients, strict=True)
            }
        return parameters

    def _accumulate(self, task: MetaTask, share: float) -> float:
        """Add this task's share of the outer gradient to the parameters' `grad`; returns its share of the loss."""
        fixed: Tensors = {n: p for n, p in self.model.named_parameters() if n not in self.learned}
        constant = fixed | {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        found = self._inner(self.learned, constant, task.support, create_graph=self.order == 2)
        logits = functional_call(
            self.model, {**found, **constant}, (torch.cat([task.query.x, task.outliers]),)
        )
        familiar, unfamiliar = logits.split([len(task.query.x), len(task.outliers)])
        classification = cross_entropy(familiar, task.query.y)
        if self.ood_loss == "oe":
            rejection = uniform_loss(unfamiliar)
        else:
            rejection = energy_margin_loss(familiar, unfamiliar, self.margins)
        loss = classification + self.ood_weight * rejection
        if not bool(torch.isfinite(loss)):
            raise TrainingDiverged(
                f"the outer loss is {loss.item()} in step {len(self.outer_losses) - 1} (from 0): lower "
                f"inner_lr={self.inner_lr} or outer_lr={self.outer_lr}"
            )
        if self.order == "reptile":
            (share * self.ood_weight * rejection).backward()
            for name, p in self.learned.items():
                # the mean gradient of the steps, by which Reptile moves towards where they ended
                mean = (p - found[name]).detach() / (self.inner_lr * max(1, self.inner_steps))
                p.grad = share * mean if p.grad is None else p.grad + share * mean
        else:
            (share * loss).backward()
        return share * float(loss.detach())

    def _checked(self, task: MetaTask | None, first: bool) -> MetaTask:
        if task is None:
            raise InputError("tasks", "ran out", "Give an endless sampler, such as transform_tasks.")
        task = MetaTask(
            self._on_device(task.support), self._on_device(task.query), self._moved(task.outliers)
        )
        if not len(task.outliers):
            raise InputError("outliers of an outer task", "are empty", "Give at least one unfamiliar input.")
        if not len(task.query.y):
            raise InputError("query of an outer task", "is empty", "Give at least one example.")
        self._check_support(task.support)
        if first and self.order == 2:
            self._refuse_changing_buffers(task.support.x)
        return task

    def _check_support(self, support: Labelled) -> None:
        if not len(support.y) or len(support.x) != len(support.y):
            raise InputError(
                "support",
                f"has {len(support.x)} inputs and {len(support.y)} labels",
                "Give at least one example, and a label for each.",
            )
        batch_norm = any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in self.model.modules()
        )
        if batch_norm and len(support.y) < 2:
            raise InputError(
                "support",
                "has one example, but the model's batch normalisation is in training mode",
                "Give two at least, call model.eval(), or use GroupNorm.",
            )

    @torch.no_grad()
    def _refuse_changing_buffers(self, x: Tensor) -> None:
        before = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        state = {name: buffer.clone() for name, buffer in before.items()}
        functional_call(self.model, {**dict(self.model.named_parameters()), **state}, (x,))
        for name, buffer in before.items():
            if not torch.equal(buffer, state[name]):
                raise InputError(
                    "model",
                    f"changes its buffer {name!r} in the forward pass, which second-order gradients cannot pass",
                    "Call model.eval(), use GroupNorm or LayerNorm, or order=1.",
                )

    def _on_device(self, examples: Labelled) -> Labelled:
        device = next(iter(self.learned.values())).device
        return Labelled(examples.x.detach().to(device), examples.y.to(device))

    def _moved(self, x: Tensor) -> Tensor:
        return x.detach().to(next(iter(self.learned.values())).device)
