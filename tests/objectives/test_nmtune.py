import pytest
import torch
from torch import nn

from unseen.errors import InputError, UnseenWarning
from unseen.networks import Network, build_network
from unseen.networks.residual_tuner import ResidualTuner
from unseen.objectives.nmtune import NMTune, consistency_loss, dominant_singular_loss, offdiag_covariance
from unseen.registry import Spec
from unseen.shifts import Batch
from unseen.shifts.arrays import from_arrays
from unseen.training import Learner, fit


@pytest.fixture
def features(generator):
    return torch.randn(12, 6, generator=generator).double()


class TestConsistency:
    def test_it_is_a_scaled_cosine(self, features, generator):
        other = torch.randn(12, 6, generator=generator).double()
        cosine = nn.functional.cosine_similarity(features, other)
        torch.testing.assert_close(consistency_loss(features, other), (2 * (1 - cosine)).mean() / 6)

    def test_lengths_do_not_matter_and_the_target_is_fixed(self, features):
        assert consistency_loss(3 * features, features) < 1e-12
        target = (features + 1).requires_grad_()
        tuned = features.clone().requires_grad_()
        consistency_loss(tuned, target).backward()
        assert target.grad is None and tuned.grad.abs().sum() > 0


class TestCovariance:
    def test_it_is_the_sum_over_pairs(self, features):
        covariance = torch.cov(features.T)
        expected = sum(covariance[i, j] ** 2 for i in range(6) for j in range(6) if i != j) / 6
        torch.testing.assert_close(offdiag_covariance(features), expected)

    def test_neither_means_nor_variances_matter(self, features):
        torch.testing.assert_close(offdiag_covariance(features + 5), offdiag_covariance(features))
        apart = torch.linalg.qr(features - features.mean(0))[0]
        apart = apart - apart.mean(0)
        assert offdiag_covariance(apart * torch.arange(1, 7)) < 1e-10

    def test_one_example_has_none(self, features):
        with pytest.raises(InputError, match="have 1 example"):
            offdiag_covariance(features[:1])


class TestDominance:
    def test_it_is_minus_the_share(self, features):
        values = torch.linalg.svdvals(features)
        torch.testing.assert_close(dominant_singular_loss(features, 1), -values[0] / values.sum())
        torch.testing.assert_close(dominant_singular_loss(features, 3), -values[:3].sum() / values.sum() / 3)

    def test_its_gradient(self, features):
        assert torch.autograd.gradcheck(
            lambda f: dominant_singular_loss(f, 2), features.clone().requires_grad_()
        )

    def test_equal_singular_values_have_a_finite_gradient(self):
        features = torch.eye(6).repeat(2, 1).requires_grad_()
        dominant_singular_loss(features, 2).backward()
        assert torch.isfinite(features.grad).all()

    def test_half_precision_is_computed_in_float32(self, features):
        found = dominant_singular_loss(features.bfloat16(), 2)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), dominant_singular_loss(features, 2), atol=1e-2, rtol=0.05)

    @pytest.mark.parametrize("top_k", [0, 7])
    def test_more_than_there_are_is_refused(self, features, top_k):
        with pytest.raises(InputError, match="Give 1 to min.N, D., here 6"):
            dominant_singular_loss(features, top_k)


@pytest.fixture
def tuner():
    torch.manual_seed(0)
    return Network(ResidualTuner(6, normalization="layer"), 6, 3).double()


def batch_of(x):
    count = len(x["weak"]) if isinstance(x, dict) else len(x)
    zeros = torch.zeros(count, dtype=torch.int64)
    return Batch(x, torch.arange(count) % 3, zeros, 1)


class TestObjective:
    def test_the_total_is_the_weighted_sum(self, tuner, features):
        loss = NMTune(2.0, 0.5, 0.1, top_k=2)(tuner, batch_of(features))
        z = tuner.featurizer(features)
        expected = {
            "risk": nn.functional.cross_entropy(tuner.head(z), torch.arange(12) % 3),
            "consistency": consistency_loss(z, features),
            "covariance": offdiag_covariance(z),
            "singular": dominant_singular_loss(z, 2),
        }
        torch.testing.assert_close(loss.parts, expected)
        weights = {"risk": 1, "consistency": 2.0, "covariance": 0.5, "singular": 0.1}
        torch.testing.assert_close(loss.total, sum(w * expected[n] for n, w in weights.items()))

    def test_two_views(self, tuner, features):
        strong = features + 0.3
        loss = NMTune(top_k=2)(tuner, batch_of({"weak": features, "strong": strong}))
        z = tuner.featurizer(torch.cat([features, strong]))
        labels = (torch.arange(12) % 3).repeat(2)
        torch.testing.assert_close(loss.parts["risk"], nn.functional.cross_entropy(tuner.head(z), labels))
        # the strong view is pulled to the frozen weak one, not to the tuned one
        torch.testing.assert_close(loss.parts["consistency"], consistency_loss(z[12:], features))
        torch.testing.assert_close(loss.parts["covariance"], offdiag_covariance(z))

    def test_a_view_with_itself_is_a_single_view(self, tuner, features):
        one = NMTune(covariance=0)(tuner, batch_of(features))
        two = NMTune(covariance=0)(tuner, batch_of({"weak": features, "strong": features}))
        torch.testing.assert_close(one.parts, two.parts)

    def test_without_weights_it_is_erm(self, tuner, features):
        assert set(NMTune(0, 0, 0)(tuner, batch_of(features)).parts) == {"risk"}

    def test_consistency_needs_features_like_inputs_and_says_so(self, features):
        network = build_network("mlp(width=4, depth=1)", (6,), 3).double()
        with pytest.warns(UnseenWarning, match=r"features \(4\) are not shaped like inputs \(6\)"):
            loss = NMTune()(network, batch_of(features))
        assert "consistency" not in loss.parts and "covariance" in loss.parts

    def test_wrong_weights_are_told(self):
        with pytest.raises(InputError, match="covariance: is -1"):
            NMTune(covariance=-1)
        with pytest.raises(InputError, match="top_k: is 0"):
            NMTune(top_k=0)

    def test_a_learner_of_it_tunes_frozen_features(self, generator):
        labels = torch.arange(90) % 3
        x = torch.randn(90, 6, generator=generator) + 3 * nn.functional.one_hot(labels, 6)
        split = from_arrays(x, labels, torch.arange(90) // 3 % 2).split("1")
        learner = Learner(
            objective="nmtune", network=Spec("residual-tuner"), steps=40, learning_rate=0.01, evaluations=2
        )
        predictor = fit(learner, split)
        assert (predictor.network.eval()(torch.zeros(2, 6))).shape == (2, 3)
        accuracy = [r["value"] for r in predictor.history if r["metric"] == "accuracy"]
        assert accuracy[-1] > 0.8
        assert {"loss/consistency", "loss/covariance", "loss/singular"} <= {
            r["metric"] for r in predictor.history
        }
