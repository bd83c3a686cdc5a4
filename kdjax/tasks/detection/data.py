"""How a config names pictures with boxes, and how they become batches, views and average precision."""

import dataclasses
import functools
import hashlib
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data import fashion_boxes
from kdjax.data.errors import DataError
from kdjax.data.pictures import Unreadable, fitted
from kdjax.models.detectors import DetectorOutput, level_points
from kdjax.tasks.detection.average_precision import evaluate
from kdjax.tasks.detection.decoding import Detected, detect
from kdjax.tasks.detection.drawing import draw_errors, draw_one, draw_side_by_side
from kdjax.tasks.detection.errors import split_errors
from kdjax.tasks.detection.matching import Detections, Objects
from kdjax.tasks.detection.networks import DEPTHS, Detector, make_detector
from kdjax.tasks.task import Dataset, Task
from kdjax.training.evaluation import PerExample
from kdjax.training.metrics import Metric
from kdjax.types import Array, DataInfo, Network

OWN = "fashion_boxes"
SHOWN, MOST_SHOWN = 6, 6  # pictures in a report, and networks beside each other


class Boxes:
    """One split: pictures of one size, and the boxes in them.

    Attributes:
      images: `[N, H, W, C]` uint8.
      boxes: `[N, G, 4]` float32 corners in pixels; `labels`: `[N, G]` int32, -1 for padding.
      class_names: one a class.
    """

    def __init__(self, name: str, split: str, images: np.ndarray, boxes: np.ndarray, labels: np.ndarray, class_names):
        self.name, self.split, self.class_names = name, split, tuple(class_names)
        self.images, self.boxes, self.labels = images, boxes.astype(np.float32), labels.astype(np.int32)
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

    def read(self, indices: np.ndarray, *, inputs: bool = True) -> dict[str, Any]:
        targets = {"boxes": self.boxes[indices], "labels": self.labels[indices]}
        return {"inputs": self.images[indices] if inputs else None, "targets": targets}

    def fingerprint(self) -> str:
        return hashlib.sha256(b"".join(x.tobytes() for x in (self.images, self.boxes, self.labels))).hexdigest()


@functools.lru_cache(maxsize=4)
def _drawn(split: str, count: int, seed: int) -> Boxes:
    made = fashion_boxes.draw_many(split, count, seed=seed)
    return Boxes(OWN, split, made.images, made.boxes, made.labels, fashion_boxes.CLASS_NAMES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection(Task):
    """Which pictures with boxes, and how they are shown."""

    name: str = OWN
    """data set: fashion_boxes, drawn from a seed out of the embedded Fashion-MNIST images"""
    batch_size: int = 16
    eval_batch_size: int = 100
    examples: int = 4000
    """pictures to train on"""
    eval_examples: int = 1000
    """pictures that are evaluated"""
    draw_seed: int = 0
    """seed of the pictures that are drawn"""
    flip: bool = True
    """mirror left and right, every other time, boxes with it"""
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

    def load(self, data_dir: str | None = None) -> Dataset:
        if self.name != OWN:
            raise DataError(f"No detection data set is called {self.name!r}; there is {OWN!r}.")
        train, held = (
            _drawn(s, n, self.draw_seed) for s, n in (("train", self.examples), ("test", self.eval_examples))
        )
        info = DataInfo(len(train.class_names), len(train), targets=("labels", "boxes"), class_names=train.class_names)
        objects = int((train.labels >= 0).sum())
        return Dataset(
            train, np.arange(len(train)), np.ones(len(train), bool), held, np.arange(len(held)), "test", info, train.images,
            f"{len(train.class_names)} classes, {objects:,} objects",
        )  # fmt: skip

    def problems(self) -> list[str]:
        wrong = [name for name in ("examples", "eval_examples", "max_detections") if getattr(self, name) < 1]
        return [f"data.{name}={getattr(self, name)}; use 1 or more." for name in wrong]

    def shrunk(self) -> "Detection":
        return dataclasses.replace(super().shrunk(), batch_size=min(self.batch_size, 8), examples=min(self.examples, 64),
                                   eval_examples=min(self.eval_examples, 32), eval_batch_size=16)  # fmt: skip

    # --- views ---

    def train_views(self, inputs, index, epoch, key, *, names):
        if names != ("main",):
            return super().train_views(inputs, index, epoch, key, names=names)
        mirrored = self._mirrored(index, epoch, key)[:, None, None, None]
        return self.evaluation_view(jnp.where(mirrored, inputs[:, :, ::-1], inputs) if self.flip else inputs)

    def train_targets(self, targets, index, epoch, key):
        if not self.flip:
            return targets
        boxes = targets["boxes"]
        left, top, right, bottom = (boxes[..., i] for i in range(4))
        width = self.size[1]
        other = jnp.stack([width - right, top, width - left, bottom], axis=-1)
        return targets | {"boxes": jnp.where(self._mirrored(index, epoch, key)[:, None, None], other, boxes)}

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the pictures."""
        return fashion_boxes.SIZE, fashion_boxes.SIZE

    def _mirrored(self, index: Array, epoch, key: Array) -> Array:
        """`[B]` bool, which pictures are shown mirrored in a pass: a function of the seed, the pass and the picture alone."""
        key = jax.random.fold_in(key, epoch)
        words = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), (), jnp.uint32))(index)
        return words % 2 == 1

    def evaluation_view(self, inputs):
        shown = inputs.astype(jnp.float32) / 255
        spread = lambda values, default: jnp.broadcast_to(jnp.asarray(values or default, jnp.float32), shown.shape[-1:])
        mean, std = spread(self.mean, (0.0,)), spread(self.std, (1.0,))
        return (shown - mean[None, None, None]) / std[None, None, None]

    # --- networks ---

    def network(self, model: Detector, dataset: Dataset, *, remat: bool = False) -> Network:
        if remat:
            raise ValueError("remat is not offered for detectors; leave it off.")
        return make_detector(model, dataset.info.num_classes, dataset.shapes(1)["inputs"].shape[-1])

    def shrunk_network(self, model: Detector) -> Detector:
        narrow = 8 if model.name in DEPTHS else 4
        return dataclasses.replace(model, width=narrow, channels=16)

    # --- metrics ---

    def fit(self, student, teacher, batch):
        return {}

    def sums(self, student, teacher, batch):
        there = {
            "true_boxes": batch.targets["boxes"], "true_labels": batch.labels, "index": batch.index, "where": batch.where,
        }  # fmt: skip

        def of(output):
            found = self.detected(output, batch.inputs.shape[1:3])
            return {name: PerExample(x) for name, x in (found._asdict() | there).items()}

        return {"student": of(student)} | ({} if teacher is None else {"teacher": of(teacher)})

    def detected(self, output: DetectorOutput, size: tuple[int, int]) -> Detected:
        """The detections of a network's output, of pictures of `size` (height, width)."""
        points, strides = level_points(output.sizes, output.strides)
        rows = len(output.logits)
        return detect(
            output.logits, jnp.reshape(output.edge_logits, (*output.edge_logits.shape[:2], -1)), points, strides,
            jnp.broadcast_to(jnp.array(size)[None], (rows, 2)), level_sizes=tuple(h * w for h, w in output.sizes),
            score_threshold=self.score_threshold, iou_threshold=self.iou_threshold, max_detections=self.max_detections,
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
        """A picture, made to fit without changing its shape."""
        _, height, width, channels = inputs.shape
        try:
            return fitted(str(file), (height, width), channels)
        except Unreadable as error:
            raise ValueError(f"{file} {error}") from error

    def answers(self, output, names, top):
        size = self.size
        found = jax.device_get(self.detected(jax.tree.map(jnp.asarray, output), size))
        text = lambda box: " ".join(f"{x:.0f}" for x in box)
        return [
            [(f"{names[c]} at {text(box)}", float(s)) for box, s, c in zip(*row, strict=True) if c >= 0][:top]
            for row in zip(found.boxes, found.scores, found.labels, strict=True)
        ]

    def drawn(self, inputs, output, names, path):
        found = jax.device_get(self.detected(jax.tree.map(jnp.asarray, output), self.size))
        draw_one(inputs, found, names, path)

    def pictures(self, comparison, folder, load):
        held = self.load().held
        chosen = held.read(np.arange(min(len(held), SHOWN)))
        networks = {"teacher": folder / "teacher"} if (folder / "teacher").exists() else {}
        for name, summary in comparison["methods"].items():
            networks[name] = folder / name / f"seed{summary['seeds'][0]}"
        found = {}
        for name, place in list(networks.items())[:MOST_SHOWN]:
            output = jax.jit(load(place))(chosen["inputs"])
            found[name] = jax.device_get(self.detected(output, chosen["inputs"].shape[1:3]))
        draw_side_by_side(chosen, found, held.class_names, folder / "found.png")
        draw_errors(comparison["methods"], folder / "errors.png")
        return (
            (
                "What was found",
                "pictures with their objects, and what the first seed of each finds",
                folder / "found.png",
            ),
            ("What average precision is lost to", "points by kind of error and method", folder / "errors.png"),
        )


def found_and_true(sums: dict[str, np.ndarray]) -> tuple[Detections, Objects]:
    """What was found and what there is of an evaluation's examples, by the order of the data set."""
    rows = np.flatnonzero(sums["where"])
    rows = rows[np.argsort(sums["index"][rows], kind="stable")]
    of = {name: value[rows] for name, value in sums.items()}
    return (
        Detections.of_batch(of["boxes"], of["scores"], of["labels"], of["index"]),
        Objects.of_batch(of["true_boxes"], of["true_labels"], of["true_labels"] >= 0, of["index"]),
    )
