"""The command line as its user would use it, on real files."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import unseen
from unseen.registry import REGISTRIES, shifts
from unseen.training.model_folder import load

SMALL = ("--steps", 20, "--seeds", 1, "--learners", "erm,coral")
TABLE = ("--label", "sex", "--domain", "island", "--skip-bad")
RESULTS = {"model", "report.html", "report.json", "results.sqlite"}


def numbers(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def cells(folder: Path) -> list[tuple[str, int, list[str], int]]:
    """(method, draw, unseen, seed) of each finished run."""
    with closing(sqlite3.connect(folder / "results.sqlite")) as connection:
        rows = connection.execute("select method, draw, unseen, seed from cells order by rowid").fetchall()
    return [(method, draw, json.loads(unseen), seed) for method, draw, unseen, seed in rows]


# run -------------------------------------------------------------------------------------------------------


def test_a_table_gives_a_report_its_numbers_and_a_model(penguin_study):
    said, folder = penguin_study.said, penguin_study.folder
    assert said.code == 0, said.err
    assert {path.name for path in folder.iterdir()} == RESULTS, "nothing else is left behind"
    assert {p.name for p in penguin_study.model.iterdir()} == {
        "model.json",
        "weights.safetensors",
        "reference.safetensors",
        "README.md",
    }
    assert len(cells(folder)) == 2 * 3 * 2  # learners x islands x seeds
    assert "coral" in (folder / "report.html").read_text()
    accuracy = {(row["domain"], row["method"]): row["accuracy"] for row in numbers(folder)["table"]}
    assert accuracy["Dream", "erm"] > 0.7, "the sex of penguins can be learned"
    for island in ("Biscoe", "Dream", "Torgersen"):
        assert island in said.out
    assert "333 examples, 2 classes, 3 domains" in said.out
    assert "11 of 344 rows" in said.out
    assert str(folder / "report.html") in said.out.replace("\n", "")
    assert not said.err


@pytest.mark.parametrize("ending", ["parquet", "feather"])
def test_other_table_files_give_the_same_numbers(ending, penguins, penguin_study, command, tmp_path):
    data = tmp_path / f"penguins.{ending}"
    getattr(penguins, f"to_{ending}")(data)
    said = command(
        "run", data, *TABLE, *SMALL[:-2], "--learners", "erm", "--unseen", "Dream", "--out", tmp_path / "o"
    )
    assert said.code == 0, said.err
    ids = json.loads((tmp_path / "o" / "model" / "model.json").read_text())["training"]["data"]["fingerprint"]
    first = json.loads((penguin_study.model / "model.json").read_text())["training"]["data"]["fingerprint"]
    assert ids == first


def test_the_same_command_again_trains_nothing(penguin_study, command):
    before = (penguin_study.folder / "report.json").read_text()
    said = command(
        "run", penguin_study.data, *TABLE, "--steps", 20, "--seeds", 2, "--learners", "erm,coral",
        "--out", penguin_study.folder,
    )  # fmt: skip
    assert said.code == 0, said.err
    assert "12 of 12 runs are already" in said.out
    after, before = json.loads((penguin_study.folder / "report.json").read_text()), json.loads(before)
    assert after["table"] == before["table"]


def test_held_out_domain_groups_and_search(penguin_study, command, tmp_path):
    said = command(
        "run", penguin_study.data, *TABLE, "--group", "species", "--unseen", "Biscoe", "--search", 2,
        "--steps", 20, "--seeds", 1, "--learners", "erm", "--out", tmp_path / "o",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert cells(tmp_path / "o") == [("erm", draw, ["Biscoe"], 0) for draw in (0, 1, 2)]
    row = next(row for row in numbers(tmp_path / "o")["table"] if row["domain"] == "Biscoe")
    assert row["worst_name"] in ("Adelie", "Gentoo")
    facts = json.loads((tmp_path / "o" / "model" / "model.json").read_text())["training"]
    assert facts["train_domains"] == ["Dream", "Torgersen"], "the deployed model is the judged one"


def test_later_rows_are_held_out(penguin_study, command, tmp_path):
    said = command(
        "run", penguin_study.data, *TABLE, "--time", "year", "--after", "2008",
        "--steps", 20, "--seeds", 1, "--learners", "erm", "--out", tmp_path / "o",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert cells(tmp_path / "o") == [("erm", 0, [], 0)]
    known = pd.read_csv(penguin_study.data).dropna(subset=["sex"])
    judged = {r["domain"]: r["n"] for r in numbers(tmp_path / "o")["table"] if r["domain"] != "average"}
    assert judged == known[known.year > 2008].island.value_counts().to_dict()


def test_unlabelled_rows_are_learned_from_and_not_judged(penguin_study, command, tmp_path):
    common = ("run", penguin_study.data, *TABLE, "--steps", 20, "--seeds", 1, "--unlabelled", 0.5)
    said = command(*common, "--unseen", "Biscoe", "--learners", "divdis,d-bat", "--out", tmp_path / "o")
    assert said.code == 0, said.err
    assert sorted(row[0] for row in cells(tmp_path / "o")) == ["d-bat", "divdis"]
    known = pd.read_csv(penguin_study.data).dropna(subset=["sex"])
    judged = {row["n"] for row in numbers(tmp_path / "o")["table"] if row["domain"] == "Biscoe"}
    assert judged == {
        len(known[known.island == "Biscoe"]) - round(0.5 * len(known[known.island == "Biscoe"]))
    }
    assert load(tmp_path / "o" / "model").network.count == 2, "the deployed model has both hypotheses"
    said = command(*common, "--out", tmp_path / "p")
    assert said.code != 0 and "--unseen" in said.err and not (tmp_path / "p").exists()


def test_leave_one_domain_out_selection_trains_the_stand_ins(penguin_study, command, tmp_path):
    said = command(
        "run", penguin_study.data, *TABLE, "--unseen", "Biscoe", "--rule", "leave-one-domain-out",
        "--search", 1, "--steps", 20, "--seeds", 1, "--learners", "erm", "--out", tmp_path / "o",
    )  # fmt: skip
    assert said.code == 0, said.err
    held_out = {tuple(unseen) for _, _, unseen, _ in cells(tmp_path / "o")}
    assert held_out == {("Biscoe",), ("Biscoe", "Dream"), ("Biscoe", "Torgersen")}
    assert "leave-one-domain-out" in (tmp_path / "o" / "report.html").read_text()


def test_a_built_in_shift_with_options_and_a_learner_with_options(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = command(
        "run", "gaussian-shift(domains=3, size=60)", "--steps", 5, "--seeds", 1,
        "--learners", "erm,irm(penalty_weight=2.0, warmup_steps=3)+sam(rho=0.1)+ema", "--unseen", "domain-3",
    )  # fmt: skip
    assert said.code == 0, said.err
    [folder] = (tmp_path / "runs").iterdir()
    assert {path.name for path in folder.iterdir()} == RESULTS
    assert {method for method, *_ in cells(folder)} == {
        "erm",
        "irm(penalty_weight=2.0, warmup_steps=3)+sam(rho=0.1)+ema",
    }


def test_part_of_a_network_is_tuned_with_rates_by_layer(command, tmp_path):
    said = command(
        "run", "gaussian-shift(domains=3, size=60)", "--steps", 5, "--seeds", 1, "--learners", "erm", "--layers=-1",
        "--optimizer", "sgd", "--layer-decay", 0.7, "--schedule", "linear", "-o", tmp_path / "o",
    )  # fmt: skip
    assert said.code == 0, said.err
    chosen = json.loads((tmp_path / "o" / "report.json").read_text())["choice"]["learner"]
    given = {"layers": "-1", "optimizer": "sgd", "layer_decay": 0.7, "schedule": "linear"}
    assert given.items() <= chosen.items()


OBJECTIVE = """
import torch
from unseen.objectives import Loss, Objective
from unseen.registry import objectives


@objectives.register("confident", summary="Cross-entropy and a reward for low entropy")
class Confident(Objective):
    def __init__(self, weight: float = 0.1):
        super().__init__()
        self.weight = weight

    def forward(self, model, batch):
        logits = model(batch.x)
        entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
        risk = torch.nn.functional.cross_entropy(logits, batch.y)
        return Loss(risk + self.weight * entropy, {"risk": risk, "entropy": entropy})
"""


def test_a_plugin_is_known_to_worker_processes_too(penguin_study, command, tmp_path):
    plugin = tmp_path / "my_objective.py"
    plugin.write_text(OBJECTIVE)
    said = command(
        "run", penguin_study.data, *TABLE, "--plugin", plugin, "--learners", "erm,confident(weight=0.2)",
        "--unseen", "Dream", "--engine", "local", "--workers", 2, "--steps", 20, "--seeds", 1,
        "--out", tmp_path / "o",
    )  # fmt: skip
    assert said.code == 0, said.err
    rows = numbers(tmp_path / "o")["table"]
    assert {row["method"] for row in rows} == {"erm", "confident(weight=0.2)"}
    assert all(row["accuracy"] > 0.5 for row in rows)
    assert "confident" in command("list", "objectives", "--plugin", plugin).out


# run and predict -------------------------------------------------------------------------------------------


def check_predictions(table: pd.DataFrame, model: Path, inputs: object, ids: list[str]) -> None:
    """The written table is what the model says in Python."""
    predictor = load(model)
    expected = predictor.predict(inputs)
    assert table["id"].astype(str).tolist() == ids
    assert table["label"].astype(str).tolist() == expected["label"].tolist()
    assert table["accept"].tolist() == expected["accept"].tolist()
    probabilities = table[[f"p({name})" for name in predictor.classes]].to_numpy()
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(probabilities, expected.filter(like="p(").to_numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(table["familiarity"], expected["familiarity"], rtol=1e-5)


def test_predictions_for_a_table(penguin_study, penguins, command, tmp_path):
    new = penguins.drop(columns=["sex", "island"])
    data = tmp_path / "new.csv"
    new.to_csv(data, index=False)
    ids = [str(row) for row in range(344)]
    for ending, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        out = tmp_path / f"predictions.{ending}"
        said = command("predict", penguin_study.model, data, "--out", out)
        assert said.code == 0, said.err
        assert said.out.startswith("344 predictions, ")
        check_predictions(read(out), penguin_study.model, pd.read_csv(data), ids)
    said = command("predict", penguin_study.model, data)
    (tmp_path / "stdout.csv").write_text(said.out)
    table = pd.read_csv(tmp_path / "stdout.csv")
    check_predictions(table, penguin_study.model, pd.read_csv(data), ids)
    assert "344 predictions" in said.err, "the count must not end up among the rows"
    known = penguins.sex.notna()
    assert (table.label == penguins.sex)[known].mean() > 0.8
    assert 0.85 < table.accept[known].mean() < 1, "at coverage 0.95, on the data it was trained on"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "new.csv", "predictions.csv", "predictions.parquet", "stdout.csv",
    ]  # fmt: skip


def test_predictions_of_a_network_that_adapts_or_is_steered(penguin_study, penguins, command, tmp_path):
    data, model = tmp_path / "new.csv", tmp_path / "drm"
    penguins.to_csv(data, index=False)
    said = command("predict", penguin_study.model, data, "-o", tmp_path / "t.csv", "--adapt", "t3a")
    assert said.code == 0, said.err
    adapted = pd.read_csv(tmp_path / "t.csv")
    assert list(adapted.columns) == ["id", "label", "p(female)", "p(male)"] and len(adapted) == 344
    split = unseen.open_shift(data, label="sex", domain="island", skip_bad=True).split("Dream")
    unseen.fit(unseen.Learner.parse("drm", steps=20), split).save(model)
    for more, heads in (((), 1), (("--group", "island"), 3)):
        said = command("predict", model, data, "-o", tmp_path / "s.csv", "--steer", "entropy", *more)
        assert said.code == 0, said.err
        steered = pd.read_csv(tmp_path / "s.csv")
        assert set(steered["head"]) <= {"Biscoe", "Torgersen", "all"}
        per_group = steered.groupby(penguins["island"])["head"].nunique()
        assert (per_group == 1).all() and steered["head"].nunique() <= heads
    for arguments, message in (
        (("--adapt", "t3a", "--steer", "entropy"), "Give one of them"),
        (("--group", "island"), "without --steer"),
        (("--steer", "entropy", "--group", "iland"), "Did you mean 'island'"),
        (("--steer", "entropi"), "Did you mean 'entropy'"),
    ):
        said = command("predict", model, data, *arguments)
        assert said.code == 2 and message in said.err.replace("\n", " "), said.err


def test_measures_of_data_a_study_and_a_model(penguin_study, command, tmp_path):
    table = ("--label", "sex", "--domain", "island", "--skip-bad")
    said = command("measure", penguin_study.data, *table, "--steps", 20, "-o", tmp_path / "d")
    assert said.code == 0, said.err
    for title in ("How far the domains lie apart", "How hard the task is", "Why it is worse elsewhere"):
        assert title in said.out
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["measure.html", "measure.json"]
    said = command("measure", penguin_study.folder, "-o", tmp_path / "s")
    assert said.code == 0 and "Accuracy on the line" in said.out, said.err
    said = command("measure", penguin_study.model, penguin_study.data, *table, "-o", tmp_path / "m")
    assert said.code == 0 and "Why it is worse elsewhere" in said.out, said.err
    found = json.loads((tmp_path / "m" / "measure.json").read_text())
    assert {row["set"] for row in found["quality"]["rows"]} >= {"ID validation", "Biscoe"}
    said = command("measure", penguin_study.data, penguin_study.data, *table)
    assert said.code == 2 and "is no model folder" in said.err.replace("\n", " ")


@pytest.fixture(scope="module")
def digit_folder(tmp_path_factory) -> Path:
    """domain/class/n.png: zeros, ones and sevens of two of the built-in digit domains."""
    shift = shifts.build("digits(size=150, domains=('mnist', 'fonts'))")
    folder = tmp_path_factory.mktemp("digits") / "images"
    for row in range(len(shift)):
        name = shift.classes[shift.labels[row]]
        if name in ("0", "1", "7"):
            place = folder / shift.domains[shift.domain[row]] / name
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(shift.inputs[row].numpy().transpose(1, 2, 0)).save(place / f"{row}.png")
    return folder


def test_an_image_folder_and_predictions_for_images(digit_folder, command, tmp_path):
    said = command(
        "run", digit_folder, *SMALL[:-2], "--learners", "erm", "--unseen", "fonts", "--out", tmp_path / "o"
    )
    assert said.code == 0, said.err
    files = sorted((digit_folder / "mnist").rglob("*.png"))
    said = command("predict", tmp_path / "o" / "model", digit_folder / "mnist", "-o", tmp_path / "p.csv")
    assert said.code == 0, said.err
    from unseen.shifts.image_folders import ImageFiles

    names = [str(file.relative_to(digit_folder / "mnist")) for file in files]
    images = ImageFiles(digit_folder / "mnist", names, (28, 28), 3)
    table = pd.read_csv(tmp_path / "p.csv")
    check_predictions(table, tmp_path / "o" / "model", images, names)
    truth = [int(Path(name).parts[0]) for name in names]
    assert (table.label == truth).mean() > 0.6
    one = command("predict", tmp_path / "o" / "model", files[0])
    assert one.out.splitlines()[1].startswith(f"{files[0].name},")

    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "good.png").write_bytes(files[0].read_bytes())
    (bad / "cut.png").write_bytes(files[0].read_bytes()[:-60])
    said = command("predict", tmp_path / "o" / "model", bad, "-o", tmp_path / "q.csv")
    assert said.code == 2
    assert "cut.png" in said.err and "--skip-bad" in said.err
    assert not (tmp_path / "q.csv").exists()
    said = command("predict", tmp_path / "o" / "model", bad, "-o", tmp_path / "q.csv", "--skip-bad")
    assert said.code == 0, said.err
    assert "1 of 2 images cannot be decoded" in said.out and "cut.png" in said.out
    assert pd.read_csv(tmp_path / "q.csv")["id"].tolist() == ["good.png"]


def test_an_npz_file_and_predictions_for_arrays(command, tmp_path):
    from sklearn.datasets import load_wine

    x, y = load_wine(return_X_y=True)
    domain = np.where(x[:, 4] > np.median(x[:, 4]), "much magnesium", "little magnesium")
    np.savez(tmp_path / "wine.npz", x=x, y=y, domain=domain)
    said = command("run", tmp_path / "wine.npz", *SMALL[:-2], "--learners", "erm", "--out", tmp_path / "o")
    assert said.code == 0, said.err
    np.savez(tmp_path / "new.npz", x=x[:50])
    said = command("predict", tmp_path / "o" / "model", tmp_path / "new.npz", "-o", tmp_path / "p.csv")
    assert said.code == 0, said.err
    ids = [str(row) for row in range(50)]
    check_predictions(pd.read_csv(tmp_path / "p.csv"), tmp_path / "o" / "model", x[:50], ids)


def test_texts_and_predictions_for_texts(command, tmp_path):
    shift = shifts.build("docstrings(size=60)")
    frame = pd.DataFrame({
        "package": [shift.domains[i] for i in shift.domain],
        "kind": [shift.classes[i] for i in shift.labels],
        "words": shift.inputs,
    })  # fmt: skip
    frame.to_csv(tmp_path / "docs.csv", index=False)
    said = command(
        "run", tmp_path / "docs.csv", "--label", "kind", "--domain", "package", "--text", "words",
        "--unseen", shift.domains[0], "--steps", 20, "--seeds", 1, "--learners", "erm", "--out", tmp_path / "o",
    )  # fmt: skip
    assert said.code == 0, said.err
    frame[["words", "package"]].head(30).to_csv(tmp_path / "new.csv", index=False)
    said = command("predict", tmp_path / "o" / "model", tmp_path / "new.csv", "-o", tmp_path / "p.csv")
    assert said.code == 0, said.err
    ids = [str(row) for row in range(30)]
    check_predictions(pd.read_csv(tmp_path / "p.csv"), tmp_path / "o" / "model", shift.inputs[:30], ids)


# list, report, --version, --help ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", REGISTRIES)
def test_list_names_everything_with_its_paper(kind, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    said = command("list", kind)
    assert said.code == 0, said.err
    for entry in REGISTRIES[kind]:
        assert entry.name in said.out
        assert entry.paper.split(",")[0] in said.out
    assert said.out.startswith(kind)


def test_list_without_a_kind_shows_every_kind(command):
    out = command("list").out
    assert all(f"\n{kind} " in "\n" + out for kind in REGISTRIES)


def test_report_is_written_again_with_another_rule(penguin_study, command):
    html = penguin_study.folder / "report.html"
    html.unlink()
    said = command("report", penguin_study.folder)
    assert said.code == 0, said.err
    assert "Torgersen" in said.out and html.exists()
    said = command("report", penguin_study.folder, "--rule", "oracle")
    assert said.code == 0, said.err
    assert "oracle" in html.read_text()
    assert command("report", penguin_study.folder).code == 0


def test_report_of_data_that_have_moved_leaves_examples_out(penguin_study, command, tmp_path):
    moved = penguin_study.data.rename(tmp_path / "moved.csv")
    try:
        said = command("report", penguin_study.folder)
    finally:
        moved.rename(penguin_study.data)
    assert said.code == 0, said.err
    assert "examples are left out" in said.out and "penguins.csv" in said.out


def test_report_of_data_that_have_changed_leaves_examples_out(penguin_study, command):
    before = penguin_study.data.read_text()
    try:
        penguin_study.data.write_text(before.replace("Adelie", "Emperor"))
        said = command("report", penguin_study.folder)
    finally:
        penguin_study.data.write_text(before)
    assert said.code == 0, said.err
    assert "have changed since the study" in said.out


def test_version_and_help_come_without_torch():
    program = (
        "import sys\nfrom unseen.cli import main\n"
        "for arguments in (['--version'], ['--help'], ['run', '--help'], ['predict', '--help'], []):\n"
        "    sys.argv = ['unseen', *arguments]\n"
        "    try: main()\n"
        "    except SystemExit as end: print('exit', end.code)\n"
        "heavy = {'torch', 'numpy', 'pandas', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "print('heavy', sorted(heavy))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert f"unseen {unseen.__version__}\nexit 0" in ran.stdout
    assert "heavy []" in ran.stdout
    for verb in ("run", "predict", "list", "report", "reproduce"):
        assert verb in ran.stdout
    assert ran.stdout.count("exit 0") >= 4


# Killed and interrupted ------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds child processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_study_goes_on(how, penguin_study, command, tmp_path):
    folder = tmp_path / "o"
    arguments = [
        "run", penguin_study.data, *TABLE, "--unseen", "Dream", "--learners", "erm", "--seeds", 8, "--steps", 150,
        "--engine", "local", "--workers", 2, "--out", folder,
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "unseen.cli", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    wait(lambda: (folder / "results.sqlite").exists() and finished(folder) >= 1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does
    else:
        process.kill()
    output, _ = process.communicate(timeout=30)
    wait(lambda: not any(alive(pid) for pid in children))
    assert "Traceback" not in output
    if how == signal.SIGINT:  # after a kill, Python's resource tracker speaks
        assert "Warning" not in output, "noise of libraries, from this process or a worker"
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    assert ("what is finished is kept" in output) == (how == signal.SIGINT)
    before = cells(folder)
    assert 1 <= len(before) < 8
    assert not (folder / "model").exists()

    arguments[arguments.index("local")] = "auto"
    said = command(*arguments)
    assert said.code == 0, said.err
    assert f"{len(before)} of 8 runs are already" in said.out
    assert cells(folder)[: len(before)] == before and len(cells(folder)) == 8
    assert {path.name for path in folder.iterdir()} == RESULTS


def finished(folder: Path) -> int:
    try:
        return len(cells(folder))
    except sqlite3.OperationalError:  # the table is not there yet
        return 0


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
