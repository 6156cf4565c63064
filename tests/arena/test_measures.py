import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

from unseen.arena import declare_metric, masked_accuracy, retrieval_scores
from unseen.arena.measures import higher_is_better
from unseen.errors import InputError


def features(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, generator=generator), torch.randint(4, (count,), generator=generator)


def slow_scores(queries, labels, gallery, gallery_labels, alone):
    """One query at a time, by scikit-learn."""
    precision, reciprocal, first = [], [], []
    for i in range(len(queries)):
        keep = np.arange(len(gallery)) != i if alone else np.ones(len(gallery), bool)
        similarity = cosine_similarity(queries[i : i + 1], gallery)[0][keep]
        relevant = (gallery_labels == labels[i]).numpy()[keep]
        if relevant.any():
            precision.append(average_precision_score(relevant, similarity))
            rank = 1 + int(relevant[np.argsort(-similarity)].argmax())
            reciprocal.append(1 / rank)
            first.append(rank)
    return np.mean(precision), np.mean(reciprocal), np.mean(np.array(first) <= 3)


@pytest.mark.parametrize("alone", [True, False])
def test_retrieval_is_what_scikit_learn_says(alone, monkeypatch):
    monkeypatch.setattr("unseen.arena.measures.QUERIES_AT_ONCE", 7)
    queries, labels = features(30, 0)
    gallery, gallery_labels = (queries, labels) if alone else features(40, 1)
    given = (queries, labels) if alone else (queries, labels, gallery, gallery_labels)
    found = retrieval_scores(*given, recall_at=(3,))
    expected = slow_scores(queries, labels, gallery, gallery_labels, alone)
    assert [found["mAP"], found["MRR"], found["recall@3"]] == pytest.approx(list(expected))


def test_queries_without_a_relevant_item_say_nothing():
    queries = torch.eye(3)
    found = retrieval_scores(queries, torch.tensor([0, 0, 9]), recall_at=(1,))
    assert found["recall@1"] == 1.0  # of the two that have one another: ties are in order of the rows
    with pytest.raises(InputError, match="no relevant item"):
        retrieval_scores(queries, torch.arange(3))


def test_a_mask_takes_logits_of_classes_that_cannot_be_out_of_the_argmax():
    logits = torch.tensor([[5.0, 1.0, 0.0], [5.0, 0.0, 1.0]])
    labels = torch.tensor([1, 2])
    assert masked_accuracy(logits, labels) == 0.0
    assert masked_accuracy(logits, labels, valid=[1, 2]) == 1.0


def test_masks_that_cannot_be():
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(InputError, match="no valid class"):
        masked_accuracy(logits, labels, valid=[])
    with pytest.raises(InputError, match="leaves out a class"):
        masked_accuracy(logits, labels, valid=[0, 2])


def test_directions_are_declared_or_an_error():
    assert higher_is_better("accuracy") and higher_is_better("recall@17") and not higher_is_better("error")
    with pytest.raises(InputError, match="no declared direction"):
        higher_is_better("surprise")
    declare_metric("test metric of my own", higher_is_better=False)
    assert not higher_is_better("test metric of my own")
    with pytest.raises(InputError, match="other direction"):
        declare_metric("test metric of my own", higher_is_better=True)
