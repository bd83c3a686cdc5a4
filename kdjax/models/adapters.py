"""Networks from anybody's model: Flax NNX, Flax Linen, or a plain `apply(params, inputs)`."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kdjax.models.functional import functionalise
from kdjax.models.taps import collect, install_taps, no_module
from kdjax.types import ModelOutput, Network, Tree


def as_output(raw: Any) -> ModelOutput:
    """What a model returned as a `ModelOutput`: one already, an array of logits, or `(logits, features)`."""
    if isinstance(raw, ModelOutput):
        return raw
    if isinstance(raw, tuple | list) and len(raw) == 2:
        logits, features = raw
        return ModelOutput(
            logits=logits, features=tuple(features) if isinstance(features, tuple | list) else (features,)
        )
    if hasattr(raw, "shape"):
        return ModelOutput(logits=raw)
    raise TypeError(
        f"The model returned a {type(raw).__name__}; return logits, (logits, features) or a ModelOutput, "
        "or pass output=function_that_makes_one."
    )


def from_nnx(
    model: nnx.Module | Callable[[nnx.Rngs], nnx.Module],
    *,
    taps: Mapping[str, str] | None = None,
    output: Callable[[Any], ModelOutput] = as_output,
    parts: tuple[str, ...] = (),
    name: str | None = None,
) -> Network:
    """A network from a Flax NNX model.

    Args:
      model: a module, whose weights `init` then gives (a trained teacher), or `rngs -> module` for fresh ones.
      taps: intermediate values to keep, `{name: module path}`, such as `{"stage3": "layers/3"}`.
      output: makes a `ModelOutput` of what the module returns.
      parts: names of methods to offer as `Network.parts`, run in evaluation mode.
      name: for reports; the class name if not given.

    Dropout draws its numbers by the shape of the batch a device holds: equal under jit on any number of devices, but not
    between jit and pmap.
    """
    functional = functionalise(model)
    taps = dict(taps or {})

    def apply(params, state, inputs, *, train, rngs=None, axis=None):
        def run(module):
            records = install_taps(module, taps)
            result = output(module(inputs))
            return _with_taps(result, collect(records, taps)) if taps else result

        return functional.call(params, state, run, train=train, key=rngs, axis=axis)

    def part(method: str):
        return lambda params, state, *arrays: functional.call(
            params, state, lambda module: getattr(module, method)(*arrays), train=False
        )[0]

    kind = type(model).__name__ if isinstance(model, nnx.Module) else getattr(model, "__name__", "nnx model")
    return Network(functional.init, apply, {method: part(method) for method in parts}, name or kind)


def from_linen(
    module: Any,
    inputs: Any,
    *,
    taps: Mapping[str, str] | None = None,
    output: Callable[[Any], ModelOutput] = as_output,
    variables: Tree | None = None,
    name: str | None = None,
) -> Network:
    """A network from a Flax Linen module.

    Args:
      module: an unbound module; if its `__call__` takes `train`, `training`, `is_training` or `deterministic`, that is
        passed.
      inputs: example inputs (or `jax.ShapeDtypeStruct`) with a batch axis, from which `init` makes the variables.
      taps: intermediate values to keep, `{name: module path}`, such as `{"block": "Dense_0"}`.
      output: makes a `ModelOutput` of what the module returns.
      variables: trained variables, `{"params": ..., "batch_stats": ...}`, which `init` then gives.
      name: for reports; the class name if not given.

    Raises:
      ValueError: when training under pmap or shard_map, if the module has batch statistics but no `axis_name` field: its
        BatchNorm would then see one device's rows only.
    """
    taps = dict(taps or {})
    arguments = inspect.signature(module.__call__).parameters
    sample = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)

    def mode(train):
        named = {"train": train, "training": train, "is_training": train, "deterministic": not train}
        return {name: value for name, value in named.items() if name in arguments}

    def init(key):
        values = variables
        if values is None:
            keys = dict(zip(("params", "dropout"), jax.random.split(key), strict=True))
            values = module.init(keys, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sample), **mode(False))
        values = jax.tree.map(jnp.array, dict(values))  # copies: a step may give its state's memory up
        return values["params"], {k: v for k, v in values.items() if k not in ("params", "intermediates")}

    def apply(params, state, inputs, *, train, rngs=None, axis=None):
        runner = _on_axis(module, state, axis, train)
        keep = {path: tap for tap, path in taps.items()}
        options: dict[str, Any] = mode(train)
        mutable = list(state) if train else []
        seen = set()
        if taps:

            def capture(submodule, method):
                path = "/".join(submodule.path)
                seen.add(path)
                return method == "__call__" and path in keep

            options["capture_intermediates"] = capture
            mutable = [*mutable, "intermediates"]
        if train:
            key = jax.random.key(0) if rngs is None else rngs
            if axis is not None:
                key = jax.random.fold_in(key, jax.lax.axis_index(axis))
            # A stream that is not named here is drawn from "params", as Linen does.
            options["rngs"] = {"dropout": key, "params": jax.random.fold_in(key, 1)}
        raw, changed = runner.apply({"params": params, **state}, inputs, mutable=mutable, **options)
        result = output(raw)
        if taps:
            result = _with_taps(result, _linen_taps(dict(changed).get("intermediates", {}), taps, seen))
        return result, ({k: changed[k] for k in state} if train else state)

    return Network(init, apply, {}, name or type(module).__name__)


def from_apply(
    apply: Callable[..., Any],
    params: Tree | None = None,
    *,
    init: Callable[[jax.Array], Tree] | None = None,
    output: Callable[[Any], ModelOutput] = as_output,
    name: str | None = None,
) -> Network:
    """A network from a plain `apply(params, inputs)`.

    Args:
      apply: a pure function; what it returns goes through `output`.
      params: trained parameters, which `init` then gives whatever the key.
      init: `key -> params` for fresh ones. Give one of the two.
      output: makes a `ModelOutput` of what `apply` returns.
      name: for reports; the function's name if not given.
    """
    if (params is None) == (init is None):
        raise ValueError("from_apply needs either params= (trained) or init= (key -> params).")

    def network_init(key):
        return (init(key) if init is not None else jax.tree.map(jnp.array, params)), {}

    def network_apply(params, state, inputs, *, train, rngs=None, axis=None):
        del train, rngs, axis  # a plain function has no modes
        return output(apply(params, inputs)), state

    return Network(network_init, network_apply, {}, name or getattr(apply, "__name__", "apply"))


def output_shapes(network: Network, inputs: jax.ShapeDtypeStruct) -> ModelOutput:
    """Shapes and types of all a network says about `inputs`, without computing anything."""

    def run(key, x):
        return network.apply(*network.init(key), x, train=False)[0]

    return jax.eval_shape(run, jax.random.key(0), inputs)


def _with_taps(result: ModelOutput, taps: dict) -> ModelOutput:
    return dataclasses.replace(result, taps={**result.taps, **taps})


def _linen_taps(intermediates: Mapping, taps: Mapping[str, str], seen: set[str]) -> dict:
    found = {}
    for tap, path in taps.items():
        if path not in seen:
            raise no_module(path, seen - {""}, "the model")
        node: Any = intermediates
        for part in path.split("/"):
            node = node.get(part, {}) if isinstance(node, Mapping) else {}
        values = node.get("__call__", ()) if isinstance(node, Mapping) else ()
        if len(values) != 1:
            raise ValueError(
                f"Tap {tap!r}: the module at {path!r} ran {len(values)} times in one forward pass; "
                "tap a module that runs exactly once."
            )
        found[tap] = values[0]
    return found


def _on_axis(module: Any, state: Tree, axis: str | None, train: bool) -> Any:
    if hasattr(module, "axis_name"):
        return module.clone(axis_name=axis)
    if train and axis is not None and "batch_stats" in state:
        raise ValueError(
            f"{type(module).__name__} has batch statistics but no axis_name field, so under pmap each device would "
            "normalise by its own rows; add `axis_name: str | None = None`, pass it to nn.BatchNorm, or use the jit runner."
        )
    return module
