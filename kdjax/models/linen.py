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
from kdjax.models.taps import INPUT, Paths, Record, Taps, no_module, shapes_of
from kdjax.types import Axis, Network, Tree

NOTED = ("intermediates", "losses")  # collections that hold what a call noted down, which is no state
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
    parts: Sequence[str] = (),
    name: str | None = None,
) -> Network:
    """A network from a Flax Linen module.

    Args:
      module: an unbound module. BatchNorm takes its statistics over all devices, whatever `axis_name` the model gives it.
      inputs: example inputs (or `jax.ShapeDtypeStruct`) with a batch axis, from which `init` makes the variables.
      features, preactivations: paths of submodules, such as `("block_0", "block_1")`, whose outputs are the stages of these
        fields of the `ModelOutput`; "block_0:input" is what that module is given. One path of layers under `nn.scan` is a
        stage for each. `kdjax.models.module_paths` lists the paths.
      embedding: the same for the vector that the classifier reads, such as "head:input".
      taps: further intermediate values to keep, `{name: path}`.
      losses: names under which the model notes numbers that are to be added to the loss, `self.sow("intermediates", name,
        value)`: means over the batch, summed over the modules. All of the collection "losses" are, without being named.
      mode: for a module that is told by an unusual argument or field whether it trains: its name and its value in training,
        such as `{"is_fitting": True}`. The usual names (`train`, `is_training`, `deterministic`, `use_running_average`, ...)
        are known, and BatchNorm and Dropout that are told nothing are told. `{}`: its batch statistics stay on purpose.
      call: `(module, inputs, **mode) -> result`, for modules of several inputs, such as
        `lambda module, inputs, **mode: module(inputs["ids"], inputs["mask"], **mode)`; `module(inputs, **mode)` if not given.
      output: makes a `ModelOutput` of what the module returns.
      variables: trained variables, `{"params": ..., "batch_stats": ...}`, which `init` then gives.
      parts: names of methods (or submodules of `setup`) to offer as `Network.parts`, run in evaluation mode.
      name: for reports; the class name if not given.

    Random numbers of every stream (`self.make_rng("noise")`) come from the step's key.

    Raises:
      TypeError: it is no unbound Linen module.
      ValueError: `mode` is no such thing; `variables` has no "params"; or, when it runs: a path is unknown or its module runs
        not once; or, in training, if it has batch statistics, or dropout, that do not heed it; or, under pmap and shard_map, if what normalises is not
        `nn.BatchNorm` and there is no `axis_name` field.
    """
    if not isinstance(module, linen.Module):
        holds = isinstance(getattr(module, "module", None), linen.Module)
        mend = (
            "give its .module, and variables={'params': its .params}" if holds else "give an instance, or use from_nnx"
        )
        raise TypeError(f"from_linen takes an unbound Linen module, not a {_kind(module)}; {mend}.")
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
        with linen.intercept_methods(watch):
            result = getattr(bound, method)(first, *args, method=entry or call, **options, **kwargs)
        return result, {**told, **fields}

    def init(key):
        values = variables
        if values is None:
            keys = dict(zip(("params", "dropout"), jax.random.split(key), strict=True))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sample)
            values = _plain(run("init", keys, (zeros,), _Watch())[0])
        values = jax.tree.map(jnp.array, values)  # copies: a step may give its state's memory up
        return values.get("params", {}), {k: v for k, v in values.items() if k not in ("params", "params_axes", *NOTED)}

    def apply(params, state, inputs, *, train, rngs=None, axis=None):
        watch, options = _Watch(kept, train, axis), {"mutable": [*(state if train else ()), *NOTED]}
        if train:
            key = device_key(rngs, axis)
            # A stream that is not named here is drawn from "params", as Linen does.
            options["rngs"] = {"dropout": key, "params": jax.random.fold_in(key, 1)}
        try:
            (raw, changed), told = run("apply", {"params": params, **state}, (inputs,), watch, **options)
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
        result = of_model(raw, output)
        if kept.wanted:
            result = kept.fill(result, watch.read(changed.get("intermediates", {})))
        result = add_losses(result, _noted(changed, losses), title)
        return result, ({k: changed[k] for k in state} if train else state)

    def part(path):
        def run_part(params, state, *arrays):
            return run("apply", {"params": params, **state}, arrays, _Watch(), entry=_entry(path, mode))[0]

        return run_part

    def paths(inputs):
        watch = _Watch()

        def forward(key, x):
            params, state = init(key)
            return run("apply", {"params": params, **state}, (x,), watch, mutable=list(NOTED))[0]

        jax.eval_shape(forward, jax.random.key(0), inputs)
        return {path: shape for path, shape in watch.seen.items() if path}

    return Network(init, apply, {method: part(method) for method in parts}, name or title, paths)


class _Watch:
    """Stands between every call of a submodule and the caller: tells it the mode and the axis, and notes what happened.

    Attributes:
      seen: shapes of what each module gave, by path.
      normalised: whether a BatchNorm ran.
      writes: for every module with batch statistics that ran, whether it wrote them.
      drops: for every dropout, whether it dropped.
    """

    def __init__(self, kept: Taps = Taps(()), train: bool = False, axis: Axis = None):
        self.kept, self.train, self.axis = kept.modules, train, axis
        self.seen: dict[str, Any] = {}
        self.records = {path: Record() for _, _, path in kept.wanted}
        self.normalised, self.writes, self.drops = False, [], []

    def __call__(self, following, args, kwargs, context):
        module = context.module
        if context.method_name != "__call__":
            return following(*args, **kwargs)
        path = "/".join(module.path)
        for name in ("use_running_average", "deterministic"):
            if getattr(module, name, True) is None and kwargs.get(name) is None and len(args) == 1:
                kwargs = {**kwargs, name: not self.train}
        if hasattr(module, "use_running_average") and hasattr(module, "axis_name"):
            object.__setattr__(module, "axis_name", self.axis)
            self.normalised = True
        if isinstance(module, linen.Dropout) and module.rate > 0:
            self.drops.append(_said(module, "deterministic", args, kwargs) is not True)
        before = _own_statistics(module)
        result = following(*args, **kwargs)
        if before:
            after = _own_statistics(module)
            self.writes.append(any(after[name] is not value for name, value in before.items()))
        self.seen[path] = shapes_of(result)
        gives, given = self.kept.get(path, (False, False))
        for suffix, wished, value in (("", gives, result), (INPUT, given, (*args, *kwargs.values(), None)[0])):
            if wished:
                self.records[path + suffix].shapes.append(shapes_of(value))
                module.sow("intermediates", f"tapped{suffix}", value)
        return result

    def unheard(self, state: Tree) -> str:
        """What a training call left as in evaluation, or ""."""
        if jax.tree.leaves(state.get("batch_stats", {})) and not any(self.writes):
            return modes.STATISTICS
        return modes.DROPOUT if self.drops and not any(self.drops) else ""

    def unknown_statistics(self, state: Tree) -> bool:
        """Whether batch statistics are taken over an axis that none of the modules seen here was told."""
        return self.train and self.axis is not None and "batch_stats" in state and not self.normalised

    def read(self, intermediates: Mapping) -> dict[str, Record]:
        """What was recorded."""
        for path, record in self.records.items():
            name = path.removesuffix(INPUT)
            if name not in self.seen:
                raise no_module(name, set(self.seen) - {""}, "the model")
            node: Any = intermediates
            for part in name.split("/"):
                node = node.get(part, {}) if isinstance(node, Mapping) else {}
            record.values = node.get(f"tapped{path.removeprefix(name)}", ()) if isinstance(node, Mapping) else ()
        return self.records


def _own_statistics(module: linen.Module) -> dict[str, Any]:
    """The batch statistics of a module itself. One that is not written stays the very same object, in a loop too."""
    found = module.variables.get("batch_stats", {})
    return {name: value for name, value in found.items() if not isinstance(value, Mapping)}


def _said(module: linen.Module, name: str, args: tuple, kwargs: dict) -> Any:
    """What a layer of Flax's is told by its second argument, or else by its field of the same name."""
    given = kwargs.get(name, args[1] if len(args) > 1 else None)
    return getattr(module, name) if given is None else given


def _told(module: linen.Module, mode, watch: _Watch, told: Mapping) -> tuple[linen.Module, dict[str, bool]]:
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


def _entry(path: str, mode: Mapping[str, bool] | None) -> Callable:
    """A function of a bound module: its method, or its submodule, at a path, in evaluation mode."""

    def entry(module, *arrays):
        node: Any = module
        for name in path.split("/"):
            node = node[int(name)] if name.isdigit() else getattr(node, name)
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
