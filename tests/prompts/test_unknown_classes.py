import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from unseen.errors import InputError
from unseen.prompts import (
    ClassConditionalGenerator,
    PromptStart,
    PromptStep,
    UnknownClassRegularizer,
    class_statistics,
)

UNKNOWN = ["u0", "u1", "u2", "u3"]


def unit(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture
def start():
    labels = torch.arange(6).repeat(3)
    return PromptStart(
        normalize(unit(6, 8)[labels] + 0.1 * unit(18, 8, seed=1), dim=1), labels, unit(10, 8, seed=2), 6
    )


def made(**options):
    generator = ClassConditionalGenerator(8, heads=2, dropout=0.0)
    return UnknownClassRegularizer(generator, UNKNOWN, **options)


def a_step(start, progress=0.5):
    known, extra = (t.clone().requires_grad_() for t in start.texts.split([6, 4]))
    generator = torch.Generator().manual_seed(7)
    return PromptStep(start.images[:5], start.labels[:5], known, extra, 20.0, progress, generator)


class TestGenerator:
    def test_it_is_attention_plus_perceptron_of_length_one(self):
        model = ClassConditionalGenerator(8, heads=2, dropout=0.0)
        query, key, value = unit(2, 1, 8), unit(2, 3, 8, seed=1), unit(2, 3, 8, seed=2)
        weights, bias = model.attention.in_proj_weight, model.attention.in_proj_bias
        q, k, v = (
            t @ w.T + b for t, w, b in zip((query, key, value), weights.chunk(3), bias.chunk(3), strict=True)
        )
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            attention = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / 2, -1)
            heads.append(attention @ v[..., part])
        expected = model.body(query) + model.attention.out_proj(torch.cat(heads, -1))
        torch.testing.assert_close(model(query, key, value), normalize(expected, dim=-1))

    def test_per_class_averages_one_feature_a_neighbour(self):
        model = ClassConditionalGenerator(8, heads=2, mode="per_class", dropout=0.0)
        query, key, value = unit(2, 1, 8), unit(2, 3, 8, seed=1), unit(2, 3, 8, seed=2)
        joint = ClassConditionalGenerator(8, heads=2, dropout=0.0)
        joint.load_state_dict(model.state_dict())
        parts = [joint(query, key[:, [i]], value[:, [i]]) for i in range(3)]
        torch.testing.assert_close(model(query, key, value), normalize(torch.stack(parts).mean(0), dim=-1))

    def test_half_precision_goes_in_and_single_comes_out(self):
        model = ClassConditionalGenerator(8, heads=2)
        found = model(*(unit(2, 3, 8).half() for _ in range(3)))
        assert found.dtype == torch.float32 and torch.isfinite(found).all()

    def test_its_weights_are_decided_by_the_seed(self):
        first, again, other = (ClassConditionalGenerator(8, seed=s).body[0].weight for s in (0, 0, 1))
        assert torch.equal(first, again) and not torch.equal(first, other)

    @pytest.mark.parametrize(
        ("options", "subject"),
        [({"dim": 10}, "dim"), ({"dim": 8, "k": 0}, "k"), ({"dim": 8, "mode": "each"}, "mode")],
    )
    def test_errors(self, options, subject):
        with pytest.raises(InputError) as error:
            ClassConditionalGenerator(**options)
        assert error.value.subject == subject


class TestStatistics:
    def test_they_are_means_and_deviations_of_each_class(self, start):
        found = class_statistics(start.images, start.labels, 6)
        for c in range(6):
            own = start.images[start.labels == c]
            torch.testing.assert_close(found.mean[c], own.mean(0))
            torch.testing.assert_close(found.deviation[c], own.std(0, correction=0))

    def test_one_image_a_class_has_no_deviation(self):
        found = class_statistics(unit(4, 8), torch.arange(4), 4)
        assert found.deviation.eq(0).all()

    def test_a_class_without_images_is_named(self):
        with pytest.raises(InputError, match=r"none of class\(es\) \[2\]"):
            class_statistics(unit(4, 8), torch.tensor([0, 1, 1, 3]), 4)
        with pytest.raises(InputError, match="image features"):
            class_statistics(2 * unit(4, 8), torch.arange(4), 4)


class TestRegularizer:
    def test_the_loss_is_the_formula_written_out(self, start):
        chosen = made()
        chosen.setup(start)
        step = a_step(start)
        found = chosen(step)
        draw = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(7))
        total = 0.25 * step.cross_entropy
        for i in range(5):
            y = int(step.labels[i])
            means = normalize(chosen.mean, dim=1)
            near = sorted((c for c in range(6) if c != y), key=lambda c: -float(means[c] @ means[y]))[:3]
            values = chosen.mean[near] + draw[i] * chosen.deviation[near]
            fixed = step.known.detach()
            a = chosen.generator(fixed[None, [y]], fixed[None, near], values[None])[0, 0]
            b = chosen.generator(fixed[None, near], fixed[None, [y]], step.images[None, [i]])[0]
            closest = (start.texts[y] @ start.texts[6:].T).argsort(descending=True)[:3]
            c = chosen.generator(step.extra[None, closest], step.known[None, [y]], step.images[None, [i]])[0]
            total = total + (a - step.images[i]).square().sum() / 5 + (b - values).square().sum() / 15
            total = total + 0.25 * cross_entropy(20 * a @ step.known.T, step.labels[i]) / 5
            total = total + 0.25 / 3 * cross_entropy(20 * b @ step.known.T, torch.tensor(near)) / 5
            total = total + 0.5 / 3 * cross_entropy(20 * c @ step.extra.T, closest) / 5
        torch.testing.assert_close(found, total, rtol=1e-4, atol=1e-5)

    def test_the_warm_up_gives_the_prompt_no_gradient(self, start):
        """Text features that are queries are detached: the prompt cannot make generation easy."""
        chosen = made(warm_up=0.5)
        chosen.setup(start)
        step = a_step(start, progress=0.4)
        loss = chosen(step)
        slopes = torch.autograd.grad(loss, [step.known, step.extra], allow_unused=True, retain_graph=True)
        assert slopes == (None, None)
        assert torch.autograd.grad(loss, chosen.generator.body[0].weight)[0].abs().sum() > 0

    def test_uniform_noise_is_shared_and_positive(self, start):
        chosen = made(noise="uniform")
        chosen.setup(start)
        classes = torch.tensor([[0, 1, 2]] * 4)
        moved = (chosen._sample(classes, torch.Generator().manual_seed(0)) - chosen.mean[classes]) / (
            chosen.deviation[classes]
        )
        assert (moved > -1e-5).all() and torch.allclose(moved, moved[:1, :1].expand_as(moved), atol=1e-3)
        gaussian = made()
        gaussian.setup(start)
        draws = gaussian._sample(classes, torch.Generator().manual_seed(0)) - gaussian.mean[classes]
        assert (draws < 0).any() and not torch.allclose(draws[0], draws[1])

    @pytest.mark.parametrize(
        ("options", "subject"),
        [({"warm_up": 1.0}, "warm_up"), ({"warm_up": -0.1}, "warm_up"), ({"noise": "cauchy"}, "noise")],
    )
    def test_options_out_of_range(self, options, subject):
        with pytest.raises(InputError) as error:
            made(**options)
        assert error.value.subject == subject

    def test_too_few_names_or_classes(self, start):
        with pytest.raises(InputError, match="unknown names"):
            UnknownClassRegularizer(ClassConditionalGenerator(8, heads=2), UNKNOWN[:2])
        few = PromptStart(unit(3, 8), torch.arange(3), unit(7, 8), 3)
        with pytest.raises(InputError, match="known classes: are 3"):
            made().setup(few)

    def test_statistics_and_sizes_must_fit(self, start):
        wrong = class_statistics(unit(4, 8), torch.arange(4), 4)
        with pytest.raises(InputError, match="class_stats"):
            made(class_stats=wrong).setup(start)
        with pytest.raises(InputError, match="generator"):
            UnknownClassRegularizer(ClassConditionalGenerator(16), UNKNOWN).setup(start)
        missing = PromptStart(start.images, start.labels.clamp(max=4), start.texts, 6)
        with pytest.raises(InputError, match=r"class\(es\) \[5\]"):
            made().setup(missing)
