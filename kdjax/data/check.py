"""Looks at every example of a data set before anybody trains on it."""

import collections
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from kdjax.data.annotated import has_boxes, open_annotated
from kdjax.data.catalogue import OWN, open_builder, resolve
from kdjax.data.encoded import Files, FolderFiles, faults
from kdjax.data.errors import DataError
from kdjax.data.folders import open_folder
from kdjax.data.pictures import Reading, Unreadable
from kdjax.data.sources import Source, is_arrays, load, own_path
from kdjax.data.texts import load_texts, of_texts
from kdjax.data.tfds_records import explain, image_and_label, records_of
from kdjax.places import local


def check(name: str, data_dir: str | os.PathLike | None = None, log: Callable[[str], None] = print) -> int:
    """Reads a whole data set and says what is wrong with it, a line each.

    Args:
      name: as for `load`.
      data_dir: TFDS folder; by default `TFDS_DATA_DIR`, or `~/tensorflow_datasets`.
      log: gets the lines.

    Returns:
      How many examples cannot be read.

    Raises:
      DataError: the set as a whole cannot be read.
    """
    table = local(name, DataError, "A data set")
    if of_texts(name, table):
        for split in ("train", "test"):
            texts = load_texts(name, split=split)
            log(f"{name} ({split}): {len(texts):,} texts, {len(texts.class_names)} classes")
        return 0
    path = own_path(name, data_dir)
    if path is not None and has_boxes(Path(path)):
        return sum(_check_boxes(name, Path(path), split, log) for split in ("train", "test"))
    count = 0
    for split, files in _splits(name, data_dir):
        if isinstance(files, Source):  # read into memory, or refused
            log(f"{name} ({split}): {len(files):,} examples, {files.num_classes} classes")
            continue
        sizes: dict[int, tuple[int, int]] = {}

        def examine(file, row, sizes=sizes):
            sizes[row] = Reading().decode(file).shape[:2]

        wrong = faults(files, examine, range(len(files)))
        for row, what in wrong.items():
            log(f"{files.said(row)} {what}")
        kinds = collections.Counter(sizes.values()).most_common()
        size = (
            f"all {kinds[0][0][0]} x {kinds[0][0][1]} pixels"
            if len(kinds) == 1
            else f"{len(kinds):,} sizes; set data.image_size"
        )
        log(f"{name} ({split}): {len(files):,} pictures, {len(wrong):,} of them unreadable, {size}")
        count += len(wrong)
    return count


def _check_boxes(name: str, root: Path, split: str, log: Callable[[str], None]) -> int:
    """The same of pictures with boxes, whose size must be that of their descriptions."""
    found, wrong = open_annotated(root, split), 0
    for one in found.pictures:
        try:
            height, width, _ = Reading().decode(one.path).shape
            one.check_size(height, width)
        except (Unreadable, DataError) as error:
            wrong += 1
            log(f"{one.path} {error}" if isinstance(error, Unreadable) else str(error))
    objects = sum(len(one.boxes) for one in found.pictures)
    log(
        f"{name} ({split}): {len(found.pictures):,} pictures, {wrong:,} of them unreadable or not as described, {objects:,} "
        f"objects of {len(found.class_names)} classes"
    )
    return wrong


def _splits(name: str, data_dir) -> Iterator[tuple[str, Files | Source]]:
    """The encoded pictures of each split. What is no encoded picture is read into memory instead, which checks it."""
    path = own_path(name, data_dir)
    if path is not None and not is_arrays(path):
        yield from ((split, FolderFiles(open_folder(name, Path(path), split))) for split in ("train", "test"))
        return
    name = resolve(name)
    if path is None and name not in OWN and not name.startswith("arrays:"):
        builder = open_builder(name, data_dir)
        keys = image_and_label(name, builder.info)
        if explain(name, builder, "train") is None:
            for split in builder.info.splits:
                records, encoded = records_of(name, builder, split, *keys)
                if encoded:
                    yield split, records
            return
    for split in ("train", "test"):
        yield split, load(name, split=split, data_dir=data_dir)
