"""Folders of pictures with boxes, as COCO, Pascal VOC and YOLO lay them out."""

import json
import zlib

import numpy as np
import pytest
from PIL import Image

from kdjax.data import evaluation_batches
from kdjax.data.annotated import open_annotated
from kdjax.data.check import check
from kdjax.data.errors import DataError
from kdjax.data.pictures import fitted, picture_size
from kdjax.tasks.detection import Detection
from kdjax.tasks.language import Language
from kdjax.tasks.text import Text

BOXES = {"a": [(2.0, 3.0, 30.0, 20.0), (10.0, 5.0, 14.0, 25.0)], "b": []}
SIZE = {"a": (60, 40), "b": (33, 47)}  # width, height
NAMES = ("cat", "dog")


def picture(path, name, suffix=".png"):
    path.mkdir(parents=True, exist_ok=True)
    image = np.full((SIZE[name][1], SIZE[name][0], 3), 20, np.uint8)
    for left, top, right, bottom in BOXES[name]:
        image[int(top) : int(bottom), int(left) : int(right)] = 250
    Image.fromarray(image).save(path / f"{name}{suffix}")


def coco(root, split):
    objects = []
    for i, (left, top, right, bottom) in enumerate(BOXES["a"]):
        objects.append({"id": i, "image_id": 7, "category_id": (18, 44)[i], "bbox": [left, top, right - left, bottom - top],
                        "area": 100.5, "iscrowd": i})  # fmt: skip
    images = [{"id": 7, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}]
    categories = [{"id": 44, "name": "dog"}, {"id": 18, "name": "cat"}]
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    whole = {"images": images, "annotations": objects, "categories": categories}
    (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(whole))
    for name in BOXES:
        picture(root / f"{split}2017", name)


def voc(root, split):
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    for name, boxes in BOXES.items():
        objects = "".join(
            f"<object><name>{NAMES[i]}</name><difficult>{i}</difficult><bndbox><xmin>{b[0]}</xmin><ymin>{b[1]}</ymin>"
            f"<xmax>{b[2]}</xmax><ymax>{b[3]}</ymax></bndbox></object>"
            for i, b in enumerate(boxes)
        )
        (root / f"Annotations/{name}.xml").write_text(f"<annotation>{objects}</annotation>")
        picture(root / "JPEGImages", name)
    (root / f"ImageSets/Main/{split}.txt").write_text("a\nb  -1\n")


def yolo(root, split):
    for name, boxes in BOXES.items():
        picture(root / "images" / split, name)
        width, height = SIZE[name]
        lines = [
            f"{i} {(x0 + x1) / 2 / width} {(y0 + y1) / 2 / height} {(x1 - x0) / width} {(y1 - y0) / height}"
            for i, (x0, y0, x1, y1) in enumerate(boxes)
        ]
        if lines:  # one without a description has no object
            (root / "labels" / split).mkdir(parents=True, exist_ok=True)
            (root / "labels" / split / f"{name}.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text("path: .\nnames:\n  0: cat\n  1: dog\nnc: 2\n")


@pytest.mark.parametrize("form", [coco, voc, yolo])
def test_boxes_are_read_as_they_are(form, tmp_path):
    for split in ("train", "val"):
        form(tmp_path, split)
    for split in ("train", "test"):  # validation is what is evaluated
        found = open_annotated(tmp_path, split)
        assert found.class_names == NAMES and len(found.pictures) == 2
        first, second = found.pictures
        np.testing.assert_allclose(first.boxes, BOXES["a"], atol=1e-9)
        assert list(first.labels) == [0, 1] and second.boxes.shape == (0, 4)
        assert list(first.crowd) == [False, form is coco] and list(first.difficult) == [False, form is voc]
        np.testing.assert_allclose(first.area, [100.5] * 2 if form is coco else [28 * 17, 4 * 20])
    print_ = found.fingerprint()
    assert print_ == open_annotated(tmp_path, "test").fingerprint()


@pytest.mark.parametrize("form", [coco, voc, yolo])
def test_examples_are_fitted_and_boxes_with_them(form, tmp_path):
    """Bright pixels are where boxes are, on a canvas of other shape; training leaves out crowds, what is difficult, and pictures
    without an object."""
    for split in ("train", "val"):
        form(tmp_path, split)
    task = Detection(name=str(tmp_path), image_size=(96, 64), eval_examples=0, objects=3)
    dataset = task.load()
    assert len(dataset.train) == 1 and len(dataset.held) == 2 and dataset.arrays is None
    read = dataset.train.read(np.array([0]))
    image, box, size = read["inputs"]["image"][0], read["targets"]["boxes"][0], read["inputs"]["size"][0]
    assert image.shape == (96, 64, 3) and list(size) == [43, 64] and not image[43:].any()
    assert list(read["targets"]["labels"][0]) == ([0, 1, -1] if form is yolo else [0, -1, -1])
    scale = np.array([64 / 60, 43 / 40] * 2)
    np.testing.assert_allclose(box[0], np.array(BOXES["a"][0]) * scale, rtol=1e-6)
    bright = image[..., 0] > 200
    left, top, right, bottom = np.round(box[0]).astype(int)
    assert bright[top + 1 : bottom - 1, left + 1 : right - 1].all() and not bright[:, : left - 1].any()
    held = dataset.held.read(np.array([0, 1]))["targets"]
    assert (
        held["crowd"].shape == (2, 3) and held["scale"].shape == (2, 2) and set(held) >= {"area", "difficult", "size"}
    )
    assert task.problems() == [] and Detection(name=str(tmp_path)).problems() == [
        "data.image_size=(0, 0); give height and width of at least 32 for a folder's pictures."
    ]
    few = Detection(name=str(tmp_path), image_size=(96, 64), objects=1).load()
    assert few.train.read(np.array([0]))["targets"]["boxes"].shape == (1, 1, 4)


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(DataError, match="holds no boxes: it must have"):
        open_annotated(tmp_path, "train")
    coco(tmp_path / "c", "train")
    with pytest.raises(DataError, match="no annotations of a split 'test' or 'validation'"):
        open_annotated(tmp_path / "c", "test")
    (tmp_path / "c/train2017/b.png").unlink()
    with pytest.raises(DataError, match=r"names the picture .*b\.png, which is not there"):
        open_annotated(tmp_path / "c", "train")
    file = tmp_path / "c/annotations/instances_train2017.json"
    whole = json.loads(file.read_text())
    whole["annotations"][0]["category_id"] = 3
    file.write_text(json.dumps(whole))
    with pytest.raises(DataError, match="an object of category 3, which it does not list"):
        open_annotated(tmp_path / "c", "train")
    file.write_text("{")
    with pytest.raises(DataError, match="is no annotation file of COCO"):
        open_annotated(tmp_path / "c", "train")
    voc(tmp_path / "v", "train")
    (tmp_path / "v/Annotations/a.xml").write_text("<annotation><object></object></annotation>")
    with pytest.raises(DataError, match=r"a\.xml is no description of Pascal VOC"):
        open_annotated(tmp_path / "v", "train")
    (tmp_path / "v/Annotations/a.xml").write_text('<!DOCTYPE x [<!ENTITY a "b">]><annotation></annotation>')
    with pytest.raises(DataError, match="defines entities"):
        open_annotated(tmp_path / "v", "train")
    yolo(tmp_path / "y", "train")
    (tmp_path / "y/labels/train/a.txt").write_text("5 .5 .5 .1 .1")
    with pytest.raises(DataError, match="names 2 classes, and there is an object of class 5"):
        open_annotated(tmp_path / "y", "train")
    (tmp_path / "y/labels/train/a.txt").write_text("cat .5 .5 .1 .1")
    with pytest.raises(DataError, match=r"a\.txt is no description of YOLO"):
        open_annotated(tmp_path / "y", "train")
    (tmp_path / "y/labels/train/a.txt").write_text("0 .5 nan .1 .1")
    with pytest.raises(DataError, match="has a box that is not finite"):
        open_annotated(tmp_path / "y", "train")


def test_classes_in_another_order_are_refused(tmp_path):
    """The same names by other numbers, of which each would be taken for another."""
    coco(tmp_path, "train")
    coco(tmp_path, "val")
    file = tmp_path / "annotations/instances_val2017.json"
    whole = json.loads(file.read_text())
    whole["categories"] = [{"id": 44, "name": "cat"}, {"id": 18, "name": "dog"}]
    file.write_text(json.dumps(whole))
    with pytest.raises(DataError, match="has other classes where it is trained on"):
        Detection(name=str(tmp_path), image_size=(96, 64)).load()


def test_boxes_are_stretched_with_their_pictures(tmp_path):
    for split in ("train", "val"):
        coco(tmp_path, split)
    plain, stretched = (
        Detection(name=str(tmp_path), image_size=(80, 60), stretch=stretch).load() for stretch in (False, True)
    )
    assert stretched.train.fingerprint() != plain.train.fingerprint()
    row = stretched.train.read(np.array([0]))
    assert list(row["targets"]["size"][0]) == [80, 60]
    left, top, right, bottom = BOXES["a"][0]
    np.testing.assert_allclose(row["targets"]["boxes"][0, 0], [left, 2 * top, right, 2 * bottom])
    bright = row["inputs"]["image"][0, ..., 0] > 135
    np.testing.assert_array_equal(np.flatnonzero(bright.any(1))[[0, -1]] + [0, 1], [2 * 3, 2 * 25])  # of both
    assert list(stretched.held.read(np.array([0]))["targets"]["scale"][0]) == [1, 2]


@pytest.mark.parametrize("form", [coco, voc, yolo])
@pytest.mark.parametrize("said", [False, True], ids=["by its file", "by its description"])
def test_tall_pictures_are_fitted_on_a_turned_canvas(form, said, tmp_path):
    """In batches of their own; one that has others too is not turned, nor what is read by itself."""
    for split in ("train", "val"):
        form(tmp_path, split)
    if said and form is coco:
        for file in (tmp_path / "annotations").iterdir():
            whole = json.loads(file.read_text())
            for image, (width, height) in zip(whole["images"], SIZE.values(), strict=True):
                image |= {"width": width, "height": height}
            file.write_text(json.dumps(whole))
    elif said and form is voc:
        for name, (width, height) in SIZE.items():
            file = tmp_path / f"Annotations/{name}.xml"
            size = f"<annotation><size><width>{width}</width><height>{height}</height></size>"
            file.write_text(file.read_text().replace("<annotation>", size))
    task = Detection(name=str(tmp_path), image_size=(64, 96), turn=True)
    dataset, plain = task.load(), Detection(name=str(tmp_path), image_size=(64, 96)).load()
    assert not task.one_shape and dataset.held.fingerprint() != plain.held.fingerprint()
    expected = [None, None] if not said and form is not yolo else [False, True]
    assert [one.tall for one in dataset.held.pictures] == expected
    assert list(dataset.held.groups) == [0, 1] and plain.held.groups is None
    tall, both = np.array([1]), np.array([0, 1])
    read = dataset.held.read(tall, together=tall)
    assert read["inputs"]["image"].shape == (1, 96, 64, 3) and list(read["inputs"]["size"][0]) == [91, 64]
    for other in (dataset.held.read(tall, together=both), dataset.held.read(tall), plain.held.read(tall)):
        assert other["inputs"]["image"].shape == (1, 64, 96, 3) and list(other["inputs"]["size"][0]) == [64, 45]
    batches = list(evaluation_batches(dataset.held, both, 2))
    assert [batch.inputs["image"].shape for batch in batches] == [(2, 64, 96, 3), (2, 96, 64, 3)]
    assert [list(batch.where) for batch in batches] == [[True, False]] * 2
    assert [list(batch.index) for batch in batches] == [[0, 0], [1, 1]]
    square = Detection(name=str(tmp_path), image_size=(64, 64), turn=True)
    assert square.one_shape and square.load().held.groups is None


def test_a_polygon_of_yolo_is_the_box_around_it(tmp_path):
    yolo(tmp_path, "train")
    described = tmp_path / "labels/train/a.txt"
    described.write_text("1 .1 .2 .3 .2 .3 .6 .1 .6\n0 .5 .5 .2 .2 0.9")
    (picture,) = [one for one in open_annotated(tmp_path, "train").pictures if len(one.boxes)]
    width, height = SIZE["a"]
    np.testing.assert_allclose(
        picture.boxes, np.array([[0.1, 0.2, 0.3, 0.6], [0.4, 0.4, 0.6, 0.6]]) * np.array([width, height] * 2)
    )
    assert list(picture.labels) == [1, 0]
    for wrong in ("0 .1 .2 .3", "0 .1 .2 .3 .4 .5 .6 .7"):
        described.write_text(wrong)
        with pytest.raises(DataError, match=r"a\.txt is no description of YOLO .*numbers in a line"):
            open_annotated(tmp_path, "train")


@pytest.mark.parametrize(
    "text",
    [
        "names: ['cat', 'dog',\n  \"bird\"]  # all\nnc: 3", "names:  # classes\n  0: cat\n  1: dog\n  2: bird\nnc: 3",
        "names:\n- cat\n- dog\n- bird\n", "names: [cat, dog, bird]",
    ],
)  # fmt: skip
def test_names_of_yolo_in_every_usual_form(text, tmp_path):
    yolo(tmp_path, "train")
    (tmp_path / "data.yaml").write_text(text)
    assert open_annotated(tmp_path, "train").class_names == ("cat", "dog", "bird")


def test_a_file_of_coco_is_chosen_by_its_words(tmp_path):
    """Not by what is in them by chance; the official pictures of a test split without boxes are left alone."""
    for split in ("train", "val"):
        coco(tmp_path, split)
        (tmp_path / f"annotations/instances_{split}2017.json").rename(
            tmp_path / f"annotations/trains_latest_{split}.json"
        )
        (tmp_path / f"{split}2017").rename(tmp_path / split)
    whole = json.loads((tmp_path / "annotations/trains_latest_val.json").read_text())
    whole["annotations"] = whole["annotations"][:1]
    (tmp_path / "annotations/trains_latest_val.json").write_text(json.dumps(whole))
    (tmp_path / "annotations/image_info_test2017.json").write_text("{}")
    assert [len(open_annotated(tmp_path, split).pictures[0].boxes) for split in ("train", "test")] == [2, 1]


def test_a_size_that_is_blank_is_not_needed(tmp_path):
    voc(tmp_path, "train")
    file = tmp_path / "Annotations/a.xml"
    file.write_text(file.read_text().replace("<annotation>", "<annotation><size><width> </width><height/></size>"))
    assert open_annotated(tmp_path, "train").pictures[0].tall is None


def test_a_note_behind_the_pixels_of_a_png_is_heeded(tmp_path):
    """As it is where the picture is decoded."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file, plain = tmp_path / "late.png", tmp_path / "plain.png"
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(plain)
    content, data = plain.read_bytes(), exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = len(data).to_bytes(4, "big") + b"eXIf" + data + zlib.crc32(b"eXIf" + data).to_bytes(4, "big")
    end = content.rindex(b"IEND") - 4
    file.write_bytes(content[:end] + chunk + content[end:])
    assert picture_size(str(file)) == picture_size(file.read_bytes()) == (60, 40) and picture_size(str(plain)) == (
        40,
        60,
    )
    assert fitted(str(file), (60, 60), 3).size == (60, 40)


def test_a_picture_is_turned_and_fitted(tmp_path):
    """A tag that says how a picture lies is heeded; nothing is stretched by more than rounding."""
    image = Image.fromarray(np.arange(20 * 50 * 3, dtype=np.uint8).reshape(20, 50, 3))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    made = fitted(str(tmp_path / "turned.jpg"), (64, 64), 1)
    assert made.pixels.shape == (64, 64, 1) and made.size == (64, 26) and made.scale == (26 / 20, 64 / 50)
    made = fitted(str(tmp_path / "turned.jpg"), (32, 64), 3, stretch=True)
    assert made.pixels.shape == (32, 64, 3) and made.size == (32, 64) and made.scale == (64 / 20, 32 / 50)


@pytest.mark.parametrize("side, turned", [((640, 480), ""), ((40, 60), "EXIF turns it")])
def test_a_picture_of_another_size_than_its_description_is_refused(side, turned, tmp_path):
    """When it is opened, and not with boxes of other pixels."""
    coco(tmp_path, "train")
    file = tmp_path / "annotations/instances_train2017.json"
    whole = json.loads(file.read_text())
    whole["images"][0] |= {"width": side[0], "height": side[1]}
    whole["annotations"][0]["bbox"] = [2, 3, 36, 30]
    file.write_text(json.dumps(whole))
    if turned:  # boxes of the pixels as they lie in the file
        Image.new("RGB", (60, 40)).save(tmp_path / "train2017/a.png")
        whole["annotations"][0]["bbox"] = [2, 3, 36, 50]
        file.write_text(json.dumps(whole))
    with pytest.raises(
        DataError, match=rf"a\.png is 60 x 40 pixels, and its boxes are of {side[0]} x {side[1]};.*{turned}"
    ):
        Detection(name=str(tmp_path), image_size=(96, 64)).load()


def test_sides_confused_in_the_description_alone_do_no_harm(tmp_path):
    voc(tmp_path, "train")
    voc(tmp_path, "test")
    file = tmp_path / "Annotations/a.xml"
    size = "<size><width>40</width><height>60</height></size>"
    file.write_text(file.read_text().replace("<annotation>", f"<annotation>{size}"))
    Detection(name=str(tmp_path), image_size=(96, 64)).load()


def test_objects_of_coco_without_an_area_have_that_of_their_box(tmp_path):
    coco(tmp_path, "train")
    file = tmp_path / "annotations/instances_train2017.json"
    whole = json.loads(file.read_text())
    whole["annotations"][0]["area"], whole["annotations"][1]["area"] = None, 0
    file.write_text(json.dumps(whole))
    assert open_annotated(tmp_path, "train").pictures[0].area.tolist() == [28 * 17, 4 * 20]
    for wrong, message in (([], "whose bbox is"), ([1, 2, 3], "whose bbox is")):
        whole["annotations"][0]["bbox"] = wrong
        file.write_text(json.dumps(whole))
        with pytest.raises(DataError, match=message):
            open_annotated(tmp_path, "train")
    whole["annotations"][0]["bbox"] = [1, 2, 3, 4]
    for twice in ({"id": 18, "name": "bird"}, {"id": 3, "name": "dog"}):
        file.write_text(json.dumps(whole | {"categories": [*whole["categories"], twice]}))
        with pytest.raises(DataError, match=r"lists the category .* twice"):
            open_annotated(tmp_path, "train")


@pytest.mark.parametrize(
    "text, names",
    [
        ("names: {0: person, 1: dog}", ("person", "dog")), ("names:\n 1: b\n 0: a", ("a", "b")),
        ("names: ['a, b', 'c']", ("a, b", "c")), ("names:\n- 'b # c'\n- no", ("b # c", "no")),
        ("'names': [x, y]", ("x", "y")), ("names : [x, y]", ("x", "y")), ("\ufeffnames: [x, y]", ("x", "y")),
    ],
)  # fmt: skip
def test_names_of_yolo_in_other_forms(text, names, tmp_path):
    yolo(tmp_path, "train")
    (tmp_path / "data.yaml").write_text(text, encoding="utf-8")
    assert open_annotated(tmp_path, "train").class_names == names


@pytest.mark.parametrize(
    "data, described, message",
    [
        (b"names: {0: a, 2: c}", None, "names classes 0, 2; name all from 0 on"),
        (b"names: [a", None, "is no YAML"), (b"names: K\xe4se", None, "is no UTF-8"),
        (None, "0 30 20 10 12".encode("utf-16"), "is no UTF-8"), (None, b"0 30 20 10 12", "reaches beyond its picture"),
        (None, b"0 1.5 1.5 .2 .2", "reaches beyond its picture"), (None, b"0 .5 .5 -.5 .5", "ends before it begins"),
        (None, b"4294967296 .5 .5 .2 .2", "no number from 0 on"), (None, b"inf .5 .5 .2 .2", "no number from 0 on"),
        (b"names: [a, a]", None, "names 'a' twice"), (b"", b"3000000 .5 .5 .1 .1", "object of class 3,000,000"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_yolo_is_said(data, described, message, tmp_path):
    yolo(tmp_path, "train")
    if data is not None:
        (tmp_path / "data.yaml").write_bytes(data)
    if described is not None:
        (tmp_path / "labels/train/a.txt").write_bytes(described)
    with pytest.raises(DataError, match=message):
        open_annotated(tmp_path, "train")


@pytest.mark.parametrize("encoding", ["ISO-8859-1", "utf-16"])
def test_descriptions_of_voc_are_read_in_the_encoding_they_say(encoding, tmp_path):
    voc(tmp_path, "train")
    file = tmp_path / "Annotations/a.xml"
    text = f'<?xml version="1.0" encoding="{encoding}"?>' + file.read_text().replace("cat", "K\u00e4tzchen")
    file.write_bytes(text.encode(encoding))
    assert set(open_annotated(tmp_path, "train").class_names) == {"K\u00e4tzchen", "dog"}
    entity = '<!DOCTYPE x [<!ENTITY a "b">]><annotation></annotation>'
    file.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>{entity}'.encode(encoding))
    with pytest.raises(DataError, match="defines entities"):
        open_annotated(tmp_path, "train")


def test_names_of_pictures_may_have_blanks(tmp_path):
    voc(tmp_path, "train")
    (tmp_path / "Annotations/a.xml").rename(tmp_path / "Annotations/IMG 1.xml")
    (tmp_path / "JPEGImages/a.png").rename(tmp_path / "JPEGImages/IMG 1.png")
    (tmp_path / "ImageSets/Main/train.txt").write_text("IMG 1\nb  -1\n")
    assert [len(one.boxes) for one in open_annotated(tmp_path, "train").pictures] == [2, 0]


def test_a_set_with_boxes_is_checked_whole(tmp_path):
    for split in ("train", "val"):
        yolo(tmp_path, split)
    said = []
    assert check(str(tmp_path), log=said.append) == 0
    assert said[0].endswith("(train): 2 pictures, 0 of them unreadable or not as described, 2 objects of 2 classes")
    (tmp_path / "images/train/b.png").write_bytes((tmp_path / "images/train/b.png").read_bytes()[:-30])
    with pytest.raises(DataError, match=r"b\.png is cut off"):  # its size is needed for boxes
        check(str(tmp_path), log=said.append)
    coco(tmp_path / "c", "train")
    coco(tmp_path / "c", "val")
    file = tmp_path / "c/train2017/b.png"
    file.write_bytes(file.read_bytes()[:-30])
    assert check(str(tmp_path / "c"), log=said.append) == 1 and any("b.png is cut off" in line for line in said)


def test_a_folder_is_found_again_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    for name in ("mine", "./mine", "~/mine"):
        assert Detection(name=name).name == Text(name=name).name == Language(name=name).name == str(tmp_path / "mine")
    (tmp_path / "python_docs").mkdir()
    assert Text(name="python_docs").name == "python_docs" and Language(name="python_topics").name == "python_topics"


def test_a_split_that_is_described_elsewhere_is_refused(tmp_path):
    """And not taken for one without objects."""
    yolo(tmp_path, "train")
    yolo(tmp_path, "val")
    (tmp_path / "labels/val").rename(tmp_path / "labels/validation")
    with pytest.raises(DataError, match=r"describes none of the 2 pictures of .*val; put labels/val/NAME\.txt there"):
        open_annotated(tmp_path, "test")
    coco(tmp_path / "c", "train")
    (tmp_path / "c/annotations/instances_train2017.json").write_text("[" * 200_000)
    with pytest.raises(DataError, match="is no annotation file of COCO"):
        open_annotated(tmp_path / "c", "train")
