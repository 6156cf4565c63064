import pytest
import torch

from unseen.errors import InputError
from unseen.registry import objectives
from unseen.testing.toy import Run, toy_batch, toy_system
from unseen.training.learner import Learner
from unseen.updates.warm_start import WarmStart


def run(rule, objective="erm"):
    return Run(toy_system(lambda: objectives.build(objective), 0, "cpu", 3), rule, "cpu")


def test_the_head_alone_moves_first():
    training = run(WarmStart(head_steps=3), "sagnet")
    before = {name: p.detach().clone() for name, p in training.system.named_parameters()}
    for _ in range(3):
        training.step()
    moved = {n for n, p in training.system.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"network.head.weight", "network.head.bias"}
    training.step()
    moved = {n for n, p in training.system.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(before)


def test_afterwards_it_is_the_plain_update_with_a_fresh_optimizer():
    warm = run(WarmStart(head_steps=4))
    for _ in range(4):
        warm.step()
    plain = run("plain")
    plain.system.load_state_dict(warm.system.state_dict())
    for step in range(4, 7):
        batch = toy_batch("cpu", step=step)
        warm.step(batch=batch)
        plain.step(batch=batch)
    for name, value in warm.system.state_dict().items():
        torch.testing.assert_close(value, plain.system.state_dict()[name])


def test_no_warm_start_is_the_plain_update():
    first, second = run(WarmStart(head_steps=0)), run("plain")
    for _ in range(3):
        first.step()
        second.step()
    for name, value in first.system.state_dict().items():
        assert torch.equal(value, second.system.state_dict()[name])


def test_ermplusplus_is_a_learner_string():
    learner = Learner.parse("warm-start+swa(start=0.12)", backbone="mobilenet")
    assert (learner.update.name, learner.averaging.name, learner.objective.name) == (
        "warm-start",
        "swa",
        "erm",
    )


def test_errors():
    with pytest.raises(InputError, match="head_steps: is -1"):
        WarmStart(head_steps=-1)
