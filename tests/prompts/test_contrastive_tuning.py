import pytest
import torch
from torch.nn.functional import normalize

from unseen.errors import InputError
from unseen.papers.tiny_world import SHAPES, TinyClip, examples, train_clip
from unseen.prompts.contrastive_tuning import ContrastiveTuner, contrastive_loss
from unseen.training.learner import Learner

LEARNER = Learner(optimizer="adamw", learning_rate=1e-3, steps=60, batch_size=64)


@pytest.fixture(scope="module")
def clip():
    return TinyClip(*train_clip(0, pairs=600, epochs=2, width=8, size=16))


@pytest.fixture(scope="module")
def photos():
    generator = torch.Generator().manual_seed(1)
    return examples(400, ["photo"], generator), examples(300, ["photo"], generator)


def test_the_loss_pair_by_pair():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 5, 3, generator=generator)
    cosines = 4 * normalize(images, dim=1) @ normalize(texts, dim=1).T
    expected = 0.0
    for i in range(5):
        expected -= float(cosines[i, i] - cosines[i].logsumexp(0)) / 10
        expected -= float(cosines[i, i] - cosines[:, i].logsumexp(0)) / 10
    assert float(contrastive_loss(images, 3 * texts, 4.0)) == pytest.approx(expected, rel=1e-5)


def test_tuning_makes_it_better_and_leaves_the_given_one_alone(clip, photos):
    (images, labels), (others, truth) = photos
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    tuner = ContrastiveTuner(clip, SHAPES, ["a photo of a {}"], LEARNER)
    start = (tuner.predict(others) == truth).float().mean()
    tuner.fit(images, labels)
    assert (tuner.predict(others) == truth).float().mean() > start + 0.1
    assert sum(tuner.history[-10:]) < 0.9 * sum(tuner.history[:10])
    assert all(torch.equal(before[name], value) for name, value in clip.state_dict().items())
    moved = dict(tuner.tuned.named_parameters())
    for tower in ("image.", "text."):
        assert any(not torch.equal(before[n], p) for n, p in moved.items() if n.startswith(tower)), tower
    again = ContrastiveTuner(clip, SHAPES, ["a photo of a {}"], LEARNER).fit(images, labels)
    assert again.history == tuner.history
    assert tuner.predict_proba(others[:3], ["ring 3", "bar 2"]).shape == (3, 2)


def test_captions_take_turns_among_templates(clip):
    tuner = ContrastiveTuner(clip, SHAPES, ["a photo of a {}", "{} 3"])
    found = tuner.captions(torch.zeros(50, dtype=torch.long), torch.Generator().manual_seed(0))
    assert set(found) == {"a photo of a disk", "disk 3"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"templates": ["no place"]}, "no place for the class name"),
        ({"templates": []}, "templates: are none"),
        ({"clip": object()}, "has no weights to tune"),
        ({"class_names": ["ring", "ring"]}, "class names"),
    ],
)
def test_what_cannot_be_tuned_is_named(clip, change, message):
    with pytest.raises(InputError, match=message):
        ContrastiveTuner(**{"clip": clip, "class_names": SHAPES, **change})


def test_labels_must_be_classes(clip, photos):
    (images, labels), _ = photos
    with pytest.raises(InputError, match="are 3 for 400"):
        ContrastiveTuner(clip, SHAPES).fit(images, labels[:3])
    with pytest.raises(InputError, match="Number the classes from 0 to 7"):
        ContrastiveTuner(clip, SHAPES).fit(images, labels + 5)
