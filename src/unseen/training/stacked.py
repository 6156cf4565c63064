"""Many networks of one architecture as one: parameters with a leading dimension of R runs, moved together.

Runs that see the same examples form a *stream*: U streams of K runs each, R = U K, stream after stream. The
loss is vectorised twice (over streams, then over the runs of one), so that runs of a stream share one product
of their inputs with all their weights.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from unseen.objectives import Loss
from unseen.shifts import Batch
from unseen.shifts.batch import map_tensors
from unseen.training.numbers import Number, with_numbers
from unseen.training.system import TrainingSystem


@dataclass
class StackedBatch(Batch):
    """Batches of U streams: x, y, ids, group, weight and what `prepare` makes (`auxiliary`) are (U, ...);
    `domain` (B,) is the same for all."""

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> StackedBatch:
        """Batches of equal size and with the same domains, one a stream."""
        first = batches[0]
        optional: dict[str, Any] = {
            name: torch.stack([getattr(batch, name) for batch in batches])
            for name in ("ids", "group", "weight")
            if getattr(first, name) is not None
        }
        return cls(
            x=_stack([batch.x for batch in batches]),
            y=torch.stack([batch.y for batch in batches]),
            domain=first.domain,
            domains=first.domains,
            step=first.step,
            auxiliary=None if first.auxiliary is None else _stack([batch.auxiliary for batch in batches]),
            **optional,
        )

    def of_stream(self, index: int) -> Batch:
        """The batch of one stream."""

        def own(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[index]

        x = map_tensors(lambda tensor: tensor[index], self.x)
        y, ids, group, weight = self.y[index], own(self.ids), own(self.group), own(self.weight)
        return Batch(x, y, self.domain, self.domains, ids, group, weight, self.step, self.repeat)

    def changed(self, change: Callable[[Batch, Any], Batch], drawn: dict[str, Tensor]) -> StackedBatch:
        """`change(batch of a stream, what was drawn for it)` of all streams at once; drawn: (U, ...) each."""
        shared = Batch(None, None, self.domain, self.domains, step=self.step)  # type: ignore[arg-type]

        def one(examples: dict[str, Any], own: dict[str, Tensor]) -> dict[str, Any]:
            return _given(change(replace(shared, **examples), own))

        return replace(self, **vmap(one)(_given(self), drawn))

    def take(self, index: Tensor) -> Batch:
        """The examples that `index` (positions or a mask over B) names, of every stream."""
        return self.map(lambda tensor: tensor[index] if tensor is self.domain else tensor[:, index])


def _given(batch: Batch) -> dict[str, Any]:
    """What a batch has of all that differs from stream to stream."""
    names = ("x", "y", "ids", "group", "weight", "auxiliary")
    return {name: value for name in names if (value := getattr(batch, name)) is not None}


def _stack(inputs: Sequence[Any]) -> Any:
    if isinstance(inputs[0], dict):
        return {name: _stack([one[name] for one in inputs]) for name in inputs[0]}
    return torch.stack(list(inputs))


class StackedSystem:
    """R training systems of one architecture as stacked parameters and buffers, and their losses.

    systems   the R systems, stream after stream; the first lends its code
    streams   U, a divisor of R
    numbers   settings of the objective (paths as in `unseen.training.numbers`) that may differ from run to run
    """

    def __init__(
        self,
        systems: Sequence[TrainingSystem],
        streams: int,
        numbers: Mapping[str, Sequence[Number]],
        device: torch.device | str = "cpu",
    ):
        self.streams, self.runs = streams, len(systems)
        self.template = copy.deepcopy(systems[0]).to(device)
        self._network_names = list(self.template.network.state_dict())
        trained = {name for name, value in systems[0].named_parameters() if value.requires_grad}
        tensors = [{**dict(s.named_parameters()), **dict(s.named_buffers())} for s in systems]
        stacked = {name: torch.stack(values).to(device) for name, values in _collected(tensors)}
        self.parameters = {name: value.requires_grad_() for name, value in stacked.items() if name in trained}
        self.buffers = {name: value for name, value in stacked.items() if name not in trained}
        self.numbers = {p: torch.tensor(v, dtype=torch.float32, device=device) for p, v in numbers.items()}

    def __call__(self, batch: Batch) -> Loss:
        """Sum of the runs' losses as `total`; `parts` are (R,) tensors, each run's own loss under "total"."""
        given = _given(batch)
        shared = Batch(None, None, batch.domain, batch.domains, step=batch.step, repeat=batch.repeat)  # type: ignore[arg-type]

        def one(state: dict[str, Tensor], numbers: dict[str, Tensor], examples: dict[str, Any]) -> Any:
            with with_numbers(self.template.objective, numbers):
                loss = functional_call(self.template, state, (replace(shared, **examples),))
            return {"total": loss.total, **loss.parts}

        state = {**self.parameters, **self.buffers}
        with _FastWhenStacked():
            if self.streams == self.runs:
                parts = vmap(one)(state, self.numbers, given)
            else:
                parts = vmap(vmap(one, (0, 0, None)))(
                    self._by_stream(state), self._by_stream(self.numbers), given
                )
        parts = {name: value.flatten() for name, value in parts.items()}
        return Loss(parts["total"].sum(), parts)

    def _by_stream(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.unflatten(0, (self.streams, -1)) for name, value in tensors.items()}

    def network_state(self) -> dict[str, Tensor]:
        """State of the networks alone, (R, ...) each: what averaging and evaluation see."""
        everything = {**self.parameters, **self.buffers}
        return {name: everything[f"network.{name}"].detach() for name in self._network_names}

    @torch.no_grad()
    def logits(self, x: Any, runs: slice) -> Tensor:
        """(runs, N, C) logits of the same N inputs, in evaluation mode."""
        state = {name: value[runs] for name, value in self.network_state().items()}
        network = self.template.network.eval()
        with _FastWhenStacked():
            found = vmap(lambda own: functional_call(network, own, (x,)))(state)
        network.train()
        return found


class StackedOptimizer:
    """Adam, AdamW or SGD (momentum 0.9) on (R, ...) parameters; learning rate and weight decay are (R,).

    The arithmetic of `torch.optim`, which takes one learning rate for a whole tensor. Adam divides by
    sqrt(v) + eps sqrt(c) instead of sqrt(v / c) + eps and scales by sqrt(c): two passes over memory less.
    """

    def __init__(self, kind: str, parameters: list[Tensor], learning_rate: Tensor, weight_decay: Tensor):
        self.kind = kind
        self.param_groups: list[dict[str, Any]] = [
            {"params": parameters, "lr": learning_rate, "weight_decay": weight_decay}
        ]
        self.state: dict[Tensor, dict[str, Any]] = defaultdict(dict)
        self._decays = bool((weight_decay > 0).any())

    def forget(self, runs: Tensor) -> None:
        """Start the moments of some runs anew."""
        for state in self.state.values():
            for name, value in state.items():
                if name != "scratch":
                    value[runs] = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        group = self.param_groups[0]
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            shape = (-1, *[1] * (parameter.dim() - 1))
            rate, decay, gradient = group["lr"].view(shape), group["weight_decay"].view(shape), parameter.grad
            if self._decays and self.kind == "adamw":
                parameter.mul_(1 - rate * decay)
            elif self._decays:
                gradient = gradient.addcmul(parameter, decay)
            move = _momentum if self.kind == "sgd" else _adam
            move(parameter, gradient, rate, self.state[parameter])


def _momentum(parameter: Tensor, gradient: Tensor, rate: Tensor, state: dict[str, Any]) -> None:
    if not state:
        state["buffer"] = gradient.clone()
    else:
        state["buffer"].mul_(0.9).add_(gradient)
    parameter.addcmul_(state["buffer"], -rate)


def _adam(parameter: Tensor, gradient: Tensor, rate: Tensor, state: dict[str, Any]) -> None:
    if not state:
        state |= {"mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        state["step"] = (
            torch.zeros_like(rate, dtype=torch.float64).expand(len(parameter), *rate.shape[1:]).clone()
        )
        state["scratch"] = torch.empty_like(parameter), torch.empty_like(parameter)
    state["step"] += 1
    correction = (1 - 0.999 ** state["step"]).sqrt().to(rate.dtype)
    first = (1 - 0.9 ** state["step"]).to(rate.dtype)
    numerator, denominator = state["scratch"]
    state["mean"].lerp_(gradient, 0.1)
    state["square"].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    torch.sqrt(state["square"], out=denominator).add_(1e-8 * correction)
    torch.mul(state["mean"], rate * (-correction / first), out=numerator)
    parameter.addcdiv_(numerator, denominator)


class _Linear(torch.autograd.Function):
    """x W^T + b, with a rule for stacks: PyTorch's own is about half as fast for small stacked layers."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])
        ctx.has_bias = inputs[2] is not None

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        flat = gradient.flatten(0, -2)
        return (
            gradient @ weight if ctx.needs_input_grad[0] else None,
            flat.mT @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None,
            flat.sum(0) if ctx.has_bias else None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Any) -> Any:
        x_dim, weight_dim, bias_dim = in_dims
        if weight_dim is None and bias_dim is None:
            return _Linear.apply(x.movedim(x_dim, 0), weight, bias), 0  # type: ignore[arg-type]
        runs = info.batch_size
        weight = weight.expand(runs, *weight.shape) if weight_dim is None else weight.movedim(weight_dim, 0)
        if bias is not None:
            bias = bias.expand(runs, *bias.shape) if bias_dim is None else bias.movedim(bias_dim, 0)
        if x_dim is None:  # all runs see the same inputs: one product with the weights side by side
            side_by_side = weight.flatten(0, 1), None if bias is None else bias.flatten()
            found = _Linear.apply(x, *side_by_side).unflatten(-1, (runs, -1))
            return found, found.dim() - 2
        x = x.movedim(x_dim, 0)
        flat = x.flatten(1, -2) if x.dim() > 2 else x.unsqueeze(1)
        # weights first: faster for few outputs, and it leaves the classes where a fast softmax wants them
        found = weight @ flat.mT if bias is None else torch.baddbmm(bias.unsqueeze(2), weight, flat.mT)
        return found.mT.reshape(*x.shape[:-1], -1), 0


SOFTMAXES = {torch.softmax, Tensor.softmax, torch.log_softmax, Tensor.log_softmax}


class _FastWhenStacked(TorchFunctionMode):
    """Inside, linear layers, softmaxes and cross-entropies run in a form that is fast for many small ones."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.linear:
            return _Linear.apply(*args, *kwargs.values())
        if func is nn.functional.cross_entropy and args[0].dim() == 2 and kwargs.get("reduction") == "none":
            # softmax over a short last dimension is not vectorised; over another one it is (12 times as fast)
            logits, target = args
            target = target.T if target.dim() == 2 else target
            return func(logits.T.unsqueeze(0), target.unsqueeze(0), **kwargs).squeeze(0)
        if func in SOFTMAXES and args[0].dim() == 2 and (*args[1:], *kwargs.values()) in ((-1,), (1,)):
            return func(args[0].T, 0).T
        return func(*args, **kwargs)


def _collected(states: list[dict[str, Tensor]]) -> Iterator[tuple[str, list[Tensor]]]:
    for name in states[0]:
        yield name, [state[name].detach() for state in states]
