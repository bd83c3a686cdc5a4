"""Modules that bring a student's features to a teacher's shape."""

import jax
from flax import nnx

from kdjax.models.zoo.normalization import BatchNorm


class ConvRegressor(nnx.Module):
    """Convolution, BatchNorm and ReLU from `[B, h, w, k]` to the teacher's `[B, H, W, K]`, as FitNets' benchmark code.

    The convolution follows from the sizes: 3x3 with stride 2 where the student's map is twice the teacher's, a transposed
    4x4 with stride 2 where it is half, and otherwise one without padding whose kernel takes up the difference (1x1 at
    equal sizes).

    Raises:
      ValueError: if none of them bridges the two shapes.
    """

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...], *, relu: bool = True, rngs: nnx.Rngs):
        if len(student) != 3 or len(teacher) != 3:
            raise ValueError(f"Features are {student} and {teacher} without the batch; both must be [H, W, K] maps.")
        (h, w, k), (height, width, channels) = student, teacher
        if h == 2 * height and w == 2 * width:
            self.conv = nnx.Conv(k, channels, (3, 3), strides=2, padding=1, rngs=rngs)
        elif 2 * h == height and 2 * w == width:
            self.conv = nnx.ConvTranspose(k, channels, (4, 4), strides=(2, 2), padding=((2, 2), (2, 2)), rngs=rngs)
        elif h >= height and w >= width:
            self.conv = nnx.Conv(k, channels, (1 + h - height, 1 + w - width), padding="VALID", rngs=rngs)
        else:
            raise ValueError(
                f"No projector bridges the student's {h}x{w} map to the teacher's {height}x{width}: the student's must be "
                "half, equal or larger; choose another stage."
            )
        self.norm = BatchNorm(channels, rngs=rngs)
        self.relu = relu

    def __call__(self, x):
        x = self.norm(self.conv(x))
        return jax.nn.relu(x) if self.relu else x
