"""Convolutions and dense layers with a constant kernel, in float32, bfloat16 or int8."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.types import Array, Tree

# How a kernel is kept: "exact", "bfloat16", or ("int8", the axes that share a scale).
Form = str | tuple[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Product:
    """A convolution or a `dot_general`, one operand of which is the kernel.

    Attributes:
      equation: of the jaxpr.
      side: which operand the kernel is.
      of_kernel: {axis of the output: axis of the kernel} for those of the kernel that are not summed over.
      of_input: the same of the other operand, as far as each of its rows can have a scale of its own.
      shared: axes of the kernel, and of the input, that are summed over.
      in_int8: whether it may be computed in int8.
    """

    equation: Any
    side: int
    of_kernel: dict[int, int]
    of_input: dict[int, int]
    shared: tuple[tuple[int, ...], tuple[int, ...]]
    in_int8: bool

    def form(self, precision: str) -> Form:
        """How the kernel is kept."""
        if precision == "int8" and self.in_int8:
            return ("int8", self.shared[0])
        return "bfloat16" if precision == "bfloat16" else "exact"

    def on_kernel(self, scale: Array, kernel_rank: int) -> Array | None:
        """A scale of the output as one of the kernel; None if it varies where a value of the kernel is shared."""
        if any(size > 1 and axis not in self.of_kernel for axis, size in enumerate(scale.shape)):
            return None
        return _place(scale, {own: axis for axis, own in self.of_kernel.items()}, kernel_rank)

    def apply(self, inputs: Array, kernel: Tree, form: Form) -> Array:
        """The product, in the type that the equation has."""
        if form == "exact":
            return _bind(self.equation, *self._ordered(inputs, kernel))
        if form == "bfloat16":
            return in_bfloat16(self.equation, *self._ordered(inputs, kernel))
        return self._in_int8(inputs, kernel)

    def _in_int8(self, inputs: Array, kernel: Tree) -> Array:
        """Sums in int32; each row of the input and each channel of the kernel has a scale of its own."""
        rank = len(self.equation.outvars[0].aval.shape)

        @jax.custom_jvp
        def product(inputs, kernel):
            rows = encode(inputs, ("int8", self.shared[1]))
            sums = _bind(self.equation, *self._ordered(rows["values"], kernel["values"]),
                         precision=None, preferred_element_type=jnp.dtype(jnp.int32))  # fmt: skip
            scales = _place(rows["scale"], self.of_input, rank) * _place(kernel["scale"], self.of_kernel, rank)
            return sums.astype(inputs.dtype) * scales

        @product.defjvp
        def derivative(primals, tangents):
            kernel = primals[1]["values"].astype(primals[0].dtype) * primals[1]["scale"]
            return product(*primals), _bind(self.equation, *self._ordered(tangents[0], kernel))

        return product(inputs, kernel)

    def _ordered(self, inputs, kernel):
        return (inputs, kernel) if self.side == 1 else (kernel, inputs)


def product_of(equation, side: int) -> Product:
    """What an equation with its kernel on this side computes; a convolution has it on the right, as operand 1."""
    numbers = equation.params["dimension_numbers"]
    if equation.primitive.name == "conv_general_dilated":
        grouped = equation.params["feature_group_count"] > 1 or equation.params["batch_group_count"] > 1
        (rows, *summed), (channels, *rest) = numbers.lhs_spec, numbers.rhs_spec
        of_kernel, of_input = {numbers.out_spec[1]: channels}, {numbers.out_spec[0]: rows}
        return Product(equation, side, of_kernel, of_input, (tuple(rest), tuple(summed)), not grouped)
    (contracted, batch), ranks = numbers, [len(atom.aval.shape) for atom in equation.invars]
    own, start = [{}, {}], len(batch[0])
    for i in (0, 1):
        free = [axis for axis in range(ranks[i]) if axis not in (*contracted[i], *batch[i])]
        own[i] = dict(enumerate(batch[i])) | {start + j: axis for j, axis in enumerate(free)}
        start += len(free)
    return Product(equation, side, own[side], own[1 - side], (contracted[side], contracted[1 - side]), True)


def encode(x: Array, form: Form) -> Tree:
    """A kernel, or rows of an input, as they are kept."""
    if form == "exact":
        return x
    if form == "bfloat16":
        return x.astype(jnp.bfloat16)
    largest = jnp.max(jnp.abs(x), axis=form[1], keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0) / 127
    return {"values": jnp.round(x / scale).astype(jnp.int8), "scale": scale}


def in_bfloat16(equation, *operands: Array) -> Array:
    """A product of bfloat16 operands in the type that the equation has."""
    result = equation.outvars[0].aval.dtype
    kept = jnp.bfloat16 if equation.primitive.name == "conv_general_dilated" else result  # cuDNN gives what it takes
    return _bind(equation, *operands, precision=None, preferred_element_type=jnp.dtype(kept)).astype(result)


def wide(dtype) -> bool:
    """Whether it is a float type with more digits than bfloat16 can hold."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize > 2


def _bind(equation, *operands, **changes) -> Array:
    with equation.ctx.manager:
        return equation.primitive.bind(*operands, **{**equation.params, **changes})


def _place(x: Array, axes: dict[int, int], rank: int) -> Array:
    """`x` with its axes moved to {new: old} and axes of 1 elsewhere; the axes left out are of size 1."""
    rest = [axis for axis in range(x.ndim) if axis not in axes.values()]
    ordered = x.transpose([axes[new] for new in sorted(axes)] + rest)
    return ordered.reshape([x.shape[axes[new]] if new in axes else 1 for new in range(rank)])
