"""Several processes as one run: all compute, the first writes files, and what one finds wrong is said by all."""

import contextlib
import hashlib
import sys
from collections.abc import Callable

import jax
import numpy as np

from kdjax.places import disk_fault
from kdjax.training.watch import watch

LONGEST = 4096  # bytes of a message from the first process


def connect(how: str) -> None:
    """Joins this process to the others of its run; to be called before anything else is done with JAX.

    Args:
      how: "auto" on a TPU pod, under Slurm or Open MPI, where JAX finds the others; or "HOST:PORT,COUNT,INDEX": where the
        first process listens, how many there are, and which this is; "" for a single process.

    Raises:
      ValueError: it is none of these.
    """
    if not how:
        return
    if how == "auto":
        jax.distributed.initialize()
        watch_others()
        return
    address, *numbers = how.split(",")
    if len(numbers) != 2 or not all(number.isdigit() for number in numbers) or ":" not in address:
        raise ValueError(f"--distributed {how!r} is neither auto nor HOST:PORT,COUNT,INDEX, such as node0:9876,4,0.")
    jax.distributed.initialize(address, *map(int, numbers))
    watch_others()


def watch_others() -> None:
    """Has this process end when another one dies."""
    from jax._src.distributed import global_state  # jax's own connection is known to nobody else

    if global_state.client is not None and global_state.num_processes > 1:
        host = global_state.coordinator_address.rpartition(":")[0].strip("[]")
        watch(global_state.client, host, global_state.process_id, global_state.num_processes)


def is_first() -> bool:
    """Whether this process is the one that writes files and talks to the user."""
    return jax.process_index() == 0


def say(sentence: str) -> None:
    """Says something worth knowing on stderr, once for all processes."""
    if is_first():
        print(f"kdjax: {sentence}.", file=sys.stderr, flush=True)


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process; all must ask."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def of_first(number: int) -> int:
    """The first process's number, in all; all must ask."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.array(number)))


def same_in_all(text: str) -> bool:
    """Whether all processes have the same text; all must ask."""
    number = int(hashlib.sha256(text.encode()).hexdigest()[:7], 16)  # what an int32 holds
    return not any_of(number != of_first(number))


def of_all(rows: np.ndarray) -> np.ndarray:
    """The rows of all processes, one behind the other, in all; all must ask."""
    if jax.process_count() == 1:
        return np.asarray(rows)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.asarray(rows), tiled=True))


def by_first(function: Callable[[], None], error: type[Exception], *kinds: type[Exception]) -> None:
    """Runs a function in the first process while the others wait.

    Args:
      function: to run.
      error: what is raised in the others.
      kinds: what is raised there instead, where the first raised just that.

    Raises:
      the function's own error, in the first process, and `error` with the same sentence in the others; each has `said_by_all`
      set, and is raised once all have heard of it.
    """
    if jax.process_count() == 1:
        function()
        return
    from jax.experimental import multihost_utils

    raised, message = None, b""
    if is_first():
        try:
            function()
        except Exception as own:
            sentence = disk_fault(own) or str(own) or type(own).__name__
            raised, message = own, f"{type(own).__name__} {sentence}".encode()[:LONGEST]
    padded = np.frombuffer(message.ljust(LONGEST, b"\0"), np.uint8)
    said = bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))).rstrip(b"\0")
    if raised is None and said:
        name, _, sentence = said.decode(errors="replace").partition(" ")
        raised = next((kind for kind in kinds if kind.__name__ == name), error)(sentence)
    if raised is not None:
        with contextlib.suppress(Exception):  # one that has heard may be gone already
            any_of(True)
        raised.said_by_all = True  # type: ignore[attr-defined]
        raise raised
