"""Flax NNX modules as pure functions over plain dicts.

Split and merged inside the caller's `jax.jit`: `nnx.jit` costs milliseconds of Python a step, this costs none. Both
sides are nested dicts with string keys (NNX uses integers for lists), so that checkpoints, sharding rules and names in
weight files agree.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kdjax.models import kernel_gradients
from kdjax.types import Array, Axis, Tree


class NoModule(TypeError):
    """A constructor gives no module."""


@dataclasses.dataclass(frozen=True)
class FunctionalModule:
    """An NNX module as `init` and `call`.

    `init(key) -> (params, state)`: `params` are the variables that are trained, `state` all other ones (BatchNorm
    statistics, memory banks, arrays that are plain attributes) but for PRNG streams, which `call` seeds from its `key`.
    A parameter that several modules share is there once, under the first of its paths. `float32` are the paths of those that
    their modules use in float32, whatever type they are given.
    """

    init: Callable[[Array], tuple[Tree, Tree]]
    trainable: Any
    float32: tuple[tuple[str, ...], ...]
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
        as_built: bool = False,
    ) -> tuple[Any, Tree]:
        """Applies `function` to the module made of `params` and `state`.

        Args:
          params: nested dict as `init` gives it.
          state: likewise.
          function: what to do with the module; its result is returned.
          train: False leaves the state as it is and switches dropout and batch statistics off.
          key: PRNG key for dropout; under `axis` every device draws its own numbers from it.
          axis: mapped axis over which BatchNorm takes its statistics.
          as_built: in training leave `deterministic` and `use_running_average` as the module was built.

        Returns:
          The result of `function`, and the new state.
        """
        params_template, rng_template, state_template = self._templates
        rng = _seed(rng_template, key, axis)
        module = nnx.merge(self._graph, _fill(params_template, params), rng, _fill(state_template, state), copy=True)
        if not train:
            nnx.Module.eval(module)  # a model may have a field of that name
        elif not as_built:
            nnx.Module.train(module)
        _set_batchnorm_axis(module, axis)
        if train:
            kernel_gradients.prepare(module)
        result = function(module)
        if not train:
            return result, state
        after = dict(nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.Any(self.trainable, nnx.RngState)))))
        # What the module only noted down in this call (`sow`) is no state.
        kept = [(path, after[path]) for path, _ in nnx.to_flat_state(state_template)]
        return result, to_dict(nnx.from_flat_state(kept))


def functionalise(
    module: nnx.Module | Callable[[nnx.Rngs], nnx.Module], *, trainable: Any = nnx.Param
) -> FunctionalModule:
    """Makes a `FunctionalModule` of a constructor, or of a module at hand.

    Args:
      module: `rngs -> module`, from which `init` draws fresh weights; or a module, whose present weights `init` gives
        whatever the key.
      trainable: an `nnx` filter of the variables that are trained, such as `nnx.LoRAParam` for adapters alone.

    Raises:
      NoModule: the constructor gives None.
      ValueError: no variable passes a filter other than `nnx.Param`.
    """
    at_hand = isinstance(module, nnx.Module)
    filters = trainable, nnx.RngState, ...
    found = []

    def split(key):
        made = nnx.clone(module) if at_hand else _constructed(module, key)
        nnx.pop(made, nnx.Intermediate)  # what an earlier call noted down
        graph, *states = nnx.split(made, *filters)
        found.append((_in_float32(made, states[0]), graph))
        return states

    # Programs and shapes ask for fresh weights many times: constructed once for all of them.
    traced = jax.jit(split, inline=True)
    templates = tuple(jax.eval_shape(split if at_hand else traced, jax.random.key(0)))
    facts = found[0]
    if trainable is not nnx.Param and not jax.tree.leaves(templates[0]):
        raise ValueError(f"trainable={trainable!r} selects no variable of the model; give the type of those to train.")
    if at_hand:
        parts = nnx.state(module, trainable, nnx.Any(nnx.RngState, nnx.Intermediate), ...)
        values = to_dict(parts[0]), to_dict(parts[2])

    def init(key):
        if at_hand:
            return jax.tree.map(jnp.array, values)  # copies: a step may give its state's memory up
        params, _, state = traced(key) if isinstance(key, jax.core.Tracer) else split(key)
        return to_dict(params), jax.tree.map(jnp.asarray, to_dict(state))

    return FunctionalModule(init, trainable, *facts, templates)


def _in_float32(module: nnx.Module, params: nnx.State) -> tuple[tuple[str, ...], ...]:
    """The paths of parameters whose modules say that they use them in float32."""
    places = {path for path, node in nnx.iter_graph(module) if getattr(node, "uses_float32", False)}
    return tuple(tuple(map(str, path)) for path, _ in nnx.to_flat_state(params) if path[:-1] in places)


def to_nnx(
    model: nnx.Module | Callable[[nnx.Rngs], nnx.Module], params: Tree, state: Tree, *, trainable: Any = nnx.Param
) -> nnx.Module:
    """The way back: an NNX module with these variables, in evaluation mode.

    Args:
      model: its constructor `rngs -> module`, or a module of the same structure, which stays as it is.
      params, state: as `from_nnx(model).init` gives them; those of `kdjax.load_trained`, say.
      trainable: as it was given to `from_nnx`.

    Raises:
      ValueError: the variables are of another structure.
    """
    functional = functionalise(model, trainable=trainable)
    wanted = jax.eval_shape(functional.init, jax.random.key(0))
    for tree, template in zip((params, state), wanted, strict=True):
        found, there = ({jax.tree_util.keystr(p, simple=True, separator="/"): x.shape for p, x in
                         jax.tree_util.tree_leaves_with_path(each)} for each in (tree, template))  # fmt: skip
        if found != there:
            name = sorted({path for path in found | there if found.get(path) != there.get(path)})[0]
            raise ValueError(
                f"{name} is {found.get(name, 'missing')} in the variables and {there.get(name, 'missing')} in the model."
            )
    copies = jax.tree.map(jnp.array, (params, state))
    return functional.call(*copies, lambda module: module, train=False)[0]


def _constructed(constructor: Callable[[nnx.Rngs], nnx.Module], key: Array) -> nnx.Module:
    """The module that a constructor makes; `rngs` is given by name where it has one."""
    signature, rngs = _signature(constructor), nnx.Rngs(key)
    by_name = "rngs" in signature.parameters
    try:
        signature.bind(rngs=rngs) if by_name else signature.bind(rngs)
    except TypeError as error:
        name = getattr(constructor, "__name__", "the constructor")
        raise TypeError(
            f"{name} cannot be made from rngs alone ({error}); pass lambda rngs: {name}(..., rngs=rngs)."
        ) from None
    with nnx.use_eager_sharding(False):  # a runner places the variables, whatever partitioning the model names
        module = constructor(rngs=rngs) if by_name else constructor(rngs)
    if module is None:
        raise NoModule(f"{getattr(constructor, '__name__', 'the constructor')} gives None, and no module.")
    for _, node in list(nnx.iter_graph(module)):
        if isinstance(node, nnx.Pytree):
            for name, value in list(vars(node).items()):
                if isinstance(value, jax.core.Tracer):  # which Flax takes for a static field
                    setattr(node, name, nnx.data(value))
    return module


def _signature(constructor: Callable) -> inspect.Signature:
    """The signature, also of a class: for NNX's metaclass any arguments will do."""
    made, *given = (constructor.func, constructor) if isinstance(constructor, functools.partial) else (constructor,)
    if not isinstance(made, type):
        return inspect.signature(constructor)
    args, kwargs = (given[0].args, given[0].keywords) if given else ((), {})
    return inspect.signature(functools.partial(made.__init__, None, *args, **kwargs))


def to_dict(state: nnx.State) -> dict[str, Any]:
    """The values of an `nnx.State` as nested dicts with string keys."""
    tree: dict[str, Any] = {}
    for path, variable in nnx.to_flat_state(state):
        node = tree
        for name in path[:-1]:
            node = node.setdefault(str(name), {})
        node[str(path[-1])] = variable.get_value() if isinstance(variable, nnx.Variable) else variable
    return tree


def _fill(template: nnx.State, values: Tree) -> nnx.State:
    flat = []
    for path, variable in nnx.to_flat_state(template):
        node = values
        for name in path:
            node = node[str(name)]
        # NNX writes into a NumPy array in place, which would be the caller's own.
        value = jnp.asarray(node) if isinstance(node, np.ndarray) else node
        flat.append((path, variable.replace(value) if isinstance(variable, nnx.Variable) else value))
    return nnx.from_flat_state(flat)


def device_key(key: Array | None, axis: Axis) -> Array:
    """The key of this device under a mapped axis; a fixed one where none is given."""
    key = jax.random.key(0) if key is None else key
    return key if axis is None else jax.random.fold_in(key, jax.lax.axis_index(axis))


def _seed(template: nnx.State, key: Array | None, axis: Axis) -> nnx.State:
    """PRNG streams from one key: counters at 0, every stream its own key."""
    flat_template = list(nnx.to_flat_state(template))
    if not flat_template:
        return template
    key = device_key(key, axis)
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
