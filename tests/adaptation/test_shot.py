import torch

from unseen.adaptation.shot import SHOT, centroid_labels


def slow_labels(features, probabilities):
    classes = probabilities.shape[1]
    unit = [z / z.norm() for z in features]

    def nearest(centroids):
        return [max(centroids, key=lambda c: float(z @ centroids[c] / centroids[c].norm())) for z in unit]

    weighted = {c: sum(p[c] * z for p, z in zip(probabilities, unit, strict=True)) for c in range(classes)}
    labels = nearest(weighted)
    members = {c: sum(z for z, y in zip(unit, labels, strict=True) if y == c) for c in set(labels)}
    return nearest(members)


def test_pseudo_labels_are_the_slow_reference(generator):
    for _ in range(10):
        features = torch.randn(15, 4, generator=generator)
        probabilities = (2 * torch.randn(15, 5, generator=generator)).softmax(1)
        assert centroid_labels(features, probabilities).tolist() == slow_labels(features, probabilities)


def test_the_head_stays_and_the_rest_learns(world):
    method = SHOT(world.network, learning_rate=0.01)
    x = world.inputs()
    for _ in range(2):
        method.adapt(x)
    assert torch.equal(method.network.head.weight, world.network.head.weight)
    assert not torch.equal(method.network.featurizer[0].weight, world.network.featurizer[0].weight)


def test_the_loss_is_entropy_minus_diversity_and_cross_entropy(world):
    x = world.inputs()
    plain, labelled = SHOT(world.network, pseudo_labels=0.0), SHOT(world.network, pseudo_labels=0.5)
    logits, loss = plain.loss(x)
    p = logits.softmax(1)
    mean = p.mean(0)
    expected = -(p * p.log()).sum(1).mean() + (mean * mean.log()).sum()
    torch.testing.assert_close(loss, expected)
    labels = centroid_labels(labelled.network.featurizer(x), p)
    extra = 0.5 * torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(labelled.loss(x)[1], expected + extra)
