"""How one step is compiled: `jit` over a mesh (the default), the same with spread parameters ("fsdp"), or `pmap`.

All give the same loss and the same gradients for networks whose BatchNorm axis can be set and whose randomness is keyed
per example.
"""

import dataclasses
import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, use_abstract_mesh

from kdjax.models.kernel_gradients import as_products
from kdjax.objectives.relations import banks
from kdjax.training.replication import differing
from kdjax.training.state import TrainState
from kdjax.types import Axis, Batch, Tree

DATA = "data"
KINDS = ("jit", "fsdp", "pmap")
# Below this many values an array is not worth spreading.
SPREAD_SIZE = 2**14


@dataclasses.dataclass(frozen=True)
class Runner:
    """Places data on devices and compiles functions of `(state, teacher, batch)`.

    Attributes:
      mesh: the devices, along one axis called "data".
      mapped: True for pmap: functions then run once a device, on its rows, with `axis` set.
      fsdp: True to spread parameters, their moving average and the optimizer's state over the devices, and the teacher;
        each is put together where it is used.
    """

    mesh: Mesh
    mapped: bool = False
    fsdp: bool = False

    @property
    def axis(self) -> Axis:
        """What to pass as `axis=` to `make_step`."""
        return DATA if self.mapped else None

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def sharded(self) -> NamedSharding:
        return self.rows()

    def rows(self, stacked: bool = False) -> NamedSharding:
        """Of arrays whose first axis, or second if `stacked`, is that of the batch's rows."""
        return NamedSharding(self.mesh, PartitionSpec(*[None] * stacked, DATA))

    def placement(self, tree: Tree) -> Tree:
        """Where the arrays of a state, of a teacher, or shapes of them, belong: a tree of shardings.

        On every device, but for a state's memory banks that are too large for that, and all large arrays under fsdp.
        """

        def where(path, leaf):
            if self.mapped:
                return self.replicated
            of_objective = [getattr(key, "name", getattr(key, "key", None)) for key in path[:2]] == [
                "state",
                "objective",
            ]
            if of_objective and isinstance(tree, TrainState) and banks.spreads(leaf, self.mesh.size):
                return self.sharded
            if self.fsdp and jax.dtypes.issubdtype(leaf.dtype, np.floating) and leaf.size >= SPREAD_SIZE:
                axes = [i for i in np.argsort(leaf.shape)[::-1] if leaf.shape[i] % self.mesh.size == 0]
                if axes:
                    return NamedSharding(self.mesh, PartitionSpec(*[None] * int(axes[0]), DATA))
            return self.replicated

        return jax.tree_util.tree_map_with_path(where, tree)

    def compile(
        self, function: Callable, *, donate: bool = True, state: Tree | None = None, stacked: bool = False
    ) -> Callable:
        """Compiles `(state, teacher, batch) -> any`.

        Args:
          function: made for this runner's axis.
          donate: whether the state is given up.
          state: shapes of the state, for a function that returns `(state, rest)`: the new one is placed like the old.
            Without it all that is returned is replicated.
          stacked: whether batches have an axis of steps before that of their rows, see `kdjax.training.feed.scanned`.

        Raises:
          ValueError: if the function was made for another axis: its sums over devices would be missing, silently.
        """
        made_for = getattr(function, "axis", self.axis)
        if made_for != self.axis:
            raise ValueError(
                f"This step was made with axis={made_for!r}, the runner needs {self.axis!r}; "
                "make it with make_step(..., axis=runner.axis)."
            )
        donated = (0,) if donate else ()
        if self.mapped:
            mapped = jax.pmap(
                function, DATA, in_axes=(None, None, int(stacked)), out_axes=None, donate_argnums=donated,
                devices=list(self.mesh.devices.flat),
            )  # fmt: skip
            return ReplicatedOnly(mapped, self.mesh.size)

        alone = [device.platform for device in self.mesh.devices.flat] == ["cpu"]

        @functools.wraps(function)
        def in_mesh(*arguments):
            with use_abstract_mesh(self.mesh.abstract_mesh), as_products() if alone else nullcontext() as kernels:
                result = function(*arguments)
            in_mesh.has_products |= bool(kernels)
            return result

        in_mesh.has_products = False
        any_placed = None if self.fsdp else self.replicated  # None: as they come
        placed = any_placed if state is None else self.placement(state)
        return jax.jit(
            in_mesh,
            in_shardings=(placed, any_placed, self.rows(stacked)),
            out_shardings=self.replicated if state is None else (placed, self.replicated),
            donate_argnums=donated,
        )

    def place(self, tree: Tree) -> Tree:
        """Puts a state or a teacher on the devices, each array where `placement` says."""
        if jax.process_count() == 1:
            return jax.device_put(tree, self.placement(tree))

        def put(x, where):  # keys are not put on the devices of several hosts
            if not jnp.issubdtype(getattr(x, "dtype", bool), jax.dtypes.prng_key):
                return jax.device_put(x, where)
            return jax.random.wrap_key_data(jax.device_put(jax.random.key_data(x), where), impl=jax.random.key_impl(x))

        return jax.tree.map(put, tree, self.placement(tree))

    def place_batch(self, batch: Batch, *, stacked: bool = False) -> Batch:
        """Puts this process's rows of a batch (or of stacked ones) on its devices; their number must divide by the devices."""
        axis = int(stacked)
        if jax.process_count() == 1:
            self.check_batch_size(np.shape(jax.tree.leaves(batch)[0])[axis])
        if self.mapped:
            count = jax.local_device_count() if jax.process_count() > 1 else self.mesh.size
            return jax.tree.map(
                lambda x: np.reshape(x, (*np.shape(x)[:axis], count, -1, *np.shape(x)[axis + 1 :])), batch
            )
        rows = self.rows(stacked)
        if jax.process_count() == 1:
            return jax.device_put(batch, rows)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(rows, np.asarray(x)), batch)

    def check_batch_size(self, batch_size: int) -> None:
        if batch_size % self.mesh.size:
            below = max(batch_size // self.mesh.size, 1) * self.mesh.size
            raise ValueError(
                f"batch_size={batch_size} does not divide over {self.mesh.size} devices; use {below} or "
                f"{below + self.mesh.size}."
            )


class ReplicatedOnly:
    """A function under `pmap` that is refused, before it is called first, where what it returns may differ between devices."""

    def __init__(self, mapped: Callable, devices: int):
        self.mapped, self.lower = mapped, mapped.lower
        self._checked = self._alone = devices == 1
        functools.update_wrapper(self, mapped)

    def __call__(self, *arguments):
        if not self._checked:
            self.check(*arguments)
            self._checked = True
        return self.mapped(*arguments)

    def check(self, *arguments) -> None:
        """Refuses it for arguments of these shapes.

        Raises:
          ValueError: a result is each device's own.
        """
        paths = [] if self._alone else differing(self.mapped, DATA, arguments)
        if paths:
            path, more = paths[0].removeprefix("0/"), f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            raise ValueError(
                f"Under pmap {path}{more} would be what the first device makes of its own rows, such as batch statistics of a "
                f"layer that is not nn.BatchNorm; average it over the axis {DATA!r} (jax.lax.pmean, in a layer by its field "
                "`axis_name`), or use the jit runner."
            )


def make_runner(kind: str = "jit", devices: Any = None) -> Runner:
    """A runner over all devices, or over `devices`; `kind` is one of `KINDS`."""
    if kind not in KINDS:
        raise ValueError(f"Unknown runner {kind!r}; use {', '.join(map(repr, KINDS))}.")
    if devices is None:  # those of a process one behind the other, as its rows are in a batch
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    # Auto: arrays keep their sharding as an annotation. The default, Explicit, refuses z @ z.T of a sharded batch.
    mesh = Mesh(np.asarray(devices), (DATA,), axis_types=(AxisType.Auto,))
    return Runner(mesh, mapped=kind == "pmap", fsdp=kind == "fsdp")
