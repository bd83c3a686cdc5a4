"""Batches put together by other processes, in their order: one interpreter opens some thousand pictures a second, however many
cores decode them."""

import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from kdjax.data.encoded import cores, use_threads
from kdjax.data.errors import DataError

AHEAD = 2  # batches that lie ready in each


def by_processes(batch: Callable[[int], Any], start: int, stop: int, workers: int) -> Iterator[Any]:
    """`batch(start)`, `batch(start + 1)`, ... up to but without `stop`, each made in one of `workers` processes, which end when
    the iterator does.

    Args:
      batch: what makes one; it is sent to the processes.
      start, stop: numbers.
      workers: how many processes.

    Raises:
      DataError: what a process raised, or that one ended, and why that may be.
    """
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain asks flags of absl, which only programs of absl read from the command line
        flags.FLAGS.mark_as_parsed()
    numbers = grain.MapDataset.range(start, stop).map(lambda k: batch(int(k)))
    batches = numbers.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD))
    small = grain.experimental.DatasetOptions(min_shm_size=2**16)  # what goes through a pipe
    batches = grain.experimental.WithOptionsIterDataset(batches, small)
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=AHEAD)
    made = iter(batches.mp_prefetch(options, _begin))
    atexit.register(made.close)  # of an iterator that nobody has ended
    try:
        while True:
            try:
                one = next(made)
            except StopIteration:
                return
            except RuntimeError as error:
                if why := _why(str(error)):
                    raise DataError(why) from error
                raise
            yield one
    finally:
        atexit.unregister(made.close)
        made.close()


def _begin(index: int, workers: int) -> None:
    """What a process does first."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # accelerators are the training process' own
    use_threads(max(1, cores() // workers))
    # A signal to the whole group is for the one that trains: it goes on until its state is saved.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when the one that began it has been killed: its batches in shared memory are then given back."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _why(said: str) -> str:
    """A sentence on how a process ended, by grain's words, or "" where they are of something else."""
    _, found, code = said.partition("terminated unexpectedly with exit code ")
    if not found:
        return ""
    code = code.partition(".")[0]
    mend = {
        "-9": "it was killed, perhaps for want of memory; use fewer --workers, or smaller batches",
        "-7": "its shared memory (/dev/shm) is full; enlarge that (docker run --shm-size 16g), or use fewer --workers",
        "1": 'what it wrote above says why; a script with workers is a file, and trains under `if __name__ == "__main__":`',
    }
    return (
        f"A process that reads data ended with exit code {code}: {mend.get(code, 'what it wrote above may say why')}."
    )
