import pytest
import torch

from unseen.errors import InputError
from unseen.testing import check_update
from unseen.updates.spectral_head import SpectralHead


def test_the_contract_holds_and_stacks_are_refused():
    assert "one network" in check_update("spectral-head").facts["stacked"]


@pytest.mark.parametrize("base", ["plain", "sam", "tram"])
def test_the_head_is_projected_after_the_update_of_the_base(base, problem, make_problem):
    weight = problem.system.network.head.weight
    with torch.no_grad():
        weight.mul_(9)
    other = make_problem()
    other.system.load_state_dict(problem.system.state_dict())
    problem.rule(f"spectral-head(base={base!r}, norm=0.7)").step(problem.system, problem.batch)
    other.rule(base).step(other.system, other.batch)
    free = other.system.network.head.weight
    torch.testing.assert_close(torch.linalg.matrix_norm(weight, 2).item(), 0.7)
    torch.testing.assert_close(weight / weight.norm(), free / free.norm())
    torch.testing.assert_close(
        problem.system.network.featurizer[0].weight, other.system.network.featurizer[0].weight
    )


def test_a_contraction_stays_as_it_is(problem, make_problem):
    theta = problem.direction("spectral-head(norm=1e3)")
    torch.testing.assert_close(theta, make_problem().direction("plain"))


@pytest.mark.parametrize("options", [{"norm": 0.0}, {"base": "spectral-head"}])
def test_what_cannot_be_is_refused(options):
    with pytest.raises(InputError, match="positive norm"):
        SpectralHead(**options)
