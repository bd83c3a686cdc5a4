"""Examples that two splits share."""

import collections
import os

import numpy as np

from kdjax.data.encoded import Encoded, FolderFiles

FILES = 20_000  # of a larger folder, pictures are not compared


def overlap(train, held) -> list[tuple[int, int]]:
    """Positions `(in train, in held)` of examples that are in both, bit for bit; of those that are twice in `train` the first.

    Arrays in memory are compared by their content, pictures of folders by that of their files; others are not compared.

    Args:
      train, held: two `Source`s of one set.
    """
    if train.images is not None and held.images is not None:
        if train.images.shape[1:] != held.images.shape[1:] or train.images.dtype != held.images.dtype:
            return []
        return _same(lambda i: train.images[i].tobytes(), len(train), lambda i: held.images[i].tobytes(), len(held))
    folders = [_folder(source) for source in (train, held)]
    if any(folder is None or len(folder) > FILES for folder in folders):
        return []
    paths = [[folder.path(i) for i in range(len(folder))] for folder in folders]
    sizes = [[os.path.getsize(path) if os.path.exists(path) else -1 for path in some] for some in paths]
    both = set(sizes[0]) & set(sizes[1])  # only files of one size can be the same

    def content(which):
        def read(i):
            if sizes[which][i] not in both:
                return None
            with open(paths[which][i], "rb") as file:
                return file.read()

        return read

    return _same(content(0), len(folders[0]), content(1), len(folders[1]))


def _folder(source):
    files = source.records.files if isinstance(source.records, Encoded) else None
    return files.folder if isinstance(files, FolderFiles) else None


def _same(first, first_count: int, second, second_count: int) -> list[tuple[int, int]]:
    there: dict[int, list[int]] = collections.defaultdict(list)  # by hash: contents are not kept
    for i in range(first_count):
        raw = first(i)
        if raw is not None:
            there[hash(raw)].append(i)
    pairs = []
    for j in range(second_count):
        raw = second(j)
        found = next((i for i in there.get(hash(raw), ()) if first(i) == raw), None) if raw is not None else None
        if found is not None:
            pairs.append((found, j))
    return pairs


def said(train, held) -> str:
    """A sentence about examples that are trained on and evaluated, or "" where there are none."""
    pairs = overlap(train, held)
    if not pairs:
        return ""
    first, second = pairs[0]
    other = int(np.sum([train.labels[i] != held.labels[j] for i, j in pairs]))
    labels = f", {other:,} of them with another label" if other else ""
    return (
        f"{len(pairs):,} of the {len(held):,} examples of {held.name} ({held.split}) are in its split {train.split} too{labels}; "
        f"the first is number {second}, there number {first}"
    )
