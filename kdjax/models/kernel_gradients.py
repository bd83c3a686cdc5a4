"""Convolutions that learn fast on a CPU: the gradient of their kernel as matrix products.

XLA's CPU compiler computes that gradient as a convolution with a window as large as the image, several times slower than the
forward pass. The same sum is one matrix product of the image's patches and the output's gradient, a few images at a time so
that their patches stay in the processor's cache. Equal to rounding; `scripts/benchmark_peers.py --operations` measures it.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from kdjax.types import Array

LAYOUT = ("NHWC", "HWIO", "NHWC")
# Values of the patches that are put together at a time.
PATCHES = 3 * 2**19
# With fewer in all a convolution is left to XLA, which is as fast; of single pixels, which need not be put together, a 16th.
GAINS_FROM = 2**22

# The shapes of kernels whose gradients are taken as products, or None where none are.
_TAKEN = contextvars.ContextVar("kernels_with_gradients_as_products", default=None)
_COUNTING = contextvars.ContextVar("kernel_gradients_left_to_xla", default=False)


@contextlib.contextmanager
def as_products() -> Iterator[list[tuple[int, ...]]]:
    """Flax NNX networks that are traced in here for training take kernels' gradients as matrix products.

    It suits one CPU device; elsewhere XLA's own is the better one. What is traced so has no forward-mode derivative (`jax.jvp`).

    Yields:
      a list that gets the shapes of these kernels while they are traced.
    """
    yield from _set(_TAKEN, [])


@contextlib.contextmanager
def left_to_xla() -> Iterator[bool]:
    """What is traced in here is not changed, also within `as_products`: for counting operations, of which XLA counts those in a
    loop once."""
    yield from _set(_COUNTING, True)


def _set(variable: contextvars.ContextVar, value: Any) -> Iterator[Any]:
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)


def prepare(module: nnx.Module) -> None:
    """Within `as_products`, lets the convolutions of a module be computed by `conv_general_dilated` below."""
    if _TAKEN.get() is None or _COUNTING.get():
        return
    for _, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Conv) and node.conv_general_dilated is lax.conv_general_dilated:
            node.conv_general_dilated = conv_general_dilated


def conv_general_dilated(
    lhs: Array, rhs: Array, window_strides: Sequence[int], padding: str | Sequence[tuple[int, int]], **options
) -> Array:
    """`jax.lax.conv_general_dilated`, as `nnx.Conv` calls it, with the kernel's gradient as matrix products where they gain.

    Args:
      lhs: images `[B, H, W, C]`.
      rhs: kernel `[h, w, C / groups, D]`.
      window_strides: of both directions.
      padding: a name, or pixels on either side in both directions.
      options: the other arguments of `jax.lax.conv_general_dilated`.
    """
    plain = _Convolution(tuple(window_strides), padding, options)
    if not plain.gains(lhs, rhs):
        return plain(lhs, rhs)
    taken = _TAKEN.get()
    if taken is not None:
        taken.append(rhs.shape)

    @jax.custom_vjp
    def convolved(lhs, rhs):
        return plain(lhs, rhs)

    def forward(lhs, rhs):
        return plain(lhs, rhs), (lhs, rhs)

    def backward(kept, gradient):
        lhs, rhs = kept
        of_lhs = jax.linear_transpose(lambda x: plain(x, rhs), lhs)
        return *of_lhs(gradient), plain.kernel_gradient(lhs, gradient, rhs)

    convolved.defvjp(forward, backward)
    return convolved(lhs, rhs)


def images_together(rows: int, values: int) -> int:
    """How many of `rows` images, with so many values in the patches of one, are taken at a time: a divisor of `rows`."""
    return max(n for n in range(1, rows + 1) if rows % n == 0 and (n == 1 or n * values <= PATCHES))


class _Convolution:
    """A convolution's settings."""

    def __init__(self, strides: tuple[int, ...], padding, options: dict):
        self.strides, self.padding, self.options = strides, padding, options

    def __call__(self, lhs: Array, rhs: Array) -> Array:
        return lax.conv_general_dilated(lhs, rhs, self.strides, self.padding, **self.options)

    @property
    def dilation(self) -> tuple[int, int]:
        """Steps between the values that a window reads."""
        return tuple(self.options.get("rhs_dilation") or (1, 1))

    def gains(self, lhs: Array, rhs: Array) -> bool:
        """Whether it is one of images without groups, of one float type, and large enough to gain."""
        if lhs.ndim != 4 or lhs.dtype != rhs.dtype or not jnp.issubdtype(lhs.dtype, jnp.floating):
            return False
        plain = {
            "feature_group_count": 1,
            "batch_group_count": 1,
            "lhs_dilation": (1, 1),
            "preferred_element_type": None,
        }
        same = all(self.options.get(name) in (value, None) for name, value in plain.items())
        numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, self.options.get("dimension_numbers"))
        here = numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, LAYOUT)
        return same and here and self.is_large(lhs, rhs)

    def is_large(self, lhs: Array, rhs: Array) -> bool:
        """Whether its patches have so many values that matrix products are the faster way."""
        window = math.prod(rhs.shape[:2])
        values = math.prod(lhs.shape) * window // math.prod(self.strides)
        return values >= (GAINS_FROM if window > 1 else GAINS_FROM // 16)

    def kernel_gradient(self, lhs: Array, gradient: Array, rhs: Array) -> Array:
        """Gradients of the output `[B, H', W', D]` to those of the kernel `[h, w, C, D]`, summed in float32 at least."""
        height, width = rhs.shape[:2]
        reach = [(size - 1) * step + 1 for size, step in zip(rhs.shape[:2], self.dilation, strict=True)]
        padding = self.padding
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(lhs.shape[1:3], reach, self.strides, padding)
        precise = jnp.promote_types(lhs.dtype, jnp.float32)
        zero = jnp.zeros((), lhs.dtype)

        def of_some(images: Array, gradients: Array) -> Array:
            padded = lax.pad(images, zero, [(0, 0, 0), *((*sides, 0) for sides in padding), (0, 0, 0)])
            views = [
                self._seen(padded, (i * self.dilation[0], j * self.dilation[1]), gradients.shape)
                for i in range(height)
                for j in range(width)
            ]
            patches = jnp.concatenate(views, -1) if len(views) > 1 else views[0]
            precision = self.options.get("precision")
            return lax.dot_general(patches, gradients, (((0, 1, 2), (0, 1, 2)), ((), ())), precision=precision,
                                   preferred_element_type=precise)  # fmt: skip

        rows, columns = lhs.shape[0], math.prod(gradient.shape[1:3]) * math.prod(rhs.shape[:3])
        together = images_together(rows, columns)
        if together == rows or height * width == 1:
            total = of_some(lhs, gradient)
        else:
            some = jax.tree.map(lambda x: x.reshape(rows // together, together, *x.shape[1:]), (lhs, gradient))
            start = jnp.zeros((math.prod(rhs.shape[:3]), rhs.shape[3]), precise)
            total, _ = lax.scan(lambda total, x: (total + of_some(*x), None), start, some)
        return total.reshape(rhs.shape).astype(rhs.dtype)

    def _seen(self, padded: Array, start: tuple[int, int], out: Sequence[int]) -> Array:
        """What one position of the window reads for every output: `[B, H', W', C]`."""
        ends = [a + (n - 1) * stride + 1 for a, n, stride in zip(start, out[1:3], self.strides, strict=True)]
        return lax.slice(padded, (0, *start, 0), (len(padded), *ends, padded.shape[3]), (1, *self.strides, 1))
