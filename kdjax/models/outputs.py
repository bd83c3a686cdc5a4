"""What models return, as a `ModelOutput`; and what a network would return, without running it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.types import ModelOutput, Network, Tree


def as_output(raw: Any) -> ModelOutput:
    """What a model returned as a `ModelOutput`: one already, an array of logits, or `(logits, features)`.

    Features are arrays `[B, ..., K]` with at least one axis of positions, beside logits `[B, C]`. Anything else that might be
    meant (another head, an embedding, a cache, a loss) is refused: a function says what it is.

    Raises:
      TypeError: it returned something else; the message says what to write.
    """
    if isinstance(raw, ModelOutput):
        return raw
    if _is_array(raw):
        return ModelOutput(logits=raw)
    fields = getattr(raw, "_fields", ())
    if isinstance(raw, tuple | list) and len(raw) == 2 and (not fields or fields[0] == "logits"):
        return _pair(*raw)
    keys = (
        list(raw)
        if isinstance(raw, Mapping)
        else list(fields) or [k for k, v in getattr(raw, "__dict__", {}).items() if v is not None]
    )
    if isinstance(raw, Mapping) or fields or hasattr(raw, "logits"):
        logits = "logits" if "logits" in keys or hasattr(raw, "logits") else str(keys[0]) if keys else "logits"
        read = f"raw[{logits!r}]" if isinstance(raw, Mapping) else f"raw.{logits}"
        raise TypeError(
            f"The model returned a {type(raw).__name__}; it has {', '.join(map(str, keys)) or 'nothing'}: pass "
            f"output=function_that_makes_one, such as output=lambda raw: ModelOutput(logits={read})."
        )
    raise TypeError(
        f"The model returned a {type(raw).__name__}; return logits, (logits, features) or a ModelOutput, or pass "
        "output=function_that_makes_one."
    )


def of_model(raw: Any, output: Callable[[Any], Any], inputs: Any) -> Any:
    """What `output` makes of what a model returned for `inputs`; an array is logits. One example by itself, as under `vmap`, may
    have `[C]`.

    Raises:
      TypeError: the logits are no floats `[B, ..., C]`, or the features no tuple.
    """
    made = output(raw)
    made = ModelOutput(logits=made) if _is_array(made) else made
    logits = getattr(made, "logits", None)
    if not _is_array(logits):
        return made
    shapes = [jnp.shape(x) for x in jax.tree.leaves(inputs)]
    rows = any(len(shape) > 1 and shape[:1] == logits.shape[:1] for shape in shapes)
    if logits.ndim < (2 if rows else 1) or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(
            f"The model's logits are {logits.dtype} {list(logits.shape)}; they must be floats [B, C], or [B, L, C] of elements: "
            "pass output=function_that_makes_them."
        )
    if _is_array(getattr(made, "features", ())):
        raise TypeError("features of the model's output are one array; give a tuple of stages, features=(array,).")
    return made


def two_heads(raw: Any) -> ModelOutput:
    """`output=` for a model that returns `(class logits, distillation logits)`, as DeiT does while it trains.

    The logits are the mean of both heads, by which it is evaluated; the taps "class" and "distillation" are the heads by
    themselves, for `OnHead(inner=CrossEntropy(), head="class") + OnHead(inner=KD(), head="distillation")`.
    """
    classes, distillation = raw
    mean = (classes + distillation) / 2
    return ModelOutput(logits=mean, taps={"class": classes, "distillation": distillation})


def add_losses(output: ModelOutput, noted: Mapping[str, list], inside: Mapping[str, set], model: str) -> ModelOutput:
    """The output with losses, each the sum of what the model noted under a name: a number, or `[B]` one an example.

    Args:
      output: of the model, with logits `[B, ...]`.
      noted: the values by name; a loop has stacked those of its turns.
      inside: shapes of these values when they were noted, as far as they are known.
      model: its name.

    Raises:
      ValueError: nothing was noted under a name, or something that is neither.
    """
    for name, values in noted.items():
        if not values:
            raise ValueError(f"losses= names {name!r}, and {model} notes nothing of that name; use that of its sow().")
    totals = {name: _total(name, values, inside.get(name, set()), output, model) for name, values in noted.items()}
    return dataclasses.replace(output, losses={**output.losses, **totals}) if totals else output


def _total(name: str, values: list, inside: set, output: ModelOutput, model: str) -> Any:
    """The sum of what was noted under a name, over modules and the turns of loops."""
    rows = jax.tree.leaves(output)[0].shape[0]  # logits, or whatever it says first
    shapes = inside or {jnp.shape(value) for value in values}
    if shapes == {(rows,)}:
        return sum(jnp.sum(jnp.reshape(value, (-1, rows)), axis=0) for value in values)
    turns = not inside and all(len(shape) <= 1 and shape != (rows,) for shape in shapes)
    if shapes != {()} and not turns:
        said = " and ".join(str(list(shape)) for shape in sorted(shapes))
        raise ValueError(
            f"{model} notes {name!r} of the shape {said} beside {rows} examples; note a mean over the batch, or one number an "
            "example [B], everywhere the same."
        )
    return sum(jnp.sum(value) for value in values)


def output_shapes(network: Network, inputs: Tree) -> ModelOutput:
    """Shapes and types of all a network says about `inputs`, without computing anything."""

    def run(key, x):
        return network.apply(*network.init(key), x, train=False)[0]

    return jax.eval_shape(run, jax.random.key(0), inputs)


def module_paths(network: Network, inputs: Tree) -> dict[str, Any]:
    """What may be tapped of a network, for `features=`, `embedding=` and so on: `{path: shape}`, in the order of running.

    Args:
      network: one of `from_nnx` or `from_linen`.
      inputs: an example batch, or its shapes. Nothing is computed.

    Raises:
      ValueError: the network is of another kind, whose `output=` names what it gives.
    """
    if network.paths is None:
        raise ValueError(
            f"{network.name} has no modules that are known by path; return what it gives in a ModelOutput."
        )
    return network.paths(inputs)


def _pair(first: Any, second: Any) -> ModelOutput:
    if not _is_array(first):
        swapped = "output=lambda raw: ModelOutput(logits=raw[1], features=tuple(raw[0]))"
        order = f"did it return (features, logits)? Then pass {swapped}" if _is_array(second) else "pass output="
        raise TypeError(f"The model returned a pair; logits must be an array, got a {type(first).__name__}; {order}.")
    features = tuple(second) if isinstance(second, tuple | list) else (second,)
    for feature in features:
        if problem := _no_feature(first, feature):
            raise TypeError(f"The model returned logits and something that {problem}.")
    return ModelOutput(logits=first, features=features)


def _no_feature(logits: Any, x: Any) -> str:
    """Why an array beside logits is not taken for a feature map, and what to write; "" if it is one."""
    said = "pass output=lambda raw: ModelOutput(logits=raw[0], "
    if not _is_array(x):
        return f"holds a {type(x).__name__}; pass output=lambda raw: raw[0] if that is of no use"
    if x.ndim == 0:
        return f'is a number; {said}losses={{"own": raw[1]}}) if it is a loss'
    if x.ndim < 3:
        mend = "pass output=two_heads if it is a second head" if x.shape == logits.shape else (
            f"{said}embedding=raw[1]) if it is an embedding"
        )  # fmt: skip
        return f"has the shape {list(x.shape)}, which no feature map has; {mend}"
    if logits.ndim > 2 or x.shape[0] != logits.shape[0]:
        what = f"has the shape {list(x.shape)} beside logits {list(logits.shape)}, a feature map, states or a cache"
        return f"{what}; {said}features=(raw[1],)) if it is a feature map, or output=lambda raw: raw[0]"
    return ""


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")
