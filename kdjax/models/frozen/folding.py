"""A network's program with its parameters fixed, and every scale of channels in the kernel before it.

The program is the jaxpr of `Network.apply`, so that every framework is treated alike. Going through it, a value is one of

- `Known`: it follows from the parameters, and is a promise until something that depends on the inputs asks for it;
- `Lazy`: what a convolution or dense layer gives, times a known scale, plus a known shift. The equations that follow may
  change scale and shift; whoever else reads it has it computed, with the scale in the kernel;
- `Held`: computed of products in bfloat16, and rounded to it for products, and for all if several equations read it: then
  it is likely to be written to memory;
- an array.

The pass is made once over the parameters, to collect the values asked for, and again in every call, to put those collected
in their places. Programs inside (`jit`, `checkpoint`) are gone through; functions with a derivative of their own (ReLU is
one) and loops run as they are.
"""

import collections
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from kdjax.models.frozen.constants import Constants, Known, bind, combine, follow, literal
from kdjax.models.frozen.products import Form, Product, in_bfloat16, product_of, wide
from kdjax.types import Array

INSIDE = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "checkpoint": "jaxpr", "remat2": "jaxpr"}


class View(NamedTuple):
    """A transposition or a split of axes, and what it undoes of a scale."""

    how: tuple
    forward: Callable[[Array], Array]
    undo: Callable[[Array], Array]


class Lazy:
    """`views(product) * scale + shift`: `views` are what vmap leaves behind a convolution, scale and shift `Known` or None."""

    def __init__(self, product: Product, inputs, kernel: Known, like, *, views=(), scale=None, shift=None):
        self.product, self.inputs, self.kernel, self.like = product, inputs, kernel, like
        self.views, self.scale, self.shift = views, scale, shift

    def but(self, **changes) -> "Lazy":
        """Itself with something changed."""
        kept = {"like": self.like, "views": self.views, "scale": self.scale, "shift": self.shift}
        return Lazy(self.product, self.inputs, self.kernel, **{**kept, **changes})

    def on_kernel(self, scale: Array) -> Array | None:
        """A scale of this value as one of the kernel; None if it is none of its output channels."""
        scale = scale.reshape((1,) * (len(self.like.shape) - scale.ndim) + scale.shape)
        for view in self.views[::-1]:
            scale = view.undo(scale)
        return self.product.on_kernel(scale, len(self.kernel.shape))


class Held:
    """A float value that follows from products in bfloat16; `shared` if several read it, who then see it rounded."""

    def __init__(self, exact: Array):
        self.exact, self.shared = exact, False

    @functools.cached_property
    def rounded(self) -> Array:
        return self.exact.astype(jnp.bfloat16)


class Interpreter:
    """A pass through a program.

    Attributes:
      constants: where known values go to or come from.
      fold: whether scales go into kernels.
      precision: of the products.
      folded: how many kernels have taken a scale that parameters have a part in.
    """

    def __init__(self, constants: Constants, *, fold: bool, precision: str):
        self.constants, self.fold, self.precision, self.folded = constants, fold, precision, 0

    def run(self, jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list:
        """What a jaxpr gives, values of any of the kinds."""
        equations, uses = _live(jaxpr)
        values = {}

        def write(variable, value):
            if uses[variable] > 1:  # then it is computed here, not by each in its own way
                value = self.settle(value) if isinstance(value, Lazy) else value
                if isinstance(value, Held):
                    value.shared = True
            values[variable] = value

        def read(atom):
            return literal(atom.val, atom.aval) if isinstance(atom, Literal) else values[atom]

        for variable, value in zip(jaxpr.constvars, constants, strict=True):
            write(variable, literal(value))
        for variable, value in zip(jaxpr.invars, arguments, strict=True):
            write(variable, value)
        for equation in equations:
            results = self.equation(equation, [read(atom) for atom in equation.invars])
            for variable, value in zip(equation.outvars, results, strict=True):
                write(variable, value)
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, equation, operands: list) -> list:
        """The results of an equation."""
        name, results = equation.primitive.name, None
        if name in INSIDE:
            inner = equation.params[INSIDE[name]]
            return self.run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), operands)
        if operands and all(isinstance(x, Known) for x in operands) and not equation.effects:
            results = follow(equation, operands)
        elif name in ("conv_general_dilated", "dot_general"):
            results = self.product(equation, operands)
        elif self.fold and any(isinstance(x, Lazy) for x in operands):
            results = _view(equation, *operands) if len(operands) == 1 else _absorb(equation, *operands)
        return self.compute(equation, operands) if results is None else results

    def product(self, equation, operands: list) -> list | None:
        """A convolution or dense layer with a known kernel, or a product of two values in bfloat16."""
        types = {atom.aval.dtype for atom in (*equation.invars, *equation.outvars)}
        if len(types) > 1 or not wide(*types):  # a network that has chosen its own precision
            return None
        left, right = (isinstance(x, Known) for x in operands)
        if right or (left and equation.primitive.name == "dot_general"):
            product = product_of(equation, side=int(right))
            return [Lazy(product, operands[1 - right], operands[right], equation.outvars[0].aval)]
        return [Held(in_bfloat16(equation, *map(self.narrow, operands)))] if self.precision == "bfloat16" else None

    def compute(self, equation, operands: list) -> list:
        """An equation as it stands."""
        lower = self.precision == "bfloat16"
        held = lower and any(isinstance(x, Held | Lazy) for x in operands)
        values = [self.value(x) for x in operands[1:]]
        if operands:
            # A table that is looked up is kept like a kernel.
            table = lower and equation.primitive.name == "gather" and isinstance(operands[0], Known)
            first = self.value(operands[0], "bfloat16" if table and wide(operands[0].dtype) else "exact")
            values = [first, *values]
        results = bind(equation, values)
        return [Held(x) if held and wide(x.dtype) else x for x in results]

    def settle(self, lazy: Lazy) -> Array | Held:
        """Computes a lazy value."""
        kernel, form = lazy.kernel, lazy.product.form(self.precision)
        if lazy.scale is not None:
            self.folded += not lazy.scale.free
            make = lambda: lazy.kernel.full * lazy.on_kernel(lazy.scale.core)
            how = (sorted(lazy.product.of_kernel.items()), [view.how for view in lazy.views])
            recipe = ("kernel", kernel.recipe, lazy.scale.recipe, how)
            kernel = Known(kernel.name, kernel, make, recipe, free=kernel.free and lazy.scale.free)
        elif kernel.core_shape != kernel.shape:
            kernel = Known(kernel.name, kernel, lambda: lazy.kernel.full, ("full", kernel.recipe), free=kernel.free)
        inputs = self.narrow(lazy.inputs) if form == "bfloat16" else self.value(lazy.inputs)
        y = lazy.product.apply(inputs, self.constants.take(kernel, form), form)
        for view in lazy.views:
            y = view.forward(y)
        if lazy.shift is not None:
            y = y + self.constants.take(lazy.shift)
        return Held(y) if form == "bfloat16" else y

    def value(self, x: Any, form: Form = "exact") -> Array:
        """What an equation reads."""
        x = self.settle(x) if isinstance(x, Lazy) else x
        if isinstance(x, Known):
            core = self.constants.take(x, form)
            return jnp.broadcast_to(core if form == "exact" else core.astype(x.dtype), x.shape)
        if isinstance(x, Held):
            return x.rounded.astype(x.exact.dtype) if x.shared else x.exact
        return x

    def narrow(self, x: Any) -> Array:
        """What a product in bfloat16 reads."""
        x = self.settle(x) if isinstance(x, Lazy) else x
        return x.rounded if isinstance(x, Held) else self.value(x).astype(jnp.bfloat16)

    def output(self, x: Any) -> Array:
        """What the network gives: not rounded."""
        x = self.settle(x) if isinstance(x, Lazy) else x
        return x.exact if isinstance(x, Held) else self.value(x)


def _live(jaxpr) -> tuple[list, collections.Counter]:
    """The equations that anything depends on, and how often each variable is read by them."""
    uses = collections.Counter(atom for atom in jaxpr.outvars if not isinstance(atom, Literal))
    live = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(uses[variable] for variable in equation.outvars):
            live.append(equation)
            uses.update(atom for atom in equation.invars if not isinstance(atom, Literal))
    return live[::-1], uses


def _absorb(equation, *operands: Any) -> list[Lazy] | None:
    """A sum, product or quotient of a lazy value with a known one; None for anything else."""
    name, like = equation.primitive.name, equation.outvars[0].aval
    if name not in ("add", "sub", "mul", "div"):
        return None
    lazy_first = isinstance(operands[0], Lazy)
    lazy, other = operands if lazy_first else operands[::-1]
    if not isinstance(other, Known) or like.shape != lazy.like.shape:
        return None
    of = functools.partial(combine, name=f"{lazy.kernel.name.rpartition('/')[0]}/bias".lstrip("/"), like=like)
    if name == "mul" or (name == "div" and lazy_first):
        if jax.eval_shape(lazy.on_kernel, jax.ShapeDtypeStruct(other.core_shape, other.dtype)) is None:
            return None
        times = jnp.multiply if name == "mul" else jnp.divide
        scale, shift = lazy.scale or literal(1, jax.ShapeDtypeStruct((), other.dtype)), lazy.shift
        return [lazy.but(scale=of(times, scale, other), shift=None if shift is None else of(times, shift, other))]
    if name == "add" or (name == "sub" and lazy_first):
        if name == "sub":
            other = of(jnp.negative, other)
        return [lazy.but(shift=other if lazy.shift is None else of(jnp.add, lazy.shift, other))]
    return None


def _view(equation, lazy: Lazy) -> list[Lazy] | None:
    """A lazy value with its axes in another order or split; None for anything else."""
    params, like = equation.params, equation.outvars[0].aval
    if lazy.scale is not None or lazy.shift is not None:
        return None
    if equation.primitive.name == "transpose":
        order = params["permutation"]
        view = View((order,), lambda y: y.transpose(order), lambda scale: scale.transpose(np.argsort(order)))
    elif equation.primitive.name == "reshape" and params["dimensions"] is None:
        runs = _split(lazy.like.shape, like.shape)
        if runs is None:
            return None
        view = View(("split", runs), lambda y: y.reshape(like.shape), lambda scale: _merge(scale, like.shape, runs))
    else:
        return None
    return [lazy.but(like=like, views=(*lazy.views, view))]


def _split(old: Sequence[int], new: Sequence[int]) -> list[slice] | None:
    """The run of new axes that every old one is split into; None if axes were joined."""
    runs, start = [], 0
    for size in old:
        stop = start
        while math.prod(new[start:stop]) < size and stop < len(new):
            stop += 1
        if math.prod(new[start:stop]) != size:
            return None
        runs.append(slice(start, stop))
        start = stop
    if math.prod(new[start:]) != 1:
        return None
    return runs


def _merge(scale: Array, shape: Sequence[int], runs: Sequence[slice]) -> Array:
    """A scale of the split axes as one of the whole ones."""
    full, merged = list(scale.shape), []
    for run in runs:
        if math.prod(scale.shape[run]) > 1:
            full[run] = shape[run]
        merged.append(math.prod(full[run]))
    return jnp.broadcast_to(scale, full).reshape(merged)
