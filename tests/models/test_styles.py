"""Models in other people's styles, by nothing but the lines that make the networks: distilled by logits and by features that
nobody edits the model for, on eight devices, in microbatches, with a moving average, stopped and resumed, and frozen."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from kdjax.models import freeze, from_linen, from_nnx, in_microbatches, output_shapes, token_maps
from kdjax.objectives import AT, KD, SRD, AuxiliaryLoss, CrossEntropy, bind
from kdjax.training import Variables, init_state, make_runner, make_step
from kdjax.training.checkpoints import Checkpoints
from kdjax.types import Batch, DataInfo, ModelOutput
from tests.models.styles import linen_styles as linen
from tests.models.styles import nnx_styles as styles

ROWS = 16  # two on each of eight devices
IN_PIECES = ("flax imagenet", "hugging face", "maxtext", "bonsai vit", "nnx scan")  # the others in one, to compile less
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.random((ROWS, 8, 8, 3), np.float32)
TOKENS = RANDOM.integers(0, 7, (ROWS, 4))
TEXT = {"ids": TOKENS, "mask": (np.arange(4)[None] < RANDOM.integers(1, 5, (ROWS, 1))).astype(np.float32)}


def hugging_face():
    call = lambda module, inputs, **mode: module(inputs["ids"], inputs["mask"], **mode)
    return token_maps(
        from_linen(
            linen.HuggingFace(), TEXT, call=call, output=lambda raw: ModelOutput(logits=raw.logits), features="encoder",
            embedding="classifier:input",
        ),
        grid=(4, 1),
    )  # fmt: skip


STYLES = {
    "flax imagenet": lambda: from_linen(linen.ResNet(), IMAGES, features=("norm_proj0", "norm_proj1"), embedding="Dense_0:input"),
    "flax lm1b": lambda: token_maps(
        from_linen(linen.Language(linen.LanguageConfig()), TOKENS, features="block_0"), grid=(4, 1)
    ),
    "hugging face": hugging_face,
    "maxtext": lambda: token_maps(
        from_linen(linen.Partitioned(), TOKENS, features="layers/wo:input", losses=("moe_lb_loss",)), grid=(4, 1)
    ),
    "flax mnist": lambda: from_nnx(styles.Mnist, features="batch_norm1", embedding="linear2:input"),
    "bonsai vit": lambda: token_maps(
        from_nnx(functools.partial(styles.ViT, styles.VitConfig.tiny()), features="layers/0"), skip=1
    ),
    "bonsai convnext": lambda: from_nnx(styles.ConvNeXt, features="stages/0", embedding="head:input"),
    "bonsai efficientnet": lambda: from_nnx(styles.EfficientNet, features=("stem", "blocks/0"), embedding="heads/main:input"),
    "lora": lambda: from_nnx(styles.LoRA, embedding="head:input", trainable=nnx.LoRAParam),
    "nnx scan": lambda: from_nnx(styles.Scan, features="layers", embedding="head:input"),
}  # fmt: skip


def objective_of(shapes):
    objective = CrossEntropy() + KD(temperature=2.0)
    objective = objective + 10 * AT(stages=(-1,)) if shapes.features else objective
    objective = objective + 0.1 * SRD() if shapes.embedding is not None else objective
    return objective + 0.01 * AuxiliaryLoss() if shapes.losses else objective


# What they have the others have too: convolutions with statistics, a sequence with dropout, layers stacked by a scan.
LIKE_OTHERS = ("bonsai vit", "bonsai convnext", "bonsai efficientnet", "maxtext")


@pytest.mark.filterwarnings("ignore:Using 'Module.sow")
@pytest.mark.parametrize(
    "style", [pytest.param(style, marks=[pytest.mark.slow] * (style in LIKE_OTHERS)) for style in STYLES]
)
def test_a_style_is_distilled(style, tmp_path):
    network = STYLES[style]()
    inputs = TEXT if style == "hugging face" else TOKENS if style in ("flax lm1b", "maxtext") else IMAGES
    shapes = output_shapes(network, inputs)
    objective = objective_of(shapes)
    bound = bind(objective, shapes, shapes, DataInfo(shapes.logits.shape[-1]))
    runner, optimizer = make_runner("pmap"), optax.adam(1e-2)
    student = in_microbatches(network, 2 if style in IN_PIECES else 1)
    step = make_step(student, network, bound, optimizer, axis=runner.axis, ema_decay=0.5)
    step = runner.compile(step, donate=False)
    labels = TOKENS if shapes.logits.ndim == 3 else np.arange(ROWS) % 3
    batch = runner.place_batch(Batch.of(inputs, labels))
    start = jax.jit(functools.partial(init_state, network, bound, optimizer, seed=0, ema=True))()
    noise = np.random.default_rng(1)  # of its own, so that no test depends on those before
    other = jax.tree.map(
        lambda x: np.asarray(x) + 0.3 * noise.standard_normal(x.shape).astype(x.dtype), start.params["student"]
    )
    frozen = runner.place(Variables(other, start.state["student"]))

    first, metrics = step(runner.place(start), frozen, batch)
    second, later = step(first, frozen, batch)
    values = {name: float(total / count) for name, (total, count) in metrics.items()}
    assert all(np.isfinite(value) for value in values.values())
    assert set(values) >= {"cross_entropy", "kd", *(["at"] if shapes.features else ["srd"])}
    state = second
    for _ in range(12):
        state, later = step(state, frozen, batch)
    assert later["loss"][0] < metrics["loss"][0], "it learns"
    arrays = lambda tree: jax.tree.leaves(jax.device_get(tree))  # which compile nothing where they are compared
    moved = lambda a, b: [bool(np.any(x != y)) for x, y in zip(arrays(a), arrays(b), strict=True)]
    assert np.mean(moved(start.params["student"], second.params["student"])) > 0.7  # a factor of 0 keeps the other
    statistics = [p for p, _ in jax.tree_util.tree_leaves_with_path(start.state["student"]) if "mean" in str(p[-1:])]
    if statistics and style != "bonsai convnext":  # whose mean is a constant
        assert any(moved(start.state["student"], first.state["student"]))
    assert all(any(moved(second.ema["params"]["student"], other.params["student"])) for other in (second, start))

    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(first, 1, {})
    checkpoints.wait()
    restored, _ = checkpoints.restore(first)
    checkpoints.close()
    again, _ = step(runner.place(restored), frozen, batch)
    assert not any(moved(again.params, second.params)) and not any(moved(again.state, second.state))


@pytest.mark.parametrize("style", ["flax imagenet", "bonsai efficientnet", "bonsai vit"])
def test_a_style_is_frozen(style):
    """Its BatchNorms become part of kernels; outputs stay, which `freeze` itself proves."""
    network = STYLES[style]()
    made = freeze(network, *jax.jit(network.init)(jax.random.key(0)), IMAGES)
    assert made.report.agreement == 1 and (made.report.folded > 0) == (style != "bonsai vit")
