import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from unseen.arena.boxes import holds_boxes, open_boxes
from unseen.errors import InputError, UnseenWarning


@pytest.fixture
def folder(write_boxes, tmp_path):
    return write_boxes(tmp_path / "letters", {"train": 8, "test": 3})


def change(file, edit):
    """Let edit(tables) change an annotation file."""
    tables = json.loads(file.read_text())
    edit(tables)
    file.write_text(json.dumps(tables))


def test_boxes_are_shares_of_their_image_and_labels_are_names_in_order(folder):
    data = open_boxes(folder, image_size=64)
    assert data.classes == ("7", "A", "O") and data.domains == ("train", "test")
    assert len(data) == 11 and len(data.train) == 8
    tables = json.loads((folder / "train" / "annotations.json").read_text())
    names = {entry["id"]: entry["name"] for entry in tables["categories"]}
    for row, image in enumerate(tables["images"]):
        mine = [entry for entry in tables["annotations"] if entry["image_id"] == image["id"]]
        boxes = torch.tensor([entry["bbox"] for entry in mine]).float()
        boxes[:, 2:] += boxes[:, :2]
        torch.testing.assert_close(data.train.boxes[row], boxes / torch.tensor([96.0, 72, 96, 72]))
        assert [data.classes[k] for k in data.train.labels[row]] == [names[e["category_id"]] for e in mine]
    pixels = data.train.images.take(torch.arange(8))
    assert pixels.shape == (8, 3, 64, 64)
    picture = Image.open(folder / "train" / "3.png").resize((64, 64), Image.Resampling.BILINEAR)
    assert torch.equal(pixels[3], torch.from_numpy(np.array(picture)).permute(2, 0, 1))


def test_the_layout_of_coco_is_the_same_data(folder, tmp_path):
    data, other = open_boxes(folder), tmp_path / "coco"
    (other / "annotations").mkdir(parents=True)
    (other / "annotations" / "captions_train2017.json").write_text("{}")
    for split, name in (("train", "train2017"), ("test", "val2017")):
        shutil.copytree(folder / split, other / "images" / name)
        shutil.move(
            other / "images" / name / "annotations.json", other / "annotations" / f"instances_{name}.json"
        )
    coco = open_boxes(other)
    assert coco.domains == ("train2017", "val2017") and coco.classes == data.classes
    for mine, its in zip((data.train, *data.tests), (coco.train, *coco.tests), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.boxes, its.boxes, strict=True))


def test_val_is_for_training_where_there_is_another_test(folder):
    shutil.copytree(folder / "test", folder / "valid")
    data = open_boxes(folder)
    assert data.domains == ("train", "test") and len(data.train) == 11
    shutil.copytree(folder / "test", folder / "night")
    assert open_boxes(folder).domains == ("train", "night", "test")
    shutil.rmtree(folder / "test")
    shutil.rmtree(folder / "night")
    assert open_boxes(folder).domains == ("train", "valid")


def test_a_folder_of_classes_holds_no_boxes(folder, tmp_path):
    assert holds_boxes(folder) and not holds_boxes(tmp_path) and not holds_boxes(tmp_path / "nowhere")
    with pytest.raises(InputError, match="has no annotation file"):
        open_boxes(tmp_path)
    shutil.rmtree(folder / "test")
    with pytest.raises(InputError, match="has the splits train"):
        open_boxes(folder)


def test_categories_agree_by_name_and_those_without_boxes_are_left_out(folder):
    def renumber(tables):
        for entry in tables["categories"]:
            entry["id"] += 90
        for entry in tables["annotations"]:
            entry["category_id"] += 90
        tables["categories"].append({"id": 0, "name": "letters"})

    before = open_boxes(folder)
    for split in ("train", "test"):
        change(folder / split / "annotations.json", renumber)
    after = open_boxes(folder)
    assert after.classes == before.classes
    assert all(torch.equal(a, b) for a, b in zip(after.tests[0].labels, before.tests[0].labels, strict=True))

    def rename(tables):
        tables["categories"][0]["name"] = "strange"

    change(folder / "test" / "annotations.json", rename)
    with pytest.raises(InputError, match="'strange': has boxes in split 'test', but none to train on"):
        open_boxes(folder)


BAD_BOXES = {
    "four finite numbers": [[1, 2, 3], None, [1, 2, 3, "4"], [1, 2, float("nan"), 4], [1, 2, True, 4], "box"],
    "has no area": [[1, 2, 0, 4], [1, 2, 5, -4], [96, 2, 5, 5], [-9, 2, 5, 5]],
    "reaches out of its image of 96 x 72 pixels": [[90, 2, 8, 5], [-2, 2, 8, 5], [5, 60, 8, 14]],
}


@pytest.mark.parametrize(
    ("problem", "box"), [(problem, box) for problem, boxes in BAD_BOXES.items() for box in boxes], ids=str
)
def test_bad_boxes_are_named_or_left_out(folder, problem, box):
    before = open_boxes(folder)
    change(folder / "train" / "annotations.json", lambda tables: tables["annotations"][2].update(bbox=box))
    with pytest.raises(InputError, match=f"annotation 2 in .*train.annotations.json.*{problem}"):
        open_boxes(folder)
    with pytest.warns(UnseenWarning, match=r"1 bad image\(s\) and box\(es\) were left out.*annotation 2"):
        left = open_boxes(folder, skip_bad=True)
    assert left.train.objects.sum() == before.train.objects.sum() - 1


def test_a_box_that_reaches_over_the_edge_by_rounding_is_cut(folder):
    change(
        folder / "train" / "annotations.json",
        lambda tables: tables["annotations"][0].update(bbox=[-0.4, 0, 20, 72.9]),
    )
    first = open_boxes(folder).train.boxes[0][0]
    torch.testing.assert_close(first, torch.tensor([0, 0, 19.6 / 96, 1]))


BAD_IMAGES = {
    "is not there": lambda path: path.unlink(),
    "cannot be read": lambda path: path.write_bytes(b"no image"),
    "is 50 x 40 pixels, but should be 96 x 72": lambda path: Image.new("RGB", (50, 40)).save(path),
}


@pytest.mark.parametrize("problem", BAD_IMAGES)
def test_bad_images_are_named_or_left_out_with_their_boxes(folder, problem):
    before = open_boxes(folder)
    BAD_IMAGES[problem](folder / "train" / "1.png")
    with pytest.raises(InputError, match=rf"image '.*train.1\.png': {problem}"):
        open_boxes(folder)
    with pytest.warns(UnseenWarning, match=r"1\.png"):
        left = open_boxes(folder, skip_bad=True)
    assert len(left.train) == 7
    assert torch.equal(left.train.boxes[1], before.train.boxes[2])


def test_an_image_cut_off_in_its_middle_is_named_when_it_is_decoded_or_left_out(folder):
    path = folder / "train" / "1.png"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"1\.png': cannot be decoded"):
        open_boxes(folder).train.images.take(torch.arange(8))
    with pytest.warns(UnseenWarning, match=r"cannot be decoded and were left out: .*1\.png"):
        assert len(open_boxes(folder, skip_bad=True).train) == 7


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda t: t["annotations"][1].update(category_id=99), "annotation 1 in .*has the category_id 99, which"),
        (lambda t: t["annotations"][1].update(image_id=99), "has the image_id 99, which is not in the file"),
        (lambda t: t["annotations"].clear(), "train.annotations.json': has no box"),
        (lambda t: [entry.update(iscrowd=1) for entry in t["annotations"]], "train.annotations.json': has no box"),
        (lambda t: t.pop("categories"), "has no list 'categories'"),
        (lambda t: t.update(images={}), "has no list 'images'"),
        (lambda t: t["images"].append(t["images"][0]), "image id 0 in .*is there twice"),
        (lambda t: t["images"][1].update(file_name="0.png"), "image file_name '0.png' in .*is there twice"),
        (lambda t: t["images"][1].pop("file_name"), "has the file_name None"),
        (lambda t: t["categories"][1].update(name="A"), "category name 'A' in .*is there twice"),
        (lambda t: t["images"][1].pop("width"), "is 96 x 72 pixels, but should be None x 72"),
    ],
)  # fmt: skip
def test_files_that_cannot_be(folder, edit, problem):
    change(folder / "train" / "annotations.json", edit)
    with pytest.raises(InputError, match=problem):
        open_boxes(folder)


def test_what_is_no_json_and_images_that_are_nowhere(folder):
    (folder / "train" / "annotations.json").write_text("{")
    with pytest.raises(InputError, match="is no JSON file"):
        open_boxes(folder)
    (folder / "train" / "annotations.json").unlink()
    (folder / "annotations").mkdir()
    shutil.copy(folder / "test" / "annotations.json", folder / "annotations" / "instances_train.json")
    shutil.move(folder / "train", folder / "elsewhere")
    with pytest.raises(InputError, match="images of split 'train': are in none of"):
        open_boxes(folder)


def test_sides_that_cannot_be(folder):
    with pytest.raises(InputError, match="image_size: is 0"):
        open_boxes(folder, image_size=0)


def test_crowds_are_kept_apart(folder):
    change(folder / "train" / "annotations.json", lambda tables: tables["annotations"][0].update(iscrowd=1))
    train = open_boxes(folder).train
    assert train.crowd[0].tolist()[0] is True and train.objects[0] == len(train.boxes[0]) - 1


def test_the_fingerprint_tells_boxes_apart(folder, tmp_path):
    before = open_boxes(folder).train.fingerprint
    shutil.copytree(folder, tmp_path / "copy")
    assert open_boxes(tmp_path / "copy").train.fingerprint == before
    change(folder / "train" / "annotations.json", lambda t: t["annotations"][0]["bbox"].__setitem__(0, 1))
    assert open_boxes(folder).train.fingerprint != before
    assert open_boxes(tmp_path / "copy", image_size=48).train.fingerprint != before
