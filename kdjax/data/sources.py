"""A data set as one split of images and classes in a fixed order: arrays, pictures in folders, or sets of TFDS."""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.data.arrays import Arrays, at_hand, check_split, read_arrays
from kdjax.data.catalogue import COUNTS, OWN, data_folder, open_builder, resolve
from kdjax.data.encoded import Encoded, FolderFiles, check_headers, differing, left_out
from kdjax.data.errors import DataError, note
from kdjax.data.folders import Folder, open_folder
from kdjax.data.npz import why
from kdjax.data.pictures import Reading
from kdjax.data.prepare import build
from kdjax.data.tfds_records import explain, image_and_label, open_records
from kdjax.places import is_address, local

MEMORY_LIMIT = 2 * 2**30  # bytes of decoded images from which on a set is read from disk as it goes


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """One split of a classification set, `N` examples in a fixed order.

    Attributes:
      name: full name of the set, so that "fashion_mnist" shows which of the two it was.
      split: the split as asked for, such as "train" or "test[:50%]".
      labels: `[N]` int32 classes.
      num_classes: number of classes.
      class_names: one name a class.
      images: `[N, H, W, C]` uint8 (of arrays also float32, or vectors `[N, D]` float32), or None where the decoded set has 2 GiB
        and more, or varies.
      origin: TFDS's name of the set with its version.
      records: what reads single examples, where there is such a thing.
      soft: `[N, C]` float32 probabilities of the classes, which are then the targets; None where each example has one class.
      varies: whether an example's image differs from pass to pass: a random crop of a picture.
    """

    name: str
    split: str
    labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]
    images: np.ndarray | None = None
    origin: str = ""
    records: Any = dataclasses.field(default=None, repr=False)
    soft: np.ndarray | None = None
    varies: bool = False

    def __post_init__(self):
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= self.num_classes))
        if len(wrong):
            row = int(wrong[0])
            said = self.records.files.said(row) if isinstance(self.records, Encoded) else f"Example {row}"
            raise DataError(
                f"{said} of {self.name} ({self.split}) has the label {self.labels[row]}, and there are {self.num_classes} "
                f"classes, from 0 on ({len(wrong):,} such of {len(self.labels):,}); mend it, or leave it out."
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def on_disk(self) -> bool:
        """Whether examples are read from files in every pass."""
        return self.images is None

    def fetch(self, indices, view: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Images `[B, H, W, C]` and labels `[B]` int32 at these positions `[B]`, in this order, as copies.

        Args:
          indices: the positions.
          view: `(data seed, pass)` for the crops of training; None for those of evaluation.

        Raises:
          DataError: an image cannot be read, or they differ in size (only where they are not in memory).
        """
        indices = np.asarray(indices)
        if self.images is not None:
            return self.images[indices], self.labels[indices]
        images = self.records.read(indices, view)
        if isinstance(images, np.ndarray):
            return images, self.labels[indices]
        for index, image in zip(indices, images, strict=True):
            if image.shape != images[0].shape:
                sizes = {f"example {i}": x.shape[:2] for i, x in ((indices[0], images[0]), (index, image))}
                raise DataError(differing(f"{self.name} ({self.split})", sizes))
        return np.stack(images), self.labels[indices]

    def read(self, indices, *, inputs: bool = True, view: tuple[int, int] | None = None) -> dict[str, Any]:
        """Images and labels as the inputs and targets of a `kdjax.types.Batch`."""
        indices = np.asarray(indices)
        targets = (self.labels if self.soft is None else self.soft)[indices]
        if not inputs:
            return {"inputs": None, "targets": targets}
        images, _ = self.fetch(indices) if view is None else self.fetch(indices, view)
        return {"inputs": images, "targets": targets}

    def fingerprint(self) -> str:
        """SHA-256 of images and labels, so that what was computed from them is never used with others.

        Of pictures in a folder, it covers names, sizes and the content of a thousand files instead of the pixels; of a set of
        TFDS that is not in memory, TFDS's name, version and split.
        """
        digest = hashlib.sha256()
        if isinstance(self.records, Encoded):
            digest.update(self.records.fingerprint())
        elif self.images is None:
            digest.update(f"{self.origin} {self.split}".encode())
        else:
            digest.update(f"{self.images.dtype} {self.images.shape}".encode())
            every = -(-self.images.nbytes // MEMORY_LIMIT)  # of arrays that stay on disk some rows, evenly spaced
            digest.update(np.ascontiguousarray(self.images[::every]))
        digest.update(np.ascontiguousarray(self.labels, dtype="<i4"))
        if self.soft is not None:
            digest.update(np.ascontiguousarray(self.soft, dtype="<f4"))
        return digest.hexdigest()

    def __repr__(self):
        where = "in memory" if self.images is not None else "on disk"
        return f"Source({self.name}, {self.split}: {len(self):,} examples, {self.num_classes} classes, {where})"


def load(
    name: str,
    *,
    split: str,
    data_dir: str | os.PathLike | None = None,
    reading: Reading = Reading(),
    split_seed: int = 0,
) -> Source:
    """Reads one split of a data set, into memory where the decoded images take less than 2 GiB.

    Args:
      name: "fashion_mnist/subset" (12,000 training images, in the package), "fashion_mnist/full" (60,000, from Debian's
        package dataset-fashion-mnist), "fashion_mnist" (the whole where it is installed, else the subset), "digits"
        (1,437 of 8 x 8, from scikit-learn); or an image-classification set of TFDS, such as "cifar10" or "cifar100".
        Our own are prepared on first use; TFDS's once by `kdjax data prepare`. Or the path of a folder of pictures, of an .npz
        or .npy file, or of a folder of .npy files; or what `kdjax.data.from_arrays` returned.
      split: "train", "test" or "validation", or of a set of TFDS a part as TFDS writes it, such as "train[:50%]".
      data_dir: TFDS folder; by default `TFDS_DATA_DIR`, or `~/tensorflow_datasets`.
      reading: how pictures become arrays.
      split_seed: of the choice of a test part, where the set has none.

    Raises:
      DataError: no such set or split, an empty split, not prepared, broken, or no image classification.
    """
    if name.startswith("arrays:"):
        return _from_arrays(name, split, check_split(name, at_hand(name), split, split_seed), reading)
    path = own_path(name, data_dir)
    if path is not None and is_arrays(path):
        return _from_arrays(name, split, check_split(name, read_arrays(path), split, split_seed), reading)
    if path is not None:
        return _from_folder(name, split, open_folder(name, path, split, split_seed), reading)
    name = resolve(name)
    builder = build(name, data_dir) if name in OWN else open_builder(name, data_dir)
    image_key, label_key = image_and_label(name, builder.info)
    try:
        return _from_tfds(name, builder, split, image_key, label_key, reading)
    except DataError:
        raise
    except Exception as error:  # TFDS and its readers raise many kinds
        explanation = explain(name, builder, split)
        raise DataError(
            explanation
            or f"{name} in {builder.data_path} cannot be read ({type(error).__name__}: {why(error)}); delete that folder and run "
            f"`kdjax data prepare {name}`."
        ) from error


def stand_in(
    name: str, *, split: str, data_dir: str | os.PathLike | None = None, reading: Reading = Reading()
) -> Source | None:
    """A black data set with the shapes and classes of one of TFDS's that is not prepared, or None where they are not known."""
    if name.partition("/")[0] not in COUNTS:
        return None
    builder = open_builder(name, data_dir)
    image_key, label_key = image_and_label(name, builder.info)
    shape, classes = builder.info.features[image_key].shape, builder.info.features[label_key]
    shape = (reading.size, reading.size, reading.channels) if reading.size else shape
    if None in shape:
        return None
    count = COUNTS[name.partition("/")[0]][split != "train"]
    images = np.broadcast_to(np.zeros((1,) * 4, np.uint8), (count, *shape))
    labels = np.arange(count, dtype=np.int32) % classes.num_classes
    return Source(name, split, labels, classes.num_classes, tuple(classes.names), images, varies=varies(split, reading))


def own_path(name: str, data_dir: str | os.PathLike | None = None) -> Path | None:
    """The file or folder that a name means, or None for the name of a set.

    A name of a set comes before a folder in the working directory; ./NAME means the folder.

    Raises:
      DataError: it can only mean a path, and there is nothing.
    """
    if is_address(name):
        raise DataError(
            f"Data sets lie on this machine's disks, and {name} is an address; copy it here, and give its path."
        )
    path = local(name, DataError, "A data set")
    can_only_be = name.startswith(("/", "./", "../", "~", ".\\")) or path.suffix in (".npz", ".npy")
    if can_only_be and not path.exists():
        raise DataError(
            f"There is no file or folder {path}; give the path of pictures (a folder a class) or of an .npz file."
        )
    if can_only_be:
        if path.is_file() and path.suffix not in (".npz", ".npy"):
            raise DataError(f"{path} is a file; give a folder of pictures, or an .npz or .npy file.")
        return path
    if not name or name in (*OWN, "fashion_mnist") or not path.is_dir():
        return None
    folder = data_folder(data_dir)
    if "://" not in folder and Path(folder, name).exists():
        return None
    import tensorflow_datasets as tfds

    return None if name.partition("/")[0] in tfds.list_builders(with_community_datasets=False) else path


def is_arrays(path: Path) -> bool:
    """Whether a file, or a folder of files, holds arrays and no pictures."""
    return path.suffix in (".npz", ".npy") or any(path.glob("*.npy"))


def _from_arrays(name: str, split: str, arrays: Arrays, reading: Reading) -> Source:
    if reading.size:
        raise DataError(f"{name} are arrays, which are not cropped on the host; set data.image_size to 0.")
    if reading.skip_unreadable:
        raise DataError(f"{name} are arrays, none of which is left out; data.skip_unreadable is for pictures.")
    classes = arrays.class_names
    return Source(name, split, _frozen(arrays.labels), len(classes), classes, _frozen(arrays.inputs), soft=arrays.soft)


def _from_folder(name: str, split: str, folder: Folder, reading: Reading) -> Source:
    if folder.note:
        note(folder.note)
    if reading.skip_unreadable:
        rows = left_out(name, FolderFiles(folder), f"{folder.root} {folder.stamp()}", reading)
        _check_lost(name, split, folder.labels, folder.labels[rows], folder.class_names)
        folder = folder.take(rows)
    files = FolderFiles(folder)
    height, width = check_headers(name, files, one_size=not reading.size)
    records = Encoded(files, reading, "mend or delete it, or set data.skip_unreadable")
    source = Source(
        name, split, _frozen(folder.labels), len(folder.class_names), folder.class_names, records=records,
        varies=varies(split, reading),
    )  # fmt: skip
    return _in_memory(source, (reading.size or height, reading.size or width, reading.channels))


def _from_tfds(name: str, builder, split: str, image_key: str, label_key: str, reading: Reading) -> Source:
    info = builder.info
    if split == "test" and "test" not in info.splits and "validation" in info.splits:
        split = "validation"
    records, labels, images = open_records(name, builder, split, image_key, label_key, reading, MEMORY_LIMIT)
    if not len(records):
        raise DataError(f"{name} has no examples in the split {split!r}; ask for more of it.")
    if labels.min() < 0 and split == "test" and "validation" in info.splits:  # ImageNet's test labels are kept secret
        note(f"{name} has no labels in its split test; its split validation is evaluated")
        return _from_tfds(name, builder, "validation", image_key, label_key, reading)
    if labels.min() < 0:
        raise DataError(
            f"{name} has no labels in the split {split!r}, so nothing can be evaluated on it; use another set."
        )
    classes = info.features[label_key]
    source = Source(
        name, split, _frozen(labels), classes.num_classes, tuple(classes.names), origin=info.full_name,
        records=records if images is None else None, images=None if images is None else _frozen(images),
        varies=varies(split, reading),
    )  # fmt: skip
    return _in_memory(source, (reading.size, reading.size, reading.channels)) if reading.size else source


def _check_lost(name: str, split: str, before: np.ndarray, after: np.ndarray, names: tuple[str, ...]) -> None:
    """Refuses classes of which nothing could be read."""
    lost = np.setdiff1d(before, after)
    if len(lost):
        raise DataError(
            f"No picture of the class {names[lost[0]]!r} of {name} ({split}) can be read; mend them, or delete the class."
        )


def varies(split: str, reading: Reading) -> bool:
    return bool(reading.size) and reading.crop.varies and split.startswith("train")


def _in_memory(source: Source, shape: tuple[int, int, int]) -> Source:
    """The source with its images in memory, if they are the same in every pass and small."""
    if source.varies or len(source) * int(np.prod(shape)) >= MEMORY_LIMIT:
        return source
    return dataclasses.replace(source, images=_frozen(source.records.all(shape)))


def _frozen(array: np.ndarray) -> np.ndarray:
    """A view that cannot be written to."""
    array = array.view()
    array.setflags(write=False)
    return array
