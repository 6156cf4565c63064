import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.measures.head_transfer import hessian_distance, transfer_gap
from unseen.networks import Bank

F, C = 4, 3


def bank_of(generator, sizes=(15, 20, 12), scale=1.0):
    head = nn.Linear(F, C).double()
    with torch.no_grad():
        head.weight.copy_(torch.randn(C, F, generator=generator))
        head.bias.copy_(torch.randn(C, generator=generator))
    domain = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    features = torch.randn(len(domain), F, generator=generator).double() * (
        1 + scale * domain.double()
    ).unsqueeze(1)
    return Bank(
        features,
        head(features).detach(),
        labels=torch.randint(C, (len(domain),), generator=generator),
        domain=domain,
        head=head,
        domains=tuple("abcdef"[: len(sizes)]),
    )


def full_hessian(bank, domain):
    part = bank.take(bank.domain == domain)
    inputs = torch.cat([part.features, torch.ones(len(part), 1).double()], 1)

    def risk(head):
        return nn.functional.cross_entropy(inputs @ head.view(C, F + 1).T, part.labels)

    weights = torch.cat([bank.head.weight, bank.head.bias.unsqueeze(1)], 1).detach().flatten()
    return torch.autograd.functional.hessian(risk, weights)


@pytest.mark.parametrize("norm", ["spectral", "fro", "diag"])
def test_distances_equal_those_of_the_full_matrices(norm, generator):
    bank = bank_of(generator)
    found = hessian_distance(bank, norm)
    for i in range(3):
        for j in range(3):
            difference = full_hessian(bank, i) - full_hessian(bank, j)
            expected = {
                "spectral": torch.linalg.matrix_norm(difference, 2),
                "fro": difference.norm(),
                "diag": difference.diagonal().norm(),
            }[norm]
            torch.testing.assert_close(found[i, j], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("norm", ["spectral", "fro", "diag"])
def test_equal_domains_are_at_distance_zero_and_missing_ones_have_none(norm, generator):
    one = bank_of(generator, sizes=(9,))
    twice = one.take(torch.arange(9).repeat(2))
    twice.domain, twice.domains = torch.arange(2).repeat_interleave(9), ("a", "b", "c")
    found = hessian_distance(twice, norm)
    torch.testing.assert_close(found[0, 1], torch.zeros(()).double(), atol=1e-6, rtol=0)
    assert found[2].isnan().all() and found[:, 2].isnan().all()


def test_weights_undo_a_difference_in_class_balance(generator):
    one = bank_of(generator, sizes=(12,))
    rows = torch.cat([torch.arange(12), torch.arange(12), torch.arange(3)])
    bank = one.take(rows)
    bank.domain, bank.domains = torch.tensor([0] * 12 + [1] * 15), ("a", "b")
    weight = torch.ones(27)
    weight[12:15] = weight[24:] = 0.5
    weight[12:] *= 15 / 12
    assert hessian_distance(bank)[0, 1] > 1e-2
    assert hessian_distance(bank, weight=weight)[0, 1] < 1e-12


def test_gap_reaches_but_does_not_pass_its_second_order_bound(generator):
    # uniform predictions and every example with every label: a head that is stationary on both domains
    bank = bank_of(generator, sizes=(30, 30), scale=1.0)
    bank.logits = torch.zeros_like(bank.logits)
    rows = torch.arange(60).repeat_interleave(C)
    balanced = bank.take(rows)
    balanced.labels = torch.arange(C).repeat(60)
    source, target = (balanced.take(balanced.domain == d) for d in (0, 1))
    bound = 0.5 * 0.01**2 * hessian_distance(balanced, "spectral")[0, 1]
    gap = transfer_gap(source, target, 0.01)
    assert 0.9 * bound < gap.value < 1.01 * bound
    assert gap.change.norm() <= 0.01 * (1 + 1e-9)


def test_gap_is_what_its_parts_say_and_grows_with_the_radius(generator):
    bank = bank_of(generator)
    source, target = bank.take(bank.domain == 0), bank.take(bank.domain == 1)
    gaps = [transfer_gap(source, target, radius) for radius in (0.1, 0.5, 2.0)]
    assert 0 < gaps[0].value < gaps[1].value < gaps[2].value
    for gap in gaps:
        head = torch.cat([bank.head.weight, bank.head.bias.unsqueeze(1)], 1).detach() + gap.change
        for part, excess in ((source, gap.source_excess), (target, gap.target_excess)):
            logits = part.features @ head[:, :-1].T + head[:, -1]
            risk = nn.functional.cross_entropy(logits, part.labels) - nn.functional.cross_entropy(
                part.logits, part.labels
            )
            assert float(risk) == pytest.approx(excess)
        assert gap.value == pytest.approx(gap.target_excess - gap.source_excess)


def test_no_gap_between_a_domain_and_itself(generator):
    bank = bank_of(generator)
    assert transfer_gap(bank, bank, 1.0).value == 0


def test_same_seed_same_gap(generator):
    bank = bank_of(generator)
    source, target = bank.take(bank.domain == 0), bank.take(bank.domain == 1)
    first, second = (transfer_gap(source, target, 1.0, seed=3) for _ in range(2))
    assert first.value == second.value and torch.equal(first.change, second.change)


def test_errors_name_what_is_wrong(generator):
    bank = bank_of(generator)
    with pytest.raises(InputError, match=r"norm 'spectrum'.*'spectral'"):
        hessian_distance(bank, "spectrum")
    with pytest.raises(InputError, match=r"radius: is 0"):
        transfer_gap(bank, bank, 0)
    with pytest.raises(InputError, match=r"at least two"):
        hessian_distance(bank_of(generator, sizes=(5,)))
    with pytest.raises(InputError, match=r"source: has no labelled"):
        transfer_gap(Bank(bank.features, bank.logits), bank, 1.0)
    bank.domain = None
    with pytest.raises(InputError, match=r"which domain"):
        hessian_distance(bank)
