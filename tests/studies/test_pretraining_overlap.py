import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from unseen.detection.metrics import ood_metrics
from unseen.errors import InputError
from unseen.measures.linear_probe import LinearProbe
from unseen.registry import detectors
from unseen.studies.pretraining_overlap import (
    COLUMNS,
    encoded,
    pretraining_overlap_report,
    separability_correlations,
)


def examples(classes, count, seed, width=6):
    generator = torch.Generator().manual_seed(seed)
    y = torch.tensor(classes).repeat(count)
    return 4 * torch.eye(width)[y] + torch.randn(len(y), width, generator=generator), y


TRAIN, TEST = examples([0, 1, 2], 20, 0), examples([0, 1, 2], 15, 1)
UNFAMILIAR = {"PT-OOD": examples([3, 4], 15, 2), "other": (examples([5], 20, 3)[0], None)}


def keeps(x):
    return x


def merges(x):
    """Does not tell the classes 3 and 4 from 0 and 1."""
    return torch.cat([x[:, :2] + x[:, 3:5], x[:, 2:3], x[:, 5:]], 1)


def test_every_backbone_detector_and_set_has_a_row_of_what_is_computed_by_hand():
    report = pretraining_overlap_report({"keeps": keeps, "merges": merges}, TRAIN, TEST, UNFAMILIAR)
    table = report.table
    assert len(table) == 2 * 6 * 2 and set(COLUMNS) < set(table.columns)
    assert not table.isna().any().any()
    rows = table.set_index(["backbone", "detector", "ood"])
    uses = rows.uses_head.xs("PT-OOD", level="ood").xs("keeps")
    assert uses.to_dict() == {
        "msp": True, "max-logit": True, "energy": True, "knn(k=10)": False, "mahalanobis": False, "ssd": False,
    }  # fmt: skip
    probe = LinearProbe().fit(merges(TRAIN[0]), TRAIN[1])
    assert rows.id_accuracy["merges", "msp", "PT-OOD"] == probe.score(merges(TEST[0]), TEST[1])
    for spec in ("msp", "knn(k=10)"):
        detector = detectors.build(spec).fit(probe.bank(merges(TRAIN[0]), TRAIN[1]))
        known, other = (detector.score(probe.bank(merges(x))) for x in (TEST[0], UNFAMILIAR["PT-OOD"][0]))
        metrics = ood_metrics(known, other)
        assert rows.auroc["merges", spec, "PT-OOD"] == metrics.auroc
        assert rows.fpr95["merges", spec, "PT-OOD"] == metrics.fpr95
    keeping, merging = (rows.xs((name, "msp", "PT-OOD")) for name in ("keeps", "merges"))
    assert keeping.separability > merging.separability + 0.2 and keeping.auroc > merging.auroc
    assert keeping.id_vs_ood > merging.id_vs_ood and keeping.separability_ood > 0.9


def test_rank_correlations_over_backbones_and_seeds():
    report = pretraining_overlap_report({"keeps": keeps, "merges": merges}, TRAIN, TEST, UNFAMILIAR)
    assert report.correlations.rank_correlation.isna().all()  # two backbones have no correlation
    generator = np.random.default_rng(0)
    more = [
        report.table.assign(
            auroc=generator.random(len(report.table)), separability=generator.random(len(report.table))
        )
        for _ in range(3)
    ]
    found = separability_correlations(pd.concat(more)).set_index(["detector", "ood"])
    own = pd.concat(more).query("detector == 'energy' and ood == 'other'")
    expected = spearmanr(own.separability, own.auroc).statistic
    assert found.rank_correlation["energy", "other"] == pytest.approx(expected)
    assert (found.backbones == 6).all()


def test_features_alone_need_no_probe():
    report = pretraining_overlap_report(
        {"keeps": keeps}, TRAIN, TEST, UNFAMILIAR, detectors=["knn(k=3)", "mahalanobis"], probe=None
    )
    assert (report.table.auroc > 0.9).all() and report.table.id_accuracy.isna().all()
    with pytest.raises(InputError, match="detector 'energy'.*no probe"):
        pretraining_overlap_report(
            {"keeps": keeps}, TRAIN, TEST, UNFAMILIAR, detectors=["knn", "energy"], probe=None
        )


def test_modules_encode_in_evaluation_mode_and_batches(generator):
    module = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5)).train()
    x = torch.randn(150, 6, generator=generator)
    torch.testing.assert_close(encoded("m", module, x), module[0](x).detach())
    assert module.training and not encoded("m", module, x).requires_grad


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="class 2.*unfamiliar set 'PT-OOD'"):
        pretraining_overlap_report({"keeps": keeps}, TRAIN, TEST, {"PT-OOD": examples([2, 3], 9, 2)})
    with pytest.raises(InputError, match=r"'dead'.*norm zero in 2 row\(s\), first in row 1"):
        encoded("dead", lambda x: x * torch.tensor([1.0, 0, 1, 0]).view(-1, 1), torch.ones(4, 3))
    with pytest.raises(InputError, match="'nan'.*NaN"):
        encoded("nan", lambda x: x / 0, torch.ones(4, 3))
    with pytest.raises(InputError, match="k.*61.*60"):
        pretraining_overlap_report({"keeps": keeps}, TRAIN, TEST, UNFAMILIAR, detectors=["knn(k=61)"])
    with pytest.raises(InputError, match="one class"):
        pretraining_overlap_report({"keeps": keeps}, (TRAIN[0], TRAIN[1] * 0), TEST, UNFAMILIAR)
    with pytest.raises(InputError, match="backbones"):
        pretraining_overlap_report({}, TRAIN, TEST, UNFAMILIAR)
    with pytest.raises(InputError, match="detector 'msq'"):
        pretraining_overlap_report({"keeps": keeps}, TRAIN, TEST, UNFAMILIAR, detectors=["msq"])
