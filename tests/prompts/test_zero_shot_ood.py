import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn
from torch.nn.functional import normalize

from unseen.detection.negative_labels import negative_label_score
from unseen.errors import InputError
from unseen.networks import Bank
from unseen.papers.tiny_world import ImageEncoder, TextEncoder, TinyClip, render
from unseen.papers.word_clip import WordClip, WordTransformer
from unseen.prompts import LearntPrompts, ZeroShotOOD, encode_names
from unseen.registry import detectors

WORDS = ("a", "photo", "of", "picture", "cat", "dog", "car", "tree", "sky", "sea")
CLASSES, NEGATIVES = ["cat", "dog"], ["car", "tree", "sky", "sea", "photo"]


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return WordClip(nn.Flatten(), WordTransformer(WORDS, width=16, size=8), 20.0).eval()


@pytest.fixture
def features(generator):
    return normalize(torch.randn(30, 8, generator=generator), dim=1)


def test_mcm_is_the_largest_softmax_of_cosines_at_temperature_one(clip, features):
    cosines = (features @ encode_names(clip, CLASSES).T).numpy()
    found = ZeroShotOOD(clip, CLASSES).score(features)
    np.testing.assert_allclose(found, softmax(cosines, axis=1).max(1), rtol=1e-5)


def test_neglabel_is_the_mean_over_groups_written_out(clip, features):
    detector = ZeroShotOOD(clip, CLASSES, NEGATIVES, score="neglabel", groups=2, seed=3)
    known, far = features @ encode_names(clip, CLASSES).T, features @ encode_names(clip, NEGATIVES).T
    order = torch.randperm(5, generator=torch.Generator().manual_seed(3))[:4]  # the remainder is dropped
    shares = []
    for group in order.view(2, 2):
        p = softmax(clip.logit_scale * torch.cat([known, far[:, group]], 1).numpy(), axis=1)
        shares.append(p[:, :2].sum(1))
    np.testing.assert_allclose(detector.score(features), np.mean(shares, 0), rtol=1e-4)


def test_one_group_and_thousands_of_negatives_stay_finite(generator):
    known, far = torch.rand(4, 3, generator=generator), torch.rand(4, 5000, generator=generator)
    found = negative_label_score(known, far, 100.0, groups=100)
    assert torch.isfinite(found).all() and ((found >= 0) & (found <= 1)).all()
    lower = negative_label_score(known - 0.1, far, 100.0, groups=100)
    assert (lower < found).all()


def test_the_shuffle_has_its_own_seed_and_leaves_the_global_state(clip, features):
    state = torch.get_rng_state()
    first, other = (
        ZeroShotOOD(clip, CLASSES, NEGATIVES, score="neglabel", groups=2, seed=s).score(features)
        for s in (0, 1)
    )
    assert torch.equal(state, torch.get_rng_state()) and not torch.equal(first, other)


def test_prediction_ignores_negatives(clip, features):
    detector = ZeroShotOOD(clip, CLASSES, NEGATIVES, score="neglabel", groups=1)
    assert torch.equal(detector.predict(features), (features @ encode_names(clip, CLASSES).T).argmax(1))


def test_templates_are_averaged_and_change_the_score(clip, features):
    one = ZeroShotOOD(clip, CLASSES, templates=["a photo of a {}"]).score(features)
    two = ZeroShotOOD(clip, CLASSES, templates=["a photo of a {}", "a picture of a {}"])
    mean = encode_names(clip, CLASSES, ["a photo of a {}"]) + encode_names(
        clip, CLASSES, ["a picture of a {}"]
    )
    torch.testing.assert_close(two.known, normalize(mean, dim=1))
    assert not torch.allclose(one, two.score(features))


def test_learnt_prompts_from_words_equal_the_template(clip, features):
    by_hand = ZeroShotOOD(clip, CLASSES, templates=["a photo of a {}"])
    learnt = ZeroShotOOD(clip, CLASSES, prompts=LearntPrompts(clip, "a photo of a"))
    torch.testing.assert_close(by_hand.score(features), learnt.score(features))


def test_images_batches_and_features_score_alike(generator):
    torch.manual_seed(0)
    clip = TinyClip(ImageEncoder(8, 16), TextEncoder(16), 10.0).eval()
    index = torch.arange(8)
    images = render(index, index, index, generator)
    detector = ZeroShotOOD(clip, ["disk 0", "ring 3"], ["bar 1"], score="neglabel", groups=1)
    with torch.no_grad():
        direct = detector.score(clip.encode_image(images))
    torch.testing.assert_close(detector.score(images), direct)
    torch.testing.assert_close(detector.score(images.split(3)), direct)


def test_the_registered_mcm_reads_a_zero_shot_head(clip, features):
    head = nn.Linear(8, 2)
    with torch.no_grad():
        head.weight.copy_(20 * encode_names(clip, CLASSES))
    bank = Bank(3 * features, head(features), head=head)
    detector = detectors.build("mcm").fit(bank)
    torch.testing.assert_close(detector.score(bank), ZeroShotOOD(clip, CLASSES).score(features))
    with pytest.raises(InputError, match="temperature"):
        detectors.build("mcm(temperature=0)")


@pytest.mark.parametrize(
    ("options", "subject"),
    [
        ({"score": "energy"}, "score"),
        ({"score": "neglabel"}, "negatives"),
        ({"score": "neglabel", "negatives": []}, "negatives"),
        ({"score": "neglabel", "negatives": NEGATIVES, "groups": 6}, "groups"),
        ({"score": "neglabel", "negatives": NEGATIVES, "groups": 0}, "groups"),
        ({"score": "neglabel", "negatives": ["Cats", "car"], "groups": 1}, "negative names"),
        ({"temperature": 0.0}, "temperature"),
        ({"templates": ["a photo"]}, "template 'a photo'"),
    ],
)
def test_what_cannot_be_used_is_named(clip, options, subject):
    with pytest.raises(InputError) as error:
        ZeroShotOOD(clip, CLASSES, **options)
    assert error.value.subject == subject


def test_features_must_be_of_length_one(clip, features):
    with pytest.raises(InputError, match="image features"):
        ZeroShotOOD(clip, CLASSES).score(2 * features)
    with pytest.raises(InputError, match="image features"):
        ZeroShotOOD(clip, CLASSES).score(features * float("nan"))


def test_class_names_must_be_a_list_of_different_words(clip):
    for names in ("cat", [], ["cat", "cat"], ["cat", " "]):
        with pytest.raises(InputError, match="class names"):
            ZeroShotOOD(clip, names)


def test_more_negatives_than_groups_are_needed_in_the_function_too():
    with pytest.raises(InputError, match="groups"):
        negative_label_score(torch.zeros(1, 2), torch.zeros(1, 3), 1.0, groups=4)
