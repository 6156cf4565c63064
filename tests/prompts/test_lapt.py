import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from unseen.detection.metrics import ood_metrics
from unseen.errors import InputError, TrainingDiverged, UnseenWarning
from unseen.papers.word_clip import WordClip, WordTransformer
from unseen.prompts import LAPT, DistributionAwarePrompts, collect_features, encode_names

WORDS = ("a", "photo", "of", "red", "blue", "cat", "dog", "car", "tree", "sky")
CLASSES, NEGATIVES = ["red cat", "blue dog"], ["red car", "blue tree", "sky"]


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return WordClip(nn.Flatten(), WordTransformer(WORDS, width=16, size=8), 10.0).eval()


def labelled(clip, spread=0.15, count=24, seed=0):
    """Features near random directions of each of the five names, which no hand prompt knows."""
    generator = torch.Generator().manual_seed(seed)
    centres = normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(9)), dim=1)
    y = torch.arange(5).repeat(count)
    return normalize(centres[y] + spread * torch.randn(len(y), 8, generator=generator), dim=1), y


def tuned(clip, **options):
    options = {"templates": ["a photo of a {}"], "learning_rate": 0.1, "epochs": 15, **options}
    prompts = DistributionAwarePrompts(clip, options.pop("n_ctx", 4))
    return LAPT(clip, CLASSES, NEGATIVES, prompts, **options)


def test_tuning_learns_and_touches_the_contexts_alone(clip):
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    x, y = labelled(clip)
    lapt = tuned(clip, cross_modal=0.0, beta=0.0)
    start = lapt.prompts.context.detach().clone()
    plain = _loss(clip, lapt, x, y)
    lapt.fit(x, y)
    assert _loss(clip, lapt, x, y) < 0.9 * plain
    assert lapt.losses[-1] < lapt.losses[0]
    assert not torch.equal(start, lapt.prompts.context)
    assert all(torch.equal(before[name], value) for name, value in clip.state_dict().items())
    assert all(p.grad is None for p in clip.parameters())


def _loss(clip, lapt, x, y):
    texts = torch.cat([lapt.prompts.encode(CLASSES), lapt.prompts.encode(NEGATIVES, negative=True)])
    return float(cross_entropy(clip.logit_scale * x @ texts.T, y))


def test_detector_reads_tuned_prompts_and_ranks_familiar_first(clip):
    x, y = labelled(clip)
    lapt = tuned(clip, cross_modal=0.0).fit(x, y)
    detector = lapt.detector(groups=3)
    fresh, labels = labelled(clip, seed=1)
    scores = detector.score(fresh)
    assert ood_metrics(scores[labels < 2], scores[labels >= 2], confidence=None).auroc > 0.8
    assert torch.equal(detector.known, lapt.prompts.encode(CLASSES))


def test_prompts_are_encoded_anew_after_a_step(clip):
    """The trap of caching text features across training steps."""
    prompts = DistributionAwarePrompts(clip, 2)
    before = prompts.encode(CLASSES)
    with torch.no_grad():
        prompts.context.add_(torch.randn(2, 16))  # layer norms would not see a constant
    assert not torch.allclose(before, prompts.encode(CLASSES))


def test_without_mixing_a_step_is_that_of_plain_cross_entropy(clip):
    """One step of SGD against the formula written out."""
    x, y = labelled(clip, count=4)
    lapt = tuned(clip, cross_modal=0.0, beta=0.0, epochs=1, batch_size=len(y))
    by_hand = DistributionAwarePrompts(clip, 4)
    rows = [clip.embed_tokens(CLASSES), clip.embed_tokens(NEGATIVES)]
    loss = cross_entropy(clip.logit_scale * x @ by_hand(*rows).T, y)
    slopes = torch.autograd.grad(loss, list(by_hand.parameters()))
    lapt.fit(x, y)
    for now, start, slope in zip(lapt.prompts.parameters(), by_hand.parameters(), slopes, strict=True):
        moved = start - 0.1 * 1.9 * slope  # Nesterov's first step: gradient + momentum * gradient
        torch.testing.assert_close(now.detach(), moved.detach(), rtol=1e-4, atol=1e-6)


def test_the_same_seed_gives_the_same_prompts(clip):
    x, y = labelled(clip)
    first, again, other = (tuned(clip, epochs=2, seed=s).fit(x, y).prompts.context for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_shared_prompts_are_one_tensor(clip):
    shared = DistributionAwarePrompts(clip, 3, shared=True)
    assert len(list(shared.parameters())) == 1
    assert torch.equal(shared.encode(CLASSES), shared.encode(CLASSES, negative=True))
    apart = DistributionAwarePrompts(clip, 3)
    assert len(list(apart.parameters())) == 2 and apart.context.shape == (3, 16)


def test_every_batch_has_both_kinds_where_there_are_enough(clip):
    from unseen.prompts.lapt import _batches

    negative = torch.arange(100) >= 10
    found = _batches(negative, 10, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(found).tolist()) == list(range(100))
    mixed = [bool(negative[rows].any() and not negative[rows].all()) for rows in found]
    assert sum(mixed) >= 6


def test_batches_without_one_kind_are_told(clip):
    x, y = labelled(clip)
    rows = torch.cat([(y < 2).nonzero()[:1, 0], (y >= 2).nonzero()[:, 0]])
    with pytest.warns(UnseenWarning, match="1 image"):
        lapt = tuned(clip, epochs=1, batch_size=8).fit(x[rows], y[rows], y[rows] >= 2)
    assert torch.isfinite(lapt.prompts.context).all()


@pytest.mark.parametrize(
    ("change", "subject"),
    [
        (lambda x, y: (2 * x, y), "image features"),
        (lambda x, y: (x, y + 1), "labels"),
        (lambda x, y: (x, y - 1), "labels"),
        (lambda x, y: (x, y[:-1]), "labels"),
        (lambda x, y: (x[:0], y[:0]), "images"),
        (lambda x, y: (x[y < 2], y[y < 2]), "images"),
        (lambda x, y: (x[y >= 2], y[y >= 2]), "images"),
        (lambda x, y: (x, y, y < 2), "is_negative"),
    ],
)
def test_data_that_cannot_be_trained_on_is_named(clip, change, subject):
    with pytest.raises(InputError) as error:
        tuned(clip).fit(*change(*labelled(clip)))
    assert error.value.subject == subject


@pytest.mark.parametrize(
    ("options", "subject"),
    [
        ({"beta": -1.0}, "beta"),
        ({"cross_modal": -0.1}, "cross_modal"),
        ({"epochs": 0}, "epochs"),
        ({"templates": ()}, "templates"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_options_out_of_range_are_named(clip, options, subject):
    with pytest.raises(InputError) as error:
        tuned(clip, **options)
    assert error.value.subject == subject


def test_training_that_breaks_down_is_told(clip):
    with pytest.raises(TrainingDiverged, match="in epoch [12]: lower learning_rate=1e"):
        tuned(clip, learning_rate=1e30, epochs=2).fit(*labelled(clip))


def test_negatives_that_are_classes_are_refused(clip):
    with pytest.raises(InputError, match="'Red_Cats'"):
        LAPT(clip, CLASSES, ["sky", "Red_Cats"])


def test_one_kind_alone_trains_without_mixing_across(clip):
    x, y = labelled(clip)
    tuned(clip, beta=0.0, epochs=1).fit(x[y < 2], y[y < 2])


class TestSources:
    def images(self, clip, name):
        """The hand prompt's own feature as an "image" (the encoder flattens), twice, and its opposite."""
        feature = encode_names(clip, [name])
        return torch.cat([feature, feature, -feature])

    def test_duplicates_and_images_that_disagree_are_left_out(self, clip):
        names = CLASSES + NEGATIVES
        x, y = collect_features(clip, names, lambda name: self.images(clip, name))
        assert y.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        x, y = collect_features(clip, names, lambda name: self.images(clip, name), agreement=1)
        assert y.tolist() == [0, 1, 2, 3, 4]
        torch.testing.assert_close(x, encode_names(clip, names))

    def test_a_name_without_images_is_told(self, clip):
        with pytest.raises(InputError, match="'blue dog'"):
            collect_features(
                clip,
                CLASSES,
                lambda name: self.images(clip, name)[slice(2, 3) if name == "blue dog" else slice(0, 1)],
                agreement=1,
            )

    def test_fit_from_source_is_fit_on_what_it_collects(self, clip):
        def source(name):
            return self.images(clip, name)

        x, y = collect_features(clip, CLASSES + NEGATIVES, source)
        direct = tuned(clip, epochs=2).fit(x, y)
        found = tuned(clip, epochs=2).fit_from_source(source)
        assert torch.equal(direct.prompts.context, found.prompts.context)
