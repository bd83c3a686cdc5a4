"""Values that follow from a network's parameters alone: promised, combined, and computed for those that are asked for."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.models.products import Form, encode
from kdjax.types import Array, Tree

ELEMENTWISE = frozenset({
    "add", "convert_element_type", "div", "integer_pow", "max", "mul", "neg", "pow", "rsqrt", "sqrt", "square", "sub",
})  # fmt: skip


class Known:
    """A value that follows from the parameters alone.

    Attributes:
      name: of the parameter that it was made of first.
      shape, dtype: of the value.
      core_shape: the same with 1 for every axis along which the value is a broadcast one, of which nothing is kept.
      free: whether it follows from literals alone; it is then made anew in every call.
    """

    def __init__(self, name: str, like, make: Callable[[], Array], *, core_shape=None, free: bool = False):
        self.name, self.shape, self.dtype, self.free = name, tuple(like.shape), like.dtype, free
        self.core_shape = self.shape if core_shape is None else tuple(core_shape)
        self._make = make

    @functools.cached_property
    def core(self) -> Array:
        """The value before it is broadcast."""
        return self._make()

    @property
    def full(self) -> Array:
        """The value."""
        return jnp.broadcast_to(self.core, self.shape)


class Constants:
    """The values that a frozen network keeps, by name: collected as they are asked for, or looked up in `given`."""

    def __init__(self, given: Tree | None = None):
        self.given, self.values, self._names = given, {}, {}

    def take(self, known: Known, form: Form = "exact") -> Tree:
        """The core of a value in a form."""
        if known.free:
            return encode(known.core, form)
        if (known, form) not in self._names:
            names = (known.name + f" {i}" * (i > 1) for i in range(1, len(self.values) + 2))
            name = self._names[known, form] = next(name for name in names if name not in self.values)
            self.values[name] = encode(known.core, form) if self.given is None else self._find(name, known, form)
        return self.values[self._names[known, form]]

    def _find(self, name: str, known: Known, form: Form) -> Tree:
        told = lambda tree: jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)
        kept = jax.ShapeDtypeStruct(known.core_shape, known.dtype)
        needed = told(jax.eval_shape(lambda x: encode(x, form), kept))
        found = told(self.given[name]) if name in self.given else "nothing"
        if needed != found:
            raise ValueError(
                f"The frozen network needs {needed} as {name!r} for inputs of this shape, and its parameters hold {found}: "
                "they are not those of freeze(), or what the network computes of its parameters depends on the shape of "
                "its inputs; freeze it with a sample of the shape that it will see."
            )
        return self.given[name]


def literal(x: Any, like: Any = None) -> Known:
    """A value that stands in the program itself."""
    like = jnp.asarray(x) if like is None else like
    return Known("constant", like, lambda: jnp.asarray(x, like.dtype), free=True)


def bind(equation, values: Sequence[Array]) -> list:
    """The results of an equation for these operands."""
    with equation.ctx.manager:
        results = equation.primitive.bind(*values, **equation.primitive.get_bind_params(equation.params))
    return list(results) if equation.primitive.multiple_results else [results]


def follow(equation, operands: Sequence[Known]) -> list[Known] | None:
    """The results of an equation of known values; None if it would put copies of a broadcast value together."""
    name, params, outputs = equation.primitive.name, equation.params, [v.aval for v in equation.outvars]
    free = all(x.free for x in operands)
    said = next((x.name for x in operands if not x.free), "constant")
    if name == "broadcast_in_dim" and len(operands) == 1:
        (x,), core = operands, [1] * outputs[0].ndim
        for axis, to in enumerate(params["broadcast_dimensions"]):
            core[to] = x.core_shape[axis]
        return [Known(said, outputs[0], lambda: x.core.reshape(core), core_shape=core, free=free)]
    if name in ELEMENTWISE:
        core = np.broadcast_shapes(*(x.core_shape for x in operands))
        fill = lambda x: jnp.broadcast_to(x.core, core) if x.core_shape else x.core
        return [Known(said, outputs[0], lambda: bind(equation, map(fill, operands))[0], core_shape=core, free=free)]
    if any(x.core_shape != x.shape for x in operands):
        return None
    results = functools.cache(lambda: bind(equation, [x.full for x in operands]))
    return [Known(said, output, lambda i=i: results()[i], free=free) for i, output in enumerate(outputs)]


def combine(function: Callable[..., Array], *values: Known, name: str, like: Any) -> Known:
    """A function, elementwise, of known values."""
    core = np.broadcast_shapes(*(x.core_shape for x in values))
    make = lambda: function(*(jnp.broadcast_to(x.core, core) for x in values))
    return Known(name, like, make, core_shape=core, free=all(x.free for x in values))
