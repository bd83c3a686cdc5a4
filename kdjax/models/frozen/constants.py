"""Values that follow from a network's parameters alone: promised, combined, and computed for those that are asked for."""

import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from kdjax.models.frozen.products import Form, encode
from kdjax.types import Array, Tree

ELEMENTWISE = frozenset({
    "add", "convert_element_type", "div", "integer_pow", "max", "mul", "neg", "pow", "rsqrt", "sqrt", "square", "sub",
})  # fmt: skip


class Known:
    """A value that follows from the parameters alone.

    Attributes:
      name: of the parameter that it was made of first.
      shape, dtype: of the value.
      recipe: what it was made of and how: equal recipes of equal parameters are equal values.
      core_shape: its shape with 1 for every axis along which it is a broadcast one, of which nothing is kept.
      free: whether it follows from literals alone; it is then made anew in every call.
    """

    def __init__(
        self, name: str, like, make: Callable[[], Array], recipe: tuple, *, core_shape=None, free: bool = False
    ):
        self.name, self.shape, self.dtype, self.free = name, tuple(like.shape), like.dtype, free
        self.core_shape = self.shape if core_shape is None else tuple(core_shape)
        text = re.sub("0x[0-9a-f]+", "", repr((*recipe, self.core_shape)))  # functions by their names
        self.recipe = hashlib.sha256(text.encode()).hexdigest()
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
    """The values that a frozen network keeps, by name: collected as they are asked for, or looked up.

    Attributes:
      values: by name.
      names: by recipe and form.
    """

    def __init__(self, given: Tree | None = None, names: dict | None = None):
        self.collects = given is None
        self.values, self.names = ({}, {}) if given is None else (given, names)

    def take(self, known: Known, form: Form = "exact") -> Tree:
        """The core of a value in a form."""
        if known.free:
            return encode(known.core, form)
        key = known.recipe, form
        if self.collects and key not in self.names:
            names = (known.name + f" {i}" * (i > 1) for i in range(1, len(self.values) + 2))
            self.names[key] = next(name for name in names if name not in self.values)
            self.values[self.names[key]] = encode(known.core, form)
        needed = _told(jax.eval_shape(lambda x: encode(x, form), jax.ShapeDtypeStruct(known.core_shape, known.dtype)))
        if key not in self.names:
            raise ValueError(
                f"For inputs of this shape the network makes another value ({needed}) of its parameter {known.name!r} than "
                "for the sample that it was frozen with; freeze it with a sample of the shape that it will see."
            )
        name = self.names[key]
        found = _told(self.values[name]) if name in self.values else "nothing"
        if needed != found:
            raise ValueError(f"The frozen network needs {needed} as {name!r}, and its parameters hold {found}; pass those that "
                             "freeze() gave.")  # fmt: skip
        return self.values[name]


def literal(x: Any, like: Any = None) -> Known:
    """A value that stands in the program itself."""
    like = jnp.asarray(x) if like is None else like
    return Known("constant", like, lambda: jnp.asarray(x, like.dtype), ("literal", like.dtype, _content(x)), free=True)


def bind(equation, values: Sequence[Array]) -> list:
    """The results of an equation for these operands."""
    with equation.ctx.manager:
        results = equation.primitive.bind(*values, **equation.primitive.get_bind_params(equation.params))
    return list(results) if equation.primitive.multiple_results else [results]


def follow(equation, operands: Sequence[Known]) -> list[Known] | None:
    """The results of an equation of known values; None if copies of a value would be put together to be kept."""
    name, params, outputs = equation.primitive.name, equation.params, [v.aval for v in equation.outvars]
    said = next((x.name for x in operands if not x.free), "constant")
    recipe, free = tuple(x.recipe for x in operands), all(x.free for x in operands)
    if name == "broadcast_in_dim" and len(operands) == 1:
        (x,), core = operands, [1] * outputs[0].ndim
        for axis, to in enumerate(params["broadcast_dimensions"]):
            core[to] = x.core_shape[axis]
        return [Known(said, outputs[0], lambda: x.core.reshape(core), (name, *recipe), core_shape=core, free=free)]
    recipe = (*recipe, _recipe(equation))
    if name in ELEMENTWISE:
        core = np.broadcast_shapes(*(x.core_shape for x in operands))
        fill = lambda x: jnp.broadcast_to(x.core, core) if x.core_shape else x.core
        make = lambda: bind(equation, map(fill, operands))[0]
        return [Known(said, outputs[0], make, recipe, core_shape=core, free=free)]
    if name == "tile" or any(x.core_shape != x.shape for x in operands):
        return None
    results = functools.cache(lambda: bind(equation, [x.full for x in operands]))
    return [Known(said, output, lambda i=i: results()[i], (*recipe, i), free=free) for i, output in enumerate(outputs)]


def combine(function: Callable[..., Array], *values: Known, name: str, like: Any) -> Known:
    """A function, elementwise, of known values."""
    core = np.broadcast_shapes(*(x.core_shape for x in values))
    make = lambda: function(*(jnp.broadcast_to(x.core, core) for x in values))
    recipe = (function, *(x.recipe for x in values))
    return Known(name, like, make, recipe, core_shape=core, free=all(x.free for x in values))


def _recipe(equation) -> tuple:
    """What an equation does. Not with which precision, for comparing with the original has its own, nor on which devices."""
    passed = ("precision", "sharding", "out_sharding")
    kept = {name: _inside(x) for name, x in equation.params.items() if name not in passed}
    return equation.primitive.name, kept


def _inside(x: Any) -> Any:
    """A parameter of an equation: of a program inside, its equations, what each reads and gives, and its constants."""
    if isinstance(x, tuple | list):
        return [_inside(part) for part in x]
    program = getattr(x, "jaxpr", x)
    if not hasattr(program, "eqns"):
        return _content(x) if isinstance(x, np.ndarray | jax.Array) else x
    numbers = {variable: i for i, variable in enumerate((*program.constvars, *program.invars))}
    read = lambda atoms: [_content(atom.val) if isinstance(atom, Literal) else numbers[atom] for atom in atoms]
    equations = []
    for equation in program.eqns:
        equations.append((_recipe(equation), read(equation.invars)))
        numbers |= {variable: len(numbers) + i for i, variable in enumerate(equation.outvars)}
    return equations, read(program.outvars), [_content(value) for value in getattr(x, "consts", ())]


def _content(x: Any) -> tuple | None:
    """By what a constant is told from others: its values, or of many a hash. None of one that is not known yet, of keys, and of
    an array of which other processes hold a part."""
    known = not isinstance(x, jax.core.Tracer) and getattr(x, "is_fully_addressable", True)
    if not known or jnp.issubdtype(getattr(x, "dtype", bool), jax.dtypes.prng_key):
        return None
    x = np.asarray(x)
    return x.dtype.name, x.shape, x.tolist() if x.size <= 64 else hashlib.sha256(x.tobytes()).hexdigest()


def _told(tree: Tree) -> Any:
    return jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)
