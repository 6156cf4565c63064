import json

import numpy as np
import pytest
import torch

from unseen.errors import InputError, UnseenWarning
from unseen.extrapolation import (
    DomainSpec,
    GridProposer,
    ImageTextScorer,
    ListProposer,
    ProceduralGenerator,
    TemplateTextGenerator,
    extrapolate,
    filter_by_score,
    read_manifest,
    rejections,
)
from unseen.extrapolation import storage as storage_module
from unseen.shifts import open_shift

CLASSES = ("cat", "dog")
GRID = GridProposer({"level": [0, 100, 200]})


def pictures(parameters, cls, n, generator):
    noise = torch.randint(0, 50, (n, 1, 6, 5), generator=generator)
    return (noise + parameters["level"] + (cls == "dog")).to(torch.uint8)


def rows(parameters, cls, n, generator):
    return parameters["level"] + torch.randn(n, 3, generator=generator)


IMAGES, ROWS = ProceduralGenerator(pictures), ProceduralGenerator(rows)
TEXTS = TemplateTextGenerator(["{cls} {level} {number}"], {"number": [str(i) for i in range(1000)]})


def made(generator=IMAGES, proposer=GRID, **options):
    options = {"domains": 3, "per_cell": 4, **options}
    return extrapolate("pets", CLASSES, proposer, generator, **options)


@pytest.mark.parametrize("generator", [IMAGES, ROWS, TEXTS], ids=["image", "array", "text"])
def test_memory_and_disk_hold_the_same(generator, tmp_path):
    memory, disk = made(generator), made(generator, folder=tmp_path / "set")
    assert memory.kind == disk.kind == {IMAGES: "image", ROWS: "array", TEXTS: "text"}[generator]
    assert memory.domains == disk.domains and memory.classes == disk.classes == CLASSES
    assert (memory.counts() == 4).all().all() and len(memory) == 24

    def content(shift):
        taken = shift.take(torch.arange(len(shift)))
        labels, domain = shift.labels.tolist(), shift.domain.tolist()
        return sorted(zip(domain, labels, (str(np.asarray(x).tolist()) for x in taken), strict=True))

    assert content(memory) == content(disk)
    assert open_shift(**disk.source).fingerprint == disk.fingerprint


def test_the_seed_decides():
    assert torch.equal(made(ROWS, seed=1).inputs, made(ROWS, seed=1).inputs)
    assert not torch.equal(made(ROWS, seed=1).inputs, made(ROWS, seed=2).inputs)


def test_the_manifest_tells_where_everything_comes_from(tmp_path):
    proposer = ListProposer(
        [DomainSpec("fog", "thick", {c: [f"a {c} in fog"] for c in CLASSES}, {"level": 9})]
    )
    generator = ProceduralGenerator(pictures, "painter 1", "CC0")
    made(generator, proposer, domains=1, folder=tmp_path)
    manifest = read_manifest(tmp_path)
    assert manifest["request"]["generator"] == {
        "generator": "procedural",
        "model": "painter 1",
        "licence": "CC0",
    }
    assert manifest["domains"][0]["parameters"] == {"level": 9}
    cat, dog = manifest["cells"]
    assert cat["prompts"] == ["a cat in fog"] and cat["seed"] != dog["seed"] and cat["kept"] == 4


def test_an_interrupted_run_goes_on(tmp_path):
    class Interrupted(ProceduralGenerator):
        calls = 0

        def generate(self, *arguments):
            type(self).calls += 1
            if self.calls == 4:
                raise KeyboardInterrupt
            return super().generate(*arguments)

    class Once(GridProposer):
        asked = 0

        def propose(self, *arguments):
            type(self).asked += 1
            return super().propose(*arguments)

    generator, proposer, steps = Interrupted(pictures), Once(GRID.grid), []
    with pytest.raises(KeyboardInterrupt):
        made(generator, proposer, folder=tmp_path)
    shift = made(generator, proposer, folder=tmp_path, progress=lambda *s: steps.append(s))
    assert generator.calls == 7 and proposer.asked == 1 and steps[-1] == (6, 6)
    assert torch.equal(shift.take(torch.arange(24)), made(folder=tmp_path / "anew").take(torch.arange(24)))
    made(generator, proposer, folder=tmp_path)
    assert generator.calls == 7


def test_another_request_does_not_mix_into_a_folder(tmp_path):
    made(folder=tmp_path)
    with pytest.raises(InputError, match=r"holds examples of another request \(seed is 0\)"):
        made(folder=tmp_path, seed=1)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        made(folder=tmp_path)


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(storage_module.Image.Image, "save", full)
    with pytest.raises(OSError, match="disk full"):
        made(folder=tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["cells"] == []
    assert not [p for p in (tmp_path / "images").rglob("*") if p.is_dir() and p.name in CLASSES]


def brightness(examples, spec, cls):
    return examples.float().mean((1, 2, 3))


def test_a_filter_keeps_the_best_and_the_rest_is_generated_anew(tmp_path):
    shift = made(keep=filter_by_score(brightness, keep=0.5), folder=tmp_path)
    assert (shift.counts() == 4).all().all()
    table = rejections(tmp_path)
    assert list(table.index) == list(CLASSES) and table.kept.tolist() == [12, 12]
    assert table.generated.tolist() == [24, 24] and table.share.tolist() == [0.5, 0.5]
    plain = made()
    dark = [brightness(s.take(torch.arange(24)), None, None)[s.domain == 0].mean() for s in (shift, plain)]
    assert dark[0] > dark[1]


class ColourClip:
    """Images by their mean colour, texts by the colours that they name."""

    def encode_image(self, images):
        self.sizes = [*getattr(self, "sizes", []), len(images)]
        return 3 * images.float().mean((2, 3))

    def encode_text(self, texts):
        return torch.tensor(
            [[float(colour in text) for colour in ("red", "green", "blue")] for text in texts]
        )


def test_images_are_scored_by_their_nearest_prompt(tmp_path):
    spec = DomainSpec("d", prompts={"cat": ["red", "a green and blue cat"], "dog": ["blue"]})
    images = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    for row, colour in enumerate([(9, 0, 0), (0, 7, 7), (0, 5, 0), (3, 4, 0)]):
        images[row] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    encoder = ColourClip()
    scorer = ImageTextScorer(encoder, batch=3)
    expected = torch.tensor([1, 1, 0.5**0.5, 0.6])
    torch.testing.assert_close(scorer(images, spec, "cat"), expected)
    assert encoder.sizes == [3, 1]
    assert scorer(images, spec, "dog").argmax() == 1
    keep = filter_by_score(scorer, keep=0.5)
    assert keep(images, spec, "cat").tolist() == [True, True, False, False]
    assert "ColourClip" in keep.facts["scorer"]
    assert "m/a" in filter_by_score(ImageTextScorer(encoder, name="m/a"), keep=0.5).facts["scorer"]
    with pytest.raises(InputError, match="no prompt for class 'cow'"):
        scorer(images, spec, "cow")
    for other in (["a text"], torch.zeros(3, 5)):
        with pytest.raises(InputError, match="image-text scorer: got"):
            scorer(other, spec, "cat")
    with pytest.raises(InputError, match="batch: is 0"):
        ImageTextScorer(encoder, batch=0)


def test_a_filter_that_leaves_little_or_nothing():
    with pytest.raises(InputError, match=r"class 'cat' in domain 'level=0': has no example left of 20"):
        made(keep=filter_by_score(brightness, at_least=90.0))
    with pytest.warns(UnseenWarning, match="cells have fewer than 4 examples"):
        made(keep=_two_of_the_first_round())


def _two_of_the_first_round():
    seen = set()

    def keep(examples, spec, cls):
        first = (spec.name, cls) not in seen
        seen.add((spec.name, cls))
        return torch.arange(len(examples)) < (2 if first else 0)

    return keep


def test_scores_that_are_not_numbers_reject():
    keep = filter_by_score(lambda e, s, c: [float("nan"), 1.0, 3.0, 2.0], keep=0.5)
    assert keep(torch.zeros(4), None, "cat").tolist() == [False, False, True, True]
    with pytest.raises(InputError, match="2 scores for 4 examples"):
        filter_by_score(lambda e, s, c: [1, 2], at_least=0)(torch.zeros(4), None, "cat")
    for options in ({}, {"keep": 0.5, "at_least": 1}, {"keep": 0.0}):
        with pytest.raises(InputError, match="keep"):
            filter_by_score(brightness, **options)


def test_repeated_examples_are_warned_of():
    with pytest.warns(UnseenWarning, match="6 of 6 cells have examples that equal another.*1 distinct"):
        made(ProceduralGenerator(lambda p, c, n, g: torch.zeros(n, 3)))


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda p, c, n, g: torch.zeros(n, 3, dtype=torch.int64), "torch.int64"),
        (lambda p, c, n, g: None, "NoneType"),
        (lambda p, c, n, g: [1, "a"], "Give images"),
        (lambda p, c, n, g: torch.zeros(n, 3 + (c == "dog")), r"gave \(4,\) after \(3,\)"),
        (lambda p, c, n, g: torch.zeros(0, 3), "no example left of 0"),
    ],
)
def test_generators_that_give_something_else(function, problem):
    with pytest.raises(InputError, match=problem):
        made(ProceduralGenerator(function))


def test_the_name_of_an_unseen_domain_leaks():
    proposer = ListProposer(["night", "pencil sketch"], "a {cls}, {domain}")
    with pytest.raises(InputError, match="'pencil sketch': names the unseen domain 'sketch'"):
        made(TEXTS, proposer, domains=2, unseen=("sketch",))


@pytest.mark.parametrize(
    ("classes", "options", "problem"),
    [
        (("cat",), {}, "two or more"),
        (("cat", "cat"), {}, "two or more"),
        (("cat", "a/b"), {}, "name of a folder"),
        (CLASSES, {"domains": 0}, "1 or more"),
        (CLASSES, {"per_cell": 0}, "1 or more"),
    ],
)
def test_requests_that_make_no_sense(classes, options, problem):
    with pytest.raises(InputError, match=problem):
        extrapolate("pets", classes, GRID, IMAGES, **options)


def test_a_folder_without_manifest():
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        read_manifest("nowhere")
