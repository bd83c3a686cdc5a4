"""How one step is compiled: `jit` over a mesh (the default), or `pmap`.

Both give the same loss and the same gradients for networks whose BatchNorm axis can be set and whose randomness is keyed
per example.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kdjax.types import Axis, Batch, Tree

DATA = "data"


@dataclasses.dataclass(frozen=True)
class Runner:
    """Places data on devices and compiles functions of `(state, teacher, batch)`.

    Attributes:
      mesh: the devices, along one axis called "data".
      mapped: True for pmap: functions then run once a device, on its rows, with `axis` set.
    """

    mesh: Mesh
    mapped: bool = False

    @property
    def axis(self) -> Axis:
        """What to pass as `axis=` to `make_step`."""
        return DATA if self.mapped else None

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def sharded(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(DATA))

    def compile(self, function: Callable, *, donate: bool = True) -> Callable:
        """Compiles `(state, teacher, batch) -> any`; all but the batch is replicated, the state given up if `donate`.

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
            return jax.pmap(
                function, DATA, in_axes=(None, None, 0), out_axes=None, donate_argnums=donated,
                devices=list(self.mesh.devices.flat),
            )  # fmt: skip
        return jax.jit(
            function,
            in_shardings=(self.replicated, self.replicated, self.sharded),
            out_shardings=self.replicated,
            donate_argnums=donated,
        )

    def place(self, tree: Tree) -> Tree:
        """Puts a state or a teacher on every device."""
        return jax.device_put(tree, self.replicated)

    def place_batch(self, batch: Batch) -> Batch:
        """Puts this process's rows of a batch on its devices; their number must divide by the devices."""
        if jax.process_count() == 1:
            self.check_batch_size(np.shape(jax.tree.leaves(batch)[0])[0])
        if self.mapped:
            count = jax.local_device_count() if jax.process_count() > 1 else self.mesh.size
            return jax.tree.map(lambda x: np.reshape(x, (count, -1, *np.shape(x)[1:])), batch)
        if jax.process_count() == 1:
            return jax.device_put(batch, self.sharded)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.sharded, np.asarray(x)), batch)

    def check_batch_size(self, batch_size: int) -> None:
        if batch_size % self.mesh.size:
            below = max(batch_size // self.mesh.size, 1) * self.mesh.size
            raise ValueError(
                f"batch_size={batch_size} does not divide over {self.mesh.size} devices; use {below} or "
                f"{below + self.mesh.size}."
            )


def make_runner(kind: str = "jit", devices: Any = None) -> Runner:
    """A runner over all devices, or over `devices`; `kind` is "jit" or "pmap"."""
    if kind not in ("jit", "pmap"):
        raise ValueError(f"Unknown runner {kind!r}; use 'jit' or 'pmap'.")
    devices = jax.devices() if devices is None else devices
    # Auto: arrays keep their sharding as an annotation. The default, Explicit, refuses z @ z.T of a sharded batch.
    mesh = Mesh(np.asarray(devices), (DATA,), axis_types=(AxisType.Auto,))
    return Runner(mesh, mapped=kind == "pmap")
