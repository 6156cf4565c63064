import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from unseen.errors import InputError, MissingExtra
from unseen.extrapolation import DiffusersGenerator, DomainSpec, ProceduralGenerator, TemplateTextGenerator

FOG = DomainSpec("fog", "thick air", {"dog": ["a dog", "two dogs"]}, {"hour": 6})


def test_a_function_draws_from_the_seed():
    def rows(parameters, cls, n, generator):
        return parameters["hour"] + torch.randn(n, 2, generator=generator)

    generator = ProceduralGenerator(rows, licence="CC0")
    first = generator.generate(FOG, "dog", 5, 1)
    assert first.shape == (5, 2) and torch.equal(first, generator.generate(FOG, "dog", 5, 1))
    assert not torch.equal(first, generator.generate(FOG, "dog", 5, 2))
    assert generator.facts["licence"] == "CC0" and "rows" in generator.facts["model"]


def test_templates_fill_every_place():
    generator = TemplateTextGenerator(
        ["{prompt} at {hour} in {domain} ({description}): {mood}"], {"mood": {"dog": ["wild", "calm"]}}
    )
    texts = generator.generate(FOG, "dog", 40, 0)
    assert set(texts) == {
        f"{p} at 6 in fog (thick air): {m}" for p in ("a dog", "two dogs") for m in ("wild", "calm")
    }
    assert texts == generator.generate(FOG, "dog", 40, 0) != generator.generate(FOG, "dog", 40, 1)
    with pytest.raises(InputError, match="no prompt for class 'cat'"):
        generator.generate(FOG, "cat", 1, 0)
    with pytest.raises(InputError, match=r"place \{where\} .* no words"):
        TemplateTextGenerator(["{where}"]).generate(FOG, "dog", 1, 0)


def test_what_fills_a_place_is_not_filled_again():
    spec = DomainSpec("fog", prompts={"dog": ["a {prompt} in {braces}"]})
    assert TemplateTextGenerator().generate(spec, "dog", 1, 0) == ["a {prompt} in {braces}"]


class Pipeline:
    """Stands in for a pipeline of diffusers: an image whose grey level is drawn by its generator."""

    def __init__(self):
        self.calls = []

    def __call__(self, *, prompt, generator, num_inference_steps, guidance_scale):
        self.calls.append((prompt, num_inference_steps, guidance_scale))
        levels = [int(torch.randint(1, 256, (), generator=g)) for g in generator]
        images = [Image.new("RGB", (10, 6), (level, 0, 0)) for level in levels]
        return SimpleNamespace(images=images, nsfw_content_detected=[p == "two dogs" for p in prompt])


def test_a_pipeline_is_fed_prompts_and_seeds_in_batches():
    pipeline = Pipeline()
    options = {"size": (4, 8), "steps": 3, "guidance": 2.0, "device": "cpu", "pipeline": pipeline}
    images = DiffusersGenerator("stub", batch=2, **options).generate(FOG, "dog", 5, 7)
    assert [call[0] for call in pipeline.calls] == [["a dog", "two dogs"], ["a dog", "two dogs"], ["a dog"]]
    assert pipeline.calls[0][1:] == (3, 2.0)
    assert images.shape == (3, 3, 4, 8) and images.dtype == torch.uint8  # what was flagged is left out
    assert len(set(images[:, 0, 0, 0].tolist())) == 3
    assert torch.equal(images, DiffusersGenerator("stub", batch=5, **options).generate(FOG, "dog", 5, 7))


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtra, match=r"unseen\[diffusion\]"):
        DiffusersGenerator("some/model", device="cpu").generate(FOG, "dog", 1, 0)


def test_a_model_that_is_not_there_is_not_downloaded(monkeypatch):
    asked = {}

    class AutoPipelineForText2Image:
        @staticmethod
        def from_pretrained(name, **options):
            asked.update(options)
            raise OSError("no such folder\nand so on")

    monkeypatch.setitem(
        sys.modules, "diffusers", SimpleNamespace(AutoPipelineForText2Image=AutoPipelineForText2Image)
    )
    with pytest.raises(InputError, match=r"cannot be loaded \(no such folder\)"):
        DiffusersGenerator("some/model", device="cpu").generate(FOG, "dog", 1, 0)
    assert asked["local_files_only"] and asked["use_safetensors"]
