"""Blocks whose activations are computed again in the backward pass instead of being kept for it."""

from flax import nnx

from kdjax.types import Array, Tree


class Recomputable(nnx.Module):
    """A block that, where `recompute` is set, keeps its input alone for the gradient and runs `forward` a second time.

    Outputs, gradients and the statistics of BatchNorm are the same but for rounding; the second run changes no statistics.
    The price is one more forward pass of the block, collectives of BatchNorm included. Without a gradient nothing changes.
    In a shorter type than float32 the second run may round otherwise than the first. XLA for the CPU finds that both runs
    are one and keeps the activations after all, so nothing is saved there.

    What is tapped (`from_nnx(..., taps=...)`) may be the block, or a module inside one.

    Attributes:
      recompute: may be set before every call.
    """

    recompute = False

    def __call__(self, x: Tree) -> Array:
        """`forward` of `x`, an array or a tree of them."""
        return _again(self, x) if self.recompute else self.forward(x)

    def forward(self, x: Tree) -> Array:
        raise TypeError(f"{type(self).__name__} does not say what it computes; define forward(x).")


@nnx.remat
def _again(block: Recomputable, x: Tree) -> Array:
    return block.forward(x)
