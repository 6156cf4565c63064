"""Scores of features alone that scikit-learn has too, relation, and banks of other networks."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import spearmanr
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor
from torch.nn.functional import cosine_similarity

from unseen.errors import InputError
from unseen.registry import detectors


def test_isolation_forest_is_that_of_scikit_learn(train, familiar, far):
    detector = detectors.build("isolation-forest(trees=60, seed=3)").fit(train)
    theirs = IsolationForest(n_estimators=60, max_samples=len(train), random_state=3).fit(
        train.features.numpy()
    )
    for bank in (train, familiar, far):  # training inputs lie on thresholds' very edges
        np.testing.assert_allclose(
            detector.score(bank), theirs.score_samples(bank.features.numpy()), rtol=1e-5, atol=1e-6
        )
    assert detector.score(far).median() < detector.score(familiar).median()


@pytest.mark.parametrize("k", [1, 5, 20])
def test_lof_is_that_of_scikit_learn(k, train, familiar):
    theirs = LocalOutlierFactor(n_neighbors=k, novelty=True).fit(train.features.double().numpy())
    ours = detectors.build(f"lof(k={k})").fit(train).score(familiar)
    np.testing.assert_allclose(ours, theirs.score_samples(familiar.features.double().numpy()), rtol=1e-4)


def test_loop_orders_inputs_as_their_local_outlier_probability(train, familiar):
    x, queries = train.features.double(), familiar.features.double()
    k = 7

    def around(point, bank):
        distances = (bank - point).norm(dim=1)
        order = distances.argsort()[:k]
        return math.sqrt(float(distances[order].square().mean())), order.tolist()

    own = []
    for row in range(len(x)):
        others = torch.cat([x[:row], x[row + 1 :]])
        spread, rows = around(x[row], others)
        own.append((spread, [r + (r >= row) for r in rows]))
    factors = [s / np.mean([own[r][0] for r in rows]) - 1 for s, rows in own]
    unit = math.sqrt(np.mean(np.square(factors)))
    probability = []
    for query in queries:
        spread, rows = around(query, x)
        factor = spread / np.mean([own[r][0] for r in rows]) - 1
        probability.append(max(0.0, math.erf(factor / (unit * math.sqrt(2)))))
    ours = detectors.build(f"loop(k={k})").fit(train).score(familiar).numpy()
    between = [0 < p < 1 for p in probability]
    assert sum(between) > 50
    assert spearmanr(ours[between], -np.array(probability)[between]).statistic > 1 - 1e-6


@pytest.mark.parametrize("name", ["lof", "loop"])
def test_neighbours_beyond_the_bank_are_refused(name, train):
    few = train.take(torch.arange(15))
    with pytest.raises(InputError, match="k: is 15 with 15 training features"):
        detectors.build(f"{name}(k=15)").fit(few)
    repeated = replace(train, features=train.features[:1].expand(len(train), -1).clone())
    assert torch.isfinite(detectors.build(name).fit(repeated).score(train)).all()


def test_relation_is_the_slow_loop(train, familiar):
    scores = detectors.build("relation(power=2)").fit(train).score(familiar)
    for row in range(5):
        total = 0.0
        for other in range(len(train)):
            cosine = max(0.0, float(cosine_similarity(familiar.features[row], train.features[other], dim=0)))
            relation = cosine * float(familiar.probabilities[row] @ train.probabilities[other])
            total += relation**2 if relation > 0.03 else 0.0
        assert float(scores[row]) == pytest.approx(total / len(train), rel=1e-4)


@pytest.mark.parametrize("name", ["mahalanobis", "knn", "vim", "isolation-forest", "lof", "relation"])
def test_a_bank_of_another_network_is_refused(name, train, familiar):
    detector = detectors.build(name).fit(replace(train, network_hash=7))
    assert torch.equal(detector.score(familiar), detector.score(replace(familiar, network_hash=7)))
    with pytest.raises(InputError, match="outputs of another network"):
        detector.score(replace(familiar, network_hash=8))
    with pytest.raises(InputError, match="has features of size 3, but the detector learnt"):
        detector.score(replace(familiar, features=familiar.features[:, :3], head=None))


FRESH = """
import sys, torch
from safetensors.torch import load_file
from unseen.networks import Bank
from unseen.registry import detectors
folder, names = sys.argv[1], sys.argv[2:]
bank = load_file(f"{folder}/bank.safetensors")
for name in names:
    detector = detectors.build(name).restore(load_file(f"{folder}/{name}.safetensors"))
    scores = detector.score(Bank(bank["features"], bank["logits"]))
    assert torch.equal(scores, bank[name]), name
"""


def test_restored_in_a_fresh_process_they_score_bit_by_bit(train, familiar, tmp_path):
    names = ["isolation-forest", "lof", "loop", "relation", "mahalanobis", "knn"]
    kept = {"features": familiar.features, "logits": familiar.logits}
    for name in names:
        detector = detectors.build(name).fit(train)
        state = {key: value.contiguous() for key, value in detector.state_dict().items()}
        save_file(state, tmp_path / f"{name}.safetensors")
        kept[name] = detector.score(familiar)
    save_file(kept, tmp_path / "bank.safetensors")
    code = "import torch; torch.set_num_threads(1)\n" + FRESH
    subprocess.run([sys.executable, "-c", code, str(tmp_path), *names], check=True, timeout=120)
