import pytest
import torch
from torch import nn

from unseen.averaging.wise_ft import WiseFT
from unseen.errors import InputError
from unseen.training import Learner, train
from unseen.training.batched import Run, can_batch, train_many
from unseen.training.data import TrainingData
from unseen.training.fit import evaluate, validation_score
from unseen.training.system import build_system


def walk(average, steps=20):
    """Weights 100 at the start, then 0, 1, 2, ..."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average.setup(steps=steps)
    with torch.no_grad():
        model[0].weight.fill_(100)
    average.begin(model)
    for step in range(steps):
        with torch.no_grad():
            model[0].weight.fill_(float(step))
            model[1].num_batches_tracked.fill_(step + 1)
        average.observe(step, model, None)
    return average


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_lies_between_the_first_and_the_last_weights(alpha):
    result = walk(WiseFT(alpha)).result()
    torch.testing.assert_close(result["0.weight"], torch.full((2, 2), (1 - alpha) * 100 + alpha * 19))
    assert result["1.num_batches_tracked"] == 20 and result["1.num_batches_tracked"].dtype == torch.int64


def test_the_start_may_be_what_a_linear_probe_has_come_to():
    result = walk(WiseFT(0.5, after=0.5)).result()
    torch.testing.assert_close(result["0.weight"], torch.full((2, 2), (9 + 19) / 2))


def test_alpha_is_chosen_by_the_scores_that_it_is_given():
    average = walk(WiseFT(None))
    asked = []

    def score(state):
        asked.append(float(state["0.weight"][0, 0]))
        return -abs(asked[-1] - (0.7 * 100 + 0.3 * 19))

    assert average.choose(score) == {"alpha": 0.3}
    assert len(asked) == 11 and asked[0] == 100 and asked[-1] == 19
    torch.testing.assert_close(average.result()["0.weight"], torch.full((2, 2), 75.7))


@pytest.mark.parametrize(("options", "named"), [({"alpha": 1.5}, "alpha 1.5"), ({"after": 1.0}, "after 1.0")])
def test_shares_out_of_range_are_refused(options, named):
    with pytest.raises(InputError, match=named):
        WiseFT(**options)


@pytest.fixture(scope="module")
def data():
    from unseen.shifts.generators import spurious

    return TrainingData(spurious(size=200).split("agree-0.1"))


SMALL = Learner(steps=30, batch_size=16, learning_rate=0.02, network="mlp(width=8)", keep="last")


def test_a_learner_gives_the_interpolation_of_what_it_starts_from_and_what_it_ends_with(data):
    start = build_system(SMALL, data, 1).network.state_dict()
    end = train(SMALL, data, seed=1).state
    found = train(SMALL.replace(averaging="wise-ft(alpha=0.3)"), data, seed=1)
    for name, value in found.state.items():
        torch.testing.assert_close(value, 0.7 * start[name] + 0.3 * end[name])
    assert found.facts["kept"] == "averaged"


def test_the_start_that_a_run_is_given_is_one_end(data):
    start = build_system(SMALL, data, 7).network.state_dict()
    found = train(SMALL.replace(averaging="wise-ft(alpha=0.0)"), data, seed=1, start=start)
    assert all(torch.equal(value, start[name]) for name, value in found.state.items())


def test_a_learner_chooses_alpha_on_validation_and_records_it(data):
    chosen = train(SMALL.replace(averaging="wise-ft(alpha=None)"), data, seed=1)
    network = build_system(SMALL, data, 1).network

    def score(state):
        network.load_state_dict(state)
        return validation_score(evaluate(network, data, 0, "cpu"))[0]

    fixed = {
        alpha: train(SMALL.replace(averaging=f"wise-ft(alpha={alpha})"), data, seed=1).state
        for alpha in (0.1, 0.5, 1.0)
    }
    assert score(chosen.state) >= max(score(state) for state in fixed.values())
    again = train(SMALL.replace(averaging=f"wise-ft(alpha={chosen.facts['alpha']})"), data, seed=1).state
    assert all(torch.equal(value, again[name]) for name, value in chosen.state.items())


@pytest.mark.parametrize(
    "averaging", ["wise-ft", "wise-ft(after=0.5)", "wise-ft(alpha=None)", "lawa(every=4)"]
)
def test_many_runs_give_what_each_gives_alone(data, averaging):
    learner = SMALL.replace(averaging=averaging)
    runs = [Run(learner, data, seed) for seed in (0, 1)]
    assert (can_batch(learner, data) is None) == (averaging != "wise-ft(alpha=None)")
    for run, found in zip(runs, train_many(runs), strict=True):
        alone = train(learner, data, seed=run.seed)
        assert found.facts.get("alpha") == alone.facts.get("alpha")
        for name, value in alone.state.items():
            torch.testing.assert_close(found.state[name], value, rtol=1e-3, atol=1e-4)
