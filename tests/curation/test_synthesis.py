import pytest
import torch

from unseen.curation import PrismaticSynthesizer, select_diverse
from unseen.curation.sparse_regions import SparseRegions
from unseen.curation.synthesis import majority_answer
from unseen.errors import InputError
from unseen.measures.kernel_spectrum import vendi_score
from unseen.registry import selectors

KINDS = 12


def of_kind(kind, generator):
    """A sample: its kind, then whether it is right, then a little noise of its own."""
    return kind, bool(torch.rand((), generator=generator) < 0.9), float(torch.rand((), generator=generator))


def gradients(samples):
    points = torch.zeros(len(samples), KINDS + 1)
    for row, (kind, _, noise) in enumerate(samples):
        points[row, kind], points[row, KINDS] = 1, 0.1 * noise
    return points / points.norm(dim=1, keepdim=True)


def collapsed(demonstrations, generator):
    """Mostly copies of what it was shown, and mostly of the kind that is shown most."""
    found = []
    for kind, _, _ in demonstrations * 4:
        copied = torch.rand((), generator=generator) < 0.8
        found.append(
            of_kind(kind if copied else int(torch.randint(KINDS, (), generator=generator)), generator)
        )
    return found


def right(samples):
    return [sample[1] for sample in samples]


@pytest.fixture
def seed_set():
    generator = torch.Generator().manual_seed(0)
    return [of_kind(0 if row < 28 else 1, generator) for row in range(30)]


def grown(seed_set, **options):
    return PrismaticSynthesizer(collapsed, right, gradients, clusters=KINDS, **options).grow(seed_set, 150)


def test_sparse_regions_fill_up(seed_set):
    results = {accept: grown(seed_set, accept=accept) for accept in ("sparse", "all", "chance")}
    scores = {name: vendi_score(gradients(found.samples)) for name, found in results.items()}
    assert scores["sparse"] > 1.3 * scores["all"] and scores["sparse"] > 1.3 * scores["chance"]
    for found in results.values():
        assert found.samples[:30] == seed_set and len(found.samples) == 150
        assert all(right(found.samples[30:]))
        assert found.log.size and (found.log.accepted <= found.log.verified).all()
        assert (found.log.verified <= found.log.generated).all()
        assert found.log["size"].iloc[-1] == 150
    assert results["sparse"].log.g_vendi.is_monotonic_increasing


def test_a_seed_decides_what_grows(seed_set):
    assert grown(seed_set).samples == grown(seed_set).samples
    assert grown(seed_set).samples != grown(seed_set, seed=1).samples


def test_demonstrations_come_from_sparse_regions(seed_set):
    shown = []

    def generator(demonstrations, generator):
        shown.extend(demonstrations)
        return collapsed(demonstrations, generator)

    PrismaticSynthesizer(generator, right, gradients, clusters=2).grow(seed_set, 40, max_rounds=1)
    assert {kind for kind, _, _ in shown} == {1}


def test_it_ends_after_the_rounds_it_may_take(seed_set):
    stuck = PrismaticSynthesizer(lambda d, g: [], right, gradients, patience=9).grow(
        seed_set, 40, max_rounds=4
    )
    assert stuck.samples == seed_set and len(stuck.log) == 4
    assert PrismaticSynthesizer(collapsed, right, gradients).grow(seed_set, 20).samples == seed_set


@pytest.mark.parametrize(
    "change, message",
    [
        ({"verifier": lambda s: [False] * len(s)}, "rejected everything in 3 rounds"),
        ({"verifier": lambda s: [True]}, r"verifier: gave \(1,\)"),
        ({"gradient_fn": lambda s: torch.full((len(s), 2), torch.nan)}, "gradient_fn"),
        ({"gradient_fn": lambda s: torch.zeros(2)}, "gradient_fn"),
        ({"accept": "some"}, "accept 'some'"),
        ({"patience": 0}, "patience"),
        ({"demonstrations": 0}, "demonstrations"),
        ({"clusters": 1}, "clusters"),
        ({"quantile": 1.0}, "quantile"),
    ],
)
def test_bad_parts_are_named(seed_set, change, message):
    parts = {"generator": collapsed, "verifier": right, "gradient_fn": gradients, **change}
    with pytest.raises(InputError, match=message):
        PrismaticSynthesizer(**parts).grow(seed_set, 150)


def test_two_samples_are_needed(seed_set):
    with pytest.raises(InputError, match="seed_set"):
        PrismaticSynthesizer(collapsed, right, gradients).grow(seed_set[:1], 5)


def test_clusters_grow_with_the_set_and_counts_are_fresh():
    points = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    regions = SparseRegions().fit(points)
    assert len(regions.sizes) == 20 and regions.sizes.sum() == 1000
    assert 0.5 <= regions.sparse.mean() < 1
    assert (regions.cluster(points) == regions.members()).all()
    assert len(regions.fit(points[:100]).sizes) == 16
    assert len(regions.fit(points[:40]).sizes) == 10
    assert len(regions.fit(points[:2]).sizes) == 2
    assert len(SparseRegions(clusters=9).fit(points[:5]).sizes) == 5
    with pytest.raises(InputError, match="points"):
        regions.fit(points[:1])


def test_a_pool_is_thinned_where_it_is_dense():
    generator = torch.Generator().manual_seed(0)
    kinds = torch.cat([torch.zeros(180, dtype=torch.int64), torch.arange(1, 11).repeat(2)])
    pool = torch.eye(11)[kinds] + 0.01 * torch.randn(200, 11, generator=generator)
    rows = select_diverse(pool, 40, batch=4)
    assert len(set(rows.tolist())) == 40
    by_chance = torch.randperm(200, generator=generator)[:40]
    assert len(kinds[rows].unique()) == 11 > len(kinds[by_chance].unique())
    there = torch.cat([pool[:40], torch.eye(11)[1:6]])
    found = kinds[select_diverse(pool, 10, start=there)]
    assert (found > 0).double().mean() > 3 * (kinds > 0).double().mean()
    assert sorted(select_diverse(pool, 200).tolist()) == list(range(200))
    for count in (0, 201):
        with pytest.raises(InputError, match="count"):
            select_diverse(pool, count)


def test_the_selector_keeps_what_the_filter_takes_first():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=generator)
    selector = selectors.build("sparse_regions(space='inputs')")
    scores = selector.fit(None, (x, torch.zeros(60, dtype=torch.int64)))
    assert selector.select(scores, 0.5).tolist() == sorted(select_diverse(x, 30).tolist())
    with pytest.raises(InputError, match="depth"):
        selectors.build("sparse_regions", depth=0)


def test_the_majority_must_be_one():
    assert majority_answer(["7", "7", "8"]) == "7"
    assert majority_answer(["7", "8"]) is None
    assert majority_answer(["7", "7", "8"], share=0.7) is None
    with pytest.raises(InputError, match="answers"):
        majority_answer([])
