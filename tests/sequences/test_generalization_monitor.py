import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from unseen.errors import InputError
from unseen.sequences.generalization_monitor import (
    ALL,
    GeneralizationMonitor,
    mean_token_losses,
    monitor_correlations,
    rank_correlation_given,
)
from unseen.sequences.language_model import DecoderLM
from unseen.sequences.length_evaluation import token_nll
from unseen.sequences.memorization import MemorizationTracker
from unseen.sequences.mixture_of_experts import MoEDecoder
from unseen.sequences.pathways import pathway_distance, pathways
from unseen.sequences.routing import RoutingRecorder, pathway_smoothness

TOKENS = torch.randint(2, 40, (10, 6), generator=torch.Generator().manual_seed(0))
DOMAINS = ["sums", "words"] * 5


def small(seed=0):
    model = MoEDecoder(40, width=16, layers=3, heads=2, experts=5, top_k=2, hidden=8, seed=seed)
    with torch.no_grad():  # routers with an opinion, and alike, so that cosines are positive
        for block in model.blocks:
            block.feedforward.router.weight.mul_(40)
            block.feedforward.router.weight.copy_(model.blocks[0].feedforward.router.weight)
    return model


def trained(monitor, steps=41):
    model = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        monitor(step, model)
        loss = model.loss(TOKENS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return monitor


def test_a_measurement_is_what_the_parts_say():
    model, monitor = small(), GeneralizationMonitor(TOKENS, batch=3)
    monitor.measure(0, model)
    recorder = RoutingRecorder(model)
    with recorder.watch(torch.ones_like(TOKENS)) as recording:
        model(TOKENS)
    paths = pathways(recording.routing)
    row = monitor.table().iloc[0]
    assert row.distance == pytest.approx(pathway_distance(paths, "all")) and row.distance > 0
    assert row.normalized_distance == pytest.approx(pathway_distance(paths, "all", normalize=True))
    smoothness = pathway_smoothness(recording.routing, recorder.router_weights)
    assert row.smoothness == pytest.approx(float(smoothness.cosine.mean()), abs=1e-5)
    assert row.inconsistency == pytest.approx(float(smoothness.inconsistency.mean()), abs=1e-4)
    assert row.loss == pytest.approx(float(model.loss(TOKENS).detach()), abs=1e-5)
    norm = torch.cat([p.detach().flatten() for p in model.parameters()]).norm()
    assert row.weight_norm == pytest.approx(float(norm), rel=1e-5)
    assert row.samples == 10


def test_live_it_measures_every_so_many_steps_and_leaves_training_as_it_was():
    monitor = trained(GeneralizationMonitor(TOKENS, domains=DOMAINS, every=10))
    assert list(monitor.readings) == [0, 10, 20, 30, 40]
    watched, alone = small(), small()
    losses = []
    for model in (watched, alone):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        other = GeneralizationMonitor(TOKENS, every=1)
        for step in range(5):
            if model is watched:
                other(step, model)
            loss = model.loss(TOKENS)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
        assert model.training
    assert losses[0] == losses[1]


def test_saved_checkpoints_give_what_the_live_monitor_gave():
    live, states = GeneralizationMonitor(TOKENS, every=10), {}

    def both(step, model):
        live(step, model)
        if step % 10 == 0:
            states[step] = {name: value.clone() for name, value in model.state_dict().items()}

    trained(both)
    later, model = GeneralizationMonitor(TOKENS), small(seed=5)
    for step, state in states.items():
        model.load_state_dict(state)
        later.measure(step, model)
    pd.testing.assert_frame_equal(live.table(), later.table())


def test_domains_have_rows_and_pairs_of_their_own():
    table = trained(GeneralizationMonitor(TOKENS, domains=DOMAINS, every=20)).table()
    assert set(table.domain) == {ALL, "sums", "words"}
    for _, rows in table.groupby("step"):
        by_domain = rows.set_index("domain")
        assert by_domain.samples.to_dict() == {ALL: 10, "sums": 5, "words": 5}
        mean = by_domain.loc[["sums", "words"]].mean()  # as many pairs in both
        for name in ("distance", "smoothness", "loss"):
            assert by_domain.loc[ALL, name] == pytest.approx(mean[name])


def test_only_memorized_samples_count():
    losses = iter(torch.tensor([[9, 9, 9, 0.0], [0, 0, 9, 0], [0, 0, 9, 0]]))
    monitor = GeneralizationMonitor(
        TOKENS[:4],
        memorization=MemorizationTracker(0.1, 0.1),
        losses=lambda model, tokens, mask: (model(tokens), next(losses))[1],
    )
    for step in (0, 1, 2):
        monitor.measure(step, small(step))
    table = monitor.table()
    assert table.step.tolist() == [1, 2]  # one memorized sample at step 0 makes no pair
    assert table.samples.tolist() == [3, 3]
    assert table.loss.tolist() == [0, 0]
    pairs = [pair for pair, kept in enumerate(monitor.pairs.tolist()) if 2 not in kept]
    assert table.distance.iloc[0] == pytest.approx(monitor.readings[1].distance[pairs].mean())


def test_correlations_name_every_monitor_and_the_trivial_ones():
    monitor = trained(GeneralizationMonitor(TOKENS, domains=DOMAINS, every=5))
    accuracy = {step: step / 40 for step in monitor.readings}
    found = monitor.correlations(accuracy, resamples=200).set_index("monitor")
    assert {"distance", "smoothness", "router_entropy", "loss", "weight_norm", "step"} <= set(found.index)
    assert found.loc["step", "spearman"] == pytest.approx(1) and found.loc[
        "step", "pearson"
    ] == pytest.approx(1)
    assert found.loc["loss", "spearman"] < -0.8
    table = monitor.table().query("domain == 'all'")
    assert found.loc["distance", "spearman"] == pytest.approx(
        spearmanr(table.distance, table.step).statistic, abs=1e-9
    )
    assert found.loc["distance", "spearman_low"] <= found.loc["distance", "spearman_high"]
    assert np.isnan(found.given_step).all()  # accuracy is the step here: nothing is left to explain
    of_words = monitor.correlations(accuracy, domain="words", after=20, resamples=50)
    rows = monitor.table().query("domain == 'words' and step >= 20")
    assert of_words.pearson[0] == pytest.approx(np.corrcoef(rows.distance, rows.step)[0, 1])


def test_what_only_drifts_correlates_until_the_step_is_held_fixed():
    generator = np.random.default_rng(0)
    step = np.arange(200.0)
    accuracy, drift = step + generator.normal(0, 20, 200), -step + generator.normal(0, 20, 200)
    cause = accuracy + generator.normal(0, 5, 200)
    table = pd.DataFrame({"step": step, "distance": drift, "smoothness": cause})
    found = monitor_correlations(table, accuracy, resamples=100).set_index("monitor")
    assert found.spearman["distance"] < -0.8 and abs(found.given_step["distance"]) < 0.2
    assert found.given_step["smoothness"] > 0.8
    assert found.pearson_low["distance"] < found.pearson["distance"] < found.pearson_high["distance"]


def test_the_partial_correlation_is_that_of_residuals_of_ranks():
    generator = np.random.default_rng(1)
    given = generator.normal(size=60)
    x, y = given + generator.normal(size=60), given - generator.normal(size=60)
    ranks = [np.argsort(np.argsort(values)).astype(float) for values in (x, y, given)]
    residuals = [r - np.polyval(np.polyfit(ranks[2], r, 1), ranks[2]) for r in ranks[:2]]
    assert rank_correlation_given(x, y, given) == pytest.approx(np.corrcoef(*residuals)[0, 1])
    assert math.isnan(rank_correlation_given(x, y, y))
    assert math.isnan(rank_correlation_given(np.ones(60), y, given))


@torch.no_grad()
def test_losses_of_padded_samples_count_real_tokens_only():
    model = DecoderLM(40, width=16, layers=2, heads=2)
    torch.testing.assert_close(
        mean_token_losses(model, TOKENS, torch.ones_like(TOKENS)), token_nll(model, TOKENS).mean(1)
    )
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    found = mean_token_losses(model, TOKENS[:1], mask)
    torch.testing.assert_close(found, token_nll(model, TOKENS[:1, 2:]).mean(1))
    with pytest.raises(InputError, match="no token to predict"):
        mean_token_losses(model, TOKENS[:1], torch.tensor([[0, 0, 0, 0, 0, 1]]))


def test_a_model_of_transformers_with_padding():
    transformers = pytest.importorskip(
        "transformers", reason="transformers (extra 'language') is not installed"
    )
    torch.manual_seed(0)
    config = transformers.OlmoeConfig(
        vocab_size=40, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, pad_token_id=0,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    mask = torch.ones_like(TOKENS)
    mask[:4, 4:] = 0
    changed = torch.where(mask.bool(), TOKENS, 1)
    readings = []
    for tokens in (TOKENS, changed):
        monitor = GeneralizationMonitor(tokens, padding_mask=mask)
        readings.append(monitor.measure(0, model))
    assert model.training
    table = (
        monitor.table()
    )  # C has no meaning where all cosines are negative: the table tells, no warning does
    assert table.meaningful[0] == pytest.approx(readings[1].meaningful.mean())
    np.testing.assert_allclose(readings[0].router_entropy, readings[1].router_entropy, atol=1e-6)
    np.testing.assert_allclose(readings[0].loss, readings[1].loss, atol=1e-5)


def test_bad_input():
    for tokens in (TOKENS[:1], TOKENS[0]):
        with pytest.raises(InputError, match="tokens"):
            GeneralizationMonitor(tokens)
    with pytest.raises(InputError, match="threshold"):
        GeneralizationMonitor(TOKENS, threshold=0)
    with pytest.raises(InputError, match="every"):
        GeneralizationMonitor(TOKENS, every=0)
    with pytest.raises(InputError, match="domains"):
        GeneralizationMonitor(TOKENS, domains=["a"])
    with pytest.raises(InputError, match="padding_mask"):
        GeneralizationMonitor(TOKENS, padding_mask=torch.ones(10, 5))
    monitor = GeneralizationMonitor(TOKENS)
    with pytest.raises(InputError, match="measured nothing"):
        monitor.table()
    with pytest.raises(InputError, match="no router"):
        monitor.measure(0, DecoderLM(40, width=16, layers=2, heads=2))
    monitor.measure(5, small())
    with pytest.raises(InputError, match="in order"):
        monitor.measure(5, small())
    with pytest.raises(InputError, match="shares 1 steps"):
        monitor.correlations({5: 0.5})
    with pytest.raises(InputError, match="domain"):
        monitor.correlations({5: 0.5}, domain="verses")
