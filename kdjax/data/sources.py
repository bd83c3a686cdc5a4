"""A data set as arrays: every image and label of one split, in a fixed order, read through TFDS without TensorFlow."""

import dataclasses
import hashlib
import os
from typing import Any

import numpy as np

from kdjax.data.catalogue import OWN, open_builder, resolve
from kdjax.data.errors import DataError
from kdjax.data.prepare import build, unreadable

MEMORY_LIMIT = 2 * 2**30  # bytes of decoded images from which on a set is read from disk as it goes


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """One split of an image-classification set, `N` examples in a fixed order.

    Attributes:
      name: full name of the set, so that "fashion_mnist" shows which of the two it was.
      split: the split as asked for, such as "train" or "test[:50%]".
      labels: `[N]` int32 classes.
      num_classes: number of classes.
      class_names: one name a class.
      images: `[N, H, W, C]` uint8, or None where the decoded set has 2 GiB and more.
      origin: TFDS's name of the set with its version.
      records: what reads single examples, where `images` is None.
    """

    name: str
    split: str
    labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]
    images: np.ndarray | None = None
    origin: str = ""
    records: Any = dataclasses.field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices) -> tuple[np.ndarray, np.ndarray]:
        """Images `[B, H, W, C]` uint8 and labels `[B]` int32 at these positions `[B]`, in this order, as copies.

        Raises:
          DataError: the images differ in size (only where they are not in memory).
        """
        indices = np.asarray(indices)
        if self.images is not None:
            return self.images[indices], self.labels[indices]
        images, _ = self.records.read(indices)
        if len({image.shape for image in images}) > 1:
            raise DataError(f"The images of {self.name} differ in size; use a set whose images are all alike.")
        return np.stack(images), self.labels[indices]

    def read(self, indices, *, inputs: bool = True) -> dict[str, Any]:
        """Images and labels as the inputs and targets of a `kdjax.types.Batch`."""
        if not inputs:
            return {"inputs": None, "targets": self.labels[np.asarray(indices)]}
        images, labels = self.fetch(indices)
        return {"inputs": images, "targets": labels}

    def fingerprint(self) -> str:
        """SHA-256 of images and labels, so that what was computed from them is never used with others.

        Of a set that is not in memory, it covers the labels and TFDS's name, version and split instead of the pixels.
        """
        digest = hashlib.sha256()
        if self.images is None:
            digest.update(f"{self.origin} {self.split}".encode())
        else:
            digest.update(f"{self.images.dtype} {self.images.shape}".encode())
            digest.update(np.ascontiguousarray(self.images))
        digest.update(np.ascontiguousarray(self.labels, dtype="<i4"))
        return digest.hexdigest()

    def __repr__(self):
        where = "in memory" if self.images is not None else "on disk"
        return f"Source({self.name}, {self.split}: {len(self):,} examples, {self.num_classes} classes, {where})"


def load(name: str, *, split: str, data_dir: str | os.PathLike | None = None) -> Source:
    """Reads one split of a data set, into memory where the decoded images take less than 2 GiB.

    Args:
      name: "fashion_mnist/subset" (12,000 training images, in the package), "fashion_mnist/full" (60,000, from Debian's
        package dataset-fashion-mnist), "fashion_mnist" (the whole where it is installed, else the subset), "digits"
        (1,437 of 8 x 8, from scikit-learn); or an image-classification set of TFDS, such as "cifar10" or "cifar100".
        Our own are prepared on first use; TFDS's once by `kdjax data prepare`.
      split: "train", "test", or a part of one as TFDS writes it, such as "train[:50%]".
      data_dir: TFDS folder; by default `TFDS_DATA_DIR`, or `~/tensorflow_datasets`.

    Raises:
      DataError: no such set or split, an empty split, not prepared, broken, or no image classification.
    """
    name = resolve(name)
    builder = build(name, data_dir) if name in OWN else open_builder(name, data_dir)
    image_key, label_key = _keys(name, builder.info)
    try:
        return _read(name, builder, split, image_key, label_key)
    except Exception as error:  # TFDS and its readers raise many kinds
        explanation = _explain(name, builder, split)
        if explanation is None:
            raise
        raise DataError(explanation) from error


def _read(name: str, builder, split: str, image_key: str, label_key: str) -> Source:
    info = builder.info
    records = _Records(builder.as_data_source(split=split), image_key, label_key)
    source = Source(
        name=name,
        split=split,
        labels=np.zeros(0, np.int32),
        num_classes=info.features[label_key].num_classes,
        class_names=tuple(info.features[label_key].names),
        origin=info.full_name,
    )
    shape = info.features[image_key].shape
    if None in shape or len(records) * np.prod(shape) >= MEMORY_LIMIT:
        import tensorflow_datasets as tfds

        undecoded = builder.as_data_source(split=split, decoders={image_key: tfds.decode.SkipDecoding()})
        labels = _Records(undecoded, image_key, label_key).all_labels()
        return dataclasses.replace(source, labels=_frozen(labels), records=records)
    images, labels = records.all(shape)
    return dataclasses.replace(source, images=_frozen(images), labels=_frozen(labels))


@dataclasses.dataclass(frozen=True)
class _Records:
    """Random access to the examples that TFDS stores."""

    source: Any
    image_key: str
    label_key: str

    def __len__(self):
        return len(self.source)

    def read(self, indices) -> tuple[list[np.ndarray], np.ndarray]:
        examples = self._examples([int(index) for index in indices])
        images = [example[self.image_key] for example in examples]
        return images, np.asarray([int(example[self.label_key]) for example in examples], np.int32)

    def all(self, shape) -> tuple[np.ndarray, np.ndarray]:
        """Every image `[N, *shape]` and label `[N]`, read by the thousand: six times as fast as one by one."""
        images = np.empty((len(self), *shape), np.uint8)
        labels = np.empty(len(self), np.int32)
        for start in range(0, len(self), 1000):
            part = slice(start, min(start + 1000, len(self)))
            images[part], labels[part] = self.read(range(part.start, part.stop))
        return images, labels

    def all_labels(self) -> np.ndarray:
        parts = [self.read(range(i, min(i + 1000, len(self))))[1] for i in range(0, len(self), 1000)]
        return np.concatenate(parts)

    def _examples(self, indices: list[int]) -> list[dict]:
        try:
            return self.source.__getitems__(indices)
        except TypeError:  # the sources of tfds.testing.mock_data read one by one only
            return [self.source[index] for index in indices]


def _keys(name: str, info) -> tuple[str, str]:
    """Names of the image and the label among a set's features."""
    import tensorflow_datasets as tfds

    keys = info.supervised_keys
    if isinstance(keys, tuple) and len(keys) == 2 and all(key in info.features for key in keys):
        image, label = (info.features[key] for key in keys)
        is_image = isinstance(image, tfds.features.Tensor | tfds.features.Image) and len(image.shape) == 3
        if is_image and image.np_dtype == np.uint8 and isinstance(label, tfds.features.ClassLabel):
            return keys
    raise DataError(f"{name} is no set of uint8 images with one class each; use one that is, such as cifar100.")


def _explain(name: str, builder, split: str) -> str | None:
    """Why a split cannot be read, in a sentence, or None where nobody knows."""
    if not builder.data_path.exists():
        return f"{name} is not in {builder.data_path}; run `kdjax data prepare {name}`, which needs TensorFlow once."
    fault = unreadable(name, builder)
    if fault:
        return fault
    try:
        count = builder.info.splits[split].num_examples
    except (KeyError, ValueError):
        return f"{name} has no split {split!r}; it has {', '.join(builder.info.splits)}, and parts such as train[:50%]."
    return None if count else f"{name} has no examples in the split {split!r}; ask for more of it."


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
