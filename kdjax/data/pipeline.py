"""Batches by number: batch `k` is a function of the data seed and `k`, so a run resumed at `k` never notices."""

import functools
import operator
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from kdjax.data.errors import DataError, note
from kdjax.data.workers import by_processes
from kdjax.types import Batch

FOREVER = 2**60
EXCHANGED = 64  # batches of a split with groups that exchange their examples


class Examples(Protocol):
    """One split of a data set, as a task reads it: examples by their positions, in an order that never changes.

    Attributes:
      name, split: for messages.

    A split whose inputs differ from pass to pass (random crops that are made here, on the host) has an attribute `varies`
    that is true, and `read` takes `view=(data seed, pass)` for training. What it gives then is a function of these and of the
    position of the example, and of nothing else.

    A split whose inputs are read from files and decoded again in every pass has an attribute `on_disk` that is true.

    A split of several shapes has an attribute `groups`, `[N]` integers that are alike for rows of one shape. Batches are
    then of one group where that can be, and `read` takes `together=rows`, those of the whole batch over all processes: what it
    gives has the shape that they need. Without `together` all rows have one shape.
    """

    name: str
    split: str

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray, *, inputs: bool = True) -> dict[str, Any]:
        """Fields of a `kdjax.types.Batch` of the examples at positions `[B]`, as NumPy arrays: "inputs", "targets", and
        masks of elements where the task has them. Without `inputs`, the inputs are None and need not be read."""
        ...

    def fingerprint(self) -> str:
        """A hash of all that `read` gives, so that what was computed from it is never used with other data."""
        ...


class Pipeline:
    """Endless training batches of numpy arrays, shuffled anew every epoch, readable at any position.

    `pipeline[k]` has what `Examples.read` gives and, `[B]` each, `index` int32 (the position in the training split, not in
    `indices`), `where` and `labelled`. Views are not made here but on the device.

    An epoch has `ceil(n / batch_size)` batches. The last one is filled up with examples from the beginning of the same
    epoch, where=False: they may enter BatchNorm's statistics and nothing else. As long as `n >= batch_size`, no example
    is in a batch twice. Of a split with groups, every 64 batches of the shuffled order exchange their examples, so that each has
    those of one group, and are shuffled themselves.

    With several processes each gets its contiguous slice of the same global batch, in the order of `process_index`;
    the global batches do not depend on their number.
    """

    def __init__(
        self,
        source: Examples,
        indices,
        *,
        batch_size: int,
        data_seed: int,
        labelled_mask=None,
        process_index: int = 0,
        process_count: int = 1,
        inputs: bool = True,
        workers: int = 0,
    ):
        """Binds a source to an order.

        Args:
          source: where the examples are.
          indices: `[n]` positions in the source to train on.
          batch_size: rows of the global batch.
          data_seed: which order.
          labelled_mask: `[N]` bool over the whole source, as in `Splits.labelled`; None means all.
          process_index: which process this is.
          process_count: how many there are.
          inputs: whether to read the inputs; without them `inputs` is None.
          workers: how many further processes put batches together, of a source that is read from files; 0 for threads of this
            one. Batches are the same.

        Raises:
          DataError: no examples, a bad size, or a batch that does not divide over the processes.
        """
        self.source = source
        self.inputs = inputs
        self.workers = workers if inputs and getattr(source, "on_disk", False) else 0
        if workers and not self.workers:
            note(f"{source.name} ({source.split}) is in memory, so that no workers read it")
        self.indices = _positions(source, indices)
        self.batch_size = batch_size
        self.data_seed = data_seed
        self._rows = _rows_of_process(batch_size, process_index, process_count)
        self._orders: dict[int, np.ndarray] = {}
        self._labelled = np.ones(len(source), bool) if labelled_mask is None else np.asarray(labelled_mask, bool)
        if self._labelled.shape != (len(source),):
            raise DataError(f"labelled_mask has shape {self._labelled.shape}; {source.name} needs ({len(source)},).")
        if data_seed < 0:
            raise DataError(f"data_seed={data_seed} is negative; use 0 or more.")

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __getitem__(self, k: int) -> Batch:
        k = operator.index(k)
        if k < 0:
            raise IndexError(f"batch {k}: batches are numbered from 0 on.")
        epoch, step = divmod(k, self.steps_per_epoch)
        order = self._order(epoch)
        places = step * self.batch_size + self._rows
        chosen = self.indices[order[places % len(order)]]
        more: dict[str, Any] = {"view": (self.data_seed, epoch)} if getattr(self.source, "varies", False) else {}
        if getattr(self.source, "groups", None) is not None:
            everywhere = step * self.batch_size + np.arange(self.batch_size)
            more["together"] = self.indices[order[everywhere % len(order)]]
        read = self.source.read(chosen, inputs=self.inputs, **more)
        return Batch(**read, index=chosen, where=places < len(order), labelled=self._labelled[chosen])

    def _order(self, epoch: int) -> np.ndarray:
        """The order of a pass; that of the last two is at hand, as threads may be in both."""
        order = self._orders.get(epoch)
        if order is None:
            order, groups = _order(len(self.indices), self.data_seed, epoch), getattr(self.source, "groups", None)
            if groups is not None:
                order = _alike(order, groups[self.indices], self.batch_size, self.data_seed, epoch)
            self._orders = dict([*self._orders.items()][-1:]) | {epoch: order}
        return order

    def iterate(
        self, start_step: int = 0, stop_step: int | None = None, *, threads: int = 2, prefetch: int = 4
    ) -> Iterator[Batch]:
        """Batches `start_step`, `start_step + 1`, ... up to but without `stop_step`, read ahead in the background.

        Args:
          start_step: number of the first batch; 0, or where a checkpoint left off.
          stop_step: where to end; None never ends.
          threads: how many batches are put together at once, where no workers do it.
          prefetch: how many lie ready at most, where no workers do it.
        """
        if self.workers:
            return by_processes(self.__getitem__, start_step, FOREVER if stop_step is None else stop_step, self.workers)
        return _read_ahead(self.__getitem__, start_step, stop_step, threads, prefetch)


def evaluation_batches(
    source: Examples,
    indices,
    batch_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    prefetch: int = 4,
) -> Iterator[Batch]:
    """Every example once, in order; the last batch is filled up by repeating its last example, where=False. Of a split with
    groups, one group after the other.

    Args:
      source: where the examples are.
      indices: `[n]` positions in the source; None means all.
      batch_size: rows of the global batch.
      process_index: which process this is; each gets its contiguous slice of every batch.
      process_count: how many there are.
      threads: how many batches are put together at once.
      prefetch: how many lie ready at most.

    Raises:
      DataError: no examples, a bad size, or a batch that does not divide over the processes.
    """
    positions = _positions(source, np.arange(len(source)) if indices is None else indices)
    rows = _rows_of_process(batch_size, process_index, process_count)

    groups = getattr(source, "groups", None)
    parts = [positions] if groups is None else [positions[groups[positions] == g] for g in np.unique(groups[positions])]
    batches = [part[start : start + batch_size] for part in parts for start in range(0, len(part), batch_size)]

    def batch(k: int) -> Batch:
        chosen = batches[k][np.minimum(rows, len(batches[k]) - 1)]
        read = source.read(chosen) if groups is None else source.read(chosen, together=batches[k])
        return Batch(**read, index=chosen, where=rows < len(batches[k]), labelled=np.ones(len(rows), bool))

    return _read_ahead(batch, 0, len(batches), threads, prefetch)


@functools.lru_cache(maxsize=8)  # the epochs that a few pipelines are in
def _order(size: int, data_seed: int, epoch: int) -> np.ndarray:
    """A permutation of `range(size)`, int64, alike on every machine.

    Sorting Philox's words orders 50,000 examples in 10 ms an epoch. grain's own shuffle is as random and reads as
    freely, but costs 12 us an example in Python, 0.6 s an epoch, taken from the thread that trains.
    """
    words = np.random.Philox(key=np.array([data_seed, epoch], np.uint64)).random_raw(size)
    order = np.argsort(words, kind="stable")
    order.setflags(write=False)
    return order


def _alike(order: np.ndarray, groups: np.ndarray, batch_size: int, data_seed: int, epoch: int) -> np.ndarray:
    """An order of the same examples whose batches are of one group each, as far as `EXCHANGED` of them can be."""
    whole = len(order) // batch_size * batch_size
    stream = np.random.Philox(key=np.array([data_seed, epoch], np.uint64), counter=np.array([0, 0, 1, 0], np.uint64))
    parts = []
    for start in range(0, whole, EXCHANGED * batch_size):
        part = order[start : min(start + EXCHANGED * batch_size, whole)]
        batches = part[np.argsort(groups[part], kind="stable")].reshape(-1, batch_size)
        parts.append(batches[np.argsort(stream.random_raw(len(batches)), kind="stable")].reshape(-1))
    return np.concatenate([*parts, order[whole:]])


def _read_ahead(batch, start: int, stop: int | None, threads: int, prefetch: int) -> Iterator[Batch]:
    import grain

    numbers = grain.MapDataset.range(start, FOREVER if stop is None else stop)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(numbers.map(lambda k: batch(int(k))).to_iter_dataset(options))


def _positions(source: Examples, indices) -> np.ndarray:
    positions = np.asarray(indices)
    if positions.size == 0:
        raise DataError(f"There are no examples of {source.name} to read: indices is empty.")
    if positions.ndim != 1 or positions.min() < 0 or positions.max() >= len(source):
        raise DataError(f"indices must be positions [n] from 0 to {len(source) - 1} in {source.name}, {source.split}.")
    return positions.astype(np.int32)


def _rows_of_process(batch_size: int, process_index: int, process_count: int) -> np.ndarray:
    """Which rows of the global batch a process reads."""
    if batch_size < 1 or not 0 <= process_index < process_count:
        raise DataError(f"batch_size={batch_size}, process {process_index} of {process_count}: that cannot be.")
    if batch_size % process_count:
        raise DataError(f"batch_size={batch_size} does not divide over {process_count} processes; use a multiple.")
    own = batch_size // process_count
    return np.arange(process_index * own, (process_index + 1) * own)
