import pytest
import torch
from sklearn.cluster import KMeans
from torch.nn.functional import normalize

from unseen.discovery import clustering_accuracy, estimate_num_classes, k_means, prototype_score
from unseen.discovery.clustering import semi_supervised_k_means
from unseen.errors import InputError


def clusters(count, size=30, spread=0.1, dim=10):
    generator = torch.Generator().manual_seed(0)
    means = torch.linalg.qr(torch.randn(dim, count, generator=generator)).Q.T
    y = torch.arange(count * size) % count
    return normalize(means[y] + spread * torch.randn(len(y), dim, generator=generator), dim=1), y


def test_finds_separate_clusters_as_sklearn_does(generator):
    features, y = clusters(5)
    found = k_means(features, 5, generator)
    assert clustering_accuracy(y, found.assigned, y < 2).all == 1
    reference = normalize(
        torch.from_numpy(KMeans(5, n_init=5, random_state=0).fit(features).cluster_centers_).float(), dim=1
    )
    assert (found.centres @ reference.T).amax(1).min() > 0.999
    torch.testing.assert_close(found.centres.norm(dim=1), torch.ones(5))


def test_labelled_examples_stay_with_their_class(generator):
    features, y = clusters(4, spread=0.3)
    known = (y < 2) & (torch.arange(len(y)) % 3 == 0)
    found = semi_supervised_k_means(features[~known], features[known], y[known], 2, 2, generator)
    answers, truth = found.assigned, y[~known]
    for label in (0, 1):  # the index is the old class, without any matching
        assert (answers[truth == label] == label).float().mean() > 0.9
    assert (answers[truth > 1] > 1).float().mean() > 0.9
    nearest = (features[known] @ found.centres.T).argmax(1)
    members = [features[known][y[known] == 0], features[~known][answers == 0]]
    torch.testing.assert_close(found.centres[0], normalize(torch.cat(members).sum(0), dim=0))
    assert (nearest == y[known]).float().mean() > 0.9


def test_more_starts_are_never_worse():
    features, _ = clusters(6, spread=0.5)

    def quality(starts):
        found = k_means(features, 6, torch.Generator().manual_seed(0), starts=starts)
        return float((features @ found.centres.T).amax(1).sum())

    assert quality(1) <= quality(5) + 1e-4 and quality(5) <= quality(20) + 1e-4


def test_bad_input(generator):
    features, _ = clusters(3, size=3)
    with pytest.raises(InputError, match="examples: are 9, for 10 clusters"):
        k_means(features, 10, generator)
    with pytest.raises(InputError, match="number of clusters: is 0"):
        k_means(features, 0, generator)
    with pytest.raises(InputError, match="are not unit vectors"):
        k_means(3 * features, 2, generator)
    with pytest.raises(InputError, match="Give every class from 0 to 1"):
        semi_supervised_k_means(features, features[:2], torch.tensor([0, 0]), 2, 1, generator)


class TestNumberOfClasses:
    @pytest.mark.parametrize("true", [5, 7])
    def test_counts_well_separated_classes(self, true):
        features, y = clusters(true, spread=0.12)
        known = (y < 3) & (torch.arange(len(y)) // true % 2 == 0)
        found = estimate_num_classes(features[~known], features[known], y[known])
        assert found.total == true and max(found.scores, key=found.scores.get) == true
        assert len(found.scores) < 9  # bracketing does not try all of 4 to 12

    def test_the_score_is_silhouette_plus_held_out_accuracy(self):
        features, y = clusters(4)
        known = y < 2
        generator = torch.Generator().manual_seed(0)
        score = prototype_score(features[~known], features[known], y[known], 4, generator)
        assert 1.7 < score < 2  # all held-out labels are met, clusters are far apart

    def test_errors(self):
        features, y = clusters(3)
        known = y < 2
        with pytest.raises(InputError, match="unlabelled: are none"):
            estimate_num_classes(features[:0], features[known], y[known])
        with pytest.raises(InputError, match="labelled: are none"):
            estimate_num_classes(features, features[:0], y[:0])
        with pytest.raises(InputError, match="largest: is 2. Give 3"):
            estimate_num_classes(features[~known], features[known], y[known], largest=2)
        with pytest.raises(InputError, match="have a class of one example"):
            estimate_num_classes(features[~known], features[:2], y[:2])
