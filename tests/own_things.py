"""What a user writes beside kdjax: a network, an objective, a method. Named by file in tests/test_first_hour.py."""

import dataclasses

from flax import linen as nn
from flax import nnx

from kdjax import losses
from kdjax.objectives import CrossEntropy, Objective
from kdjax.reduction import per_example


class TinyNet(nnx.Module):
    def __init__(self, num_classes, in_channels, depth=1, *, rngs):
        self.conv = nnx.Conv(in_channels, 4, (3, 3), rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(depth)])
        self.out = nnx.Linear(4, num_classes, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x)).mean((1, 2))
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.out(x)


class LinenNet(nn.Module):
    num_classes: int
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes)(nn.relu(nn.Dense(self.width)(x.reshape(len(x), -1))))


def made(num_classes: int, rngs: nnx.Rngs) -> nnx.Module:
    return TinyNet(num_classes, 1, rngs=rngs)


def silent(num_classes, rngs):
    return TinyNet(num_classes, 1, rngs=rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine(Objective):
    """A share of KD."""

    share: float = 0.5
    """of the loss"""

    def terms(self, module, ctx):
        return per_example(self.share * losses.kd(ctx.student.logits, ctx.teacher.logits), ctx.batch)


mine = CrossEntropy() + Mine(share=0.25)
