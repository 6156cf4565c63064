import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from torch import nn

from unseen.errors import InputError, UnseenWarning
from unseen.measures.hypothesis_spaces import sample_gp_losses, sample_network_losses

random = np.random.default_rng(0)
X, X_TEST = random.uniform(-1, 1, (30, 3)), random.uniform(-1, 1, (12, 3))
Y, Y_TEST = np.sin(2 * X[:, :2]), np.sin(2 * X_TEST[:, :2])


def test_gp_losses_have_the_distribution_of_scikit_learns_posterior():
    found = sample_gp_losses(X, Y, X_TEST, Y_TEST, lengthscale=0.7, n_samples=20_000)
    peer = GaussianProcessRegressor(RBF(0.7), optimizer=None, alpha=1e-6).fit(X, Y)
    drawn = peer.sample_y(X_TEST, 20_000, random_state=0)  # (points, outputs, samples)
    other = ((drawn - Y_TEST[:, :, None]) ** 2).mean((0, 1))
    assert np.quantile(found, [0.01, 0.5, 0.99]) == pytest.approx(
        np.quantile(other, [0.01, 0.5, 0.99]), rel=0.06
    )


def test_mean_loss_is_squared_bias_plus_variance():
    found = sample_gp_losses(X, Y, X_TEST, Y_TEST, lengthscale=0.7, n_samples=40_000)
    k = RBF(0.7)
    inverse = np.linalg.inv(k(X) + 1e-6 * np.eye(30))
    cross = k(X_TEST, X)
    bias = ((cross @ inverse @ Y - Y_TEST) ** 2).mean()
    variance = np.diag(k(X_TEST) - cross @ inverse @ cross.T).mean()
    assert found.mean() == pytest.approx(bias + variance, rel=0.02)


def test_conjugate_gradients_shapes_kernels_and_chunks(monkeypatch):
    direct = sample_gp_losses(X, Y, X_TEST, Y_TEST, lengthscale=0.7, n_samples=50, jitter=1e-3)
    iterative = sample_gp_losses(
        X, Y, X_TEST, Y_TEST, lengthscale=0.7, n_samples=50, jitter=1e-3, solver="cg"
    )
    assert np.quantile(iterative, 0.5) == pytest.approx(np.quantile(direct, 0.5), rel=0.1)
    own = sample_gp_losses(X, Y, X_TEST, Y_TEST, RBF(0.7), n_samples=50, jitter=1e-3)
    assert own == pytest.approx(direct)
    images = sample_gp_losses(X[:, None, :], Y[:, 0], torch.tensor(X_TEST), Y_TEST[:, 0], n_samples=7)
    assert images.shape == (7,)
    monkeypatch.setattr("unseen.measures.hypothesis_spaces.NUMBERS_AT_A_TIME", 24 * 20)
    assert sample_gp_losses(
        X, Y, X_TEST, Y_TEST, lengthscale=0.7, n_samples=50, jitter=1e-3
    ) == pytest.approx(direct)


def test_a_gp_has_learned_what_it_was_shown():
    at_training_points = sample_gp_losses(X, Y, X, Y, lengthscale=0.7, n_samples=100)
    elsewhere = sample_gp_losses(X, Y, X_TEST, Y_TEST, lengthscale=0.7, n_samples=100)
    assert at_training_points.max() < 1e-4 < elsewhere.min()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "matern"}, "kernel 'matern'"),
        ({"solver": "adam"}, "solver 'adam'"),
        ({"lengthscale": 0}, "out of range"),
        ({"X": np.repeat(X[:1], 30, 0), "jitter": 0}, "not positive definite"),
        ({"X": X * np.nan}, "X: is empty or holds"),
        ({"y": Y[:5]}, "y: has 5 entries"),
        ({"y_test": Y_TEST[:, :1]}, "y_test: has 1 outputs, y 2"),
    ],
)
def test_errors_of_gaussian_processes(options, message):
    given = {"X": X, "y": Y, "X_test": X_TEST, "y_test": Y_TEST, "n_samples": 3, **options}
    with pytest.raises(InputError, match=message):
        sample_gp_losses(**given)


TRAIN, TEST = (
    tuple(torch.tensor(v, dtype=torch.float32) for v in pair) for pair in ((X, Y), (X_TEST, Y_TEST))
)


def build():
    return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))


def plain_fit(model, x, y, seed):
    """The obvious loop with the order of data that the stack uses."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        for rows in torch.randperm(len(x), generator=generator).split(8):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x[rows]), y[rows]).backward()
            optimizer.step()


def test_a_stack_is_as_good_as_one_network_after_the_other():
    options = {"epochs": 20, "learning_rate": 1e-2, "batch_size": 8}
    stacked = sample_network_losses(build, TRAIN, TEST, 4, **options)
    alone = sample_network_losses(build, TRAIN, TEST, 4, plain_fit)
    assert stacked == pytest.approx(alone, rel=1e-3) and len(set(stacked)) == 4
    assert stacked.max() < float((TEST[1] ** 2).mean()) / 2, "they learned something"


def test_processes_and_seeds_do_not_change_the_losses():
    here = sample_network_losses(build, TRAIN, TEST, 2, plain_fit, seed=3)
    assert sample_network_losses(build, TRAIN, TEST, 2, plain_fit, seed=3, processes=2) == pytest.approx(here)
    assert sample_network_losses(build, TRAIN, TEST, 2, plain_fit, seed=4).tolist() != here.tolist()


def test_the_callers_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    sample_network_losses(build, TRAIN, TEST, 2, epochs=1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_networks_that_do_not_fit_are_left_out():
    """The trap: the published script conditions on nothing."""

    def fit(model, x, y, seed):
        if seed % 2:
            plain_fit(model, x, y, seed)

    everything = sample_network_losses(build, TRAIN, TEST, 8, fit)
    with pytest.warns(UnseenWarning, match="do not fit the training data"):
        fitting = sample_network_losses(build, TRAIN, TEST, 8, fit, train_loss_at_most=0.1)
    assert 0 < len(fitting) < 8 and set(fitting) < set(everything) and fitting.max() < everything.max()
    with pytest.raises(InputError, match="the least training loss is"):
        sample_network_losses(build, TRAIN, TEST, 2, fit, train_loss_at_most=1e-9)


def test_losses_are_means_over_examples():
    """The trap: the published script divides the sum of the batches' means by the number of examples."""
    double = tuple(torch.cat([part, part]) for part in TEST)
    once, twice = (sample_network_losses(build, TRAIN, test, 2, epochs=2) for test in (TEST, double))
    assert once == pytest.approx(twice)


def test_errors_of_networks():
    with pytest.raises(InputError, match="not positive"):
        sample_network_losses(build, TRAIN, TEST, 0)
    with pytest.raises(InputError, match="train targets: has 5"):
        sample_network_losses(build, (TRAIN[0], TRAIN[1][:5]), TEST, 2)
    with pytest.raises(InputError, match="not finite"):
        sample_network_losses(build, TRAIN, TEST, 2, loss=lambda out, y: out.mean() * float("nan"))
