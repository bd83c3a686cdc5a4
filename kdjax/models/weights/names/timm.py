"""The names in checkpoints of timm; DeiT's and RegNetY's of their authors are the same."""

from collections.abc import Sequence

from kdjax.models.zoo.inverted import Design

Table = tuple[tuple[str, str], ...]

VIT = (
    ("class_token", "cls_token"),
    ("positions", "pos_embed"),
    ("distillation_token", "dist_token"),
    ("patches", "patch_embed.proj"),
    ("blocks", "blocks"),
    ("norm1", "norm1"),
    ("attention/qkv", "attn.qkv"),
    ("attention/out", "attn.proj"),
    ("norm2", "norm2"),
    ("mlp/wide", "mlp.fc1"),
    ("mlp/narrow", "mlp.fc2"),
    ("norm", "norm"),
    ("classifier", "head"),
    ("distillation_classifier", "head_dist"),
)

CONVNEXT = (
    ("stem_conv", "stem.0"),
    ("stem_norm", "stem.1"),
    *(pair for i in range(4) for pair in (
        (f"downsamples/{i - 1}/norm", f"stages.{i}.downsample.0"),
        (f"downsamples/{i - 1}/conv", f"stages.{i}.downsample.1"),
        (f"stages/{i}", f"stages.{i}.blocks"),
    )),
    ("gamma", "gamma"),
    ("depthwise", "conv_dw"),
    ("block_norm", "norm"),
    ("mlp/wide", "mlp.fc1"),
    ("mlp/narrow", "mlp.fc2"),
    ("norm", "head.norm"),
    ("classifier", "head.fc"),
)  # fmt: skip

SWIN = (
    ("patches", "patch_embed.proj"),
    ("patch_norm", "patch_embed.norm"),
    *(pair for i in range(4) for pair in (
        (f"mergings/{i - 1}/norm", f"layers.{i}.downsample.norm"),
        (f"mergings/{i - 1}/reduction", f"layers.{i}.downsample.reduction"),
        (f"stages/{i}", f"layers.{i}.blocks"),
    )),
    ("norm1", "norm1"),
    ("biases", "attn.relative_position_bias_table"),
    ("attention/qkv", "attn.qkv"),
    ("attention/out", "attn.proj"),
    ("norm2", "norm2"),
    ("mlp/wide", "mlp.fc1"),
    ("mlp/narrow", "mlp.fc2"),
    ("norm", "norm"),
    ("classifier", "head.fc"),
)  # fmt: skip

REGNET = (
    ("stem/conv", "stem.conv"),
    ("stem/norm", "stem.bn"),
    *((f"stages/{i}/{j}", f"s{i + 1}.b{j + 1}") for i in range(4) for j in range(27)),
    *((f"conv{i}/{ours}", f"conv{i}.{theirs}") for i in (1, 2) for ours, theirs in (("conv", "conv"), ("norm", "bn"))),
    ("excite/reduce", "se.fc1"),
    ("excite/expand", "se.fc2"),
    ("conv3/conv", "conv3.conv"),
    ("conv3/norm", "conv3.bn"),
    ("shortcut/conv", "downsample.conv"),
    ("shortcut/norm", "downsample.bn"),
    ("classifier", "head.fc"),
)


def inverted(design: Design, counts: Sequence[int]) -> Table:
    """MobileNetV1, V2 and EfficientNet, of so many blocks a stage."""
    blocks = [f"blocks.{stage}.{block}" for stage, count in enumerate(counts) for block in range(count)]
    table = [("stem/conv", "conv_stem"), ("stem/norm", "bn1")]
    for number, (there, expands) in enumerate(zip(blocks, design.expanding(), strict=True)):
        first = int(expands)
        table += [
            (f"blocks/{number}/expand/conv", f"{there}.conv_pw"),
            (f"blocks/{number}/expand/norm", f"{there}.bn1"),
            (f"blocks/{number}/depthwise/conv", f"{there}.conv_dw"),
            (f"blocks/{number}/depthwise/norm", f"{there}.bn{first + 1}"),
            (f"blocks/{number}/excite/reduce", f"{there}.se.conv_reduce"),
            (f"blocks/{number}/excite/expand", f"{there}.se.conv_expand"),
            (f"blocks/{number}/project/conv", f"{there}.conv_pw{'l' * first}"),
            (f"blocks/{number}/project/norm", f"{there}.bn{first + 2}"),
        ]
    return (*table, ("head/conv", "conv_head"), ("head/norm", "bn2"), ("classifier", "classifier"))
