import pandas as pd
import pytest
import torch
from PIL import Image

from unseen.errors import InputError
from unseen.extrapolation import GridProposer, ProceduralGenerator, extrapolate, mix, scaling_curve
from unseen.extrapolation.mixing import balanced_rows, of_domains
from unseen.shifts import open_shift
from unseen.shifts.arrays import from_arrays
from unseen.training.fit import fit
from unseen.training.learner import Learner

CLASSES = ("cat", "dog")


def rows(parameters, cls, n, generator):
    return torch.randn(n, 3, generator=generator) + 2 * (cls == "dog") + parameters["level"]


def synthetic(domains=4, per_cell=10, generator=ProceduralGenerator(rows)):
    grid = GridProposer({"level": [0.1 * i for i in range(8)]})
    return extrapolate("pets", CLASSES, grid, generator, domains=domains, per_cell=per_cell)


def real(size=40, **options):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3 * size) % 2
    x = torch.randn(3 * size, 3, generator=generator) + 2 * labels[:, None]
    names = {"classes": CLASSES, "domains": ("farm", "street", "zoo")}
    return from_arrays(x, labels, torch.arange(3).repeat_interleave(size), **names, **options)


def test_the_budget_holds_whatever_the_share():
    for share in (0.0, 0.25, 0.5):
        shift = mix(real(), synthetic(), share=share, budget=60, unseen="zoo")
        counts = shift.counts().sum(axis=1)
        assert counts["zoo"] == 40 and counts.drop("zoo").sum() == 60
        assert counts["farm"] + counts["street"] == 60 * (1 - share)
        assert len(counts) == (3 if share == 0 else 7)
        cells = shift.counts().loc[[n for n in counts.index if n != "zoo" and "=" not in n]]
        assert cells.to_numpy().max() - cells.to_numpy().min() <= 1
    all_synthetic = mix(real(), synthetic(), share=1, budget=60, unseen=real().domains)
    assert all_synthetic.split(unseen=real().domains).train_domains == synthetic().domains


def test_every_objective_trains_on_the_result():
    shift = mix(real(), synthetic(), budget=60, unseen="zoo")
    split = shift.split(unseen="zoo")
    assert len(split.train_domains) == 6 and len(split.unseen) == 40
    for objective in ("erm", "coral", "groupdro"):
        predictor = fit(Learner(objective=objective, steps=30, batch_size=8), split)
        labels = predictor.predict(shift.take(split.unseen)).label
        truth = [CLASSES[i] for i in shift.labels[split.unseen]]
        assert (labels == truth).mean() > 0.8


def test_one_synthetic_domain_for_all():
    shift = mix(real(), synthetic(), budget=60, unseen="zoo", as_domain="made up")
    assert shift.domains == ("farm", "street", "zoo", "made up") and int((shift.domain == 3).sum()) == 30


def test_choice_depends_on_the_seed_and_examples_stay_themselves():
    first, again, other = (mix(real(), synthetic(), budget=60, seed=s) for s in (0, 0, 1))
    assert first.ids == again.ids != other.ids
    originals = {f"real/{i}": x for i, x in enumerate(real().inputs)}
    for row, name in enumerate(first.ids):
        if name.startswith("real/"):
            assert torch.equal(first.inputs[row], originals[name])


def test_classes_are_matched_by_name():
    made = synthetic()
    reversed_ = from_arrays(
        made.inputs,
        [made.classes[i] for i in made.labels],
        [made.domains[i] for i in made.domain],
        classes=("dog", "cat"),
    )
    a, b = (mix(real(), s, share=1, budget=80, unseen=real().domains) for s in (made, reversed_))
    assert torch.equal(a.labels, b.labels) and a.classes == b.classes == CLASSES


def test_uneven_cells_give_what_they_have():
    labels = torch.tensor([0] * 30 + [1] * 3)
    shift = from_arrays(torch.randn(33, 2), labels, torch.zeros(33, dtype=torch.int64))
    for count in (2, 5, 10, 33):
        chosen = balanced_rows(shift, count, 0)
        assert len(chosen.unique()) == count
        few = int((labels[chosen] == 1).sum())
        assert few == 3 if count > 6 else few in (count // 2, count - count // 2)


def test_groups_and_weights_stay():
    shift = mix(
        real(group=["a", "b"] * 60, weight=[0.5] * 120, time=range(120)), synthetic(), budget=60, unseen="zoo"
    )
    assert shift.groups == ("a", "b", "synthetic") and shift.time is None
    made_up = torch.tensor([name.startswith("synthetic/") for name in shift.ids])
    assert set(shift.group[made_up].tolist()) == {2} and set(shift.weight[made_up].tolist()) == {1.0}
    assert set(shift.weight[~made_up].tolist()) == {0.5}


def test_images_on_disk_and_in_memory_become_one_size(tmp_path):
    for domain, level in (("farm", 10), ("zoo", 20)):
        for cls in CLASSES:
            (tmp_path / domain / cls).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (8, 6), (level, i, 0)).save(tmp_path / domain / cls / f"{i}.png")

    def pictures(parameters, cls, n, generator):
        return torch.randint(0, 255, (n, 1, 12, 16), generator=generator, dtype=torch.uint8)

    collected = open_shift(tmp_path)
    shift = mix(
        collected, synthetic(generator=ProceduralGenerator(pictures)), budget=12, unseen="zoo", share=2 / 3
    )
    images = shift.take(torch.arange(len(shift)))
    assert images.shape == (4 + 6 + 8, 3, 6, 8) and images.dtype == torch.uint8
    red = images[:, 0].float().mean((1, 2))
    assert (red[shift.domain == 0] == 10).all() and (red[shift.domain == 1] == 20).all()
    part = shift.subset(torch.tensor([12, 3]))
    assert torch.equal(part.take(torch.arange(2)), images[[12, 3]])
    assert part.fingerprint != shift.fingerprint == mix(
        collected, synthetic(generator=ProceduralGenerator(pictures)), budget=12, unseen="zoo", share=2 / 3
    ).fingerprint  # fmt: skip
    assert shift.inputs.name(0).endswith(".png") and "part 2" in shift.inputs.name(len(shift) - 1)
    predictor = fit(Learner(steps=2, batch_size=2), shift.split(unseen="zoo"))
    assert len(predictor.predict(images)) == len(images)


def test_texts_and_tables():
    texts = from_arrays(["a", "b", "c", "d"], [0, 1, 0, 1], ["x"] * 4, classes=CLASSES)
    made = from_arrays(["e", "f"], [0, 1], ["y"] * 2, classes=CLASSES)
    assert sorted(mix(texts, made, budget=4).inputs)[-2:] == ["e", "f"]
    frames = [pd.DataFrame({"u": range(4), "label": list("ab") * 2, "domain": [name] * 4}) for name in "xy"]
    tables = [open_shift(frame, label="label", domain="domain") for frame in frames]
    assert list(mix(*tables, budget=8).inputs.columns) == ["u"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"budget": 6}, r"less than one example for each of 6 cells"),
        ({"budget": 500}, "more than the 120 examples"),
        ({"budget": 0}, "budget: is 0"),
        ({"budget": 60, "share": 1.5}, "share"),
        ({"budget": 60, "unseen": "zo"}, "Did you mean 'zoo'"),
        ({"budget": 60, "unseen": ("farm", "street", "zoo")}, "no real domain is left"),
        ({"budget": 60, "as_domain": "zoo"}, "is real and synthetic"),
    ],
)
def test_mixtures_that_cannot_be(options, problem):
    with pytest.raises(InputError, match=problem):
        mix(real(), synthetic(), **{"share": 0.5, **options})


def test_sides_that_do_not_fit():
    made = synthetic()
    labels, domain = [made.classes[i] for i in made.labels], made.domain
    cows = ["cat" if name == "cat" else "cow" for name in labels]
    other = [
        (from_arrays(made.inputs, cows, domain), "'cow' is missing among the real"),
        (from_arrays(made.inputs, labels, ["farm"] * len(made)), "'farm': is real and synthetic"),
        (from_arrays(["text"] * len(made), labels, domain), "kinds 'array' and 'text'"),
        (from_arrays(made.inputs[:, :2], labels, domain), r"shapes \(3,\) and \(2,\)"),
    ]
    for shift, problem in other:
        with pytest.raises(InputError, match=problem):
            mix(real(), shift, budget=60)


def test_the_scaling_curve_holds_the_budget_when_told():
    seen = []

    def evaluate(shift, seed):
        seen.append(set(shift.domains))
        return len(shift.domains) + seed / 10

    table = scaling_curve(synthetic(), evaluate, (4, 1, 2), seeds=(0, 1))
    assert table.examples.unique().tolist() == [20] and table.domains.tolist() == [1, 2, 4] * 2
    assert table.value.tolist() == pytest.approx([1, 2, 4, 1.1, 2.1, 4.1])
    assert seen[0] < seen[1] < seen[2] and len(seen[1]) == 2
    grown = scaling_curve(synthetic(), evaluate, (1, 4), fixed_budget=False, seeds=(0,))
    assert grown.examples.tolist() == [20, 80]
    with pytest.raises(InputError, match="from 1 to 4"):
        scaling_curve(synthetic(), evaluate, (1, 5))


def test_some_domains_keep_their_names():
    made = synthetic()
    part = of_domains(made, [2, 0])
    assert part.domains == (made.domains[0], made.domains[2]) and len(part) == 40
    assert torch.equal(part.inputs[part.domain == 1], made.inputs[made.domain == 2])
