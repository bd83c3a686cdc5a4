"""A dense detector: a backbone, a pyramid, a head. Those of a kind each have a file beside."""

from typing import ClassVar, Literal

from flax import nnx

from kdjax.models.detectors.output import DetectorOutput, Head, Shapes
from kdjax.models.detectors.pyramid import FeaturePyramid
from kdjax.models.detectors.towers import DenseHead
from kdjax.types import Array


class DenseDetector(nnx.Module):
    """A backbone, a pyramid, a head.

    Attributes:
      kind: of head, by which objects are assigned.
      extra: what the pyramid's further levels are made of.
      scaled, centred, normed, biased: of the head: whether levels learn a factor of the edges, whether it says centreness,
        whether the towers have GroupNorm, whether their convolutions have biases before it.
      offset: of the first location from the image's corner, in strides.
      deviations: of the deltas that boxes are where they are no distributions; empty for distances.
      strides: of the levels.
      anchor_scale: side of a location's anchor in strides.
    """

    kind: ClassVar[Head] = "gfl"
    extra: ClassVar[Literal["output", "output_relu", "input"]] = "output"
    scaled: ClassVar[bool] = True
    centred: ClassVar[bool] = False
    normed: ClassVar[bool] = True
    biased: ClassVar[bool] = False
    offset: ClassVar[float] = 0.0
    deviations: ClassVar[tuple[float, ...]] = ()

    def __init__(
        self, backbone: nnx.Module, *, num_classes: int, strides: tuple[int, ...] = (8, 16, 32, 64, 128),
        pyramid_channels: int = 256, bins: int = 17, head_channels: int | None = None, depth: int = 4, groups: int = 32,
        anchor_scale: float = 8.0, deviation: float | None = 0.01, rngs: nnx.Rngs,
    ):  # fmt: skip
        """Makes the detector; arguments as for `FeaturePyramid` and `DenseHead`."""
        self.strides, self.anchor_scale, self.bins = tuple(strides), anchor_scale, bins
        self.backbone = backbone
        self.pyramid = FeaturePyramid(
            backbone.channels, pyramid_channels, levels=len(strides), extra=self.extra, rngs=rngs
        )
        shapes = self.anchor_shapes()
        self.head = DenseHead(
            pyramid_channels, num_classes=num_classes, levels=len(strides), anchors=len(shapes[0]) if shapes else 1, bins=bins,
            channels=head_channels or pyramid_channels, depth=depth, groups=groups if self.normed else 0, biased=self.biased,
            scaled=self.scaled,
            centred=self.centred, deviation=deviation, rngs=rngs,
        )  # fmt: skip

    def anchor_shapes(self) -> Shapes:
        """Of all anchors of a location by level; empty for a square."""
        return ()

    def __call__(self, x: Array) -> DetectorOutput:
        """What it says of normalised images `[B, H, W, in_channels]`."""
        levels = self.pyramid(self.backbone(x))
        return DetectorOutput(
            **self.said(self.head(levels)), features=levels, strides=self.strides, anchor_scale=self.anchor_scale, head=self.kind,
            anchor_shapes=self.anchor_shapes(), offset=self.offset, deviations=self.deviations if self.bins == 1 else (),
        )  # fmt: skip

    def said(self, fields: dict[str, Array]) -> dict[str, Array]:
        """What the head's numbers stand for."""
        return fields
