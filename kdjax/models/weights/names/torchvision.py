"""The names in checkpoints of torchvision."""

from collections.abc import Sequence

from kdjax.models.zoo.inverted import Design

Table = tuple[tuple[str, str], ...]

RESNET = (  # timm's too
    ("stem/conv", "conv1"),
    ("stem/norm", "bn1"),
    *((f"stages/{i}", f"layer{i + 1}") for i in range(4)),
    *((f"layers/{i}/{ours}", f"{theirs}{i + 1}") for i in range(3) for ours, theirs in (("conv", "conv"), ("norm", "bn"))),
    ("shortcut/conv", "downsample.0"),
    ("shortcut/norm", "downsample.1"),
    ("classifier", "fc"),
)  # fmt: skip

REGNET = (
    ("stem/conv", "stem.0"),
    ("stem/norm", "stem.1"),
    *((f"stages/{i}/{j}", f"trunk_output.block{i + 1}.block{i + 1}-{j}") for i in range(4) for j in range(27)),
    ("shortcut/conv", "proj.0"),
    ("shortcut/norm", "proj.1"),
    ("conv1/conv", "f.a.0"),
    ("conv1/norm", "f.a.1"),
    ("conv2/conv", "f.b.0"),
    ("conv2/norm", "f.b.1"),
    ("excite/reduce", "f.se.fc1"),
    ("excite/expand", "f.se.fc2"),
    ("conv3/conv", "f.c.0"),
    ("conv3/norm", "f.c.1"),
    ("classifier", "fc"),
)


def mobilenet_v2(design: Design) -> Table:
    """A block is a list: expansion, depthwise convolution, projection, its BatchNorm."""
    table = [("stem/conv", "features.0.0"), ("stem/norm", "features.0.1")]
    for number, expands in enumerate(design.expanding()):
        there, first = f"features.{number + 1}.conv", int(expands)
        table += [
            (f"blocks/{number}/expand/conv", f"{there}.0.0"),
            (f"blocks/{number}/expand/norm", f"{there}.0.1"),
            (f"blocks/{number}/depthwise/conv", f"{there}.{first}.0"),
            (f"blocks/{number}/depthwise/norm", f"{there}.{first}.1"),
            (f"blocks/{number}/project/conv", f"{there}.{first + 1}"),
            (f"blocks/{number}/project/norm", f"{there}.{first + 2}"),
        ]
    last = len(design.rows) + 1
    return (
        *table,
        ("head/conv", f"features.{last}.0"),
        ("head/norm", f"features.{last}.1"),
        ("classifier", "classifier.1"),
    )


def mobilenet_v3(design: Design) -> Table:
    """The blocks follow each other without stages."""
    blocks = [f"features.{number + 1}" for number in range(len(design.rows))]
    return _lists(design, blocks, len(blocks) + 1, "classifier.3")


def efficientnet(design: Design, counts: Sequence[int]) -> Table:
    """Of so many blocks a stage."""
    blocks = [f"features.{stage + 1}.{block}" for stage, count in enumerate(counts) for block in range(count)]
    return _lists(design, blocks, len(counts) + 1, "classifier.1")


def _lists(design: Design, blocks: Sequence[str], last: int, linear: str) -> Table:
    """A block is a list of what it has: expansion, depthwise convolution, squeeze-and-excitation, projection."""
    table = [("stem/conv", "features.0.0"), ("stem/norm", "features.0.1")]
    for number, (there, row, expands) in enumerate(zip(blocks, design.rows, design.expanding(), strict=True)):
        first = int(expands)
        project = first + 1 + bool(row.squeezed)
        table += [
            (f"blocks/{number}/expand/conv", f"{there}.block.0.0"),
            (f"blocks/{number}/expand/norm", f"{there}.block.0.1"),
            (f"blocks/{number}/depthwise/conv", f"{there}.block.{first}.0"),
            (f"blocks/{number}/depthwise/norm", f"{there}.block.{first}.1"),
            (f"blocks/{number}/excite/reduce", f"{there}.block.{first + 1}.fc1"),
            (f"blocks/{number}/excite/expand", f"{there}.block.{first + 1}.fc2"),
            (f"blocks/{number}/project/conv", f"{there}.block.{project}.0"),
            (f"blocks/{number}/project/norm", f"{there}.block.{project}.1"),
        ]
    return (
        *table,
        ("head/conv", f"features.{last}.0"),
        ("head/norm", f"features.{last}.1"),
        ("hidden", "classifier.0"),
        ("classifier", linear),
    )


def dense_detector(*, centred: bool, old: bool) -> Table:
    """The table of RetinaNet, or with `centred` of FCOS; `old` as files from before torchvision 0.13 have it, which those that it
    downloads may still be."""
    after, classes, boxes = "" if old else ".0", "head.classification_head", "head.regression_head"
    table = [("backbone", "backbone.body"), *(names for names in RESNET if names[0] != "classifier")]
    for i in range(3):
        table.append((f"pyramid/laterals/{i}", f"backbone.fpn.inner_blocks.{i}{after}"))
        table.append((f"pyramid/outputs/{i}", f"backbone.fpn.layer_blocks.{i}{after}"))
    table += [(f"pyramid/outputs/{i}", f"backbone.fpn.extra_blocks.p{i + 3}") for i in (3, 4)]
    for ours, theirs in (("class_tower", classes), ("edge_tower", boxes)):
        for i in range(4):
            place = (
                3 * i if centred else 2 * i if old else f"{i}.0"
            )  # a list of layers, with GroupNorm and ReLU among them
            table.append((f"head/{ours}/{i}/conv", f"{theirs}.conv.{place}"))
            if centred:
                table.append((f"head/{ours}/{i}/norm", f"{theirs}.conv.{3 * i + 1}"))
    table += [("head/classes", f"{classes}.cls_logits"), ("head/edges", f"{boxes}.bbox_reg")]
    return (*table, *((("head/centreness", f"{boxes}.bbox_ctrness"),) if centred else ()))


RETINANET = tuple(dense_detector(centred=False, old=old) for old in (False, True))
FCOS = tuple(dense_detector(centred=True, old=old) for old in (False, True))

_VGG = (
    (0, 2),
    (5, 7),
    (10, 12, 14),
    (17, 19, 21),
)  # places of VGG-16's convolutions, by stage; the last stage is in `extra`
SSD = (
    *(
        (f"backbone/stages/{i}/{j}", f"backbone.features.{at}")
        for i, places in enumerate(_VGG)
        for j, at in enumerate(places)
    ),
    *((f"backbone/stages/4/{j}", f"backbone.extra.0.{2 * j + 1}") for j in range(3)),
    ("backbone/dilated", "backbone.extra.0.7.1"),
    ("backbone/linear", "backbone.extra.0.7.3"),
    *((f"backbone/further/{i}", f"backbone.extra.{i // 2 + 1}.{2 * (i % 2)}") for i in range(8)),
    ("backbone/normalised/scale", "backbone.scale_weight"),
    ("head/classes", "head.classification_head.module_list"),
    ("head/boxes", "head.regression_head.module_list"),
)
