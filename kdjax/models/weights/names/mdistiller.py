"""The names in checkpoints of mdistiller and RepDistiller, which are the same."""

STEM = (("stem_conv", "conv1"), ("stem_norm", "bn1"))
LAYERS = tuple((f"stages/{i}", f"layer{i + 1}") for i in range(4))
PAIRS = tuple(pair for i in range(1, 6) for pair in ((f"conv{i}", f"conv{i}"), (f"norm{i}", f"bn{i}")))

RESNET = (
    *STEM,
    *LAYERS,
    *PAIRS,
    ("shortcut_conv", "downsample.0"),
    ("shortcut_norm", "downsample.1"),
    ("classifier", "fc"),
)
FOUR_STAGES = (
    *STEM,
    *LAYERS,
    *PAIRS,
    ("shortcut_conv", "shortcut.0"),
    ("shortcut_norm", "shortcut.1"),
    ("classifier", "linear"),
)
WIDE = (
    ("stem_conv", "conv1"),
    *((f"stages/{i}", f"block{i + 1}.layer") for i in range(3)),
    ("norm1", "bn1"),
    ("conv1", "conv1"),
    ("norm2", "bn2"),
    ("conv2", "conv2"),
    ("shortcut", "convShortcut"),
    ("last_norm", "bn1"),
    ("classifier", "fc"),
)
VGG = (
    *((f"stages/{i}", f"block{i}") for i in range(5)),
    # A stage there is a list of convolutions, norms and activations in turn.
    *(pair for i in range(4) for pair in ((f"{i}/conv", f"{3 * i}"), (f"{i}/norm", f"{3 * i + 1}"))),
    ("classifier", "classifier"),
)
MOBILENET = (
    ("stem_conv", "conv1.0"),
    ("stem_norm", "conv1.1"),
    ("stages", "blocks"),
    ("expand_conv", "conv.0"),
    ("expand_norm", "conv.1"),
    ("depth_conv", "conv.3"),
    ("depth_norm", "conv.4"),
    ("project_conv", "conv.6"),
    ("project_norm", "conv.7"),
    ("last_conv", "conv2.0"),
    ("last_norm", "conv2.1"),
    ("classifier", "classifier.0"),
)
SHUFFLENET = (*STEM, *LAYERS, *PAIRS, ("last_conv", "conv2"), ("last_norm", "bn2"), ("classifier", "linear"))

NAMES = {
    **{f"resnet{kind}": RESNET for kind in ("8", "14", "20", "32", "44", "56", "110", "8x4", "32x4")},
    **{f"wrn_{depth}_{factor}": WIDE for depth in (16, 40) for factor in (1, 2)},
    **{f"vgg{depth}": VGG for depth in (8, 11, 13, 16, 19)},
    "mobilenetv2": MOBILENET,
    "shufflenetv1": SHUFFLENET,
    "shufflenetv2": SHUFFLENET,
    **{f"resnet{depth}_cifar": FOUR_STAGES for depth in (18, 50)},
}
