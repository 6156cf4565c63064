import numpy as np
import pytest

from unseen.errors import InputError
from unseen.measures.learning_order import LearningOrder


@pytest.fixture
def order():
    watched = LearningOrder()
    for step, correct in ((1, [0, 0, 1, 0]), (5, [0, 1, 0, 1]), (9, [0, 1, 1, 0]), (12, [0, 1, 1, 1])):
        watched.observe(step, np.array(correct, bool))
    return watched


def test_when_examples_are_learned_and_forgotten(order):
    assert order.first_learned.tolist() == [np.inf, 5, 1, 5]
    assert order.learned_for_good.tolist() == [np.inf, 5, 9, 12]
    assert order.forgotten.tolist() == [0, 0, 1, 1]
    assert order.correct.shape == (4, 4)


def test_wrong_at_the_end_is_not_learned_for_good(order):
    order.observe(13, [0, 0, 1, 1])
    assert order.learned_for_good.tolist() == [np.inf, np.inf, 9, 12]
    assert order.first_learned.tolist() == [np.inf, 5, 1, 5]


def test_errors(order):
    with pytest.raises(InputError, match="step: is 12 after 12"):
        order.observe(12, [0, 0, 0, 0])
    with pytest.raises(InputError, match="has 3 entries"):
        order.observe(13, [0, 0, 0])
    with pytest.raises(InputError, match="booleans or shares"):
        order.observe(13, [0, 2, 0, 0])
    with pytest.raises(InputError, match="has seen nothing"):
        _ = LearningOrder().first_learned
