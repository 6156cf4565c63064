import copy

import numpy as np
import pytest
import torch

from unseen.errors import InputError
from unseen.registry import adaptation
from unseen.shifts.arrays import from_arrays
from unseen.training import Learner, fit
from unseen.training.adapted import predict_adapted


@pytest.fixture(scope="module")
def predictor():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 3, 8, 8, generator=generator)
    split = from_arrays(x, torch.arange(120) % 3, torch.arange(120) // 3 % 2).split("1")
    return fit(Learner(network="resnet", steps=2, batch_size=8), split)


@pytest.fixture(scope="module")
def stream():
    return (2 + 3 * torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(1))).numpy()


def test_batches_are_answered_in_order_by_a_copy(predictor, stream):
    before = copy.deepcopy(predictor.network.state_dict())
    table = predict_adapted(predictor, stream, "tent(learning_rate=0.01)", batch_size=20)
    by_hand = adaptation.build("tent(learning_rate=0.01)", network=predictor)
    stored = predictor.preprocessing.encode(stream)
    logits = [by_hand.adapt(predictor.preprocessing.finish(part)) for part in stored.split(20)]
    expected = torch.cat(logits).softmax(1)
    np.testing.assert_allclose(table[["p(0)", "p(1)", "p(2)"]].to_numpy(), expected.numpy(), rtol=1e-5)
    assert table["label"].tolist() == [str(i) for i in expected.argmax(1).tolist()]
    for name, tensor in predictor.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_without_learning_the_answers_are_the_predictors(predictor, stream):
    adapted, plain = predict_adapted(predictor, stream, "source"), predictor.predict(stream)
    np.testing.assert_allclose(adapted["p(0)"], plain["p(0)"], rtol=1e-5)
    assert list(adapted.columns) == ["label", "p(0)", "p(1)", "p(2)"]


@pytest.mark.parametrize(
    ("method", "size", "message"),
    [
        ("eata", 20, "needs inputs of the training distribution"),
        ("tnet", 20, "Did you mean 'tent'"),
        ("tent", 0, "batch_size"),
    ],
)
def test_what_cannot_adapt_is_named(predictor, stream, method, size, message):
    with pytest.raises(InputError, match=message):
        predict_adapted(predictor, stream, method, batch_size=size)
