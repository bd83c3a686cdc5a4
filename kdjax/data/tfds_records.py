"""Sets of TFDS, read example by example without TensorFlow."""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.data.encoded import Encoded, left_out, readers
from kdjax.data.errors import DataError
from kdjax.data.npz import BROKEN
from kdjax.data.pictures import Reading, Unreadable
from kdjax.data.prepare import unreadable
from kdjax.places import cache_folder

AT_ONCE = 1000  # examples in one read: six times as fast as one by one


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """Random access to the examples of a split.

    Attributes:
      source: TFDS's.
      image_key, label_key: names of what is read.
      said_as: the set and split, for messages.
      origin: TFDS's name of them, with the version.
      rows: positions of those that are kept, where some are left out; None for all.
    """

    source: Any
    image_key: str
    label_key: str
    said_as: str
    origin: str
    rows: np.ndarray | None = None

    def __len__(self):
        return len(self.source) if self.rows is None else len(self.rows)

    def keep(self, rows: np.ndarray) -> "Records":
        """Those at some positions alone."""
        if len(rows) == len(self):
            return self
        which = hashlib.sha256(np.asarray(rows, "<i8")).hexdigest()[:16]
        return dataclasses.replace(self, rows=rows, origin=f"{self.origin} of which {which}")

    def read(self, indices, view=None) -> list[np.ndarray]:
        """Images as TFDS stores them; there is only one view."""
        return [example[self.image_key] for example in self.examples(indices)]

    def get(self, indices) -> list[Any]:
        return self.read(indices)

    def said(self, index: int) -> str:
        return f"Example {self._place(index)} of {self.said_as}"

    def fingerprint(self) -> str:
        return self.origin

    def examples(self, indices) -> list[dict]:
        indices = [self._place(index) for index in indices]
        try:
            return self.source.__getitems__(indices)
        except TypeError:  # the sources of tfds.testing.mock_data read one by one only
            return [self.source[index] for index in indices]

    def _place(self, index: int) -> int:
        """Where the example lies in TFDS's order."""
        return int(index if self.rows is None else self.rows[index])

    def parts(self) -> Iterator[range]:
        """All positions by the thousand."""
        return (range(start, min(start + AT_ONCE, len(self))) for start in range(0, len(self), AT_ONCE))

    def labels_of(self, examples: list[dict]) -> np.ndarray:
        return np.asarray([int(example[self.label_key]) for example in examples], np.int32)


def records_of(name: str, builder, split: str, image_key: str, label_key: str) -> tuple[Records, bool]:
    """The examples of a split, and whether their images are encoded pictures, which are then left so."""
    import tensorflow_datasets as tfds

    feature = builder.info.features[image_key]
    # tfds.testing.mock_data has no files, and no pictures that are encoded.
    encoded = isinstance(feature, tfds.features.Image) and feature.shape[-1] in (1, 3) and builder.data_path.exists()
    decoders = {image_key: tfds.decode.SkipDecoding()} if encoded else None
    source = builder.as_data_source(split=split, decoders=decoders)
    said = f"{name} ({split})", f"{builder.info.full_name} {split}"
    return Records(source, image_key, label_key, *said), encoded


def open_records(
    name: str, builder, split: str, image_key: str, label_key: str, reading: Reading, memory_limit: int
) -> tuple[Any, np.ndarray, np.ndarray | None]:
    """What reads a split.

    Returns:
      `(records, labels [N], images [N, H, W, C])`; of large sets, or where images are cropped, the images are None.

    Raises:
      DataError: an example cannot be read; it is named.
    """
    records, encoded = records_of(name, builder, split, image_key, label_key)
    feature = builder.info.features[image_key]
    if not encoded and reading.size:
        raise DataError(
            f"The images of {name} are stored as arrays, which are not cropped on the host; set data.image_size to 0."
        )
    if reading.skip_unreadable and not encoded:
        raise DataError(
            f"The images of {name} are stored as arrays, none of which is left out; data.skip_unreadable is for pictures."
        )
    if reading.skip_unreadable:
        records = records.keep(left_out(name, records, str(_content(builder, split)), reading))
    if encoded:
        reading = dataclasses.replace(reading, channels=feature.shape[-1] if not reading.size else reading.channels)
        reader = Encoded(records, reading, "prepare the set anew, or set data.skip_unreadable")
    shape = (reading.size, reading.size, reading.channels) if reading.size else tuple(feature.shape)
    if None in shape or reading.size or len(records) * int(np.prod(shape)) >= memory_limit:
        return reader if encoded else records, all_labels(builder, split, records), None
    key = _content(builder, split, image_key, label_key, reading)
    if key not in _KEPT:
        read = _read_all(name, records, image_key, reader if encoded else None, shape)
        if key is None or read[1].nbytes > KEPT_BYTES:
            return records, *read
        while len(_KEPT) >= KEPT_SPLITS:
            del _KEPT[next(iter(_KEPT))]
        _KEPT[key] = read
    return records, *_KEPT[key]


# A process that runs one experiment after the other (a notebook) parses a small set once: key -> labels and images.
_KEPT: dict[Any, tuple[np.ndarray, np.ndarray]] = {}
KEPT_SPLITS, KEPT_BYTES = 4, 2**28


def _content(builder, split: str, *how: Any) -> Any:
    """What distinguishes the examples that would be read: the set's files as they are now, and how they are read. None where
    there are no files."""
    home = Path(str(builder.data_path))
    files = sorted(path for path in home.iterdir() if path.is_file()) if home.is_dir() else []
    state = tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return (str(home.resolve()), state, split, *how) if files else None


def _read_all(
    name: str, records: Records, image_key: str, reader: Encoded | None, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """`(labels [N], images [N, *shape])` of a split, decoded."""
    images, labels = np.empty((len(records), *shape), np.uint8), np.empty(len(records), np.int32)
    for part in records.parts():
        examples = records.examples(part)
        labels[part.start : part.stop] = records.labels_of(examples)
        found = [example[image_key] for example in examples]
        if reader:
            found = list(readers().map(lambda file, row: _decoded(reader, file, row), found, part))
        for row, image in zip(part, found, strict=True):
            if np.shape(image) != shape:
                raise DataError(f"{records.said(row)} has the shape {list(np.shape(image))}, and the set says {list(shape)}; "
                                "prepare it anew with pictures of one size.")  # fmt: skip
            images[row] = image
    images.setflags(write=False)
    labels.setflags(write=False)
    return labels, images


def _decoded(reader: Encoded, file: Any, row: int) -> np.ndarray:
    try:
        return reader.reading.decode(file)
    except Unreadable as error:
        raise DataError(f"{reader.files.said(row)} {error}; {reader.mend}.") from error


def all_labels(builder, split: str, records: Records) -> np.ndarray:
    """`[N]` int32 classes of a split that is not read into memory. Every record is read for them once, none is decoded, and they
    are kept in the user's cache."""
    home = cache_folder("labels")
    info = Path(str(builder.data_path), "dataset_info.json")
    state = info.stat().st_mtime_ns if info.exists() else 0
    facts = f"{builder.data_path} {records.origin} {len(records)} {records.label_key} {state}"
    kept = home / f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}.npy"
    if kept.exists():
        with contextlib.suppress(*BROKEN):  # a damaged one is made anew
            labels = np.load(kept, allow_pickle=False)
            if labels.shape == (len(records),) and labels.dtype == np.int32:
                return labels
    found = readers().map(lambda part: records.labels_of(records.examples(part)), list(records.parts()))
    labels = np.concatenate([np.zeros(0, np.int32), *found])
    if state:
        with contextlib.suppress(OSError):  # kept for the next time, where that can be
            home.mkdir(parents=True, exist_ok=True)
            temporary = kept.with_suffix(f".{os.getpid()}.npy")
            np.save(temporary, labels)
            temporary.replace(kept)
    return labels


def image_and_label(name: str, info) -> tuple[str, str]:
    """Names of the image and the label among a set's features."""
    import tensorflow_datasets as tfds

    keys = info.supervised_keys
    if isinstance(keys, tuple) and len(keys) == 2 and all(key in info.features for key in keys):
        image, label = (info.features[key] for key in keys)
        is_image = isinstance(image, tfds.features.Tensor | tfds.features.Image) and len(image.shape) == 3
        if is_image and image.np_dtype == np.uint8 and isinstance(label, tfds.features.ClassLabel):
            return keys
    raise DataError(f"{name} is no set of uint8 images with one class each; use one that is, such as cifar100.")


def explain(name: str, builder, split: str) -> str | None:
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
