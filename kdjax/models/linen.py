"""A network from anybody's Flax Linen module."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen

from kdjax.models import modes
from kdjax.models.functional import device_key
from kdjax.models.outputs import add_losses, as_output, of_model
from kdjax.models.taps import Paths, Taps, no_module
from kdjax.models.watching import NOTED, Watch
from kdjax.types import Network, Tree

LOSSES = "losses"


def from_linen(
    module: linen.Module,
    inputs: Any,
    *,
    features: Paths = (),
    preactivations: Paths = (),
    embedding: str | None = None,
    taps: Mapping[str, str] | None = None,
    losses: Sequence[str] = (),
    mode: Mapping[str, bool] | None = None,
    call: Callable[..., Any] | None = None,
    output: Callable[[Any], Any] = as_output,
    variables: Tree | None = None,
    parts: Sequence[str] | Mapping[str, str] = (),
    name: str | None = None,
) -> Network:
    """A network from a Flax Linen module.

    Args:
      module: a module; of a bound one the variables are taken, where none are given. BatchNorm takes its statistics over all
        devices, whatever `axis_name` the model gives it.
      inputs: example inputs (or `jax.ShapeDtypeStruct`) with a batch axis, from which `init` makes the variables.
      features, preactivations: paths of submodules, such as `("block_0", "block_1")`, whose outputs are the stages of these
        fields of the `ModelOutput`; "block_0:input" is what that module is given. One path of layers under `nn.scan` is a
        stage for each. `kdjax.models.module_paths` lists the paths.
      embedding: the same for the vector that the classifier reads, such as "head:input".
      taps: further intermediate values to keep, `{name: path}`.
      losses: names under which the model notes numbers that are to be added to the loss, `self.sow("intermediates", name,
        value)`: means over the batch, or `[B]` one an example; summed over the modules. All of the collection "losses" are,
        without being named.
      mode: for a module that is told by an unusual argument or field whether it trains: its name and its value in training,
        such as `{"is_fitting": True}`. The usual names (`train`, `is_training`, `deterministic`, `use_running_average`, ...)
        are known, and BatchNorm and Dropout that are told nothing are told. `{}`: its batch statistics stay on purpose.
      call: `(module, inputs, **mode) -> result`, for modules of several inputs, such as
        `lambda module, inputs, **mode: module(inputs["ids"], inputs["mask"], **mode)`; `module(inputs, **mode)` if not given.
      output: makes a `ModelOutput` of what the module returns.
      variables: trained variables, `{"params": ..., "batch_stats": ...}`, which `init` then gives.
      parts: entry points to offer as `Network.parts`, run in evaluation mode: names of methods, or `{name: path}` of methods or
        submodules, of `setup` or of `nn.compact` ("Dense_0").
      name: for reports; the class name if not given.

    Random numbers of every stream (`self.make_rng("noise")`) come from the step's key.

    Raises:
      TypeError: it is no Linen module.
      ValueError: `mode` is no such thing; `variables` has no "params"; or, when it runs: a path is unknown or its module runs
        not once; or, in training, if it has batch statistics, or dropout, that do not heed it; or, under pmap and shard_map,
        if what normalises is not `nn.BatchNorm` and there is no `axis_name` field.
    """
    if not isinstance(module, linen.Module):
        holds = isinstance(getattr(module, "module", None), linen.Module)
        mend = (
            "give its .module, and variables={'params': its .params}" if holds else "give an instance, or use from_nnx"
        )
        raise TypeError(f"from_linen takes a Linen module, not a {_kind(module)}; {mend}.")
    if module.scope is not None:
        module, own = module.unbind()
        variables = own if variables is None else variables
    if variables is not None:
        variables = _plain(variables)
        if variables and "params" not in variables:
            raise ValueError(f"variables has the entries {', '.join(sorted(variables))}; give {{'params': ...}} and, where there "
                             "are any, {'batch_stats': ...} beside.")  # fmt: skip
    modes.check_form(mode)
    kept = Taps.of(taps, features, preactivations, embedding)
    sample = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype)), inputs)
    title = type(module).__name__
    modes.check_known(mode, module.__call__, _fields(module), title)

    def run(method, first, arrays, watch, *, entry=None, **options):
        """The module's `method` ("init" or "apply") in the mode and on the axis of `watch`; and what it was told."""
        told = modes.call_arguments(module.__call__, mode, watch.train) if entry is None else {}
        bound, fields = _told(module, mode, watch, told)
        args, kwargs = (arrays, told) if entry or call else modes.spoken(module.__call__, arrays, told)
        if not (entry or call):
            modes.check_call(module.__call__, args, kwargs, title)
        with linen.intercept_methods(watch):
            result = getattr(bound, method)(first, *args, method=entry or call, **options, **kwargs)
        return result, {**told, **fields}

    def init(key):
        values = variables
        if values is None:
            keys = dict(zip(("params", "dropout"), jax.random.split(key), strict=True))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sample)
            values = _plain(run("init", keys, (zeros,), Watch())[0])
        values = jax.tree.map(jnp.array, values)  # copies: a step may give its state's memory up
        return values.get("params", {}), {k: v for k, v in values.items() if k not in ("params", "params_axes", *NOTED)}

    def apply(params, state, inputs, *, train, rngs=None, axis=None):
        watch, options = Watch(kept, train, axis), {"mutable": [*(state if train else ()), *NOTED]}
        if train:
            key = device_key(rngs, axis)
            # A stream that is not named here is drawn from "params", as Linen does.
            options["rngs"] = {"dropout": key, "params": jax.random.fold_in(key, 1)}
        try:
            (raw, changed), told = run("apply", {"params": params, **state}, (inputs,), watch, **options)
        except flax.errors.ModifyScopeVariableError as error:
            if train:
                raise
            raise ValueError(
                f"{title} writes variables in evaluation, where nothing may change; let it write in training alone ({error})."
            ) from error
        except flax.errors.ScopeCollectionNotFound as error:
            if variables is None:
                raise
            raise ValueError(
                f"{title} reads variables that are not among those given, {', '.join(sorted(variables))}; give all of them, "
                f"variables={{'params': ..., 'batch_stats': ...}} ({error})."
            ) from error
        except flax.errors.InvalidRngError as error:
            if train:
                raise
            raise ValueError(
                f"{title} draws random numbers in evaluation, where there are none; let it draw them in training alone ({error})."
            ) from error
        if train and mode == {} and any(watch.writes):
            raise modes.moves(title)
        if train and mode != {} and (what := watch.unheard(state)):
            raise modes.unheard(title, what, module.__call__, told, _boolean_fields(module))
        if watch.unknown_statistics(state) and not hasattr(module, "axis_name"):
            raise ValueError(
                f"{title} has batch statistics of modules that are not nn.BatchNorm, so under pmap each device would "
                "normalise by its own rows; give it a field `axis_name: str | None = None` and average over that, or use the "
                "jit runner."
            )
        result = of_model(raw, output, inputs)
        if kept.wanted:
            result = kept.fill(result, watch.read(changed.get("intermediates", {})))
        result = add_losses(result, _noted(changed, losses), watch.noted, title)
        return result, ({k: changed[k] for k in state} if train else state)

    def part(path):
        def run_part(params, state, *arrays):
            variables = {"params": params, **state}
            try:
                return run("apply", variables, arrays, Watch(), entry=_entry(path, mode))[0]
            except _NotAnAttribute:
                pass  # the modules of nn.compact are there only while it runs
            watch = Watch()
            jax.eval_shape(lambda v, x: run("apply", v, (x,), watch, mutable=list(NOTED))[0], variables, sample)
            if path not in watch.modules:
                raise no_module(path, set(watch.modules) - {""}, title)
            return _by_itself(watch.modules[path], path, variables, arrays, mode)

        return run_part

    def paths(inputs):
        watch = Watch()

        def forward(key, x):
            params, state = init(key)
            return run("apply", {"params": params, **state}, (x,), watch, mutable=list(NOTED))[0]

        jax.eval_shape(forward, jax.random.key(0), inputs)
        return {path: shape for path, shape in watch.seen.items() if path}

    entries = parts if isinstance(parts, Mapping) else {method: method for method in parts}
    return Network(init, apply, {entry: part(path) for entry, path in entries.items()}, name or title, paths)


def _told(module: linen.Module, mode, watch: Watch, told: Mapping) -> tuple[linen.Module, dict[str, bool]]:
    """The module with the fields that stand for the mode and for the mapped axis as they are now; and the former."""
    fields = {name: value == watch.train for name, value in modes.named(mode).items() if name in _fields(module)}
    changed: dict[str, Any] = {name: None if name in told else value for name, value in fields.items()}
    if hasattr(module, "axis_name"):
        changed["axis_name"] = watch.axis
    return (module.clone(**changed) if changed else module), {n: v for n, v in fields.items() if n not in told}


def _fields(module: linen.Module) -> list[str]:
    return [field.name for field in dataclasses.fields(module) if field.name not in ("parent", "name")]


def _boolean_fields(module: linen.Module) -> list[str]:
    return [name for name in _fields(module) if isinstance(getattr(module, name, None), bool)]


class _NotAnAttribute(Exception):
    """A bound module has nothing at a path."""


def _by_itself(
    module: linen.Module, path: str, variables: Tree, arrays: Sequence, mode: Mapping[str, bool] | None
) -> Any:
    """Runs a submodule alone, in evaluation mode, with its own variables of those of the whole."""
    own = {}
    for collection, tree in variables.items():
        for name in path.split("/"):
            tree = tree.get(name, {})
        own[collection] = tree
    args, kwargs = modes.spoken(module.__call__, arrays, modes.call_arguments(module.__call__, mode, False))
    alone = module.clone(_deep_clone=True, _reset_names=True, name=None)
    try:
        with linen.intercept_methods(Watch()):
            return alone.apply(own, *args, **kwargs)
    except flax.errors.ScopeParamShapeError as error:
        raise ValueError(
            f"The part at {path!r} is one of layers in a loop, whose parameters are stacked; name another."
        ) from error


def _entry(path: str, mode: Mapping[str, bool] | None) -> Callable:
    """A function of a bound module: its method, or its submodule, at a path, in evaluation mode."""

    def entry(module, *arrays):
        node: Any = module
        for name in path.split("/"):
            try:
                node = node[int(name)] if name.isdigit() else getattr(node, name)
            except (AttributeError, TypeError, IndexError) as error:
                raise _NotAnAttribute from error
        function = node.__call__ if isinstance(node, linen.Module) else node
        args, kwargs = modes.spoken(function, arrays, modes.call_arguments(function, mode, False))
        return node(*args, **kwargs)

    return entry


def _noted(changed: Mapping, names: Sequence[str]) -> dict[str, list]:
    """The numbers that the submodules noted in this call: all of the collection of losses, and those that are named."""
    noted: dict[str, list] = {name: [] for name in names}
    for collection in NOTED:
        for path, value in jax.tree_util.tree_leaves_with_path(_plain(changed.get(collection, {}))):
            keys = [str(part.key) for part in path if hasattr(part, "key")]
            if keys and (collection == LOSSES or keys[-1] in names):
                noted.setdefault(keys[-1], []).append(value)
    return noted


def _plain(variables: Tree) -> dict:
    """Variables as nested dicts of arrays: no frozen dicts, and no boxes that say how an array is partitioned."""
    return flax.core.unfreeze(linen.meta.unbox(variables))


def _kind(x: Any) -> str:
    return f"class ({x.__name__})" if isinstance(x, type) else type(x).__name__
