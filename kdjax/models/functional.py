"""Flax NNX modules as pure functions over plain dicts.

Split and merged inside the caller's `jax.jit`: `nnx.jit` costs milliseconds of Python a step, this costs none. Both
sides are nested dicts with string keys (NNX uses integers for lists), so that checkpoints, sharding rules and names in
weight files agree.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kdjax.types import Array, Axis, Tree


@dataclasses.dataclass(frozen=True)
class FunctionalModule:
    """An NNX module as `init` and `call`.

    `init(key) -> (params, state)`: `params` are the `nnx.Param` variables, `state` all other ones (BatchNorm statistics,
    memory banks) but for PRNG streams, which `call` seeds from its `key`.
    """

    init: Callable[[Array], tuple[Tree, Tree]]
    _graph: Any
    _templates: tuple[Any, Any, Any]

    def call(
        self,
        params: Tree,
        state: Tree,
        function: Callable[[nnx.Module], Any],
        *,
        train: bool,
        key: Array | None = None,
        axis: Axis = None,
    ) -> tuple[Any, Tree]:
        """Applies `function` to the module made of `params` and `state`.

        Args:
          params: nested dict as `init` gives it.
          state: likewise.
          function: what to do with the module; its result is returned.
          train: False leaves the state as it is and switches dropout and batch statistics off.
          key: PRNG key for dropout; under `axis` every device draws its own numbers from it.
          axis: mapped axis over which BatchNorm takes its statistics.

        Returns:
          The result of `function`, and the new state.
        """
        params_template, rng_template, state_template = self._templates
        rng = _seed(rng_template, key, axis)
        module = nnx.merge(self._graph, _fill(params_template, params), rng, _fill(state_template, state), copy=True)
        module.train() if train else module.eval()
        _set_batchnorm_axis(module, axis)
        result = function(module)
        if not train:
            return result, state
        after = dict(nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.Any(nnx.Param, nnx.RngState)))))
        # What the module only noted down in this call (`sow`) is no state.
        kept = [(path, after[path]) for path, _ in nnx.to_flat_state(state_template)]
        return result, to_dict(nnx.from_flat_state(kept))


def functionalise(module: nnx.Module | Callable[[nnx.Rngs], nnx.Module]) -> FunctionalModule:
    """Makes a `FunctionalModule` of a constructor, or of a module at hand.

    Args:
      module: `rngs -> module`, from which `init` draws fresh weights; or a module, whose present weights `init` gives
        whatever the key.
    """
    if isinstance(module, nnx.Module):
        values = tuple(to_dict(part) for part in _split(module)[1:])
        graph, *templates = _split(nnx.eval_shape(lambda: module))

        def init(key):
            return jax.tree.map(jnp.array, (values[0], values[2]))  # copies: a step may give its state's memory up
    else:
        graph, *templates = _split(nnx.eval_shape(lambda: module(nnx.Rngs(0))))

        def init(key):
            _, params, _, state = _split(module(nnx.Rngs(key)))
            return to_dict(params), to_dict(state)

    return FunctionalModule(init, graph, tuple(templates))


def to_dict(state: nnx.State) -> dict[str, Any]:
    """The values of an `nnx.State` as nested dicts with string keys."""
    tree: dict[str, Any] = {}
    for path, variable in nnx.to_flat_state(state):
        node = tree
        for name in path[:-1]:
            node = node.setdefault(str(name), {})
        node[str(path[-1])] = variable.get_value() if isinstance(variable, nnx.Variable) else variable
    return tree


def _split(module):
    return nnx.split(module, nnx.Param, nnx.RngState, ...)


def _fill(template: nnx.State, values: Tree) -> nnx.State:
    flat = []
    for path, variable in nnx.to_flat_state(template):
        node = values
        for name in path:
            node = node[str(name)]
        # NNX writes into a NumPy array in place, which would be the caller's own.
        flat.append((path, variable.replace(jnp.asarray(node) if isinstance(node, np.ndarray) else node)))
    return nnx.from_flat_state(flat)


def _seed(template: nnx.State, key: Array | None, axis: Axis) -> nnx.State:
    """PRNG streams from one key: counters at 0, every stream its own key."""
    flat_template = list(nnx.to_flat_state(template))
    if not flat_template:
        return template
    key = jax.random.key(0) if key is None else key
    if axis is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis))
    flat = []
    for i, (path, variable) in enumerate(flat_template):
        shape = variable.get_value().shape
        if jnp.issubdtype(variable.get_value().dtype, jax.dtypes.prng_key):
            stream = jax.random.fold_in(key, i)
            value = stream if shape == () else jax.random.split(stream, shape)
        else:
            value = jnp.zeros(shape, variable.get_value().dtype)
        flat.append((path, variable.replace(value)))
    return nnx.from_flat_state(flat)


def _set_batchnorm_axis(module: nnx.Module, axis: Axis) -> None:
    """A module built with an axis name cannot run outside that axis, so it is set for this call alone."""
    for _, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Module) and hasattr(node, "axis_name") and hasattr(node, "use_running_average"):
            node.axis_name = axis
