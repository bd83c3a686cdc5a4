"""The names in checkpoints of mdistiller and RepDistiller, which are the same."""

RESNET = (
    ("stem_conv", "conv1"),
    ("stem_norm", "bn1"),
    *((f"stages/{i}", f"layer{i + 1}") for i in range(3)),
    ("conv1", "conv1"),
    ("norm1", "bn1"),
    ("conv2", "conv2"),
    ("norm2", "bn2"),
    ("shortcut_conv", "downsample.0"),
    ("shortcut_norm", "downsample.1"),
    ("classifier", "fc"),
)

NAMES = {name: RESNET for name in ("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110",
                                   "resnet8x4", "resnet32x4")}  # fmt: skip
