"""How a config names pictures with boxes, and how they become batches, views and average precision."""

import dataclasses
import operator
import os
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data.box_records import SETS
from kdjax.data.catalogue import data_folder
from kdjax.data.errors import DataError
from kdjax.data.fashion_boxes import SIZE
from kdjax.data.pictures import Unreadable, fitted, picture_size
from kdjax.models.detectors import DetectorOutput
from kdjax.objectives.detection.locations import decoded
from kdjax.tasks.dataset import NOT_HERE, Dataset
from kdjax.tasks.detection.average_precision import evaluate
from kdjax.tasks.detection.decoding import Detected, detect
from kdjax.tasks.detection.drawing import called, draw_one
from kdjax.tasks.detection.errors import split_errors
from kdjax.tasks.detection.examples import COUNTS, OWN, Boxes, BoxFiles, drawn, empty, in_files, in_records
from kdjax.tasks.detection.judging import Shown, judged, passing_on
from kdjax.tasks.detection.matching import OF_OBJECTS, found_and_true
from kdjax.tasks.detection.networks import CROPS, SMALL, SSDS, Detector, make_detector
from kdjax.tasks.detection.published import is_published, read_published
from kdjax.tasks.detection.report import pictures_of
from kdjax.tasks.detection.ssd_views import looked_through, recoloured, seen, windows
from kdjax.tasks.detection.views import (
    drawn_scales,
    flipped,
    flipped_boxes,
    mirrored,
    moved,
    resized,
    scaled_size,
    view_keys,
)
from kdjax.tasks.task import Task
from kdjax.training.evaluation import PerExample
from kdjax.training.metrics import Metric
from kdjax.types import Array, DataInfo, ModelOutput, Network


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection(Task):
    """Which pictures with boxes, and how they are shown."""

    name: str = OWN
    """data set: fashion_boxes, drawn from a seed out of the embedded Fashion-MNIST images; or a folder with the files of COCO,
    of Pascal VOC or of YOLO; or of TFDS coco/2017, voc/2007, voc/2012 or voc/2007+2012, once they are prepared"""
    batch_size: int = 16
    eval_batch_size: int = 100
    image_size: tuple[int, int] = (0, 0)
    """height and width of the canvas that a folder's pictures are fitted on; (0, 0) for the embedded set"""
    channels: Literal[1, 3] = 3
    """what a folder's pictures are read as: 3 for RGB, 1 for grey"""
    objects: int = 100
    """objects of a picture at most, of a folder; more are left out, and said"""
    examples: int = 4000
    """pictures to train on: how many are drawn; of a folder all are"""
    eval_examples: int = 1000
    """pictures that are evaluated: how many are drawn, or at most of a folder; 0 for all of it"""
    draw_seed: int = 0
    """seed of the pictures that are drawn"""
    flip: bool = True
    """mirror left and right, every other time, boxes with it"""
    scales: tuple[float, float] = (1.0, 1.0)
    """how large training pictures are shown, least and most, as share of what fits on the canvas: drawn anew for each in every
    pass, boxes with it. A shorter side of 480 to 800 pixels on a canvas of 800 x 1344 is 0.6 1"""
    stretch: bool = False
    """a folder's pictures fill the canvas whatever their shape, as SSD has them; without it they keep their shape"""
    turn: bool = False
    """a folder's pictures that are higher than wide are fitted on the canvas turned, in batches of their own; all is compiled for
    both"""
    ssd_views: bool = False
    """training pictures are shown as SSD's: in other colours, and a window of them, wider than they are or cut out"""
    show_boxes: bool = False
    """networks see the boxes of the objects too, for a teacher that classifies crops of them; detectors do not look"""
    mean: tuple[float, ...] = ()
    """of each channel, of pixels scaled to 0..1; subtracted. Empty: 0"""
    std: tuple[float, ...] = ()
    """of each channel, of pixels scaled to 0..1; divided by. Empty: 1"""
    score_threshold: float = 0.05
    """what is less sure is no detection"""
    iou_threshold: float = 0.6
    """of two detections of a class that overlap more, the surer one stays"""
    max_detections: int = 100
    """the surest of each image"""

    metric: ClassVar = Metric("ap", "AP", 100, 1, unit="points")
    columns: ClassVar = tuple(
        Metric(name, title, 100, 1)
        for name, title in (("ap50", "AP50"), ("ap75", "AP75"), ("ap_s", "AP_S"), ("ap_m", "AP_M"))
    )
    noun: ClassVar = "pictures"
    legend: ClassVar = (
        "AP: average precision as COCO's, the mean over overlaps of 0.5 to 0.95; AP50 and AP75 at one of them; AP_S, AP_M of "
        "objects below, above 32² pixels."
    )

    def __post_init__(self):
        path = os.path.expanduser(self.name)
        if self.name != OWN and self.name not in SETS and os.path.isdir(path):  # a saved run is read from anywhere
            object.__setattr__(self, "name", os.path.abspath(path))

    def load(self, data_dir: str | None = None) -> Dataset:
        train, held = (self._split(split, data_dir) for split in ("train", "test"))
        train, held = self._with_boxes(train, held)
        names = max(train.class_names, held.class_names, key=len)
        if any(
            names[: len(own)] != own for own in (train.class_names, held.class_names)
        ):  # their numbers are their places
            raise DataError(
                f"{self.name} has other classes where it is trained on than where it is evaluated; give them alike."
            )
        rows = np.arange(min(len(held), self.eval_examples or len(held)))
        info = DataInfo(len(names), len(train), targets=("labels", "boxes"), class_names=names)
        return Dataset(
            train, np.arange(len(train)), np.ones(len(train), bool), held, rows, "test", info, getattr(train, "inputs", None),
            f"{len(names)} classes, {train.objects:,} objects",
        )  # fmt: skip

    def _split(self, split: str, data_dir: str | None) -> Boxes | BoxFiles:
        if self.name == OWN:
            return drawn(split, self.examples if split == "train" else self.eval_examples, self.draw_seed)
        shown = tuple(self.image_size), self.channels, self.objects, self.stretch, not self.one_shape
        if Path(self.name).is_dir():
            return in_files(str(Path(self.name).resolve()), split, *shown)
        if self.name in SETS:
            return in_records(self.name, split, *shown, data_folder(data_dir))
        raise DataError(
            f"No detection data set is called {self.name!r}; there is {OWN!r}, {', '.join(SETS)}, or name a folder."
        )

    def _with_boxes(self, train: Any, held: Any) -> tuple[Any, Any]:
        """Both splits, with boxes among the inputs where something looks at them: windows of training pictures do."""
        return (Shown(train) if self.show_boxes or self.ssd_views else train), Shown(held) if self.show_boxes else held

    def problems(self) -> list[str]:
        least = {"examples": 1, "eval_examples": int(self.name == OWN), "max_detections": 1, "objects": 1}
        wrong = [
            f"data.{name}={getattr(self, name)}; use {low} or more."
            for name, low in least.items()
            if getattr(self, name) < low
        ]
        if len(self.scales) != 2 or not 0 < self.scales[0] <= self.scales[1] <= 1:
            wrong.append(
                f"data.scales={tuple(self.scales)}; use two numbers above 0 and at most 1, the smaller one first."
            )
        if self.ssd_views and self.scaled:
            wrong.append("data.ssd_views draws how large pictures are shown, and so does data.scales; set one of them.")
        if self.name != OWN and min(self.image_size) < 32:
            size = tuple(self.image_size)
            wrong.append(f"data.image_size={size}; give height and width of at least 32 for a folder's pictures.")
        return wrong

    def stand_in(self, data_dir: str | None = None) -> Dataset | None:
        if self.name == OWN or not (counts := COUNTS.get(self.name)):
            return None
        train, held = (
            empty(self.name, n, tuple(self.image_size), self.channels, self.objects, COUNTS[self.name][2])
            for n in counts[:2]
        )
        train, held = self._with_boxes(train, held)
        info = DataInfo(len(train.class_names), len(train), targets=("labels", "boxes"), class_names=train.class_names)
        every = lambda split: np.arange(len(split))
        return Dataset(train, every(train), np.ones(len(train), bool), held, every(held), "test", info, None,
                       f"{self.name}, {len(train.class_names)} classes, is {NOT_HERE}")  # fmt: skip

    def shrunk(self) -> "Detection":
        """A few of the pictures that need no download, whatever the data."""
        own = dataclasses.replace(self, name=OWN, image_size=(0, 0), turn=False, mean=self.mean[:1], std=self.std[:1])
        return dataclasses.replace(super(Detection, own).shrunk(), batch_size=min(self.batch_size, 8),
                                   examples=min(self.examples, 64), eval_examples=32, eval_batch_size=16)  # fmt: skip

    @property
    def one_shape(self):
        return not self.turn or self.name == OWN or len(set(self.image_size)) == 1

    # --- views ---

    def train_views(self, inputs, index, epoch, key, *, names):
        if names != ("main",):
            return super().train_views(inputs, index, epoch, key, names=names)
        image, size = inputs["image"], inputs["size"]
        if self.ssd_views:
            fill = self._spread(self.mean, 0.0, image) * 255
            image = recoloured(image.astype(jnp.float32), view_keys(index, epoch, key, 2))
            image = looked_through(image, windows(inputs["boxes"], size, view_keys(index, epoch, key, 3)), size, fill)
        elif self.scaled:
            size = scaled_size(inputs["size"], drawn_scales(index, epoch, key, self.scales))
            image = resized(image, inputs["size"], size)
        if self.flip:
            image = flipped(image, size[:, 1], mirrored(index, epoch, key))
        shown = self.evaluation_view({"image": image})
        if not self.show_boxes:
            return shown
        moved = self.train_targets({name: inputs[name] for name in ("boxes", "size")}, index, epoch, key)
        return shown | {"boxes": moved["boxes"]}

    def train_targets(self, targets, index, epoch, key):
        boxes = targets["boxes"]
        size = targets["size"] if "size" in targets else jnp.full((len(boxes), 2), SIZE, jnp.int32)
        if self.ssd_views:
            boxes, there = seen(boxes, windows(boxes, size, view_keys(index, epoch, key, 3)), size)
            targets = targets | {"boxes": boxes}
            targets |= {"labels": jnp.where(there, targets["labels"], -1)} if "labels" in targets else {}
        elif self.scaled:
            new = scaled_size(size, drawn_scales(index, epoch, key, self.scales))
            boxes, size = moved(boxes, size, new), new
            targets = targets | {"boxes": boxes, "size": size}
        if self.flip:
            targets = targets | {"boxes": flipped_boxes(boxes, size[:, 1], mirrored(index, epoch, key))}
        return targets

    @property
    def scaled(self) -> bool:
        """Whether training pictures are shown smaller than they fit."""
        return tuple(self.scales) != (1.0, 1.0)

    def evaluation_view(self, inputs):
        shown = inputs["image"].astype(jnp.float32) / 255
        mean, std = self._spread(self.mean, 0.0, shown), self._spread(self.std, 1.0, shown)
        shown = (shown - mean[None, None, None]) / std[None, None, None]
        return {"image": shown} | {n: inputs[n] for n in ("boxes",) if n in inputs} if self.show_boxes else shown

    def _spread(self, values: tuple[float, ...], default: float, image: Array) -> Array:
        return jnp.broadcast_to(jnp.asarray(values or (default,), jnp.float32), image.shape[-1:])

    # --- networks ---

    def network(self, model: Detector, dataset: Dataset, *, remat: bool = False) -> Network:
        if remat:
            raise ValueError("remat is not offered for detectors; leave it off.")
        made = make_detector(model, dataset.info.num_classes, dataset.shapes(1)["inputs"]["image"].shape[-1])
        crops = model.name.startswith(CROPS)
        if crops and not self.show_boxes:
            raise ValueError(f"{model.name} judges crops of the objects; set data.show_boxes.")
        return passing_on(made) if self.show_boxes and not crops else made

    def shrunk_network(self, model: Detector) -> Detector:
        if model.name.startswith(CROPS):
            return dataclasses.replace(model, name=f"{CROPS}resnet8", width=4, crop=16)
        if model.name in SSDS:  # whose anchors are for 300 pixels
            name = "ssd_small" if SSDS[model.name][1] else "ssd_small_sigmoid"
            return dataclasses.replace(model, name=name, width=4, weights="")
        narrow = 4 if model.name.endswith(SMALL) else 8
        return dataclasses.replace(model, width=narrow, channels=16, weights="")

    @classmethod
    def knows_published(cls, network):
        return is_published(network)

    @classmethod
    def read_published(cls, path, network, *, data, width, image_size, mean, std, ema):
        if ema:
            raise ValueError("a running average is read of networks of the zoo alone; leave --ema out")
        found, model, canvas = read_published(path, network, width=width, image_size=image_size, mean=mean, std=std)
        channels: Any = found.channels
        make = lambda mean, std: cls(
            name=data or "coco/2017", eval_examples=0, image_size=canvas, channels=channels, mean=tuple(mean), std=tuple(std),
            stretch=network in SSDS, turn=network not in SSDS,
        )  # fmt: skip
        return found, make, model

    # --- metrics ---

    def fit(self, student, teacher, batch):
        return {}

    def sums(self, student, teacher, batch):
        kept = {
            "true_boxes": batch.targets["boxes"],
            "true_labels": batch.labels,
            "index": batch.index,
            "where": batch.where,
        }
        kept |= {name: batch.targets[name] for name in ("scale", *OF_OBJECTS) if name in batch.targets}

        def of(output):
            found = self.found(output, batch.inputs)
            said = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels}
            return {name: PerExample(x) for name, x in (said | kept).items()}

        return {"student": of(student)} | ({} if teacher is None else {"teacher": of(teacher)})

    def found(self, output: DetectorOutput | ModelOutput, inputs: dict[str, Array]) -> Detected:
        """The detections of a network of whatever kind on these inputs; a classifier's are the boxes that it was given."""
        if isinstance(output, DetectorOutput):
            return self.detected(output, inputs["size"])
        return judged(output, inputs["boxes"])

    def detected(self, output: DetectorOutput, sizes: Array) -> Detected:
        """The detections of a network's output, in pixels of what it saw, of pictures of `sizes` (height, width) `[B, 2]`."""
        grid = output.grid
        if output.edge_logits is None:
            edges, points, strides = decoded(output, grid), None, None
        else:
            edges, points, strides = output.edge_logits, grid.points, grid.strides
        return detect(
            output.logits, jnp.reshape(edges, (*output.logits.shape[:2], -1)), points, strides, sizes, level_sizes=grid.sizes,
            score_threshold=self.score_threshold, iou_threshold=self.iou_threshold, max_detections=self.max_detections,
            centreness=output.centreness, background=output.background,
        )  # fmt: skip

    def means(self, sums):
        detections, objects = found_and_true(sums)
        classes = 1 + max(sums["true_labels"].max(initial=-1), sums["labels"].max(initial=-1), 0)
        most = {"max_detections": self.max_detections}
        summary = evaluate(detections, objects, classes, max_detections=(1, 10, max(self.max_detections, 11))).summary()
        means = {name.lower(): float(value) for name, value in summary.items() if value >= 0} or {"ap": 0.0}
        split = split_errors(detections, objects, classes, **most)
        return means | {f"lost_{kind}": float(value) for kind, value in split.lost.items()}

    # --- a finished network, report ---

    def decoded(self, file: Any, inputs: Any) -> Any:
        """A picture, made to fit."""
        _, height, width, channels = inputs["image"].shape
        try:
            turned = self.turn and operator.gt(*picture_size(str(file)))
            made = fitted(str(file), (width, height) if turned else (height, width), channels, stretch=self.stretch)
        except Unreadable as error:
            raise ValueError(f"{file} {error}") from error
        return {"image": made.pixels, "size": np.array(made.size, np.int32), "scale": np.array(made.scale, np.float32)}

    def answers(self, inputs, output, names, top):
        found = jax.device_get(self.found(jax.tree.map(jnp.asarray, output), inputs))
        boxes = found.boxes
        if "scale" in inputs:  # of a file, in whose pixels they are said
            boxes = boxes / np.tile(np.asarray(inputs["scale"]), 2)[:, None]
        text = lambda box: " ".join(f"{x:.0f}" for x in box)
        return [
            [(f"{called(names, c)} at {text(box)}", float(s)) for box, s, c in zip(*row, strict=True) if c >= 0][:top]
            for row in zip(boxes, found.scores, found.labels, strict=True)
        ]

    def drawn(self, inputs, output, names, path):
        found = jax.device_get(self.found(jax.tree.map(jnp.asarray, output), inputs))
        draw_one(inputs["image"][0], found, names, path)

    def pictures(self, comparison, folder, load):
        return pictures_of(self, comparison, folder, load)
