"""What a detector's backbone does not train: BatchNorm on stored statistics, and the weights of its first stages."""

import jax.numpy as jnp
from flax import nnx
from jax import lax

from kdjax.models.zoo.normalization import BatchNorm
from kdjax.types import Array


class Fixed(nnx.Variable):
    """A value that is not trained and that no step changes."""


class FixedBatchNorm(BatchNorm):
    """BatchNorm on stored statistics, in training too: a scale and a shift of every channel.

    Detectors are trained on few images a device, from a classifier whose statistics are better than those of a batch
    (mmdetection's `norm_eval`). Scale and bias are trained where they are not made `Fixed`.
    """

    def __init__(self, num_features: int, **options):
        super().__init__(num_features, **options)
        self.mean, self.var = Fixed(jnp.zeros(num_features)), Fixed(jnp.ones(num_features))

    def __call__(self, x: Array) -> Array:
        """`[..., K]` to the same shape and dtype; float32 inside for bfloat16 and float16."""
        self._check(x)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        shape = (1,) * (x.ndim - 1) + (-1,)
        of = lambda channels: jnp.reshape(channels[...], shape).astype(wide.dtype)
        factor = lax.rsqrt(of(self.var) + self.epsilon) * of(self.scale)
        return ((wide - of(self.mean)) * factor + of(self.bias)).astype(x.dtype)


def fix_statistics(module: nnx.Module) -> None:
    """Replaces every BatchNorm inside a module by a `FixedBatchNorm`."""
    for _, part in list(nnx.iter_modules(module)):
        for name, norm in list(vars(part).items()):
            if isinstance(norm, BatchNorm) and not isinstance(norm, FixedBatchNorm):
                setattr(part, name, FixedBatchNorm(norm.num_features, epsilon=norm.epsilon))


def fix_weights(module: nnx.Module) -> None:
    """Makes every parameter inside a module `Fixed`."""
    for _, part in list(nnx.iter_modules(module)):
        for name, value in list(vars(part).items()):
            if isinstance(value, nnx.Param):
                setattr(part, name, Fixed(value[...]))
