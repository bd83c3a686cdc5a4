"""Pictures with boxes as examples: drawn, at hand, or in files."""

import contextlib
import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.data import fashion_boxes
from kdjax.data.annotated import Annotated, AnnotatedSplit, open_annotated
from kdjax.data.box_records import open_box_records
from kdjax.data.encoded import readers
from kdjax.data.errors import DataError, note
from kdjax.data.pictures import Unreadable, fitted, picture_size

OWN = "fashion_boxes"
LOOKED_AT = 64  # pictures of a split whose size is compared with its description before training
# Pictures to train on (those with objects) and to evaluate, and classes, so that a dry run knows them before they are there.
COUNTS = {
    "coco": (117_266, 5_000, 80), "voc": (16_551, 4_952, 20), "coco/2017": (117_266, 5_000, 80), "voc/2007": (5_011, 4_952, 20),
    "voc/2012": (5_717, 5_823, 20), "voc/2007+2012": (16_551, 4_952, 20),
}  # fmt: skip


class Boxes:
    """One split in memory: pictures of one size, and the boxes in them.

    Attributes:
      images: `[N, H, W, C]` uint8.
      boxes: `[N, G, 4]` float32 corners in pixels; `labels`: `[N, G]` int32, -1 for padding.
      class_names: one a class.
    """

    def __init__(self, name: str, split: str, images: np.ndarray, boxes: np.ndarray, labels: np.ndarray, class_names):
        self.name, self.split, self.class_names = name, split, tuple(class_names)
        self.images, self.boxes, self.labels = (
            images,
            boxes.astype(np.float32, copy=False),
            labels.astype(np.int32, copy=False),
        )
        if not (len(images) == len(boxes) == len(labels)) or boxes.shape != (*labels.shape, 4):
            raise DataError(
                f"{name} ({split}) has images {list(images.shape)}, boxes {list(boxes.shape)} and labels {list(labels.shape)}; "
                "give [N, H, W, C], [N, G, 4] and [N, G]."
            )
        if (self.labels >= len(self.class_names)).any():
            row = int(np.argmax((self.labels >= len(self.class_names)).any(axis=1)))
            raise DataError(f"Example {row} of {name} ({split}) has a class that is none of {len(self.class_names)}.")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """Of all examples."""
        size = np.array(self.images.shape[1:3], np.int32)
        return {"image": self.images, "size": np.broadcast_to(size, (len(self), 2))}

    def read(self, indices: np.ndarray, *, inputs: bool = True) -> dict[str, Any]:
        shown = {name: value[indices] for name, value in self.inputs.items()} if inputs else None
        return {"inputs": shown, "targets": {"boxes": self.boxes[indices], "labels": self.labels[indices]}}

    def fingerprint(self) -> str:
        return hashlib.sha256(b"".join(x.tobytes() for x in (self.images, self.boxes, self.labels))).hexdigest()

    @property
    def objects(self) -> int:
        return int((self.labels >= 0).sum())


@functools.lru_cache(maxsize=4)
def drawn(split: str, count: int, seed: int) -> Boxes:
    """The embedded set."""
    made = fashion_boxes.draw_many(split, count, seed=seed)
    return Boxes(OWN, split, made.images, made.boxes, made.labels, fashion_boxes.CLASS_NAMES)


class Empty(Boxes):
    """Examples of the right shapes with nothing in them, for a dry run; they are not kept in memory to be trained on."""

    @property
    def inputs(self):
        raise AttributeError("examples with nothing in them are not trained on")

    def read(self, indices: np.ndarray, *, inputs: bool = True) -> dict[str, Any]:
        rows = len(np.atleast_1d(indices))
        size = np.tile(np.array([self.images.shape[1:3]], np.int32), (rows, 1))
        shown = {"image": self.images[:1].repeat(rows, axis=0), "size": size} if inputs else None
        targets = {
            "boxes": self.boxes[:1].repeat(rows, axis=0),
            "labels": self.labels[:1].repeat(rows, axis=0),
            "size": size,
        }
        return {"inputs": shown, "targets": targets}

    def fingerprint(self) -> str:
        return "nothing"


def empty(name: str, count: int, canvas: tuple[int, int], channels: int, objects: int, classes: int) -> Empty:
    """So many pictures of nothing."""
    of = lambda *shape, kind=np.uint8: np.broadcast_to(np.zeros((), kind), (count, *shape))
    labels = np.broadcast_to(np.full((), -1, np.int32), (count, objects))
    return Empty(
        name, "train", of(*canvas, channels), of(objects, 4, kind=np.float32), labels, tuple(map(str, range(classes)))
    )


class BoxFiles:
    """One split in files, decoded as they are read, onto a canvas; with `turn` onto a turned one, where all of a batch are higher
    than wide.

    Targets beside boxes and labels: "size" of each picture on the canvas, and what evaluation needs: "scale", "area", "crowd",
    "difficult". Training leaves out crowds, objects that need not be found, and boxes without area.
    """

    on_disk = True

    def __init__(
        self,
        name: str,
        split: str,
        found: AnnotatedSplit,
        canvas: tuple[int, int],
        channels: int,
        objects: int,
        train: bool,
        stretch: bool = False,
        turn: bool = False,
    ):
        self.name, self.split, self.class_names = name, split, found.class_names
        self.canvas, self.channels, self.train, self.found = canvas, channels, train, found
        self.stretch, self.turn = stretch, turn
        pictures = [_trained_on(one) for one in found.pictures] if train else list(found.pictures)
        self.pictures = [one for one in pictures if len(one.boxes) or not train]
        self._check_sizes()
        lost = sum(_small(one) for one in found.pictures) if train else 0
        if lost:
            note(f"{name} ({split}) has {lost} objects less than a pixel wide or high, which are left out")
        self.most = objects
        fuller = sum(len(one.boxes) > objects for one in self.pictures)
        if fuller:
            cut = sum(max(len(one.boxes) - objects, 0) for one in self.pictures)
            note(f"{name} ({split}) has {fuller} pictures with more than {objects} objects, of which {cut} are left out; raise "
                 "data.objects to keep them")  # fmt: skip
        if not self.pictures:
            raise DataError(f"No picture of {name} ({split}) has an object to learn from.")

    def _check_sizes(self) -> None:
        """Of some pictures, before training; of each when it is read."""
        described = [one for one in self.pictures if one.size is not None]
        for i in np.unique(np.linspace(0, len(described) - 1, min(LOOKED_AT, len(described))).astype(int)):
            with contextlib.suppress(Unreadable):  # which is said where it is read
                described[i].check_size(*picture_size(self.found.file(described[i])))

    def __len__(self) -> int:
        return len(self.pictures)

    @functools.cached_property
    def groups(self) -> np.ndarray | None:
        """`[N]`, 1 of pictures that are higher than wide, where these are turned."""
        if not self.turn:
            return None
        return np.array(list(readers().map(self._tall, self.pictures)), np.int32)

    def _tall(self, one: Annotated) -> bool:
        if one.tall is not None:
            return one.tall
        try:
            height, width = picture_size(self.found.file(one))
        except Unreadable as error:
            raise DataError(f"{one.path} {error}.") from error
        return height > width

    def read(self, indices: np.ndarray, *, inputs: bool = True, together: np.ndarray | None = None) -> dict[str, Any]:
        turned = together is not None and self.groups is not None and bool(self.groups[together].all())
        canvas = self.canvas[::-1] if turned else self.canvas
        chosen = [self.pictures[int(i)] for i in np.atleast_1d(indices)]
        rows = list(readers().map(functools.partial(self._one, canvas=canvas), chosen))
        stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        shown = {"image": stacked.pop("image"), "size": stacked["size"]}
        return {"inputs": shown if inputs else None, "targets": stacked}

    def _one(self, one: Annotated, canvas: tuple[int, int]) -> dict[str, np.ndarray]:
        try:
            made = fitted(self.found.file(one), canvas, self.channels, stretch=self.stretch)
        except Unreadable as error:
            raise DataError(f"{one.path} {error}.") from error
        one.check_size(*made.whole)
        count = min(len(one.boxes), self.most)
        row = {
            "image": made.pixels, "size": np.array(made.size, np.int32), "boxes": np.zeros((self.most, 4), np.float32),
            "labels": np.full(self.most, -1, np.int32),
        }  # fmt: skip
        row["boxes"][:count] = one.boxes[:count] * (made.scale * 2)
        row["labels"][:count] = one.labels[:count]
        if not self.train:
            row["scale"] = np.array(made.scale, np.float32)
            for name, kind in (("area", np.float32), ("crowd", bool), ("difficult", bool)):
                row[name] = np.zeros(self.most, kind)
                row[name][:count] = getattr(one, name)[:count]
        return row

    def fingerprint(self) -> str:
        facts = (
            f"{self.canvas} {self.channels} {self.most} {self.train}"
            + " stretched" * self.stretch
            + " turned" * self.turn
        )
        return hashlib.sha256((self.found.fingerprint() + facts).encode()).hexdigest()

    @property
    def objects(self) -> int:
        return sum(len(one.boxes) for one in self.pictures)


def _wide(one: Annotated) -> np.ndarray:
    return ((one.boxes[:, 2:] - one.boxes[:, :2]) >= 1).all(axis=1)


def _small(one: Annotated) -> int:
    return int((~one.crowd & ~one.difficult & ~_wide(one)).sum())


def _trained_on(one: Annotated) -> Annotated:
    """A picture without crowds, difficult objects, and boxes that are not a pixel wide and high."""
    kept = ~one.crowd & ~one.difficult & _wide(one)
    fields = ("boxes", "labels", "area", "crowd", "difficult")
    return dataclasses.replace(one, **{name: getattr(one, name)[kept] for name in fields})


@functools.lru_cache(maxsize=4)
def in_files(
    root: str,
    split: str,
    canvas: tuple[int, int],
    channels: int,
    objects: int,
    stretch: bool = False,
    turn: bool = False,
) -> BoxFiles:
    """A split of a folder; see `kdjax.data.annotated.open_annotated`."""
    found = open_annotated(Path(root), split)
    return BoxFiles(root, split, found, canvas, channels, objects, split == "train", stretch, turn)


@functools.lru_cache(maxsize=4)
def in_records(
    name: str,
    split: str,
    canvas: tuple[int, int],
    channels: int,
    objects: int,
    stretch: bool,
    turn: bool,
    data_dir: str | None,
) -> BoxFiles:
    """A split of a set of TFDS; see `kdjax.data.box_records.open_box_records`."""
    found = open_box_records(name, split, data_dir)
    return BoxFiles(name, split, found, canvas, channels, objects, split == "train", stretch, turn)
