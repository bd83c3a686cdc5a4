"""Networks against the numbers of the PyTorch originals: outputs, gradients, running statistics, sizes.

What differs is said here: the first preactivation, of which the originals list the feature; and the running statistics of three
layers of a wide ResNet, which move twice a step there.
"""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import kdjax.models
from kdjax.models import zoo
from kdjax.models.weights.names import NAMES
from kdjax.models.weights.torch import entries
from kdjax.models.zoo.cifar import CIFAR
from tests.models.zoo.originals import (
    MANIFEST,
    SHAPES,
    arrays,
    image_shape,
    nchw,
    norms,
    ours,
    published,
    recipe_state_dict,
    run,
)

RECIPES, RECIPE_FILE = (MANIFEST["model_recipe"][key] for key in ("cases", "file"))
# Evaluation is half of what training computes, and a deep network has the blocks of a shallow one.
DEEPER = ("resnet20", "resnet32x4", "resnet56", "wrn_16_2", "wrn_40_2", "vgg13")
STORED = {
    f"{method}/{case}": (MANIFEST[method]["file"], case, about)
    for method in MANIFEST
    if method.startswith("weights_")
    for case, about in MANIFEST[method]["cases"].items()
}
# float64 on both sides; the sums are taken in another order, which is all that differs.
F64 = {"rtol": 1e-8, "atol": 1e-12}
# Layers that a wide ResNet of the original calls twice a step: see `WideResNet`.
TWICE = ("block2.layer.0.bn1.", "block3.layer.0.bn1.", "bn1.")


def as_the_original(symbol, before, after):
    """Running statistics after a step as the original has them, of those before and of ours after it.

    A step moves ours by a tenth of the way to the batch's. Of the layers in `TWICE` the original's move by a tenth of the
    rest once more, with the same batch: by nine tenths of the first move.
    """
    again = TWICE if symbol.startswith("wrn") else ()
    return {
        name: value + 0.9 * (value - before[name]) if name.startswith(again) else value for name, value in after.items()
    }


def before_activation(output):
    """The preactivations as the originals list them, which have the feature in the first place."""
    return (output.features[0], *output.preactivations[1:])


def summary(feature):
    """What `model_recipe` keeps of a feature: mean, standard deviation, 16 values."""
    flat = nchw(feature).reshape(-1)
    return {"mean": flat.mean(), "std": flat.std(), "sample": flat[:: flat.size // 16][:16]}


def recipe_inputs(case):
    """As many images as there are labels, of the size that the network's shapes are listed for."""
    hyper = RECIPES[case]["hyper"]
    rs = np.random.RandomState(hyper["seed"] + 999)
    rows = len(arrays(RECIPE_FILE)[f"{hyper['input_from']}/in/label"])
    x = rs.standard_normal((rows, *image_shape(published(RECIPES[case]["symbol"])))).astype(np.float32)
    return x, rs.randint(0, hyper["num_classes"], rows)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.slow] * (case.endswith("_eval") or about["symbol"] in DEEPER))
        for case, about in RECIPES.items()
    ],
)
def test_recipe_float64(case):
    symbol, hyper, golden = RECIPES[case]["symbol"], RECIPES[case]["hyper"], arrays(RECIPE_FILE)
    x, labels = recipe_inputs(case)
    np.testing.assert_allclose(
        [x.sum(dtype=np.float64), np.abs(x).sum(dtype=np.float64)], golden[f"{hyper['input_from']}/in/x_check"]
    )
    np.testing.assert_array_equal(labels, golden[f"{hyper['input_from']}/in/label"])
    state_dict = recipe_state_dict(symbol, hyper["seed"], hyper["num_classes"])
    with jax.enable_x64(True):
        found = run(ours(symbol), state_dict, x, labels, train=hyper["mode"] == "train", dtype=np.float64)

    got = {
        "logits": found.output.logits,
        "loss": found.loss,
        "pooled_feat": found.output.embedding,
        "grad_input_norm": np.linalg.norm(found.input_gradient),
        "grad_param_norm": norms(found.gradients),
    }
    if hyper["mode"] == "train":
        got["running_after"] = norms(as_the_original(symbol, state_dict, found.statistics))
    for i, feature in enumerate(found.output.features):
        got |= {f"feats_{key}_{i}": value for key, value in summary(feature).items()}
    if published(symbol)["preact_feats"]:
        for i, feature in enumerate(before_activation(found.output)):
            got |= {f"preact_feats_{key}_{i}": value for key, value in summary(feature).items()}
    expected = {key.split("/")[-1][:-4]: v for key, v in golden.items() if key.startswith(f"{case}/out/")}
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(got[key], value, **F64, err_msg=key)


def stored(name):
    """The arrays of one case, by their names within it."""
    file, case, _ = STORED[name]
    return {k.removeprefix(f"{case}/"): v for k, v in arrays(file).items() if k.startswith(f"{case}/")}


@functools.cache
def run_stored(name, mode, dtype):
    golden, symbol = stored(name), STORED[name][2]["symbol"]
    state_dict = {k.removeprefix("state/"): v for k, v in golden.items() if k.startswith("state/")}
    with jax.enable_x64(dtype == np.float64):
        found = run(ours(symbol), state_dict, golden["in/x"], golden["in/label"], train=mode == "train", dtype=dtype)
    return found, as_the_original(symbol, state_dict, found.statistics)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", STORED)
def test_stored_weights_float64(name, mode):
    golden = stored(name)
    found, after = run_stored(name, mode, np.float64)
    close = functools.partial(np.testing.assert_allclose, **F64)
    close(found.output.logits, golden[f"{mode}/logits.f64"])
    close(found.loss, golden[f"{mode}/loss.f64"])
    close(found.output.embedding, golden[f"{mode}/pooled_feat.f64"])
    close(np.linalg.norm(found.input_gradient), golden[f"{mode}/grad_input_norm.f64"])
    close(norms(found.gradients), golden[f"{mode}/grad_param_norm.f64"])
    if mode == "train":
        for i, feature in enumerate(found.output.features):
            close(feature.mean((0, 1, 2)), golden[f"train/feats_mean_{i}.f64"])
            close(feature.std((0, 1, 2)), golden[f"train/feats_std_{i}.f64"])
        expected = {k.removeprefix("train/state_after/"): v for k, v in golden.items() if "/state_after/" in k}
        assert expected.keys() == after.keys()
        for key, value in expected.items():
            close(after[key], value, err_msg=key)
    else:  # whole features of the first example, stored in float32
        close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
        for i, feature in enumerate(found.output.features):
            close(nchw(feature[:1]), golden[f"eval/feats_{i}"])
        for i, feature in enumerate(before_activation(found.output)):
            if i > 0:  # every fourth channel is stored
                close(nchw(feature[:1])[:, ::4], golden[f"eval/preact_feats_{i}"])


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", STORED)
def test_stored_weights_float32(name, mode):
    """Single precision: rounding of 2^-24 grows about a hundredfold over these layers and their gradients."""
    golden = stored(name)
    found, after = run_stored(name, mode, np.float32)
    assert found.output.logits.dtype == np.float32
    close = np.testing.assert_allclose
    close(found.output.logits, golden[f"{mode}/logits.f64"], rtol=1e-5, atol=1e-5)
    close(found.loss, golden[f"{mode}/loss.f64"], rtol=1e-5)
    close(found.output.embedding, golden[f"{mode}/pooled_feat.f64"], rtol=1e-5, atol=1e-6)
    close(np.linalg.norm(found.input_gradient), golden[f"{mode}/grad_input_norm.f64"], rtol=1e-4)
    close(norms(found.gradients), golden[f"{mode}/grad_param_norm.f64"], rtol=1e-4)
    if mode == "train":
        for key in (key for key in golden if key.startswith("train/state_after/")):
            close(after[key.split("/")[-1]], golden[key], rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_and_sizes(case):
    """Nothing is computed: the module and its output are only shapes."""
    expected, name = SHAPES[case], ours(SHAPES[case]["symbol"])
    classes, (channels, *size) = expected["hyper"]["num_classes"], image_shape(expected)
    module = nnx.eval_shape(lambda: zoo.build(name, num_classes=classes, in_channels=channels, rngs=nnx.Rngs(0)))
    assert sum(v.size for v in jax.tree.leaves(nnx.state(module, nnx.Param))) == expected["params"]
    assert sum(v.size for v in jax.tree.leaves(nnx.state(module, nnx.BatchStat))) == expected["buffers_float"]
    images = jax.ShapeDtypeStruct((expected["logits"][0], *size, channels), jnp.float32)
    output = nnx.eval_shape(lambda module, x: module(x), module, images)
    assert output.logits.shape == tuple(expected["logits"])
    assert output.embedding.shape == tuple(expected["pooled_feat"])
    nhwc = [(b, h, w, k) for b, k, h, w in expected["feats"]]
    assert [f.shape for f in output.features] == nhwc
    # Those of MobileNetV2 are not listed: there they are the features.
    listed = [(b, h, w, k) for b, k, h, w in expected["preact_feats"] or expected["feats"]]
    assert [f.shape for f in output.preactivations] == listed
    own = [(entry, shape) for entry in entries(module, NAMES[name])
           for entry, shape in ((entry.name, entry.shape), (entry.counter, ())) if entry]  # fmt: skip
    if "state_dict" in expected:
        assert own == [(entry, tuple(shape)) for entry, shape in expected["state_dict"]]
    sizes = expected["bn_before_relu_sizes"]
    if isinstance(sizes, list):  # the original has none of the stem
        norms = nnx.eval_shape(lambda module: module.norms(), module)
        assert [scale.shape for scale, _ in norms][-len(sizes) :] == [(k,) for k in sizes]
        assert len(norms) == len(output.preactivations)
        assert all(scale.shape == p.shape[-1:] for (scale, _), p in zip(norms, output.preactivations, strict=True))


def test_the_table_of_networks_is_whole_and_true():
    text = (pathlib.Path(kdjax.models.__file__).parent / "README.md").read_text()
    listed = {
        name: int(size.replace(",", "")) for name, size in re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", text, flags=re.M)
    }
    assert CIFAR.keys() <= listed.keys()
    for case in SHAPES.values():
        if case["hyper"]["num_classes"] == 100 and image_shape(case)[0] == 3:
            assert listed[ours(case["symbol"])] == case["params"], case["symbol"]
