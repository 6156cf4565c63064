import numpy as np
import pytest
import torch

from unseen.errors import InputError
from unseen.objectives.decorrelation import DecorrelationReweighter
from unseen.papers.l2r_gnn import (
    BIASES,
    EFFECTIVE,
    L2RGNN,
    OBJECTIVES,
    READOUTS,
    SAME,
    SETTINGS,
    SIZE,
    TRAINED_SIZE,
    TURNED,
    WEIGHT_RATIO,
    at,
    biased_graphs,
    known_groups,
    measure_bias,
    measure_motifs_by_size,
    measure_size,
    of_readout,
    read_tu,
    sized_graphs,
    weight_measures,
)
from unseen.papers.motif_graphs import MOTIF, PAIRS, STAR, labels_and_stars, motif_graphs
from unseen.shifts.adapters import from_graphs
from unseen.training import Learner, train
from unseen.training.data import TrainingData

TINY = {**SETTINGS, "steps": 12, "batch_size": 16, "evaluations": 2}


# ---- the graphs ----


def test_graphs_are_a_tree_a_motif_and_perhaps_a_star():
    generator = np.random.default_rng(0)
    labels, stars = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    for pair in PAIRS:
        graphs = motif_graphs(labels, stars, (15, 25), 37, generator, pair)
        links, mask = graphs["adjacency"], graphs["mask"]
        assert torch.equal(links, links.transpose(1, 2)) and not links.diagonal(dim1=1, dim2=2).any()
        assert torch.equal(graphs["nodes"].squeeze(2), links.sum(2))
        assert (links.sum(2) > 0).eq(mask.bool()).all()  # every real node hangs on something
        for graph, (label, star) in enumerate(zip(labels, stars, strict=True)):
            size = int(mask[graph].sum()) - MOTIF * (1 + star)
            assert 15 <= size <= 25
            edges = size - 1 + len(PAIRS[pair][label]) + 1 + (len(STAR) + 1) * star
            assert links[graph].sum() == 2 * edges


def test_the_hard_pair_has_equal_degrees_but_one_has_a_triangle():
    def links(edges):
        found = torch.zeros(MOTIF, MOTIF)
        for a, b in edges:
            found[a, b] = found[b, a] = 1
        return found

    zero, one = map(links, PAIRS["triangle or squares"])
    assert torch.equal(zero.sum(1).sort().values, one.sum(1).sort().values)
    assert torch.trace(zero @ zero @ zero) == 0 and torch.trace(one @ one @ one) == 6


def test_stars_agree_as_often_as_asked_and_labels_are_balanced():
    labels, stars = labels_and_stars(4000, 0.9, np.random.default_rng(0))
    assert labels.mean() == 0.5 and (labels == stars).mean() == pytest.approx(0.9, abs=0.02)


def test_only_training_labels_are_noisy_and_groups_are_of_the_right_ones():
    shift, truth = biased_graphs(0.9, 0, 200, 50)
    wrong = shift.labels != truth
    assert 0.2 < wrong[:200].float().mean() < 0.4 and not wrong[200:].any()
    grouped = known_groups(shift, truth, 200)
    assert torch.equal(grouped.domain[:200], 2 * truth[:200] + shift.group[:200])
    assert [grouped.domains[i] for i in grouped.domain[200:].unique()] == list(shift.domains[1:])


# ---- measuring ----


@pytest.fixture(scope="module")
def rows():
    return measure_bias(0.8, 0, graphs=80, judged=24, settings=TINY)


def test_every_condition_is_judged_on_every_set(rows):
    names = {c.name for c in L2RGNN.conditions}
    assert {row.condition for row in rows} == names
    assert {row.metric for row in rows} < set(L2RGNN.metrics)
    assert len({(row.condition, row.metric) for row in rows}) == len(rows) == 3 * len(names) + 3 * 3
    assert all(np.isfinite(row.value) for row in rows)


def test_larger_graphs_are_larger_and_nothing_else_changes():
    shift = sized_graphs(0, 60, 60)
    nodes = shift.inputs["mask"].sum(1) - MOTIF * (1 + shift.group)
    ranges = {
        name: (int(nodes[shift.domain == d].min()), int(nodes[shift.domain == d].max()))
        for d, name in enumerate(shift.domains)
    }
    assert ranges == {"train": (10, 15), TRAINED_SIZE: (10, 15), SIZE: (25, 40)}
    agree = (shift.labels == shift.group)[60:].float().mean()
    assert agree == pytest.approx(0.5, abs=0.15)


def test_both_readouts_are_judged_on_both_sizes():
    rows = measure_motifs_by_size(0, graphs=80, judged=24, settings=TINY)
    metrics = {of_readout(name, readout) for name in (TRAINED_SIZE, SIZE) for readout in READOUTS}
    assert {(row.condition, row.metric) for row in rows} == {(c, m) for c in OBJECTIVES for m in metrics}
    assert len(rows) == len(OBJECTIVES) * 4 and metrics < set(L2RGNN.metrics)
    summed, averaged = (
        [row.value for row in rows if row.metric.endswith(f"{readout} readout")] for readout in READOUTS
    )
    assert summed != averaged


def test_every_claim_has_its_numbers_at_full_scale_too():
    assert set(L2RGNN().units("laptop")) < set(L2RGNN().units("full"))


def test_the_rows_depend_on_the_seed_alone(rows):
    torch.manual_seed(1)
    assert measure_bias(0.8, 0, graphs=80, judged=24, settings=TINY) == rows


def test_uniform_weights_measure_one():
    features, minority = torch.randn(60, 4), torch.arange(60) < 20
    found = weight_measures(torch.ones(60), features, minority)
    assert found == {WEIGHT_RATIO: 1.0, EFFECTIVE: 1.0, "dependence left": 1.0}


def measured(l2r, erm, ratio=2.0):
    table = {}
    for bias in BIASES:
        for condition, value in (("l2r", l2r), ("erm", erm), ("erm regularised", erm), ("all-pairs", erm),
                                 ("weights shuffled", erm)):  # fmt: skip
            table[condition, at(TURNED, bias)] = value
            table[condition, at(SAME, bias)] = 0.95
        for readout in READOUTS:
            table["l2r", of_readout(SIZE, readout)], table["erm", of_readout(SIZE, readout)] = l2r, erm
        table["l2r", at(WEIGHT_RATIO, bias)] = ratio
        table["l2r", at(EFFECTIVE, bias)], table["all-pairs", at(EFFECTIVE, bias)] = 0.9, 0.6
        table["all-pairs", at(WEIGHT_RATIO, bias)] = 1.1
    return table


def test_claims_are_what_they_say():
    values = {claim.name: claim.value(measured(0.9, 0.8)) for claim in L2RGNN.claims}
    assert values["shortcut"] == pytest.approx(0.15) and values["which graph matters"] == 0
    assert values["gain over ERM"] == values["as good as all pairs"] == pytest.approx(0.1)
    assert values["gain in most runs"] == 1 and values["more examples in effect"] == pytest.approx(1.5)
    assert values["weights find the star"] == 2
    assert values["gain on larger graphs"] == pytest.approx(0.1)
    worse = {claim.name: claim.value(measured(0.7, 0.8)) for claim in L2RGNN.claims}
    assert worse["gain in most runs"] == 0 and worse["gain over ERM"] == pytest.approx(-0.1)


def test_the_plot_draws():
    import pandas as pd

    table = pd.DataFrame(
        [(seed, c, m, v + 0.01 * seed) for seed in range(3) for (c, m), v in measured(0.9, 0.8).items()],
        columns=["seed", "condition", "metric", "value"],
    )
    assert len(L2RGNN().plot(table).axes) == 2


# ---- traps of the specification ----


def test_weights_do_not_reach_the_encoder_through_the_dependence():
    """The gradient of the loss is that of fixed weights: an encoder cannot collapse to become independent."""
    from unseen.registry import objectives
    from unseen.testing.toy import toy_batch, toy_system

    system = toy_system(lambda: objectives.build("l2r(warmup=0.0, learning_rate=0.1)"), 0, "cpu", 3)
    batch = toy_batch("cpu", step=3)
    system(batch).total.backward()
    weights = torch.softmax(system.objective.values.of(batch), 0) * len(batch)
    found = [p.grad.clone() for p in system.network.parameters()]
    system.zero_grad()
    losses = torch.nn.functional.cross_entropy(system.network(batch.x), batch.y, reduction="none")
    (weights * losses).mean().backward()
    for one, other in zip(found, system.network.parameters(), strict=True):
        assert torch.allclose(one, other.grad, atol=1e-6)


def test_weights_have_mean_one_so_that_the_loss_does_not_shrink_with_the_batch():
    assert DecorrelationReweighter().weights(torch.randn(64, 4)).sum() == pytest.approx(64, rel=1e-5)


def test_weights_that_leave_few_examples_are_warned_of():
    from unseen.errors import UnseenWarning
    from unseen.objectives.decorrelation import warn_of_few

    weights = torch.full((100,), 0.01)
    weights[0] = 99.0
    with pytest.warns(UnseenWarning, match="less than 10 %"):
        warn_of_few(weights)


# ---- graphs of PyTorch Geometric, and the full scale ----


def geometric(count=60):
    data = pytest.importorskip("torch_geometric.data")
    generator = np.random.default_rng(0)
    labels, stars = labels_and_stars(count, 0.8, generator)
    padded = motif_graphs(labels, stars, (4, 12), 24, generator, "wheel or cycle")
    return [
        data.Data(edge_index=links.nonzero().T, y=int(label), num_nodes=int(mask.sum()))
        for links, mask, label in zip(padded["adjacency"], padded["mask"], labels, strict=True)
    ], labels


def test_graphs_of_torch_geometric_train_by_the_same_learner():
    graphs, _ = geometric()
    sizes = np.array([graph.num_nodes for graph in graphs])
    shift = from_graphs(graphs, np.where(sizes < np.median(sizes), "small", "large"))
    data = TrainingData(shift.split("large"))
    result = train(Learner(objective="l2r(warmup=0.0)", **TINY), data)
    assert result.objective["values.values"].shape == (len(graphs),)
    assert result.objective["values.values"][data.split.train].any()
    assert not result.objective["values.values"][data.split.unseen].any()
    rows = measure_size(shift, TINY, 0)
    assert {row.metric for row in rows} == {SIZE} and len(rows) == 4


def test_tu_files_of_the_user_are_read_and_nothing_is_downloaded(tmp_path, monkeypatch):
    graphs, labels = geometric(20)
    monkeypatch.setenv("UNSEEN_DATA", str(tmp_path))
    monkeypatch.setenv("UNSEEN_TU", "TOY")
    with pytest.raises(InputError, match="'TOY': has no raw files"):
        read_tu()
    raw = tmp_path / "TU" / "TOY" / "raw"
    raw.mkdir(parents=True)
    edges, indicator, start = [], [], 0
    for number, graph in enumerate(graphs, start=1):
        edges += [f"{a + start + 1}, {b + start + 1}" for a, b in graph.edge_index.T.tolist()]
        indicator += [str(number)] * graph.num_nodes
        start += graph.num_nodes
    (raw / "TOY_A.txt").write_text("\n".join(edges) + "\n")
    (raw / "TOY_graph_indicator.txt").write_text("\n".join(indicator) + "\n")
    (raw / "TOY_graph_labels.txt").write_text("\n".join(map(str, labels)) + "\n")
    shift = read_tu()
    assert len(shift) == 20 and set(shift.domains) == {"small", "large"} and shift.name == "TOY"
    assert "size" in L2RGNN().units("full") and "size" not in L2RGNN().units("laptop")
