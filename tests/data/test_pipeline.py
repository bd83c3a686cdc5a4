"""Batches by number: deterministic, complete, resumable, and the same for any number of processes."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from kdjax.data import DataError, Pipeline, Source, evaluation_batches, make_splits


def fields(batch):
    """The names of what a batch holds: no pipeline of examples brings what a teacher says, and images have no elements."""
    assert batch.teacher is None and batch.elements is None and batch.labelled_elements is None
    return [field.name for field in dataclasses.fields(batch) if getattr(batch, field.name) is not None]


def same(one, other):
    for name in fields(one):
        first, second = getattr(one, name), getattr(other, name)
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second)


@pytest.fixture(scope="module")
def splits(digits):
    return make_splits(digits.labels, validation=237, labelled=300)


def pipeline(digits, splits, **options):
    return Pipeline(
        digits, splits.train, **{"batch_size": 64, "data_seed": 5, "labelled_mask": splits.labelled, **options}
    )


def test_what_a_batch_holds(digits, splits):
    batch = pipeline(digits, splits)[2]
    assert batch.inputs.shape == (64, 8, 8, 1) and batch.inputs.dtype == np.uint8
    assert batch.labels.dtype == batch.index.dtype == np.int32
    assert batch.where.dtype == batch.labelled.dtype == bool
    np.testing.assert_array_equal(batch.inputs, digits.images[batch.index])
    np.testing.assert_array_equal(batch.labels, digits.labels[batch.index])
    np.testing.assert_array_equal(batch.labelled, splits.labelled[batch.index])
    assert 0 < batch.labelled.sum() < 64


def test_every_epoch_has_every_example_once_in_another_order(digits, splits):
    batches = pipeline(digits, splits)
    assert batches.steps_per_epoch == 19  # 1,200 / 64 = 18.75
    epochs = [[batches[k] for k in range(e * 19, (e + 1) * 19)] for e in range(3)]
    orders = [np.concatenate([batch.index[batch.where] for batch in epoch]) for epoch in epochs]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), splits.train)
    assert all((one != other).mean() > 0.9 for one, other in itertools.combinations(orders, 2))


def test_last_batch_is_filled_with_examples_of_its_epoch(digits, splits):
    batches = pipeline(digits, splits)
    last = batches[18]
    assert last.where.tolist() == [True] * 48 + [False] * 16
    np.testing.assert_array_equal(last.index[48:], batches[0].index[:16])
    assert len(set(last.index)) == 64
    exact = pipeline(digits, splits, batch_size=60)
    assert exact.steps_per_epoch == 20 and exact[19].where.all()


def test_more_rows_than_examples(digits):
    batch = Pipeline(digits, [4, 9, 2], batch_size=8, data_seed=0)[1]
    assert batch.where.tolist() == [True] * 3 + [False] * 5
    assert sorted(batch.index[:3]) == [2, 4, 9] and set(batch.index) == {2, 4, 9}


def test_depends_on_data_seed_and_number_only(digits, splits):
    same(pipeline(digits, splits)[1234], pipeline(digits, splits)[1234])
    other = pipeline(digits, splits, data_seed=6)[1234]
    assert (pipeline(digits, splits)[1234].index != other.index).mean() > 0.8
    batches = pipeline(digits, splits)
    backwards = [batches[k] for k in reversed(range(40))]
    for k, batch in enumerate(reversed(backwards)):
        same(batch, pipeline(digits, splits)[k])


def test_order_is_the_same_on_every_machine(digits):
    """Numbers that must never change: a run resumed with a later version goes on as it began."""
    assert Pipeline(digits, np.arange(10), batch_size=10, data_seed=7)[3].index.tolist() == [
        2,
        5,
        9,
        7,
        3,
        0,
        6,
        8,
        4,
        1,
    ]


def test_resuming_equals_never_having_stopped(digits, splits):
    batches = pipeline(digits, splits)
    whole = list(batches.iterate(0, 45))
    assert len(whole) == 45
    for k, batch in enumerate(whole):
        same(batch, batches[k])
    resumed = pipeline(digits, splits).iterate(17)
    for batch in whole[17:]:
        same(batch, next(resumed))


def test_reading_ahead_passes_errors_on(digits):
    class Broken(Source):
        def fetch(self, indices):
            raise DataError("the disk is gone")

    fields = {field.name: getattr(digits, field.name) for field in dataclasses.fields(digits)}
    batches = Pipeline(Broken(**fields), np.arange(20), batch_size=5, data_seed=0)
    with pytest.raises(DataError, match="the disk is gone"):
        next(batches.iterate())


@pytest.mark.parametrize("count", [2, 4])
def test_processes_read_slices_of_the_same_batch(digits, splits, count):
    whole = pipeline(digits, splits)
    parts = [pipeline(digits, splits, process_index=i, process_count=count) for i in range(count)]
    for k in (0, 18, 40):
        pieces = [part[k] for part in parts]
        for name in fields(whole[k]):
            joined = np.concatenate([getattr(piece, name) for piece in pieces])
            np.testing.assert_array_equal(joined, getattr(whole[k], name))
        assert pieces[0].labels.shape == (64 // count,)
    evaluated = [list(evaluation_batches(digits, None, 64, process_index=i, process_count=count)) for i in range(count)]
    for k, batch in enumerate(evaluation_batches(digits, None, 64)):
        np.testing.assert_array_equal(np.concatenate([part[k].index for part in evaluated]), batch.index)


def test_evaluation_reads_everything_once_in_order(digits, splits):
    batches = list(evaluation_batches(digits, splits.validation, 100))
    assert len(batches) == 3 and all(batch.inputs.shape == (100, 8, 8, 1) for batch in batches)
    rows = np.concatenate([batch.index[batch.where] for batch in batches])
    np.testing.assert_array_equal(rows, splits.validation)
    assert batches[-1].where.sum() == 37 and batches[-1].labelled.all()
    np.testing.assert_array_equal(batches[-1].labels, digits.labels[batches[-1].index])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 64, "process_count": 3}, "64 does not divide over 3 processes"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"process_index": 2, "process_count": 2}, "process 2 of 2"),
        ({"labelled_mask": np.ones(3, bool)}, r"labelled_mask has shape \(3,\)"),
        ({"data_seed": -1}, "data_seed=-1 is negative"),
    ],
)
def test_errors(digits, splits, options, message):
    with pytest.raises(DataError, match=message):
        pipeline(digits, splits, **options)


def test_errors_of_indices(digits, splits):
    with pytest.raises(DataError, match="no examples of digits"):
        Pipeline(digits, [], batch_size=4, data_seed=0)
    with pytest.raises(DataError, match=r"positions .* from 0 to 1436"):
        Pipeline(digits, [1437], batch_size=4, data_seed=0)
    with pytest.raises(DataError, match="no examples"):
        evaluation_batches(digits, [], 4)
    with pytest.raises(IndexError, match="from 0 on"):
        pipeline(digits, splits)[-1]


class OfLengths:
    """Rows of 1 to 9 numbers, cut to 3, 6 or 9."""

    name, split, widths = "lengths", "train", np.array([3, 6, 9])
    lengths = np.random.default_rng(0).integers(1, 10, 1000)
    groups = np.searchsorted(widths, lengths)

    def __len__(self):
        return len(self.lengths)

    def read(self, indices, *, inputs=True, together=None):
        width = 9 if together is None else self.widths[self.groups[together].max()]
        return {
            "inputs": np.where(np.arange(width) < self.lengths[indices][:, None], indices[:, None], 0),
            "targets": None,
        }


def test_rows_of_like_length_share_batches():
    """Each is there once an epoch, whatever the length; all but those at the borders of a group have one width."""
    batches = Pipeline(OfLengths(), np.arange(5, 1000), batch_size=16, data_seed=3)
    assert batches.steps_per_epoch == 63
    epochs = [[batches[k] for k in range(e * 63, (e + 1) * 63)] for e in range(2)]
    for epoch in epochs:
        rows = np.concatenate([batch.index[batch.where] for batch in epoch])
        np.testing.assert_array_equal(np.sort(rows), np.arange(5, 1000))
        mixed = [batch for batch in epoch if len(set(OfLengths.groups[batch.index])) > 1]
        assert len(mixed) <= 3 and {batch.inputs.shape[1] for batch in epoch} == {3, 6, 9}
        for batch in epoch:
            assert batch.inputs.shape[1] == OfLengths.widths[OfLengths.groups[batch.index].max()]
    widths = [[batch.inputs.shape[1] for batch in epoch] for epoch in epochs]
    assert widths[0] != widths[1] and np.mean(np.diff(widths[0]) != 0) > 0.4, "batches come in any order"
    same(batches[70], Pipeline(OfLengths(), np.arange(5, 1000), batch_size=16, data_seed=3)[70])


def test_processes_cut_rows_of_like_length_alike():
    """As the whole batch needs, also where a process has none that is long."""
    options = {"batch_size": 16, "data_seed": 3}
    whole = Pipeline(OfLengths(), np.arange(1000), **options)
    own = [Pipeline(OfLengths(), np.arange(1000), **options, process_index=i, process_count=4) for i in range(4)]
    for k in range(63):
        parts = [pipeline[k] for pipeline in own]
        np.testing.assert_array_equal(np.concatenate([part.inputs for part in parts]), whole[k].inputs)
        np.testing.assert_array_equal(np.concatenate([part.index for part in parts]), whole[k].index)


@pytest.mark.parametrize("count", [1, 4])
def test_evaluation_reads_one_group_after_the_other(count):
    """Everything once, each batch as long as its group needs, alike on any number of processes."""
    rows = np.arange(7, 1000, 3)
    parts = [
        list(evaluation_batches(OfLengths(), rows, 16, process_index=i, process_count=count)) for i in range(count)
    ]
    batches = [jax.tree.map(lambda *each: np.concatenate(each), *step) for step in zip(*parts, strict=True)]
    np.testing.assert_array_equal(np.sort(np.concatenate([batch.index[batch.where] for batch in batches])), rows)
    for batch in batches:
        groups = set(OfLengths.groups[batch.index])
        assert len(groups) == 1 and batch.inputs.shape == (16, OfLengths.widths[groups.pop()])
    assert sum(not batch.where.all() for batch in batches) <= 3


def test_every_64_batches_exchange_their_examples():
    batches = Pipeline(OfLengths(), np.arange(1000), batch_size=4, data_seed=0)
    plain = Pipeline(type("Mixed", (OfLengths,), {"groups": None})(), np.arange(1000), batch_size=4, data_seed=0)
    for start in (0, 64, 128):
        found, wanted = (np.concatenate([p[k].index for k in range(start, start + 64)]) for p in (batches, plain))
        np.testing.assert_array_equal(np.sort(found), np.sort(wanted))
