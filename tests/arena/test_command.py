import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from unseen.arena.pool import at_most, backbones_at_hand, tasks_of
from unseen.errors import InputError

POOL = "pixels,pixels(side=2),colours"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """domain/class/*.png: a bright or dark square, left or right of the middle; the second domain is tinted."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for domain, tint in (("plain", 0), ("tinted", 60)):
        for side in ("left", "right"):
            place = folder / domain / side
            place.mkdir(parents=True)
            for number in range(14):
                image = generator.integers(0, 120, (16, 16, 3))
                image[4:12, (2 if side == "left" else 9) :][:, :5] += 100
                image[..., 0] += tint // 2
                Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(place / f"{number}.png")
    return folder


def test_a_folder_of_images_gives_ranking_recommendation_table_and_page(pictures, command, tmp_path):
    out = tmp_path / "out"
    arguments = ("backbones", pictures, "--backbones", POOL, "--seeds", 2, "--trials", 2, "-o", out)
    said = command(*arguments)
    assert said.code == 0, said.err
    assert "56 examples, 2 classes, 2 domains; 3 backbones" in said.out
    frame = pd.read_csv(out / "scores.csv")
    assert set(frame.task) == {"probe", "few-shot", "ood", "retrieval"} and set(frame.seed) == {0, 1}
    assert set(frame.setting[frame.task == "ood"]) == {"without plain: plain", "without tinted: tinted"}
    record = json.loads((out / "ranking.json").read_text())
    assert record["recommended"] == record["ranking"][0]["backbone"] != "colours"
    assert record["ranking"][-1]["backbone"] == "colours"  # colours do not tell left from right
    assert f"Take {record['recommended']}." in said.out
    page = (out / "backbones.html").read_text()
    assert (
        page.startswith("<!doctype html>")
        and "<svg" in page
        and "<script" not in page
        and "http" not in page.split("<svg")[0]
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "backbones.html", "ranking.json", "scores.csv", "scores.sqlite"
    ]  # fmt: skip
    again = command(*arguments)  # from the stored scores
    assert again.code == 0 and pd.read_csv(out / "scores.csv").equals(frame)


def test_constraints_decide_what_is_recommended(pictures, command, tmp_path):
    said = command(
        "backbones", pictures, "--backbones", POOL, "--tasks", "probe,retrieval", "--seeds", 1, "--trials", 1,
        "--constraints", "features<=30", "-o", tmp_path / "out",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert "Excluded: pixels, features<=30 (it has 192)." in said.out.replace("\n", " ")
    assert json.loads((tmp_path / "out" / "ranking.json").read_text())["recommended"] == "pixels(side=2)"


def test_texts(command, tmp_path):
    topics = {"fruit": ["apple", "pear", "plum", "grape"], "tools": ["hammer", "saw", "nail", "drill"]}
    generator = np.random.default_rng(0)
    rows = [
        (" ".join(generator.choice(words, 6)) + f" {place}", topic, place)
        for topic, words in topics.items()
        for place in ("shop", "garden")
        for _ in range(15)
    ]
    pd.DataFrame(rows, columns=["text", "topic", "place"]).to_csv(tmp_path / "texts.csv", index=False)
    said = command(
        "backbones", tmp_path / "texts.csv", "--label", "topic", "--domain", "place", "--text", "text",
        "--backbones", "hashed-words(width=16),hashed-letters(width=64),hashed-words(width=2)",
        "--tasks", "retrieval", "--seeds", 1, "-o", tmp_path / "out",
    )  # fmt: skip
    assert said.code == 0, said.err
    ranking = json.loads((tmp_path / "out" / "ranking.json").read_text())["ranking"]
    assert ranking[-1]["backbone"] == "hashed-words(width=2)"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--backbones", "pixels,colours"), "--backbones: names 2"),
        (("--backbones", "pixels,colours,pixel"), "Did you mean 'pixels'"),
        (("--backbones", "pixels,colours,hashed-words"), "reads texts"),
        (("--backbones", "pixels,colours,pixels"), "is there twice"),
        (("--backbones", POOL, "--tasks", "probes"), "task 'probes': is not known"),
        (("--backbones", POOL, "--constraints", "small"), "constraint 'small': cannot be read"),
        (("--backbones", POOL, "--seeds", 0), "--seeds: is 0"),
        (("--backbones", POOL, "--trials", 0), "budget's trials"),
        (("--backbones", POOL, "--examples", 0), "examples: is 0"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_computed(pictures, command, tmp_path, arguments, problem):
    said = command("backbones", pictures, *arguments, "-o", tmp_path / "out")
    assert said.code == 2 and problem in " ".join(said.err.split())
    assert not (tmp_path / "out").exists()


def test_out_that_is_a_file(pictures, command, tmp_path):
    (tmp_path / "out").write_text("")
    said = command("backbones", pictures, "-o", tmp_path / "out")
    assert said.code == 2 and "is a file" in said.err


def test_tables_have_no_backbone(toy_shift):
    assert "pixels" in backbones_at_hand("image") and "hashed-words" in backbones_at_hand("text")
    with pytest.raises(InputError, match="Backbones read images or texts"):
        backbones_at_hand("table")


def test_one_domain_has_no_unseen_one(toy_shift):
    single = toy_shift(domains=1)
    assert [task.group for task in tasks_of(single)] == ["probe", "few-shot", "retrieval"]
    with pytest.raises(InputError, match="needs two domains"):
        tasks_of(single, ["ood"])
    assert len(tasks_of(toy_shift(domains=3), ["ood"])) == 3


def test_at_most_so_many_of_each_domain(toy_shift):
    shift = toy_shift()
    assert at_most(shift, 20).domain.bincount().tolist() == [20, 20]
    assert at_most(shift, 500) is shift
    assert torch.equal(at_most(shift, 20).inputs, at_most(shift, 20).inputs)
