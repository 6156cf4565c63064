"""The contract of selectors of training data."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from unseen.curation.base import Pool
from unseen.errors import InputError
from unseen.networks import Network
from unseen.registry import selectors
from unseen.testing.contract import Buildable, ContractReport, builder, equal, require
from unseen.training.system import seeded

EXAMPLES, CLASSES, TOKENS = 24, 3, 6


def check_selector(selector: Buildable, *, device: torch.device | str = "cpu") -> ContractReport:
    """Check that a selector keeps the contract of `unseen.curation.base.Selector`; arguments as above.

    It is given labelled examples of two domains, or, if it refuses these, sequences of tokens and a language model.
    """
    build, report = builder(selectors, selector)
    model, pool = _classifier(device)
    try:
        build().fit(model, pool)
    except InputError:
        model, pool = _language_model(device)
    report.facts["examples"] = "labels" if pool.y.dim() == 1 else "tokens"

    model.train()
    before, modes = copy.deepcopy(model.state_dict()), [each.training for each in model.modules()]
    state = torch.random.get_rng_state()
    made = build()
    scores = made.fit(model, pool)
    require(equal(before, model.state_dict()), report, "changes the model")
    require(all(p.grad is None for p in model.parameters()), report, "leaves gradients in the model")
    require(all(p.requires_grad for p in model.parameters()), report, "leaves the model frozen")
    require([each.training for each in model.modules()] == modes, report, "leaves the model in another mode")
    require(torch.equal(state, torch.random.get_rng_state()), report, "moves torch's global generator")
    report.passed.append("the model is left as it was")

    kind = scores.shape == (EXAMPLES,) and scores.dtype == torch.float64 and scores.device.type == "cpu"
    require(
        kind,
        report,
        f"gives scores {scores.dtype} of shape {tuple(scores.shape)}: give (N,) float64 on the CPU",
    )
    require(torch.equal(scores, build().fit(model, pool)), report, "gives other scores when asked again")
    report.passed.append("scores")

    _check_choice(made.select(scores, 0.25), EXAMPLES // 4, report)
    require(len(made.select(scores, 1.0)) == EXAMPLES, report, "keeps less than all at a budget of 1")
    if pool.domain is not None:
        kept = made.select(scores, 0.5, "domain")
        _check_choice(kept, EXAMPLES // 2, report)
        counts = pool.domain.cpu()[kept].bincount().tolist()
        require(counts == [EXAMPLES // 4] * 2, report, f"keeps {counts} of two domains of equal size")
    report.passed.append("what is kept")
    return report


def _check_choice(rows: Tensor, count: int, report: ContractReport) -> None:
    right = len(rows) == count and torch.equal(rows, rows.unique())
    require(right, report, f"keeps rows {rows.tolist()[:8]}: give {count} different ones, ascending")


def _classifier(device: torch.device | str) -> tuple[nn.Module, Pool]:
    y = torch.arange(EXAMPLES) % CLASSES
    with seeded(0):
        model = Network(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.5)), 8, CLASSES).to(device)
        x = torch.randn(EXAMPLES, 5) + y[:, None]
    return model, Pool(x.to(device), y.to(device), (torch.arange(EXAMPLES) // 12).to(device))


def _language_model(device: torch.device | str) -> tuple[nn.Module, Pool]:
    with seeded(0):
        model = nn.Sequential(nn.Embedding(11, 8), nn.Dropout(0.5), nn.Linear(8, 11)).to(device)
        tokens = torch.randint(11, (EXAMPLES, TOKENS)).to(device)
    return model, Pool(tokens, tokens, (torch.arange(EXAMPLES) // 12).to(device))
