"""What a network sees of an image: crop, flip and normalisation, on the device and keyed by the example.

A view is a function of (key, epoch, example index) and of nothing else: not of the batch, its order, or the number of
devices. So a teacher's answer about a view can be kept, and a run repeated on other hardware. Everything is written for
one example and mapped over the batch, which keeps a sharded batch where it is: no collective is compiled.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kdjax.tasks.classification.policies import Erase, Jitter, Policy
from kdjax.tasks.classification.strong import WHITE, Strong, by_policy, positions, threefry
from kdjax.types import Array, MultiView


@dataclasses.dataclass(frozen=True)
class Views:
    """How images `[B, H, W, C]` uint8 become inputs `[B, H, W, C]` float32."""

    crop_padding: int = 0
    """black pixels added on every side before a random crop to the old size; 0 for none, 4 in the CIFAR protocols"""
    flip: bool = False
    """mirror left and right, every other time"""
    mean: tuple[float, ...] = ()
    """of each channel, of pixels scaled to 0..1; subtracted. Empty: 0"""
    std: tuple[float, ...] = ()
    """of each channel, of pixels scaled to 0..1; divided by. Empty: 1"""
    policy: Policy = Policy()
    """AutoAugment, RandAugment or TrivialAugment, after crop and flip"""
    jitter: Jitter = Jitter()
    """brightness, contrast, saturation and hue changed at random, after the policy"""
    erase: Erase = Erase()
    """random erasing or Cutout, last"""
    strong: Strong = Strong()
    """what the view "strong" adds to crop and flip; only for objectives that compare two views"""
    mixup: float = 0.0
    """strength of mixing each input with its neighbour's in the batch, Beta(a, a), and its label with it; 0 for none. Only for
    objectives that take mixed labels (cross_entropy, label_smoothing) or read none"""
    cutmix: float = 0.0
    """strength of cutting a rectangle of its neighbour's into each input, Beta(a, a), and its label with it; 0 for none. With
    mixup too, each input gets one of the two"""

    white: ClassVar[float] = WHITE

    def __post_init__(self):
        if self.crop_padding < 0:
            raise ValueError(f"Views.crop_padding is {self.crop_padding}; use 0 or more pixels.")
        if not all(0 < value < np.inf for value in self.std):
            raise ValueError(f"Views.std is {self.std}; every channel's must be above 0 and finite.")
        if not np.isfinite(self.mean).all():
            raise ValueError(f"Views.mean is {self.mean}; every channel's must be finite.")
        if self.mean and self.std and len(self.mean) != len(self.std):
            raise ValueError(f"Views.mean has {len(self.mean)} values, std {len(self.std)}; give one a channel.")
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"Views.{name} is {getattr(self, name)}; use a finite number, 0 or more.")

    def num_views(self) -> int:
        """How many distinct views an example has: a crop for every offset, times two if it may be flipped."""
        return (2 * self.crop_padding + 1) ** 2 * (2 if self.flip else 1)

    @property
    def numbered(self) -> bool:
        """Whether all there is to a training view is its number: nothing beyond crop and flip."""
        return self.policy.slots == 0 and self.jitter.off and self.erase.off

    def numbers(self, index: Array, epoch, key: Array) -> Array:
        """Which of its views each example shows in an epoch: `[B]` int32 in `0 .. num_views() - 1`, evenly spread.

        Args:
          index: `[B]` int32 positions of the examples in their data set.
          epoch: int32 scalar, whole passes done; may be traced.
          key: PRNG key of the data seed. threefry only: other generators depend on the batch under `vmap`.

        Raises:
          TypeError: a key of another generator.
        """
        key = jax.random.fold_in(threefry(key), epoch)
        words = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), (), jnp.uint32))(positions(index))
        return (words % np.uint32(self.num_views())).astype(jnp.int32)  # uneven by less than one part in 10 million

    def show(self, images: Array, numbers: Array) -> Array:
        """Inputs `[B, H, W, C]` float32 of the numbered views `[B]`: flipped, then cropped, then normalised."""
        self._check(images)
        return self.normalise(jax.vmap(self._view)(images, numbers))

    def train(self, images: Array, index: Array, epoch, key: Array) -> Array:
        """Inputs `[B, H, W, C]` float32 for training; the arguments are those of `numbers` and `show`."""
        if self.numbered:
            return self.show(images, self.numbers(index, epoch, key))
        self._check(images)
        shown = jax.vmap(self._view)(images, self.numbers(index, epoch, key))
        policies, others = jax.random.split(
            jax.random.fold_in(threefry(key), 0x61756767)
        )  # apart from the crop's draws
        if self.policy.slots:
            shown = by_policy(shown, index, epoch, policies, self.policy)
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(jax.random.fold_in(others, epoch), i)))(index)
        if not self.jitter.off:
            shown = jax.vmap(self.jitter.show)(shown.astype(jnp.int32), keys[:, 0])
        inputs = self.normalise(shown)
        if not self.erase.off:
            erased = jax.vmap(functools.partial(self.erase.mask, *images.shape[1:3]))(keys[:, 1])
            inputs = jnp.where(erased[..., None], 0.0, inputs)
        return inputs

    def train_views(self, images: Array, index: Array, epoch, key: Array, *, names: tuple[str, ...]) -> MultiView:
        """Inputs for training by the view's name, the named ones only; the other arguments are those of `train`.

        "main" is `train`. "strong" has a crop and flip of its own and `strong` on top. Mixup and CutMix are left to the step.

        Raises:
          ValueError: a name that is neither.
        """
        makers = {"main": self.train, "strong": self._train_strong}
        for name in names:
            if name not in makers:
                raise ValueError(f"There is no view {name!r}; there are {', '.join(makers)}.")
        return MultiView({name: makers[name](images, index, epoch, key) for name in names})

    def evaluate(self, images: Array) -> Array:
        """Inputs `[B, H, W, C]` float32 for evaluation: normalised and nothing else."""
        self._check(images)
        return self.normalise(images)

    def normalise(self, images: Array) -> Array:
        """`(images / 255 - mean) / std` in float32, channels last.

        Raises:
          ValueError: another number of channels than `mean` or `std` has.
        """
        channels = images.shape[-1]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, channels):
                raise ValueError(f"The images have {channels} channels, Views.{name} has {len(values)}.")
        mean = np.asarray(self.mean or (0.0,) * channels)
        std = np.asarray(self.std or (1.0,) * channels)
        scale, shift = 1 / (self.white * std), -mean / std  # in float64, so that one rounding remains
        scale, shift = (x.astype(np.float32).reshape((1,) * (images.ndim - 1) + (channels,)) for x in (scale, shift))
        return images.astype(jnp.float32) * scale + shift

    def _train_strong(self, images: Array, index: Array, epoch, key: Array) -> Array:
        self._check(images)
        key = jax.random.fold_in(threefry(key), 0x7374726F)  # apart from the draws of the main view
        crops, distortions = jax.random.split(key)
        images = jax.vmap(self._view)(images, self.numbers(index, epoch, crops))
        return self.normalise(self.strong.train(images, index, epoch, distortions))

    def _view(self, image: Array, number: Array) -> Array:
        """One example `[H, W, C]` in its view. The number is `(row * side + column) * flips + flipped`."""
        padding, side = self.crop_padding, 2 * self.crop_padding + 1
        if self.flip:
            image = jnp.where(number % 2 == 1, image[:, ::-1], image)
            number = number // 2
        if padding:
            image = cropped(image, number // side, number % side, padding)
        return image

    def spread(self, channels: int) -> "Views":
        """Views whose mean and std, where they are one number, are that of every channel."""
        alike = {name: getattr(self, name) * channels for name in ("mean", "std") if len(getattr(self, name)) == 1}
        return dataclasses.replace(self, **alike)

    def _check(self, images) -> None:
        if images.ndim != 4 or images.dtype != jnp.uint8:
            raise TypeError(f"Views take images [B, H, W, C] of uint8; these are {images.dtype} {list(images.shape)}.")


def cropped(image: Array, row: Array, column: Array, padding: int) -> Array:
    """An image `[H, W, C]` with black pixels around it, in its old size from `row` and `column`, `0 .. 2 * padding`, on.

    By choosing between shifts of 1, 2, 4 ... pixels, which is done for a batch at once. A slice at a place of each example's own
    is a loop over the batch on a TPU.
    """
    shifts = [2**bit for bit in reversed(range((2 * padding).bit_length()))]
    far = sum(shifts) - padding  # as if all of them were taken
    image = jnp.pad(image, ((padding, far), (padding, far), (0, 0)))
    for axis, offset in enumerate((row, column)):
        for shift in shifts:
            length = image.shape[axis] - shift
            near, shifted = (lax.slice_in_dim(image, begin, begin + length, axis=axis) for begin in (0, shift))
            image = jnp.where((offset & shift) != 0, shifted, near)
    return image


class VectorViews(Views):
    """Views of vectors `[B, D]` of floats: normalised, and nothing else. Mixup is the step's."""

    white: ClassVar[float] = 1.0

    def _check(self, vectors) -> None:
        of_images = {"crop_padding": self.crop_padding, "flip": self.flip, "policy": self.policy.slots,
                     "jitter": not self.jitter.off, "erase": not self.erase.off, "cutmix": self.cutmix}  # fmt: skip
        for name, wanted in of_images.items():
            if wanted:
                raise ValueError(f"data.views.{name} is for images, and the inputs are vectors [D]; switch it off.")
        if vectors.ndim != 2 or not jnp.issubdtype(vectors.dtype, jnp.floating):
            raise TypeError(f"VectorViews take floats [B, D]; these are {vectors.dtype} {list(vectors.shape)}.")

    def _train_strong(self, vectors, index, epoch, key):
        raise ValueError("The view 'strong' is made of images of uint8; these are vectors.")


class FloatViews(Views):
    """Views of images of floats, which are normalised as they are: not divided by 255."""

    white: ClassVar[float] = 1.0

    def _check(self, images) -> None:
        if self.policy.slots or not self.jitter.off:
            raise ValueError("Views.policy and Views.jitter are for images of uint8; these are floats.")
        if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(
                f"FloatViews take images [B, H, W, C] of floats; these are {images.dtype} {list(images.shape)}."
            )

    def _train_strong(self, images, index, epoch, key):
        raise ValueError("The view 'strong' is made of images of uint8; these are floats.")
