"""A small problem in double precision, with its loss as a function of one flat parameter vector."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from unseen.networks import Network
from unseen.objectives import Loss
from unseen.objectives.erm import ERM
from unseen.registry import updates
from unseen.shifts import Batch
from unseen.training.system import TrainingSystem


class Problem:
    """A two-layer network on `domains` domains of 6 examples; `theta` are its parameters end to end."""

    rate = 0.1

    def __init__(self, domains=3, objective=None):
        generator = torch.Generator().manual_seed(3)
        count = 6 * domains
        self.batch = Batch(
            x=torch.randn(count, 4, generator=generator, dtype=torch.float64),
            y=torch.randint(3, (count,), generator=generator),
            domain=torch.arange(domains).repeat_interleave(6),
            domains=domains,
            ids=torch.arange(count),
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = Network(nn.Sequential(nn.Linear(4, 5), nn.Tanh()), 5, 3).double()
        self.system = TrainingSystem(network, objective or ERM())
        self.names = [name for name, _ in self.system.named_parameters()]
        self.shapes = [p.shape for p in self.system.parameters()]

    @property
    def theta(self):
        return torch.cat([p.detach().flatten() for p in self.system.parameters()])

    def split(self, theta):
        sizes = [shape.numel() for shape in self.shapes]
        return [part.view(shape) for part, shape in zip(theta.split(sizes), self.shapes, strict=True)]

    def loss(self, theta, batch):
        state = dict(zip(self.names, self.split(theta), strict=True))
        return functional_call(self.system, state, (batch,)).total

    def grad(self, theta, batch=None):
        theta = theta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(theta, self.batch if batch is None else batch), theta)
        return gradient

    def rule(self, spec, optimizer=torch.optim.SGD, **options):
        rule = updates.build(spec) if isinstance(spec, str) else spec
        return rule.bind(self.system, optimizer(self.system.parameters(), lr=self.rate), **options)

    def direction(self, spec, steps=1, **options):
        """The gradient that the last of some steps of the rule follows, by plain SGD."""
        rule = self.rule(spec, **options)
        for _ in range(steps):
            before = self.theta
            rule.step(self.system, self.batch)
        return (before - self.theta) / self.rate


@pytest.fixture
def problem():
    return Problem()


@pytest.fixture
def make_problem():
    return Problem


@pytest.fixture
def stacked_agrees():
    """Whether three stacked runs of a rule move as three alone, on a loss that no step size can blow up."""

    def moved(spec, starts, goals, stacked):
        module = nn.ParameterList([nn.Parameter(start.clone()) for start in starts])
        rule = updates.build(spec).bind(
            module, torch.optim.SGD(module.parameters(), lr=0.05), stacked=stacked
        )
        batch = Problem().batch
        for _ in range(3):

            def loss(part):
                share = part.x.mean() + 1  # differs from domain to domain
                gaps = [p - share * g for p, g in zip(module, goals, strict=True)]
                return Loss(sum((gap.square() + gap.pow(3) / 10).sum() for gap in gaps))

            rule.step(loss, batch)
        return [p.detach() for p in module]

    def agrees(spec):
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(2, 2, 3, 4, 2, generator=generator, dtype=torch.float64)
        starts, goals = list(values[0]), list(values[1])
        together = moved(spec, starts, goals, True)
        for run in range(3):
            alone = moved(spec, [s[run] for s in starts], [g[run] for g in goals], False)
            for a, b in zip(alone, together, strict=True):
                torch.testing.assert_close(a, b[run])
        return True

    return agrees
