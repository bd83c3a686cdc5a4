"""Texts of TFDS, read without TensorFlow."""

import os
from typing import Any

import numpy as np

from kdjax.data.catalogue import open_builder
from kdjax.data.columns import Columns, chosen_columns
from kdjax.data.errors import DataError, note
from kdjax.data.npz import why
from kdjax.data.tfds_records import AT_ONCE, explain

Read = tuple[tuple[str, ...], tuple[str, ...] | None, np.ndarray, tuple[str, ...]]

EVALUATED = {
    "test": ("test", "validation", "validation_matched"),
    "validation": ("validation", "validation_matched", "test"),
}
# Examples to train on and to evaluate, classes, and whether they are pairs, of sets that a dry run knows unprepared.
COUNTS = {
    "glue/cola": (8551, 1043, 2, False), "glue/sst2": (67349, 872, 2, False), "glue/mrpc": (3668, 408, 2, True),
    "glue/qqp": (363846, 40430, 2, True), "glue/mnli": (392702, 9815, 3, True), "glue/qnli": (104743, 5463, 2, True),
    "glue/rte": (2490, 277, 2, True), "glue/wnli": (635, 71, 2, True), "imdb_reviews": (25000, 25000, 2, False),
    "ag_news_subset": (120000, 7600, 4, False),
}  # fmt: skip


def read_records(name: str, split: str, data_dir: str | os.PathLike | None, columns: Columns) -> Read:
    """Texts, second texts or None, classes `[N]` int32 and their names, of a split of a set of TFDS that is prepared. A set whose
    test part has no classes is evaluated on its validation part.

    Raises:
      DataError: no such set, not prepared, broken, or no texts with classes.
    """
    builder = open_builder(name, data_dir)
    features = builder.info.features
    keys = chosen_columns(name, tuple(features), columns)
    classes = features[keys[2]]
    if not hasattr(classes, "names"):
        raise DataError(f"{name} has no classes in {keys[2]!r} but numbers to be guessed, which this task is not for.")
    try:
        for part in EVALUATED.get(split, (split,)):
            if builder.info.splits and part not in builder.info.splits:
                continue
            columns_of = _columns(builder, part, keys)
            if columns_of[2].min(initial=0) >= 0:
                if split == "test" and part != "test":
                    note(f"{name} has no classes in its split test; its split {part} is evaluated")
                return (*columns_of, tuple(classes.names))
    except DataError:
        raise
    except Exception as error:  # TFDS and its readers raise many kinds
        explanation = explain(name, builder, split)
        raise DataError(
            explanation
            or f"{name} in {builder.data_path} cannot be read ({type(error).__name__}: {why(error)}); delete that folder and run "
            f"`kdjax data prepare {name}`."
        ) from error
    raise DataError(explain(name, builder, split) or f"{name} has no classes in the split {split!r}; use another set.")


def _columns(
    builder: Any, part: str, keys: tuple[str, str, str]
) -> tuple[tuple[str, ...], tuple[str, ...] | None, np.ndarray]:
    source, rows = builder.as_data_source(split=part), []
    for start in range(0, len(source), AT_ONCE):
        places = list(range(start, min(start + AT_ONCE, len(source))))
        try:
            rows += source.__getitems__(places)
        except TypeError:  # the sources of tfds.testing.mock_data read one by one only
            rows += [source[place] for place in places]
    column = lambda key: tuple(_text(row[key]) for row in rows)
    labels = np.array([int(row[keys[2]]) for row in rows], np.int32)
    return column(keys[0]), column(keys[1]) if keys[1] else None, labels


def _text(value: Any) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
