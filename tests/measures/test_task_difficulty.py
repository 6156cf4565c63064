import itertools
import math

import numpy as np
import pytest
from scipy.special import binom, gamma
from scipy.stats import linregress
from sklearn.datasets import load_digits, load_wine

from unseen.errors import InputError, UnseenWarning
from unseen.measures.task_difficulty import (
    Task,
    bias_supplied,
    inductive_bias_complexity,
    meta_difficulty,
    rl_difficulty,
    task_difficulty,
    union_difficulty,
)

PUBLISHED = {  # n, m, R, delta, classes, error -> bits
    "MNIST": ((60_000, 14, 17.179, 2.3987, 10, 0.001), 1.48e16),
    "SVHN": ((73_257, 19, 53.869, 1.5767, 10, 0.01), 1.21e31),
    "CIFAR-10": ((50_000, 27, 54.916, 2.7506, 10, 0.01), 3.44e32),
    "ImageNet": ((1_280_901, 48, 943.59, 65, 1000, 0.1), 3.58e41),
}
CART_POLE = (4.4e9, 3.3e17, 1.5e25, 4.7e32, 1.2e40)
ROBOTS = {"Reacher": (6, 2, 2.9e25), "Hopper": (15, 4, 7.6e58), "Half-Cheetah": (17, 6, 1.7e66)}
"""Numbers in an observation, in an action, and bits."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_numbers_of_image_sets(name):
    constants, bits = PUBLISHED[name]
    assert inductive_bias_complexity(*constants).bits == pytest.approx(bits, rel=0.01)


def test_the_published_numbers_of_control_tasks():
    for history, bits in enumerate(CART_POLE, 1):
        found = rl_difficulty("pomdp", 2, history=history, n=1e4).bits
        assert found == pytest.approx(bits, rel=0.03), "two digits are published"
    for observations, actions, bits in ROBOTS.values():
        assert rl_difficulty("mdp", observations, actions=actions).bits == pytest.approx(bits, rel=0.02)


def test_one_shot_learning_is_of_the_published_order():
    # 964 characters of Omniglot in tasks of 20 with 20 drawings each make about 1e40 or more tasks
    found = meta_difficulty(1e40, 22, 29, 49.4065, 5.4772, 0.01)
    assert found.log10_bits == pytest.approx(145, abs=1) and math.isfinite(found.bits)


def test_the_formula_without_logarithms():
    n, m, radius, delta, classes, error = 60, 3.4, 2.0, 0.9, 4, 0.02
    found = inductive_bias_complexity(n, m, radius, delta, classes, error, bound=1.5)
    frequency = 2 * np.pi * radius / delta
    cutoff = (np.sqrt((m - 1) ** 2 + 4 * frequency**2) - (m - 1)) / 2
    eigenfunctions = binom(m + cutoff, m) + binom(m + cutoff - 1, m)
    wasserstein = math.sqrt(m / 6) * radius * n ** (-1 / m)
    wasserstein *= (2 * np.pi ** ((m + 1) / 2) * classes / gamma((m + 1) / 2)) ** (1 / m)
    outputs = classes - 1
    dimensions = 2 * outputs * classes * eigenfunctions - n * outputs
    ratio = 1.5 * math.sqrt(outputs * classes) / error * cutoff * math.sqrt(outputs) / radius * wasserstein
    assert found.bits == pytest.approx(dimensions * math.log2(ratio), rel=1e-9)
    assert found.cutoff == pytest.approx(cutoff) and found.log_ratio == pytest.approx(math.log2(ratio))
    assert found.log10_eigenfunctions == pytest.approx(np.log10(eigenfunctions))
    assert found.log10_dim == pytest.approx(np.log10(dimensions))


def test_scale_cancels_and_trends_are_those_of_the_paper():
    base = {"n": 1000, "intrinsic_dim": 8, "radius": 5, "delta": 0.5, "num_classes": 10, "target_error": 0.01}

    def bits(**changes):
        return inductive_bias_complexity(**{**base, **changes}).log10_bits

    assert bits(radius=50, delta=5) == pytest.approx(bits())
    assert bits(intrinsic_dim=9) > bits() + 0.5, "exponential in the dimension"
    slope = (bits(delta=0.005) - bits(delta=0.05)) / 1
    assert slope == pytest.approx(8, rel=0.1), "polynomial in the resolution, of degree m"
    assert 0 < bits(target_error=1e-4) - bits() < 0.3, "logarithmic in the error"
    assert bits(n=10_000) < bits()
    huge = inductive_bias_complexity(1000, 900, 5, 0.05, 10, 0.01)
    assert huge.bits == math.inf and 308 < huge.log10_bits < 1e4


def test_data_give_the_constants():
    x, y = load_digits(return_X_y=True)
    found = task_difficulty(x / 16, y, delta="min")
    assert found.task.n == 1797 and found.task.num_classes == 10
    assert found.task.intrinsic_dim == pytest.approx(8.1, abs=0.2)
    assert found.task.radius == pytest.approx(4.8, abs=0.1)
    assert found.task.delta == pytest.approx(1.18, abs=0.01)
    assert 1e10 < found.bits < 1e11
    assert task_difficulty((x / 16).reshape(-1, 8, 8), y, delta="min").bits == pytest.approx(found.bits)
    whole = task_difficulty(x / 16, y, delta="min", rounded=True)
    assert whole.task.intrinsic_dim == 8
    given = task_difficulty(x / 16, y, intrinsic_dim=8, delta=1.18)
    assert given.task.delta == 1.18 and given.task.intrinsic_dim == 8


def test_noise_is_not_monotone_unless_resolution_is_held():
    """The trap: noise makes the dimension grow, and, where it is estimated anew, the separation too."""
    x, y = load_digits(return_X_y=True)
    random, noise = np.random.default_rng(0), (0.0, 0.05, 0.1, 0.2, 0.4)
    versions = [x / 16 + s * random.normal(size=x.shape) for s in noise]
    anew = [task_difficulty(v, y, delta="min").log10_bits for v in versions]
    clean = task_difficulty(x / 16, y, delta="min").task
    held = [
        inductive_bias_complexity(
            1797, task_difficulty(v, y, delta=1.0).task.intrinsic_dim, clean.radius, clean.delta, 10, 0.01
        ).log10_bits
        for v in versions
    ]
    assert max(anew) > anew[0] and anew[-1] < max(anew) - 1
    assert all(b > a for a, b in itertools.pairwise(held))


def test_irrelevant_dimensions_make_a_task_exponentially_harder():
    x, y = load_wine(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    clean, random = task_difficulty(x, y, delta="min").task, np.random.default_rng(0)
    found = []
    for extra in range(9):
        wider = np.concatenate([x, random.normal(size=(len(x), extra))], 1)
        m = task_difficulty(wider, y, delta=clean.delta).task.intrinsic_dim
        found.append((m, inductive_bias_complexity(len(x), m, clean.radius, clean.delta, 3, 0.01).log10_bits))
    line = linregress(*np.array(found).T)
    assert line.slope > 0 and line.rvalue**2 > 0.95


def test_bias_supplied_and_unions():
    task = Task(60_000, 14, 17.179, 2.3987, 10)
    known = [bias_supplied(task, error).bits for error in (0.5, 0.084, 0.0039)]
    assert known == sorted(known)
    both = union_difficulty(task, Task(50_000, 27, 54.916, 2.7506, 10), 0.01)
    alone = [inductive_bias_complexity(*t, 0.01) for t in (
        (60_000, 14, 17.179, 2.3987, 10), (50_000, 27, 54.916, 2.7506, 10))]  # fmt: skip
    assert both.log10_bits > max(each.log10_bits for each in alone) + 10


def test_enough_data_leave_nothing_to_add():
    with pytest.warns(UnseenWarning, match="already determine"):
        assert inductive_bias_complexity(1e9, 1, 1, 1, 2, 0.01).bits == 0
    with pytest.warns(UnseenWarning, match="any function reaches"):
        assert inductive_bias_complexity(3, 1, 1, 6, 2, 0.999, bound=1e-6).log10_bits == -math.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inductive_bias_complexity(10, 2, 1, 0, 2, 0.1), "delta: is 0"),
        (lambda: inductive_bias_complexity(10, 2, 1, 1, 2, 1.0), "target_error: is 1.0"),
        (lambda: inductive_bias_complexity(10, 2, 1, 1, 1, 0.1), "num_classes: is 1"),
        (lambda: inductive_bias_complexity(10, 2, 1, 1, 2, 0.1, bound=0), "bound: is 0"),
        (lambda: rl_difficulty("mdp", 2, history=3), "for an MDP"),
        (lambda: rl_difficulty("dmp", 2), "kind 'dmp'"),
        (lambda: meta_difficulty(10, 2, 2, 1, 1, 0.1, ways=1), "ways: is 1"),
        (lambda: task_difficulty([[0.0, 1], [0, 1], [1, 1], [2, 3]], [0, 1, 0, 1], 0.1, intrinsic_dim=1),
         "equal ones with different labels"),
        (lambda: task_difficulty(np.zeros((4, 2)), [0, 1, 0, 1]), "1 distinct"),
        (lambda: task_difficulty([[0.0], [np.nan]], [0, 1]), "NaN"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:class separation")
def test_errors_name_the_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
