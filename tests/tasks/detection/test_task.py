"""Detection as a task: boxes follow their pictures, evaluation counts every picture once, a run goes through."""

import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from kdjax.cli import main
from kdjax.data import fashion_boxes
from kdjax.data.errors import DataError
from kdjax.models import output_shapes
from kdjax.tasks.detection import Detection, Detector
from kdjax.tasks.detection.decoding import Detected
from kdjax.tasks.detection.examples import Boxes
from kdjax.tasks.detection.matching import found_and_true
from kdjax.tasks.detection.views import drawn_scales, mirrored
from kdjax.training.evaluation import PerExample, evaluate
from kdjax.types import Batch

SIZE = fashion_boxes.SIZE


def rectangles(rows=16):
    """Black pictures with a bright rectangle each, and its box."""
    rng = np.random.default_rng(0)
    images, boxes = np.zeros((rows, SIZE, SIZE, 1), np.uint8), np.zeros((rows, 2, 4), np.float32)
    for i in range(rows):
        left, top = rng.integers(0, 60, 2)
        right, bottom = left + rng.integers(2, 30), top + rng.integers(2, 30)
        images[i, top:bottom, left:right] = 255
        boxes[i, 0] = left, top, right, bottom
    return images, boxes, np.tile(np.array([[1, -1]], np.int32), (rows, 1))


def inputs(images, width=SIZE):
    return {"image": images, "size": np.tile(np.array([[SIZE, width]], np.int32), (len(images), 1))}


def test_boxes_are_mirrored_with_their_pictures():
    images, boxes, labels = rectangles()
    task, key, index = Detection(), jax.random.key(3), jnp.arange(len(images))
    shown = np.asarray(task.train_views(inputs(images), index, 2, key, names=("main",)))
    moved = task.train_targets({"boxes": boxes, "labels": labels}, index, 2, key)
    mirrored = 0
    for i, picture in enumerate(shown[..., 0]):
        rows, columns = (np.flatnonzero(picture.any(axis)) for axis in (1, 0))
        extent = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_array_equal(moved["boxes"][i, 0], extent)
        mirrored += extent != list(boxes[i, 0])
    assert 3 < mirrored < 13
    again = task.train_views(inputs(images[5:6]), index[5:6], 2, key, names=("main",))
    np.testing.assert_array_equal(again[0], shown[5])  # whatever else is in the batch
    part = task.train_views(inputs(images, 92), index, 2, key, names=("main",))  # beside padding, boxes end at 90
    within = task.train_targets({"boxes": boxes, "size": inputs(images, 92)["size"]}, index, 2, key)["boxes"]
    columns = [np.flatnonzero(np.asarray(x)[..., 0].any(0)) for x in part]
    np.testing.assert_array_equal([[c[0], c[-1] + 1] for c in columns], within[:, 0, ::2])
    still = Detection(flip=False)
    assert still.train_targets({"boxes": boxes}, index, 2, key)["boxes"] is boxes
    with pytest.raises(ValueError, match="pictures have one, 'main'"):
        task.train_views(inputs(images), index, 0, key, names=("main", "strong"))


def test_boxes_shrink_with_their_pictures_alike_on_any_number_of_devices():
    """As Pillow shrinks, each by its own draw; what is beyond the picture is black and takes no part."""
    images, boxes, labels = rectangles(8)
    images[..., 0] = np.maximum(images[..., 0], 40)
    sizes = np.stack([np.arange(8) + 60, 90 - np.arange(8)], axis=1).astype(np.int32)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[height:], image[:, width:] = 0, 0
    task, key, index = Detection(scales=(0.4, 0.9)), jax.random.key(3), jnp.arange(8)

    @jax.jit
    def show(images, boxes, size, index):
        shown = task.train_views({"image": images, "size": size}, index, 2, key, names=("main",))
        return shown, task.train_targets({"boxes": boxes, "labels": labels, "size": size}, index, 2, key)

    shown, targets = show(images, boxes, sizes, index)
    plain, _ = jax.jit(lambda: (mirrored(index, 2, key), drawn_scales(index, 2, key, task.scales)))()
    new = np.asarray(targets["size"])
    share = new / sizes
    assert share.min() > 0.35 and share.max() < 0.95 and share[:, 0].std() > 0.05
    for i in range(8):
        height, width = new[i]
        source = Image.fromarray(images[i, : sizes[i, 0], : sizes[i, 1], 0])
        wanted = np.asarray(source.resize((width, height), Image.Resampling.BILINEAR), np.float32)
        found = np.asarray(shown[i, :, :, 0]) * 255
        np.testing.assert_allclose(found[:height, :width], wanted[:, ::-1] if plain[i] else wanted, atol=1.01)
        assert not found[height:].any() and not found[:, width:].any()
        left, right = boxes[i, 0, [0, 2]] * share[i, 1]
        edges = (width - right, width - left) if plain[i] else (left, right)
        np.testing.assert_allclose(targets["boxes"][i, 0, [0, 2]], edges, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(targets["boxes"][i, 0, [1, 3]], boxes[i, 0, [1, 3]] * share[i, 0], rtol=1e-5)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), "x")
    spread = jax.device_put(
        (images, boxes, sizes, index), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    )
    again = jax.jit(
        lambda images, size, index: task.train_views({"image": images, "size": size}, index, 2, key, names=("main",))
    )(spread[0], spread[2], spread[3])
    np.testing.assert_allclose(again, shown, atol=1e-6)
    assert Detection(scales=(0.5, 1.2)).problems() == [
        "data.scales=(0.5, 1.2); use two numbers above 0 and at most 1, the smaller one first."
    ]
    assert Detection(scales=(1.0, 1.0)).scaled is False


def test_every_picture_is_evaluated_once_in_whatever_order():
    """A perfect detector of rectangles has AP 1; padding of the last batch, which finds nothing, does not count."""
    images, boxes, labels = rectangles(10)
    task = Detection()

    def perfect(student, teacher, batch):
        return {"student": {name: PerExample(x) for name, x in {
            "boxes": batch.targets["boxes"], "scores": (batch.labels >= 0) * jnp.where(batch.where, 0.9, 0.0)[:, None],
            "labels": batch.labels, "true_boxes": batch.targets["boxes"], "true_labels": batch.labels,
            "index": batch.index, "where": batch.where}.items()}}  # fmt: skip

    batches = []
    for rows in ([7, 2, 9, 4], [0, 1, 3, 5], [6, 8, 8, 8]):
        batch = Batch.of(images[rows], {"boxes": boxes[rows], "labels": labels[rows]}, index=np.array(rows))
        batches.append(batch if rows[0] != 6 else Batch.of(
            images[rows], {"boxes": boxes[rows], "labels": labels[rows]}, index=np.array(rows), where=[1, 1, 0, 0]))  # fmt: skip
    kept = {}
    means = evaluate(perfect, None, None, batches, lambda sums: kept.update(sums) or task.means(sums))["student"]
    assert means["ap"] == means["ap50"] == 1.0 and means["lost_missed"] == 0.0
    found, true = found_and_true(kept)
    assert list(true.images) == list(found.images) == list(range(10))
    nothing = {**kept, "true_labels": np.full_like(kept["true_labels"], -1), "scores": np.zeros_like(kept["scores"])}
    assert task.means(nothing)["ap"] == 0.0


def test_networks_and_examples_say_what_they_are():
    task = Detection(examples=4, eval_examples=4)
    dataset = task.load()
    inputs = jax.eval_shape(task.evaluation_view, dataset.shapes(2)["inputs"])
    small = output_shapes(task.network(Detector(width=4, channels=16), dataset), inputs)
    assert (
        small.logits.shape == (2, 189, 5) and small.edge_logits.shape == (2, 189, 4, 9) and small.strides == (8, 16, 32)
    )
    large = output_shapes(task.network(Detector(name="gfl_r18", width=8, channels=16), dataset), inputs)
    assert large.sizes == ((12, 12), (6, 6), (3, 3), (2, 2), (1, 1)) and large.edge_logits.shape[-1] == 17
    with pytest.raises(ValueError, match="There is no detector 'yolo'; there are gfl_small, gfl_r18"):
        task.network(Detector(name="yolo"), dataset)
    with pytest.raises(DataError, match="No detection data set is called 'coco'"):
        Detection(name="coco").load()
    assert Detection(examples=0).problems() == ["data.examples=0; use 1 or more."]
    images, boxes, labels = rectangles(2)
    with pytest.raises(DataError, match=r"boxes \[2, 2, 4\] and labels \[2, 1\]"):
        Boxes("mine", "train", images, boxes, labels[:, :1], ("a", "b"))
    with pytest.raises(DataError, match=r"Example 0 of mine .* none of 1"):
        Boxes("mine", "train", images, boxes, labels, ("a",))


@pytest.mark.slow  # two detectors are compiled
def test_a_run_goes_through_and_draws(tmp_path, capsys, data_dir=None):
    folder = tmp_path / "run"
    assert (
        main(["compare", "boxes/gfl", "--methods", "labels", "ld_vlr", "--seeds", "0", "--tiny", "--run", str(folder)])
        == 0
    )
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png") == 5 and "What average precision is lost to" in page
    result = json.loads((folder / "ld_vlr/seed0/student/result.json").read_text())
    assert 0 <= result["last"]["student"]["ap"] <= 1 and "teacher" in result["last"]
    Image.fromarray(np.full((50, 80, 3), 127, np.uint8)).save(tmp_path / "grey.jpg")
    drawn = tmp_path / "drawn"
    assert main(["predict", str(folder / "ld_vlr/seed0"), str(tmp_path / "grey.jpg"), "--draw", str(drawn)]) == 0
    assert Image.open(drawn / "grey.jpg.found.png").size[0] > 100
    assert main(["predict", str(folder / "ld_vlr/seed0"), str(tmp_path / "grey.jpg"), "--draw", str(drawn)]) == 1
    assert main(["distill", str(folder / "ld_vlr/seed0"), "--run", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again/student/result.json").read_text())
    assert again["last"] == result["last"] and again["hash"] == result["hash"]
    capsys.readouterr()


def test_what_is_found_in_a_file_is_said_in_its_pixels(tmp_path):
    """By the name of the class, or its number."""
    Image.fromarray(np.zeros((80, 160, 3), np.uint8)).save(tmp_path / "wide.png")
    task = Detection(name=str(tmp_path), image_size=(40, 40))
    inputs = task.decoded(str(tmp_path / "wide.png"), {"image": np.zeros((1, 40, 40, 3), np.uint8)})
    assert list(inputs["size"]) == [20, 40]
    found = Detected(boxes=np.array([[[2.0, 4, 10, 16]]]), scores=np.array([[0.75]]), labels=np.array([[1]]))
    inputs = {name: np.asarray(x)[None] for name, x in inputs.items()}
    with mock.patch.object(Detection, "found", lambda *_: found):
        for names, word in ((("cat", "dog"), "dog"), ((), "1")):
            assert task.answers(inputs, np.zeros(1), names, 5) == [[(f"{word} at 8 16 40 64", 0.75)]]


@pytest.mark.slow  # a detector is compiled for two shapes
def test_wide_and_tall_pictures_are_trained_on_and_predicted(tmp_path, capsys):
    """In batches of both shapes; what is predicted is said in the order of the files."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 6)):
        for part in ("images", "labels"):
            (tmp_path / part / split).mkdir(parents=True)
        for i in range(count):
            height, width = (48, 96) if i % 3 else (96, 48)
            image = rng.integers(0, 60, (height, width, 3), np.uint8)
            image[10:30, 10:30] = 250
            Image.fromarray(image).save(tmp_path / f"images/{split}/{i}.png")
            box = f"0 {20 / width} {20 / height} {20 / width} {20 / height}"
            (tmp_path / f"labels/{split}/{i}.txt").write_text(box)
    (tmp_path / "classes.txt").write_text("square")
    own = ["--data.name", str(tmp_path), "--data.image-size", "48", "96", "--data.channels", "3", "--data.turn"]
    sizes = ["--data.batch-size", "8", "--data.eval-batch-size", "8"]
    short = ["--phases.teacher.duration.amount", "1", "--phases.student.duration.amount", "2"]
    run = tmp_path / "run"
    assert main(["distill", "boxes/gfl", "--method", "ld", *own, *sizes, *short, "--run", str(run)]) == 0
    capsys.readouterr()
    files = [str(tmp_path / f"images/val/{i}.png") for i in (1, 0, 2)]
    assert main(["predict", str(run), *files]) == 0
    said = capsys.readouterr().out
    assert [said.index(file) for file in files] == sorted(said.index(file) for file in files)
    task = Detection(name=str(tmp_path), image_size=(48, 96), turn=True)
    shapes = {"image": np.zeros((1, 48, 96, 3), np.uint8)}
    assert [task.decoded(file, shapes)["image"].shape for file in files] == [(48, 96, 3), (96, 48, 3), (48, 96, 3)]


@pytest.mark.slow  # two detectors are compiled
@pytest.mark.parametrize("pair", ["gfl_r101_r18", "gfl_r101_r50"])
def test_the_protocol_of_voc_goes_through_small(pair, tmp_path, capsys):
    """On drawn pictures with `--tiny`; a dry run of the whole says what it costs without the data."""
    folder = tmp_path / "run"
    rows = ["--data.batch_size", "8"]  # so many devices there are here
    options = ["--method", "ld", "--tiny", *rows, "--run", str(folder)]
    assert main(["distill", f"configs/voc/{pair}.py", *options]) == 0
    result = json.loads((folder / "student/result.json").read_text())
    assert 0 <= result["last"]["student"]["ap"] <= 1 and "teacher" in result["last"]
    capsys.readouterr()
    dry = ["--dry-run", *rows, "--data-dir", str(tmp_path / "none")]
    assert main(["distill", f"configs/voc/{pair}.py", *dry]) == 0
    said = capsys.readouterr().out
    for part in ("16,551", "8×100×168×256", "FLOPs", "GiB"):  # an eighth of 800 × 1344
        assert part in said, said
