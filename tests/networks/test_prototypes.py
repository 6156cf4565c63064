import pytest
import torch
from torch import nn

from unseen.errors import InputError, UnseenWarning
from unseen.networks.prototypes import DEAD_STEPS, PrototypeBank, prototype_separation, require_unit


def unit(*shape, seed=0):
    return nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def bank(classes=3, per_class=2, dim=5, momentum=0.9, seed=0):
    return PrototypeBank(classes, per_class, dim, momentum, generator=torch.Generator().manual_seed(seed))


class TestBank:
    def test_starts_uniform_on_the_sphere_and_not_in_one_orthant(self):
        vectors = bank(500, 2, 8).vectors
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(1000))
        assert vectors.mean(0).abs().max() < 0.06 and (vectors < 0).float().mean() == pytest.approx(
            0.5, abs=0.03
        )

    def test_rows_of_a_class_are_those_that_labels_and_logits_say(self):
        known = bank()
        assert known.labels.tolist() == [0, 0, 1, 1, 2, 2]
        for row, label in enumerate(known.labels.tolist()):
            z = known.vectors[row][None]
            assert int(known.logits(z).argmax()) == label
            torch.testing.assert_close(known.logits(z, 0.1)[0, label], torch.tensor(10.0))

    def test_logits_are_those_of_the_nearest_prototype_of_each_class(self):
        known, z = bank(), unit(7, 5)
        slow = [[max(float(v @ p) for p in known.vectors[2 * c : 2 * c + 2]) for c in range(3)] for v in z]
        torch.testing.assert_close(known.logits(z), torch.tensor(slow))

    def test_moving_average_written_out(self):
        known, z = bank(), unit(4, 5)
        weights = torch.rand(4, 6, generator=torch.Generator().manual_seed(1))
        weights[:, 2] = 0
        found = known.moved(known.start(), z, weights)
        for p in range(6):
            share = weights[:, p].sum()
            mean = sum(weights[i, p] / share * z[i] for i in range(4)) if share else torch.zeros(5)
            expected = 0.9 * known.vectors[p] + 0.1 * mean
            torch.testing.assert_close(found[p], expected / expected.norm())
        torch.testing.assert_close(found[2], known.vectors[2])  # without any weight it stays

    def test_the_gradient_through_the_average_is_one_minus_momentum_of_the_nominal(self):
        z = unit(4, 5).requires_grad_()
        slopes = []
        for momentum in (0.9, 0.99, 0.999):
            known = bank(momentum=momentum)
            moved = known.moved(known.start(), z, torch.ones(4, 6))
            slopes.append(torch.autograd.grad(prototype_separation(moved), z)[0].norm())
        assert slopes[0] / slopes[1] == pytest.approx(10, rel=0.15)
        assert slopes[1] / slopes[2] == pytest.approx(10, rel=0.02)

    def test_a_repeated_batch_starts_where_the_first_did(self):
        known, start = bank(), bank().start().clone()
        known.keep(known.moved(known.start(), unit(4, 5), torch.ones(4, 6)), torch.ones(4, 6))
        assert torch.equal(known.start(repeat=True), start) and not torch.equal(known.start(), start)

    def test_state_is_restored_exactly(self):
        known, other = bank(seed=0), bank(seed=1)
        known.keep(known.moved(known.start(), unit(4, 5), torch.ones(4, 6)), torch.ones(4, 6))
        other.load_state_dict(known.state_dict())
        assert torch.equal(known.start(True), other.start(True)) and torch.equal(known.vectors, other.vectors)

    def test_learned_prototypes_are_unit_parameters_and_have_no_average(self):
        known = bank(momentum=None)
        assert [name for name, _ in known.named_parameters()] == ["weight"] and not list(known.buffers())
        with torch.no_grad():
            known.weight.mul_(3)
        torch.testing.assert_close(known.vectors.norm(dim=1), torch.ones(6))
        with pytest.raises(InputError, match="parameters, which an optimizer moves"):
            known.start()

    def test_dead_prototypes_are_warned_of_once_and_absent_classes_are_not_dead(self, recwarn):
        known = bank()
        weights = torch.zeros(4, 6)
        weights[:, :2] = torch.tensor(
            [1.0, 0.0]
        )  # class 0: its second prototype has nothing; 1 and 2 are absent
        for _ in range(DEAD_STEPS - 1):
            known.keep(known.vectors, weights)
        assert not recwarn
        with pytest.warns(UnseenWarning, match=r"prototypes \[1\] have had less than 0.1%"):
            known.keep(known.vectors, weights)
        recwarn.clear()
        known.keep(known.vectors, weights)
        assert not recwarn and known.idle.tolist() == [0, DEAD_STEPS + 1, 0, 0, 0, 0]
        weights[:, 1] = 0.5  # comes to life again
        known.keep(known.vectors, weights)
        assert known.idle[1] == 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"classes": 0}, "num_classes: is 0"),
            ({"per_class": 0}, "per_class: is 0"),
            ({"dim": 0}, "dim: is 0"),
            ({"momentum": 1.0}, "momentum: is 1.0"),
        ],
    )
    def test_bad_sizes(self, options, message):
        with pytest.raises(InputError, match=message):
            bank(**options)


class TestSeparation:
    def test_equals_pairs_written_out(self):
        p = unit(5, 4)
        rows = [sum(torch.exp(p[i] @ p[j] / 0.1) for j in range(5) if j != i).div(4).log() for i in range(5)]
        torch.testing.assert_close(prototype_separation(p), torch.stack(rows).mean())

    def test_is_least_at_a_simplex_and_zero_for_one(self):
        simplex = nn.functional.normalize(torch.eye(4) - 0.25, dim=1)
        assert prototype_separation(simplex) < prototype_separation(unit(4, 4))
        assert float(prototype_separation(simplex)) == pytest.approx(-1 / 3 / 0.1)
        assert float(prototype_separation(unit(1, 4))) == 0

    def test_nan_is_an_error_and_is_not_dropped(self):
        with pytest.raises(InputError, match="prototypes: are not unit vectors: 1 of 2"):
            prototype_separation(torch.tensor([[1.0, 0.0], [float("nan"), 0.0]]))


def test_unit_vectors_within_a_tolerance():
    assert require_unit(unit(3, 4) * 1.0005, 4) is not None
    with pytest.raises(InputError, match="features: are not unit vectors: 3 of 3, the first of length 1.01"):
        require_unit(unit(3, 4) * 1.01, 4)
    with pytest.raises(InputError, match="have size 4. The prototypes have size 5"):
        require_unit(unit(3, 4), 5)
