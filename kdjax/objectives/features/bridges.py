"""What stands between two networks' maps in the methods of single stages, and the choice of the stages."""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from kdjax.models.zoo.normalization import BatchNorm
from kdjax.objectives.features.connectors import DEFAULT, map_shape
from kdjax.objectives.features.projectors import ConvRegressor
from kdjax.types import Array, ModelOutput

Shape = tuple[int, int, int]


class Frozen(nnx.Variable):
    """A weight that is no parameter: it is part of the module's state, and no optimizer and no weight decay touches it."""


def freeze(module: nnx.Module) -> nnx.Module:
    """The module with every parameter `Frozen`, at its present value."""
    for _, node in list(nnx.iter_graph(module)):
        for name, value in list(vars(node).items()) if isinstance(node, nnx.Module) else ():
            if isinstance(value, nnx.Param):
                setattr(node, name, Frozen(value[...]))
    return module


class Bridges(nnx.Module):
    """A 1x1 convolution for every stage of another width than the teacher's; the other stages stay as they are."""

    def __init__(self, pairs: Sequence[tuple[Shape, Shape]], *, rngs: nnx.Rngs):
        widths = [(ours[-1], theirs[-1]) for ours, theirs in pairs]
        self.stages = nnx.List([same_size(*pair, 1, rngs=rngs) if pair[0] != pair[1] else None for pair in widths])

    def __call__(self, maps: Sequence[Array]) -> list[Array]:
        return [x if bridge is None else bridge(x) for bridge, x in zip(self.stages, maps, strict=True)]


class Connectors(nnx.Module):
    """FitNets' convolution and BatchNorm, without the ReLU, for every stage of another width or height than the teacher's."""

    def __init__(self, pairs: Sequence[tuple[Shape, Shape]], *, rngs: nnx.Rngs):
        self.stages = nnx.List([
            None if ours == theirs else ConvRegressor(ours, theirs, relu=False, rngs=rngs) for ours, theirs in pairs
        ])  # fmt: skip

    def __call__(self, maps: Sequence[Array]) -> list[Array]:
        return [x if connector is None else connector(x) for connector, x in zip(self.stages, maps, strict=True)]


class Regressor(nnx.Module):
    """Three 1x1 convolutions with ReLU between them, for the mean, and one variance a channel.

    `variance = softplus(log_scale) + 1e-5`, at first `initial`.
    """

    def __init__(self, before: int, after: int, *, initial: float = 5.0, learn_variance: bool = True, rngs: nnx.Rngs):
        widths = ((before, after), (after, after), (after, after))
        self.layers = nnx.List([same_size(*pair, 1, bias=False, rngs=rngs) for pair in widths])
        # The inverse of softplus, log(exp(v) − 1), without the exponential of a large number.
        start = initial - 1e-5 + math.log(-math.expm1(1e-5 - initial))
        self.log_scale = (nnx.Param if learn_variance else Frozen)(jnp.full(after, start, jnp.float32))

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """`[B, H, W, before]` to means `[B, H, W, after]` and variances `[after]`."""
        first, second, last = self.layers
        mean = last(jax.nn.relu(second(jax.nn.relu(first(x)))))
        return mean, jax.nn.softplus(self.log_scale[...]) + 1e-5


class Regressors(nnx.Module):
    """A `Regressor` a stage."""

    def __init__(self, pairs: Sequence[tuple[Shape, Shape]], *, learn_variance: bool, rngs: nnx.Rngs):
        self.stages = nnx.List([
            Regressor(ours[-1], theirs[-1], learn_variance=learn_variance, rngs=rngs) for ours, theirs in pairs
        ])  # fmt: skip


class Stack(nnx.Module):
    """3x3 convolutions, each with BatchNorm, if asked for, and a ReLU that lets a tenth of what is below 0 through."""

    def __init__(self, widths: Sequence[int], *, normalised: bool, rngs: nnx.Rngs):
        pairs = list(itertools.pairwise(widths))
        self.convs = nnx.List([same_size(*pair, 3, rngs=rngs) for pair in pairs])
        self.norms = nnx.List([BatchNorm(after, rngs=rngs) if normalised else None for _, after in pairs])

    def __call__(self, x: Array) -> Array:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(x)
            x = x if norm is None else norm(x)
            x = jnp.where(x > 0, x, 0.1 * x)
        return x


class Paraphraser(nnx.Module):
    """An autoencoder of a map: `factors` channels between, without BatchNorm.

    The reference's transposed 3x3 convolutions of the decoder, at stride 1, are convolutions.
    """

    def __init__(self, channels: int, factors: int, *, rngs: nnx.Rngs):
        self.encoder = Stack((channels, channels, factors, factors), normalised=False, rngs=rngs)
        self.decoder = Stack((factors, factors, channels, channels), normalised=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """`[B, H, W, channels]` to its reconstruction."""
        return self.decoder(self.encoder(x))


class Generator(nnx.Module):
    """A 1x1 convolution to the teacher's width where they differ; and a 3x3 convolution, ReLU and a 3x3 convolution."""

    def __init__(self, before: int, after: int, *, rngs: nnx.Rngs):
        self.align = None if before == after else same_size(before, after, 1, rngs=rngs)
        self.first = same_size(after, after, 3, rngs=rngs)
        self.second = same_size(after, after, 3, rngs=rngs)

    def __call__(self, x: Array, kept: Array) -> Array:
        """`[B, H, W, before]` and what is kept of the aligned map, which it broadcasts to, to `[B, H, W, after]`."""
        x = x if self.align is None else self.align(x)
        return self.second(jax.nn.relu(self.first(jnp.where(kept, x, 0))))


def same_size(before: int, after: int, size: int, *, bias: bool = True, rngs: nnx.Rngs) -> nnx.Conv:
    """A `size`x`size` convolution that keeps the map's size."""
    padding = ((size // 2, size // 2),) * 2
    return nnx.Conv(before, after, (size, size), padding=padding, use_bias=bias, kernel_init=DEFAULT, rngs=rngs)


def stage_pairs(
    student: ModelOutput, teacher: ModelOutput, stages: tuple[int, ...] | None, field: str = "features"
) -> list[tuple[Shape, Shape]]:
    """Shapes `(H, W, K)` of the chosen stages of both networks.

    Raises:
      ValueError: a stage that is not there or no map; or all are asked for (None) and the networks have not as many.
    """
    ours, theirs = getattr(student, field), getattr(teacher, field)
    if stages is None and len(ours) != len(theirs):
        raise ValueError(
            f"The student gives {len(ours)} stages of {field}, the teacher {len(theirs)}; say which to compare by stages=, "
            "such as (-2, -1) for the last two of each."
        )
    if stages is not None and not stages:
        raise ValueError("stages=() compares nothing; name at least one stage.")
    return [
        (map_shape(ours, stage, f"student's {field}"), map_shape(theirs, stage, f"teacher's {field}"))
        for stage in (range(len(ours)) if stages is None else stages)
    ]


def chosen(maps: tuple[Array, ...], stages: tuple[int, ...] | None) -> list[Array]:
    """The maps of the chosen stages; None for all."""
    return list(maps) if stages is None else [maps[stage] for stage in stages]


def bridges(pairs: Sequence[tuple[Shape, Shape]], rngs: nnx.Rngs) -> Bridges | None:
    """What `bridged` wants: None where all widths are alike, and there is nothing to train."""
    return None if all(ours[-1] == theirs[-1] for ours, theirs in pairs) else Bridges(pairs, rngs=rngs)


def bridged(module: Bridges | None, maps: Sequence[Array]) -> Sequence[Array]:
    """The student's maps in the teacher's widths."""
    return maps if module is None else module(maps)
