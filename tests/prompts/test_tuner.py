import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from unseen.averaging.local_mean_teacher import LocalMeanTeacher
from unseen.errors import InputError, TrainingDiverged
from unseen.papers.word_clip import WordClip, WordTransformer
from unseen.prompts import (
    BaseToNew,
    ClassConditionalGenerator,
    LearntPrompts,
    PromptTuner,
    UnknownClassRegularizer,
    ZeroShotPenalty,
    encode_names,
    harmonic_mean,
)

WORDS = ("a", "photo", "of", "cat", "dog", "car", "tree", "sky", "sea", "bird", "fish", "sun", "moon")
KNOWN, NEW, OTHER = ["cat", "dog", "car", "tree"], ["sky", "sea"], ["bird", "fish", "sun"]


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return WordClip(nn.Flatten(), WordTransformer(WORDS, width=16, size=8), 10.0).eval()


@pytest.fixture
def data(generator):
    centres = normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(3)), dim=1)
    y = torch.arange(4).repeat(8)
    return normalize(centres[y] + 0.2 * torch.randn(32, 8, generator=generator), dim=1), y


@pytest.fixture
def judge(clip, data, generator):
    new = normalize(torch.randn(10, 8, generator=generator), dim=1), torch.arange(2).repeat(5)
    return BaseToNew(clip, data, KNOWN, new, NEW)


def regularizer(**options):
    return UnknownClassRegularizer(ClassConditionalGenerator(8, heads=2), OTHER, **options)


def loss_of(clip, prompts, data):
    return float(cross_entropy(clip.logit_scale * data[0] @ prompts.encode(KNOWN).T, data[1]))


@pytest.mark.parametrize("kind", ["plain", "penalty", "ogen", "ogen + teacher"])
def test_tuning_learns_and_touches_the_prompt_alone(clip, data, kind):
    chosen = {"plain": None, "penalty": ZeroShotPenalty(0.1)}.get(kind, regularizer())
    teacher = LocalMeanTeacher((1, 3), every=1) if kind == "ogen + teacher" else None
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    tuner = PromptTuner(clip, KNOWN, regularizer=chosen, teacher=teacher, epochs=40, learning_rate=0.02)
    start = loss_of(clip, tuner.prompts, data)
    tuner.fit(*data)
    assert loss_of(clip, tuner.prompts, data) < 0.9 * start
    assert all(torch.equal(before[name], value) for name, value in clip.state_dict().items())
    assert all(p.grad is None for p in clip.parameters())
    assert len(tuner.history) == 40


def test_a_step_is_that_of_plain_cross_entropy(clip, data):
    """One epoch of one batch: SGD at the warm-up rate, weight decay included, against the formula."""
    tuner = PromptTuner(clip, KNOWN, epochs=1, batch_size=32, learning_rate=0.1, weight_decay=0.01)
    prompts = LearntPrompts(clip)
    texts = prompts(clip.embed_tokens(KNOWN))
    loss = cross_entropy(clip.logit_scale * data[0] @ texts.T, data[1])
    (slope,) = torch.autograd.grad(loss, prompts.context)
    tuner.fit(*data)
    expected = prompts.context - 0.1 * (slope + 0.01 * prompts.context)
    torch.testing.assert_close(tuner.prompts.context, expected, rtol=1e-4, atol=1e-6)


def test_the_first_epoch_warms_up_and_the_rate_ends_near_zero(clip):
    tuner = PromptTuner(clip, KNOWN, epochs=50, learning_rate=0.1)
    rates = [tuner._rate(epoch) for epoch in range(50)]
    assert rates[0] == 1e-5 and rates[1] > 0.099 and rates[-1] < 1e-3 and rates[1:] == sorted(rates[1:])[::-1]


def test_the_same_seed_gives_the_same_prompt_and_leaves_the_global_state(clip, data):
    state = torch.get_rng_state()
    first, again, other = (
        PromptTuner(clip, KNOWN, regularizer=regularizer(warm_up=0.0), epochs=3, seed=s, batch_size=8)
        .fit(*data)
        .prompts.context
        for s in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_the_penalty_pulls_to_the_zero_shot_prompt(clip, data):
    far, near = (
        PromptTuner(clip, KNOWN, regularizer=r, epochs=30, learning_rate=0.05).fit(*data).prompts
        for r in (None, ZeroShotPenalty(100.0))
    )
    zero_shot = encode_names(clip, KNOWN)
    distance = [(p.encode(KNOWN) - zero_shot).square().sum() for p in (far, near)]
    assert distance[1] < 0.2 * distance[0]


def test_the_generator_alone_is_trained_in_the_warm_up(clip, data):
    chosen = regularizer(warm_up=0.99)
    before = [p.detach().clone() for p in chosen.parameters()]
    tuner = PromptTuner(clip, KNOWN, regularizer=chosen, epochs=5, learning_rate=0.01, weight_decay=0.0)
    start = tuner.prompts.context.detach().clone()
    tuner.fit(*data)
    assert torch.equal(start, tuner.prompts.context)
    assert any(not torch.equal(a, b) for a, b in zip(before, chosen.parameters(), strict=True))


def test_the_teacher_pulls_to_recent_contexts(clip, data):
    """A pull keeps the context from moving as far as without one."""
    moved = []
    for weight in (0.0, 3.0):
        teacher = LocalMeanTeacher((1, 3), every=1)
        tuner = PromptTuner(
            clip,
            KNOWN,
            teacher=teacher,
            distillation=weight,
            epochs=10,
            learning_rate=0.002,
            weight_decay=0.0,
        )
        start = tuner.prompts.context.detach().clone()
        moved.append(float((tuner.fit(*data).prompts.context.detach() - start).norm()))
    assert moved[1] < moved[0]


class TestJudgement:
    def test_accuracies_are_of_each_group_and_of_all_names(self, clip, data, judge):
        found = judge(LearntPrompts(clip))
        known, new = encode_names(clip, KNOWN), encode_names(clip, NEW)
        both = torch.cat([known, new])
        assert found.base == pytest.approx(float(((data[0] @ known.T).argmax(1) == data[1]).double().mean()))
        joint = ((judge.new[0] @ both.T).argmax(1) == judge.new[1] + 4).double().mean()
        assert found.joint_new == pytest.approx(float(joint))
        assert found.joint_base <= found.base and found.joint_new <= found.new
        assert 0 <= found.base_error <= 1 and 0 <= found.new_error <= 1

    def test_harmonic_mean(self):
        assert harmonic_mean(0.8, 0.4) == pytest.approx(0.64 / 1.2) and harmonic_mean(0.0, 0.0) == 0

    def test_epochs_that_were_asked_for_are_judged(self, clip, data, judge):
        tuner = PromptTuner(clip, KNOWN, epochs=4).fit(*data, judge=judge, judged_epochs=[1, 3])
        assert [e.epoch for e in tuner.history if e.judged is not None] == [1, 3]
        assert PromptTuner(clip, KNOWN, epochs=2).fit(*data, judge=judge).history[-1].judged is not None

    def test_groups_must_be_apart(self, clip, data):
        with pytest.raises(InputError, match="'cat'"):
            BaseToNew(clip, data, KNOWN, data, ["cat", "sky"])

    def test_labels_number_the_names_of_their_own_group(self, clip, data):
        x, y = data
        with pytest.raises(InputError, match="new labels"):
            BaseToNew(clip, data, KNOWN, (x, y + len(KNOWN)), NEW)
        with pytest.raises(InputError, match="base labels"):
            BaseToNew(clip, (x, y[:-1]), KNOWN, (x, y % len(NEW)), NEW)


def test_predictions_are_probabilities_of_any_names(clip, data):
    tuner = PromptTuner(clip, KNOWN, epochs=1).fit(*data)
    assert torch.equal(tuner.predict(data[0]), tuner.predict_proba(data[0]).argmax(1))
    assert tuner.predict_proba(data[0]).shape == (32, 4)
    torch.testing.assert_close(tuner.predict_proba(data[0], NEW).sum(1), torch.ones(32))


class TestErrors:
    def test_training_that_breaks_down_is_told(self, clip, data):
        with pytest.raises(TrainingDiverged, match="in epoch [2-4]: lower learning_rate=1e"):
            PromptTuner(clip, KNOWN, learning_rate=1e30, epochs=4).fit(*data)
        with pytest.raises(InputError, match="learning_rate: is 0"):
            PromptTuner(clip, KNOWN, learning_rate=0.0)

    def test_an_encoder_without_token_embeddings_is_told_what_it_needs(self):
        with pytest.raises(InputError, match=r"encoder Linear.*promptable\(encoder\)"):
            PromptTuner(nn.Linear(2, 2), KNOWN)

    def test_unknown_names_must_be_no_known_ones(self, clip, data):
        chosen = UnknownClassRegularizer(ClassConditionalGenerator(8, heads=2), ["Cats", "sky", "sea"])
        with pytest.raises(InputError, match="known class 'cat'"):
            PromptTuner(clip, KNOWN, regularizer=chosen).fit(*data)

    def test_names_that_judge_are_unknown_only_when_told(self, clip, data, judge):
        generator = ClassConditionalGenerator(8, heads=2)
        names = [*NEW, "bird"]
        with pytest.raises(InputError, match="knows_judged_names"):
            PromptTuner(clip, KNOWN, regularizer=UnknownClassRegularizer(generator, names)).fit(
                *data, judge=judge
            )
        leaked = UnknownClassRegularizer(generator, names, knows_judged_names=True)
        PromptTuner(clip, KNOWN, regularizer=leaked, epochs=1).fit(*data, judge=judge)

    def test_a_window_longer_than_the_training(self, clip, data):
        with pytest.raises(InputError, match="window"):
            PromptTuner(clip, KNOWN, teacher=LocalMeanTeacher((3, 9), every=1), epochs=5).fit(*data)

    @pytest.mark.parametrize(
        ("change", "subject"),
        [
            (lambda x, y: (2 * x, y), "image features"),
            (lambda x, y: (x, y + 1), "labels"),
            (lambda x, y: (x, y[1:]), "labels"),
            (lambda x, y: (x, y.float()), "labels"),
        ],
    )
    def test_data(self, clip, data, change, subject):
        with pytest.raises(InputError) as error:
            PromptTuner(clip, KNOWN).fit(*change(*data))
        assert error.value.subject == subject

    @pytest.mark.parametrize("options", [{"epochs": 0}, {"batch_size": 0}, {"distillation": -1.0}])
    def test_options(self, clip, options):
        with pytest.raises(InputError) as error:
            PromptTuner(clip, KNOWN, **options)
        assert error.value.subject == next(iter(options))

    def test_penalty(self):
        with pytest.raises(InputError, match="weight"):
            ZeroShotPenalty(-1.0)
