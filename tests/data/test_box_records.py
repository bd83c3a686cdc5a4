"""COCO and Pascal VOC as TFDS writes them: prepared once, read without TensorFlow."""

import sys

import cloudpickle
import jax
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from kdjax.data import DataError, box_records
from kdjax.data.box_records import open_box_records
from kdjax.data.catalogue import open_builder
from kdjax.tasks.detection import Detection

SIZES = ((40, 60), (47, 33), (30, 30))  # height, width
BOXES = (  # edges in pixels, class, area, crowd or difficult
    ((2, 3, 30, 20), 7, 1024, False), ((10, 5, 14, 25), 2, 70, False), ((0, 0, 60, 40), 7, 2000, True),
)  # fmt: skip
OPTIONS = {"download_config": tfds.download.DownloadConfig(try_download_gcs=False)}
NAMES = [f"class {i}" for i in range(80)]


def example(row):
    """The first picture has the objects, bright on black; the second none; the third a crowd, or a difficult one, alone."""
    height, width = SIZES[row]
    image = np.zeros((height, width, 3), np.uint8)
    of = {0: BOXES, 1: (), 2: BOXES[2:]}[row]
    for (left, top, right, bottom), *_ in of[:2] if row == 0 else ():
        image[top:bottom, left:right] = 250
    box = lambda b: tfds.features.BBox(b[1] / height, b[0] / width, min(b[3] / height, 1.0), min(b[2] / width, 1.0))
    return PIL.Image.fromarray(image), [(box(b), *rest) for b, *rest in of]


def coco_set(folder):
    """A set of COCO's features. TFDS's own builder says them with TensorFlow's types."""
    with tfds.core.registered.skip_registration():

        class Coco(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.1.0")
            BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2017")]  # noqa: RUF012

            def _info(self):
                objects = {"id": np.int64, "area": np.int64, "bbox": tfds.features.BBoxFeature(),
                           "label": tfds.features.ClassLabel(num_classes=80), "is_crowd": np.bool_}  # fmt: skip
                whole = {"image": tfds.features.Image(encoding_format="jpeg"), "image/filename": tfds.features.Text(),
                         "image/id": np.int64, "objects": tfds.features.Sequence(objects)}  # fmt: skip
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(whole))

            def _split_generators(self, dl_manager):
                self.info.features["objects"]["label"].names = NAMES
                return {split: self._generate_examples() for split in ("train", "validation")}

            def _generate_examples(self):
                for row in range(3):
                    image, objects = example(row)
                    keys = ("bbox", "label", "area", "is_crowd")
                    said = [{"id": 5 + i, **dict(zip(keys, one, strict=True))} for i, one in enumerate(objects)]
                    yield row, {"image": image, "image/filename": f"{row}.jpg", "image/id": row, "objects": said}

    Coco(config="2017", data_dir=str(folder), file_format="array_record").download_and_prepare(**OPTIONS)


def voc_set(folder, year, monkeypatch):
    """A set that TFDS's own builder writes, of other pictures."""
    builder = tfds.builder(f"voc/{year}", data_dir=str(folder), file_format="array_record")

    def examples():
        for row in range(3):
            image, objects = example(row)
            said = [{"label": label, "bbox": box, "pose": 0, "is_truncated": False, "is_difficult": odd}
                    for box, label, _, odd in objects]  # fmt: skip
            yield (
                f"{row}",
                {
                    "image": image,
                    "image/filename": f"{row}.jpg",
                    "objects": said,
                    "labels": [],
                    "labels_no_difficult": [],
                },
            )

    splits = lambda self, dl_manager: {split: examples() for split in ("train", "validation", "test")}
    monkeypatch.setattr(type(builder), "_split_generators", splits)
    builder.download_and_prepare(**OPTIONS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("boxes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(made / "cache"))
        coco_set(made)
        voc_set(made, "2007", patch)
        voc_set(made, "2012", patch)
        yield made


@pytest.mark.parametrize("name", ["coco/2017", "voc/2007", "voc/2012", "voc/2007+2012"])
def test_boxes_are_pixels_and_objects_that_need_not_be_found_are_not_trained_on(name, folder):
    task = Detection(name=name, image_size=(96, 64), eval_examples=0, objects=4)
    dataset = task.load(str(folder))
    splits = {"coco/2017": 1, "voc/2012": 1, "voc/2007": 2, "voc/2007+2012": 4}[name]
    assert len(dataset.train) == splits and len(dataset.held) == 3  # what has no object to learn from is left out
    names = dataset.info.class_names
    assert (names == tuple(NAMES)) if name[0] == "c" else (len(names) == 20 and names[:2] == ("aeroplane", "bicycle"))
    read = dataset.train.read(np.arange(splits))
    sent = cloudpickle.loads(cloudpickle.dumps(dataset.train))  # to another process, see `kdjax.data.workers`
    jax.tree.map(np.testing.assert_array_equal, sent.read(np.arange(splits)), read)
    assert sent.on_disk
    scale = np.array([64 / 60, 43 / 40] * 2)
    for image, boxes, labels in zip(
        read["inputs"]["image"], read["targets"]["boxes"], read["targets"]["labels"], strict=True
    ):
        assert list(labels) == [7, 2, -1, -1]
        np.testing.assert_allclose(boxes[:2], np.array([b for b, *_ in BOXES[:2]]) * scale, rtol=1e-5)
        left, top, right, bottom = np.round(boxes[0]).astype(int)
        bright = image[..., 0] > 150
        assert bright[top + 1 : bottom - 1, left + 1 : right - 1].all() and not bright[:, : left - 2].any()
    held = dataset.held.read(np.arange(3))
    order = np.argsort(-(held["targets"]["labels"] >= 0).sum(axis=1))  # TFDS shuffles
    of = {key: value[order] for key, value in held["targets"].items()}
    assert [int((row >= 0).sum()) for row in of["labels"]] == [3, 1, 0]
    ignored = of["crowd" if name[0] == "c" else "difficult"]
    np.testing.assert_array_equal(ignored[:, :3], [[False, False, True], [True, False, False], [False] * 3])
    areas = [1024, 70, 2000, 0] if name[0] == "c" else [28 * 17, 4 * 20, 60 * 40, 0]
    np.testing.assert_allclose(of["area"][0], areas, rtol=1e-5)
    assert task.problems() == [] and "tensorflow" not in sys.modules


def test_annotations_are_kept_until_the_set_changes(folder, monkeypatch):
    first, other = (open_box_records("coco/2017", split, folder) for split in ("train", "test"))
    kept = list((folder / "cache/kdjax/boxes").glob("*.npz"))
    assert kept
    monkeypatch.setattr(box_records, "_read", lambda *args: pytest.fail("the records were read again"))
    again = open_box_records("coco/2017", "train", folder)
    assert again.fingerprint() == first.fingerprint() != other.fingerprint()
    assert again.file(again.pictures[0])[:2] == b"\xff\xd8"
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    for file in kept:
        file.write_bytes(file.read_bytes()[:50])
    assert open_box_records("coco/2017", "train", folder).fingerprint() == first.fingerprint()
    for file in kept:  # as an earlier version wrote it
        if len(file.read_bytes()) > 50:
            np.savez(file, **{name: array for name, array in np.load(file).items() if name != "tall"})
    again = open_box_records("coco/2017", "train", folder)
    assert again.fingerprint() == first.fingerprint() and [one.tall for one in again.pictures[:2]] == [False, True]


def test_what_is_not_prepared_is_said(tmp_path, folder):
    for name, part in (("coco/2017", "coco/2017"), ("voc/2007", "voc/2007"), ("voc/2007+2012", "voc/2007")):
        with pytest.raises(
            DataError, match=rf"^{part} is not .*`kdjax data prepare {part}`, which needs TensorFlow once\.$"
        ):
            Detection(name=name, image_size=(64, 64)).load(str(tmp_path))
        assert Detection(name=name, image_size=(64, 64)).stand_in(str(tmp_path)).info.num_classes == (
            80 if name[0] == "c" else 20
        )
    with pytest.raises(
        DataError, match=r"No detection data set is called 'voc'; there is 'fashion_boxes', coco/2017, voc/2007"
    ):
        Detection(name="voc").load(str(tmp_path))
    assert open_builder("coco/2017:1.1.0", folder).info.version == "1.1.0"
