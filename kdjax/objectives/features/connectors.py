"""Convolutions that connect a student's maps to a teacher's, and what objectives ask of both."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from flax.nnx.nn.initializers import variance_scaling

from kdjax.models.zoo.normalization import BatchNorm
from kdjax.types import Array

# Kaiming normal by fan out, Kaiming uniform with a gain of 1, and PyTorch's default.
FAN_OUT = variance_scaling(2.0, "fan_out", "normal")
FAN_IN = variance_scaling(1.0, "fan_in", "uniform")
DEFAULT = variance_scaling(1 / 3, "fan_in", "uniform")


class ConvNorm(nnx.Module):
    """A convolution without bias that keeps the map's size, and BatchNorm."""

    def __init__(self, before: int, after: int, *, size: int = 1, start: Callable = DEFAULT, rngs: nnx.Rngs):
        self.conv = convolution(before, after, size=size, start=start, rngs=rngs)
        self.norm = BatchNorm(after, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """`[B, H, W, before]` to `[B, H, W, after]`."""
        return self.norm(self.conv(x))


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions with BatchNorm and ReLU between them, and after the last one too if `activated`."""

    def __init__(self, before: int, middle: int, after: int, *, activated: bool, rngs: nnx.Rngs):
        self.first = ConvNorm(before, middle, rngs=rngs)
        self.second = ConvNorm(middle, middle, size=3, rngs=rngs)
        self.last = convolution(middle, after, size=1, start=DEFAULT, rngs=rngs)
        self.norm = BatchNorm(after, rngs=rngs) if activated else None

    def __call__(self, x: Array) -> Array:
        """`[B, H, W, before]` to `[B, H, W, after]`."""
        x = self.last(jax.nn.relu(self.second(jax.nn.relu(self.first(x)))))
        return x if self.norm is None else jax.nn.relu(self.norm(x))


def convolution(before: int, after: int, *, size: int, start: Callable, rngs: nnx.Rngs) -> nnx.Conv:
    """A `size`x`size` convolution without bias, padded to keep the map's size."""
    padding = ((size // 2, size // 2),) * 2
    return nnx.Conv(before, after, (size, size), padding=padding, use_bias=False, kernel_init=start, rngs=rngs)


def map_shape(maps: tuple[Array, ...], stage: int, of: str) -> tuple[int, int, int]:
    """Shape `(H, W, K)` of one of a network's maps, `of` saying whose and which, such as "student's features"."""
    if not -len(maps) <= stage < len(maps):
        raise ValueError(
            f"Stage {stage} is not among the {of}, which are {len(maps)} ({-len(maps)} to {len(maps) - 1})."
        )
    shape = tuple(maps[stage].shape[1:])
    if len(shape) != 3:
        raise ValueError(f"Stage {stage} of the {of} is {shape} without the batch; it must be a map [H, W, K]; of tokens "
                         "kdjax.models.token_maps(network) makes one.")  # fmt: skip
    return shape


def smaller(student: tuple[int, ...], teacher: tuple[int, ...]) -> tuple[int, int]:
    """The size that both maps, `(H, W, K)`, can be averaged to: the smaller in each direction."""
    return min(student[0], teacher[0]), min(student[1], teacher[1])


def ask_teacher(teacher_call: Callable[..., Any] | None, part: str, *arrays: Array, who: str, what: str) -> Any:
    """What a named part of the frozen teacher says.

    Raises:
      ValueError: the teacher has no such part; `who` asks for it, and `what` describes it.
    """
    mend = (
        f"{who} asks the teacher for {part!r}, {what}, which this network does not offer: give the model a method "
        f"{part}() and name it among the parts of the network, from_nnx(model, parts=({part!r},))."
    )
    if teacher_call is None:
        raise ValueError(mend)
    try:
        return teacher_call(part, *arrays)
    except KeyError as error:
        if error.args == (part,):
            raise ValueError(mend) from error
        raise
