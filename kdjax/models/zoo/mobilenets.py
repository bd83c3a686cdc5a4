"""MobileNetV1, V2, V3 and EfficientNet as lists of blocks, see `kdjax.models.zoo.inverted`.

`scale` multiplies the channels of the published network, which are then rounded to multiples of 8.
"""

import functools
import itertools
from collections.abc import Sequence

from flax import nnx

from kdjax.models.zoo.convolutions import Activation, divisible, hard_sigmoid, hard_swish, relu6
from kdjax.models.zoo.inverted import Design, Row
from kdjax.models.zoo.layers import Padding

# (kernel, expansion, channels, blocks, stride of the first)
V2 = ((3, 1, 16, 1, 1), (3, 6, 24, 2, 2), (3, 6, 32, 3, 2), (3, 6, 64, 4, 2), (3, 6, 96, 3, 1), (3, 6, 160, 3, 2),
      (3, 6, 320, 1, 1))  # fmt: skip
EFFICIENT = ((3, 1, 16, 1, 1), (3, 6, 24, 2, 2), (5, 6, 40, 2, 2), (3, 6, 80, 3, 2), (5, 6, 112, 3, 1), (5, 6, 192, 4, 2),
             (3, 6, 320, 1, 1))  # fmt: skip
V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))

# (kernel, expanded channels, channels, squeeze-and-excitation, hard swish instead of ReLU, stride)
V3_LARGE = (
    (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1),
    (5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1),
    (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1), (5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1), (5, 960, 160, 1, 1, 1),
)  # fmt: skip
V3_SMALL = (
    (3, 16, 16, 1, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 1, 1, 2), (5, 240, 40, 1, 1, 1),
    (5, 240, 40, 1, 1, 1), (5, 120, 48, 1, 1, 1), (5, 144, 48, 1, 1, 1), (5, 288, 96, 1, 1, 2), (5, 576, 96, 1, 1, 1),
    (5, 576, 96, 1, 1, 1),
)  # fmt: skip


def mobilenet_v1(scale: float = 1.0, *, table: Sequence[Sequence[int]] = V1) -> Design:
    """Howard et al., MobileNets, 2017, arXiv 1704.04861, table 1, with the ReLU6 of its released code: no expansion, no shortcut,
    an activation behind every convolution, no head."""
    rows, before = [], divisible(32 * scale)
    stem = before
    for channels, stride in table:
        rows.append(Row(3, before, divisible(channels * scale), stride, 0, relu6))
        before = rows[-1].channels
    return Design(
        stem, tuple(rows), 0, relu6, projected=relu6, residual=False, fan_of_group=True, linear_deviation=None
    )


def mobilenet_v2(scale: float = 1.0, *, table: Sequence[Sequence[int]] = V2) -> Design:
    """Sandler et al., MobileNetV2, CVPR 2018, arXiv 1801.04381, table 2, as torchvision's. The head is never below 1280."""
    stem = divisible(32 * scale)
    return Design(stem, _rows(table, stem, scale, relu6), divisible(1280 * max(scale, 1.0)), relu6)


def mobilenet_v3(scale: float = 1.0, *, table: Sequence[Sequence[int]] = V3_LARGE, hidden: int = 1280) -> Design:
    """Howard et al., Searching for MobileNetV3, ICCV 2019, arXiv 1905.02244, tables 1 (large) and 2 (small), as torchvision's:
    BatchNorm's epsilon 1e-3 and momentum 0.01. The head is six times as wide as the last block; behind the mean there are two
    linear layers."""
    rows = []
    for size, expanded, channels, excited, swish, stride in table:
        expanded = divisible(expanded * scale)
        squeezed = divisible(expanded // 4) if excited else 0
        activation = hard_swish if swish else nnx.relu
        rows.append(Row(size, expanded, divisible(channels * scale), stride, squeezed, activation))
    return Design(
        divisible(16 * scale), tuple(rows), 6 * rows[-1].channels, hard_swish, divisible(hidden * scale),
        gate=hard_sigmoid, epsilon=1e-3, momentum=0.01,
    )  # fmt: skip


def efficientnet(
    scale: float = 1.0, *, lite: bool = False, tensorflow: bool = False, table: Sequence[Sequence[int]] = EFFICIENT
) -> Design:
    """Tan and Le, EfficientNet, ICML 2019, arXiv 1905.11946, table 1 (B0). Lite0 of TensorFlow's release has ReLU6 instead of
    SiLU and no squeeze-and-excitation.

    Args:
      scale: see above.
      lite: Lite0 instead of B0.
      tensorflow: padding "SAME", and BatchNorm's epsilon 1e-3 and momentum 0.01, as it was published; else those of PyTorch's
        ports, whose weights were trained anew: half the kernel on each side, 1e-5 and 0.1.
      table: kernel, expansion, channels, number of blocks and stride of each stage.
    """
    activation: Activation = relu6 if lite else nnx.silu
    padding: Padding = "tensorflow" if tensorflow else "torch"
    stem = divisible(32 * scale)
    return Design(
        stem, _rows(table, stem, scale, activation, excited=not lite), divisible(1280 * scale), activation,
        squeezing=activation, padding=padding, epsilon=1e-3 if tensorflow else 1e-5, momentum=0.01 if tensorflow else 0.1,
        fan_of_group=True, linear_deviation=None,
    )  # fmt: skip


def _rows(
    table: Sequence[Sequence[int]], before: int, scale: float, activation: Activation, *, excited: bool = False
) -> tuple[Row, ...]:
    """The blocks of a table of stages; squeeze-and-excitation has a quarter of the channels that come into the block."""
    rows = []
    for size, expansion, channels, count, stride in table:
        for step in itertools.islice((stride, *itertools.repeat(1, count - 1)), count):
            squeezed = max(before // 4, 1) if excited else 0
            rows.append(Row(size, before * expansion, divisible(channels * scale), step, squeezed, activation))
            before = rows[-1].channels
    return tuple(rows)


mobilenet_v3_large = functools.partial(mobilenet_v3, table=V3_LARGE, hidden=1280)
mobilenet_v3_small = functools.partial(mobilenet_v3, table=V3_SMALL, hidden=1024)
