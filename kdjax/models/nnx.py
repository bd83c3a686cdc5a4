"""A network from anybody's Flax NNX model."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from kdjax.models import modes
from kdjax.models.functional import device_key, functionalise
from kdjax.models.heeding import Heeding
from kdjax.models.outputs import add_losses, as_output, of_model
from kdjax.models.taps import INPUT, Paths, Record, Taps, no_module, shapes_of
from kdjax.types import Network

ModelCall = Callable[..., Any]  # (module, inputs, **mode) -> what the model returns


def from_nnx(
    model: nnx.Module | Callable[[nnx.Rngs], nnx.Module],
    *,
    features: Paths = (),
    preactivations: Paths = (),
    embedding: str | None = None,
    taps: Mapping[str, str] | None = None,
    losses: Sequence[str] = (),
    mode: Mapping[str, bool] | None = None,
    call: ModelCall | None = None,
    output: Callable[[Any], Any] = as_output,
    trainable: Any = nnx.Param,
    parts: Sequence[str] | Mapping[str, str] = (),
    name: str | None = None,
) -> Network:
    """A network from a Flax NNX model.

    Args:
      model: a module, whose weights `init` then gives (a trained teacher); or `rngs -> module`, a class too, for fresh ones.
      features, preactivations: paths of submodules, such as `("layers/0", "layers/1")`, whose outputs are the stages of these
        fields of the `ModelOutput`; "layers/0:input" is what that module is given. One path of layers under `nnx.scan` is a
        stage for each. `kdjax.models.module_paths` lists the paths.
      embedding: the same for the vector that the classifier reads, such as "head:input".
      taps: further intermediate values to keep, `{name: path}`.
      losses: names under which the model notes numbers that are to be added to the loss, `self.sow(..., name, value)`:
        means over the batch, or `[B]` one an example; summed over the modules.
      mode: for a model that is told by an unusual argument or attribute whether it trains: its name and its value in
        training, such as `{"is_fitting": True}`. The usual names (`train`, `is_training`, `deterministic`, `inference`, ...)
        are known. `{}`: its batch statistics stay in training on purpose. It is then told nothing: it trains as it was
        built, and is evaluated without dropout.
      call: `(module, inputs, **mode) -> result`, for models of several inputs; `module(inputs, **mode)` if not given. Of a model
        without `__call__`, it is told the mode by its own arguments.
      output: makes a `ModelOutput` of what the module returns.
      trainable: an nnx filter of the variables that are trained, such as `nnx.LoRAParam`; all others are state.
      parts: entry points to offer as `Network.parts`, run in evaluation mode: names of methods, or `{name: path}` of methods
        or submodules.
      name: for reports; the class name if not given.

    An argument `rngs` of the model's call is given the step's key, and None in evaluation. Dropout draws its numbers by the
    shape of the batch a device holds: equal under jit on any number of devices, but not between jit and pmap.

    Raises:
      TypeError: it is no NNX model.
      ValueError: `mode` is no such thing; or, when it runs: a path is unknown or its module runs not once; or, in training, if
        the model has batch statistics, or dropout, that do not heed it.
    """
    if (
        isinstance(model, linen.Module)
        or isinstance(getattr(model, "module", None), linen.Module)
        or not callable(model)
    ):
        raise TypeError(f"from_nnx takes an nnx.Module or `rngs -> module`, not a {type(model).__name__}; a Linen module is for "
                        "from_linen.")  # fmt: skip
    modes.check_form(mode)
    kind = type(model).__name__ if isinstance(model, nnx.Module) else getattr(model, "__name__", "nnx model")
    kept = Taps.of(taps, features, preactivations, embedding)
    functional = functionalise(model, trainable=trainable)
    # Filled by the first call in training, and in evaluation, that is sound: later ones are not watched.
    heeds: list[bool] = []
    rests: list[bool] = []

    def apply(params, state, inputs, *, train, rngs=None, axis=None):
        def run(module):
            forward, title = _forward(module, call), type(module).__name__
            told = modes.call_arguments(forward, mode, train)
            flags = _set_flags(module, modes.named(mode), train)
            modes.check_known(mode, forward, flags, title)
            if "rngs" in inspect.signature(forward).parameters:
                key = jax.random.fold_in(device_key(rngs, axis), 0x726E6773)
                told["rngs"] = nnx.Rngs(key) if train else None
            _set_types(module)
            notes, sown = _install(module, kept), _listen(module, losses)
            watch = Heeding(module) if not (heeds if train else rests) else None
            raw = (call or _plain_call)(module, inputs, **told)
            if watch is not None and not train:
                if mode != {} and (what := watch.moved):
                    raise modes.restless(title, what, forward, {n: v for n, v in told.items() if n != "rngs"})
                rests.append(True)
            elif watch is not None:
                told.pop("rngs", None)
                own = {name: value for name, value in flags.items() if name in vars(module)}
                if mode == {} and watch.wrote:
                    raise modes.moves(title)
                if mode != {} and (what := watch.unheard(module)):
                    raise modes.unheard(title, what, forward, {**told, **own}, _boolean_fields(module))
                heeds.append(True)
            result = of_model(raw, output, inputs)
            result = kept.fill(result, _read(notes)) if kept.wanted else result
            return add_losses(result, _noted(module, losses), sown, title)

        return functional.call(params, state, run, train=train, key=rngs, axis=axis, as_built=mode == {})

    def part(path: str):
        def run(params, state, *arrays):
            def entry(module):
                _set_flags(module, modes.named(mode), False)
                function = _follow(module, path)
                takes = function.__call__ if isinstance(function, nnx.Module) else function
                told = modes.call_arguments(takes, mode, False) | _no_rngs(takes)
                args, kwargs = modes.spoken(takes, arrays, told)
                return function(*args, **kwargs)

            return functional.call(params, state, entry, train=False)[0]

        return run

    def paths(inputs):
        given = {}

        def run(key, x):
            def watch(module):
                for path, node in _modules(module).items():
                    if callable(node):
                        node.__class__ = _watched(type(node), path, given)
                forward = _forward(module, call)
                told = modes.call_arguments(forward, mode, False) | _no_rngs(forward)
                _set_flags(module, modes.named(mode), False)
                return (call or _plain_call)(module, x, **told)

            return functional.call(*functional.init(key), watch, train=False)[0]

        jax.eval_shape(run, jax.random.key(0), inputs)
        return given

    entries = parts if isinstance(parts, Mapping) else {method: method for method in parts}
    named = {entry: part(path) for entry, path in entries.items()}
    return Network(functional.init, apply, named, name or kind, paths, functional.float32)


def _plain_call(module, inputs, **told):
    args, kwargs = modes.spoken(module.__call__, (inputs,), told)
    modes.check_call(module.__call__, args, kwargs, type(module).__name__)
    return module(*args, **kwargs)


def _forward(module: nnx.Module, call: ModelCall | None) -> Callable:
    """What is told the mode: the module's call, or `call` of a module that has none."""
    if callable(module):
        return module.__call__
    if call is None:
        raise ValueError(
            f"{type(module).__name__} has no __call__; pass call=lambda module, inputs: module.forward(inputs), say."
        )
    return functools.partial(call, module)


def _no_rngs(function: Callable) -> dict:
    return {"rngs": None} if "rngs" in inspect.signature(function).parameters else {}


def _set_flags(module: nnx.Module, named: Mapping[str, bool], train: bool) -> dict[str, bool]:
    """Sets the attributes, of any submodule, that stand for the mode, and returns them."""
    told = {}
    for _, node in nnx.iter_modules(module):
        for name, value in named.items():
            if isinstance(vars(node).get(name, getattr(type(node), name, None)), bool):
                setattr(node, name, value == train)
                told[name] = value == train
    return told


def _set_types(module: nnx.Module) -> None:
    """Flax's BatchNorm gives float32 if it is not told a type, whatever it is given: it is told that of its scale or bias."""
    for _, node in nnx.iter_modules(module):
        if isinstance(node, nnx.BatchNorm) and node.dtype is None:
            kinds = {v[...].dtype for v in (node.scale, node.bias) if v is not None}
            if kinds and kinds <= {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)}:
                (node.dtype,) = kinds


def _boolean_fields(module: nnx.Module) -> list[str]:
    return [name for name, value in vars(module).items() if isinstance(value, bool)]


# --- taps ---


GIVES, GIVEN = "tapped", "tapped_input"  # attributes of a module that is tapped


def _modules(module: nnx.Module) -> dict[str, nnx.Module]:
    return {"/".join(map(str, parts)): node for parts, node in nnx.iter_modules(module) if parts}


def _install(module: nnx.Module, kept: Taps) -> dict[str, tuple[nnx.Module, str, Record]]:
    """Makes the submodules note what goes in and out: in variables, which loops and recomputation hand on.

    The module is the merged copy of this call: the user's own is never changed.
    """
    modules, notes = _modules(module) if kept.wanted else {}, {}
    for path, (gives, given) in kept.modules.items():
        if path not in modules:
            raise no_module(path, modules, type(module).__name__)
        places = [place for place, wished in ((GIVES, gives), (GIVEN, given)) if wished]
        records = {place: Record() for place in places}
        for place, record in records.items():
            setattr(modules[path], place, nnx.Intermediate(()))
            notes[path + (INPUT if place == GIVEN else "")] = modules[path], place, record
        modules[path].__class__ = _recording(type(modules[path]), records)
    return notes


def _recording(cls: type, records: Mapping[str, Record]) -> type:
    def __call__(self, *args, **kwargs):
        result = cls.__call__(self, *args, **kwargs)
        for place, record in records.items():
            value = result if place == GIVES else (*args, *kwargs.values())[0]
            record.shapes.append(shapes_of(value))
            note = getattr(self, place)
            note.set_value((*note.get_value(), value))
        return result

    return type(cls.__name__, (cls,), {"__call__": __call__})


def _read(notes: Mapping[str, tuple[nnx.Module, str, Record]]) -> dict[str, Record]:
    for node, place, record in notes.values():
        record.values = getattr(node, place).get_value()
    return {path: record for path, (_, _, record) in notes.items()}


def _watched(cls: type, path: str, given: dict) -> type:
    def __call__(self, *args, **kwargs):
        result = cls.__call__(self, *args, **kwargs)
        given[path] = shapes_of(result)
        return result

    return type(cls.__name__, (cls,), {"__call__": __call__})


def _follow(module: nnx.Module, path: str) -> Callable:
    node: Any = module
    for name in path.split("/"):
        try:
            node = node[int(name)] if name.isdigit() else node[name] if isinstance(node, dict) else getattr(node, name)
        except (AttributeError, TypeError, IndexError, KeyError):
            raise no_module(path, _modules(module), type(module).__name__) from None
    return node


def _listen(module: nnx.Module, names: Sequence[str]) -> dict[str, set]:
    """Makes the submodules tell the shapes of what they `sow` under these names, when they do."""
    shapes: dict[str, set] = {name: set() for name in names}
    kinds: dict[type, type] = {}
    for _, node in nnx.iter_modules(module) if names else ():
        cls = type(node)
        if cls not in kinds:
            kinds[cls] = _telling(cls, shapes)
        node.__class__ = kinds[cls]
    return shapes


def _telling(cls: type, shapes: Mapping[str, set]) -> type:
    def sow(self, variable_type, name, value, *args, **kwargs):
        if name in shapes:
            shapes[name] |= {jnp.shape(leaf) for leaf in jax.tree.leaves(value)}
        return cls.sow(self, variable_type, name, value, *args, **kwargs)

    return type(cls.__name__, (cls,), {"sow": sow})


def _noted(module: nnx.Module, names: Sequence[str]) -> dict[str, list]:
    """The numbers that the submodules noted in this call, by name."""
    noted: dict[str, list] = {name: [] for name in names}
    for _, node in nnx.iter_modules(module) if names else ():
        for name in names:
            if isinstance(value := vars(node).get(name), nnx.Variable):
                noted[name] += jax.tree.leaves(value.get_value())
    return noted
