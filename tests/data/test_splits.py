"""Who is held out, and whose label may be used."""

import numpy as np
import pytest

from kdjax.data import DataError, make_splits

LABELS = np.random.Philox(3).random_raw(1000).astype(np.int64) % 7


def test_partition_and_balance():
    splits = make_splits(LABELS, validation=100, labelled=70, split_seed=1)
    assert len(splits.train) == 900 and len(splits.validation) == 100
    np.testing.assert_array_equal(np.sort(np.concatenate([splits.train, splits.validation])), np.arange(1000))
    assert (np.diff(splits.train) > 0).all() and (np.diff(splits.validation) > 0).all()
    held_out = np.bincount(LABELS[splits.validation], minlength=7)
    assert held_out.max() - held_out.min() <= 1
    assert np.bincount(LABELS[splits.labelled]).tolist() == [10] * 7
    assert not splits.labelled[splits.validation].any()
    assert splits.train.dtype == splits.validation.dtype == np.int32


@pytest.mark.parametrize("labelled", [None, 0])
def test_all_are_labelled_unless_said_otherwise(labelled):
    splits = make_splits(LABELS, validation=10, labelled=labelled)
    np.testing.assert_array_equal(np.flatnonzero(splits.labelled), splits.train)
    assert len(make_splits(LABELS).train) == 1000


def test_depends_on_the_seed_only():
    one, same, other = (make_splits(LABELS, validation=100, labelled=70, split_seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.validation, same.validation)
    np.testing.assert_array_equal(one.labelled, same.labelled)
    assert len(np.intersect1d(one.validation, other.validation)) < 40
    assert make_splits(np.arange(12) % 3, validation=5).validation.tolist() == [2, 4, 6, 7, 8]


def test_choices_nest():
    small = make_splits(LABELS, validation=50, labelled=70)
    large = make_splits(LABELS, validation=123)
    assert set(small.validation) < set(large.validation)
    more = make_splits(LABELS, validation=50, labelled=333)
    assert (small.labelled <= more.labelled).all() and more.labelled.sum() == 333


def test_a_small_class_gives_what_it_has():
    labels = np.array([0] * 50 + [1] * 3 + [2] * 50)
    splits = make_splits(labels, labelled=33)
    assert np.bincount(labels[splits.labelled]).tolist() == [15, 3, 15]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"validation": 1000}, "leaves nothing to train on: there are 1000"),
        ({"validation": 100, "labelled": 901}, "labelled=901 is more than the 900"),
        ({"labelled": 6}, "labelled=6 leaves a class without a label: there are 7"),
        ({"validation": -1}, "none may be negative"),
        ({"labelled": -5}, "none may be negative"),
        ({"split_seed": -1}, "none may be negative"),
    ],
)
def test_errors(options, message):
    with pytest.raises(DataError, match=message):
        make_splits(LABELS, **options)
