"""Pictures with boxes of TFDS (COCO, Pascal VOC), read without TensorFlow once they are prepared."""

import contextlib
import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.data.annotated import Annotated, AnnotatedSplit
from kdjax.data.catalogue import data_folder, open_builder
from kdjax.data.encoded import readers
from kdjax.data.errors import DataError
from kdjax.data.npz import BROKEN, check_npz, why
from kdjax.data.pictures import Unreadable, picture_size
from kdjax.data.tfds_records import Records, explain, records_of
from kdjax.places import cache_folder

# Which sets and splits are trained on and evaluated. Those called "test" of COCO and of VOC 2012 have no boxes.
SETS = {
    "coco/2017": {"train": (("coco/2017", "train"),), "test": (("coco/2017", "validation"),)},
    "voc/2007": {"train": (("voc/2007", "train+validation"),), "test": (("voc/2007", "test"),)},
    "voc/2012": {"train": (("voc/2012", "train"),), "test": (("voc/2012", "validation"),)},
    "voc/2007+2012": {
        "train": (("voc/2007", "train+validation"), ("voc/2012", "train+validation")),
        "test": (("voc/2007", "test"),),
    },
}
COLUMNS = ("boxes", "labels", "area", "crowd", "difficult")  # of objects


@dataclasses.dataclass(frozen=True, eq=False)
class RecordedSplit(AnnotatedSplit):
    """Pictures that lie in records.

    Attributes:
      places: of each by its `path`: the records, and its position among them.
    """

    places: dict[str, tuple[Records, int]] = dataclasses.field(default_factory=dict)

    def file(self, one):
        records, row = self.places[one.path]
        return records.get([row])[0]

    def fingerprint(self):
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        for one in self.pictures:
            digest.update(f"{one.path}\0".encode())
            for name in COLUMNS:
                digest.update(np.ascontiguousarray(getattr(one, name)).tobytes())
        return digest.hexdigest()


def open_box_records(name: str, split: str, data_dir: str | os.PathLike | None = None) -> RecordedSplit:
    """The pictures with boxes of a set of TFDS.

    Boxes are what TFDS has, shares of the picture's height and width, times the size of the picture; those of VOC are whole
    pixels from 1 on, as its files have them, not shifted. Areas of COCO are cut to whole pixels there, so that an object of just
    more than 32 x 32 is "small", and average precision by size may differ from the official one in its last digits.

    Args:
      name: one of `SETS`.
      split: "train" or "test".
      data_dir: TFDS folder; by default `TFDS_DATA_DIR`, or `~/tensorflow_datasets`.

    Raises:
      DataError: it is not prepared, broken, or holds what is no picture with boxes.
    """
    pictures, places, names = [], {}, ()
    for of, part in SETS[name][split]:
        builder = open_builder(of, data_dir)
        try:
            records, encoded = records_of(of, builder, part, "image", "objects")
            if not encoded:
                raise DataError(f"{of} in {data_folder(data_dir)} has no encoded pictures, and is none of TFDS's own.")
            found = _annotations(builder, records)
        except DataError:
            raise
        except Exception as error:  # TFDS and its readers raise many kinds
            explanation = next(filter(None, (explain(of, builder, one) for one in part.split("+"))), None)
            raise DataError(
                explanation
                or f"{of} in {builder.data_path} cannot be read ({type(error).__name__}: {why(error)}); delete that folder and "
                f"run `kdjax data prepare {of}`."
            ) from error
        pictures += found
        places |= {one.path: (records, row) for row, one in enumerate(found)}
        names = tuple(builder.info.features["objects"]["label"].names)
    return RecordedSplit(tuple(pictures), names, places)


def _annotations(builder: Any, records: Records) -> list[Annotated]:
    """What is in every picture. All records are read for it once, of the pictures only their heads are decoded, and it is kept in
    the user's cache."""
    info = Path(str(builder.data_path), "dataset_info.json")
    facts = f"{builder.data_path} {records.origin} {len(records)} {info.stat().st_mtime_ns if info.exists() else 0}"
    kept = cache_folder("boxes") / f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}.npz"
    table = None
    if kept.exists():
        with contextlib.suppress(*BROKEN):  # a damaged one is made anew
            check_npz(kept)
            found = dict(np.load(kept, allow_pickle=False))
            short = any(len(found[n]) != found["counts"].sum() for n in COLUMNS)
            if not short and len(found["counts"]) == len(found["tall"]) == len(records):
                table = found
    if table is None:
        read = [row for part in readers().map(lambda part: _read(records, part), list(records.parts())) for row in part]
        table = {name: np.concatenate([row[name] for row in read]) for name in COLUMNS}
        table["counts"] = np.array([len(row["labels"]) for row in read], np.int64)
        table["tall"] = np.array([row["tall"] for row in read])
        with contextlib.suppress(OSError):  # kept for the next time, where that can be
            kept.parent.mkdir(parents=True, exist_ok=True)
            temporary = kept.with_suffix(f".{os.getpid()}.npz")
            np.savez(temporary, **table)
            temporary.replace(kept)
    ends = np.cumsum(table["counts"])
    columns = zip(*(np.split(table[name], ends[:-1]) for name in COLUMNS), strict=True)
    return [
        Annotated(f"{records.origin}, example {row}", *values, tall=bool(tall))
        for row, values, tall in zip(range(len(ends)), columns, table["tall"], strict=False)
    ]


def _read(records: Records, part: range) -> list[dict[str, np.ndarray]]:
    """What is in the pictures at some positions."""
    rows = []
    for row, example in zip(part, records.examples(part), strict=True):
        objects = example["objects"]
        try:
            height, width = picture_size(bytes(example["image"]))
        except Unreadable as error:
            raise DataError(f"{records.said(row)} {error}.") from error
        top, left, bottom, right = np.asarray(objects["bbox"], np.float64).reshape(-1, 4).T
        boxes = np.stack([left * width, top * height, right * width, bottom * height], axis=-1)
        if not np.isfinite(boxes).all():
            raise DataError(f"{records.said(row)} has a box that is not finite.")
        sides = boxes[:, 2:] - boxes[:, :2]
        whether = lambda key, objects=objects, boxes=boxes: np.asarray(objects.get(key, np.zeros(len(boxes)))).astype(
            bool
        )
        rows.append({
            "boxes": boxes, "labels": np.asarray(objects["label"]).astype(np.int32),
            "area": np.asarray(objects.get("area", sides[:, 0] * sides[:, 1])).astype(np.float64),
            "crowd": whether("is_crowd"), "difficult": whether("is_difficult"), "tall": height > width,
        })  # fmt: skip
    return rows
