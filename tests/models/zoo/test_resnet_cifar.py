"""CIFAR ResNets against the numbers of the PyTorch originals: outputs, gradients, running statistics."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax.models import zoo
from kdjax.models.functional import functionalise
from kdjax.models.weights.torch import cifar_resnet_from_torch, cifar_resnet_to_torch
from kdjax.models.zoo.resnet_cifar import CifarResNet

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
MANIFEST = json.loads((GOLDEN / "manifest_models.json").read_text())["methods"]
SHAPES = MANIFEST["model_shapes"]["cases"]
RECIPES, RECIPE_FILE = (MANIFEST["model_recipe"][key] for key in ("cases", "file"))
WEIGHTS, WEIGHTS_FILE = (MANIFEST["weights_resnet8"][key] for key in ("cases", "file"))
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")

# float64 on both sides; the sums are taken in another order, which is all that differs.
F64 = {"rtol": 1e-8, "atol": 1e-12}


@functools.cache
def arrays(file):
    with np.load(GOLDEN / file) as z:
        return {name: z[name] for name in z.files}


def recipe_state_dict(name, seed, num_classes):
    """The documented weights of `model_recipe`: entry `j` of the state dict comes from seed `seed + j`."""
    state_dict = {}
    for j, (entry, shape) in enumerate(SHAPES[name]["state_dict"]):
        shape = [num_classes, *shape[1:]] if entry.startswith("fc.") else shape
        z = np.random.RandomState(seed + j).standard_normal(int(np.prod(shape))).reshape(shape)
        if entry.endswith("num_batches_tracked"):
            value = np.zeros(shape, np.int64)
        elif entry.endswith("running_mean"):
            value = 0.1 * z
        elif entry.endswith("running_var"):
            value = 1 + 0.5 * np.abs(z)
        elif len(shape) == 4:
            value = z * np.sqrt(2 / np.prod(shape[1:]))
        elif len(shape) == 2:
            value = z / np.sqrt(shape[1])
        else:
            value = 1 + 0.1 * z if entry.endswith(".weight") else 0.1 * z
        state_dict[entry] = value if value.dtype == np.int64 else value.astype(np.float32)
    return state_dict


def recipe_inputs(case):
    """As many images as there are labels, of the size that the network's shapes are listed for."""
    hyper, shapes = RECIPES[case]["hyper"], SHAPES[RECIPES[case]["symbol"]]
    rs = np.random.RandomState(hyper["seed"] + 999)
    rows = len(arrays(RECIPE_FILE)[f"{hyper['input_from']}/in/label"])
    x = rs.standard_normal((rows, *image_shape(shapes))).astype(np.float32)
    return x, rs.randint(0, hyper["num_classes"], rows)


def image_shape(shapes):
    """`(channels, H, W)`: the stem keeps the size. Of a network without a list of weights, images are of three channels."""
    stem = dict(shapes.get("state_dict", ())).get("conv1.weight", (None, 3))
    return stem[1], *shapes["feats"][0][2:]


def run(name, state_dict, x, labels, *, train, dtype):
    """Output, loss, gradients and new state of one forward and backward pass; `x` is NCHW."""
    classes, channels = len(state_dict["fc.bias"]), state_dict["conv1.weight"].shape[1]
    network = functionalise(lambda rngs: zoo.build(name, num_classes=classes, in_channels=channels, rngs=rngs))
    params, state = jax.tree.map(lambda v: v.astype(dtype), cifar_resnet_from_torch(state_dict))

    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def loss(params, x):
        output, new_state = network.call(params, state, lambda module: module(x), train=train)
        log_probabilities = jax.nn.log_softmax(output.logits)
        picked = jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)
        return -jnp.mean(picked), (output, new_state)

    (value, (output, new_state)), gradients = jax.jit(loss)(params, x.transpose(0, 2, 3, 1).astype(dtype))
    return jax.device_get((output, value, gradients, new_state))


def gradient_norms(gradients, state):
    """L2 norms of the parameters' gradients in the order of PyTorch's `named_parameters`."""
    entries = cifar_resnet_to_torch(gradients, state)
    return np.array([np.linalg.norm(v) for name, v in entries.items() if not name.endswith(BUFFERS)])


def statistic_norms(params, state):
    entries = cifar_resnet_to_torch(params, state)
    return np.array([np.linalg.norm(v) for name, v in entries.items() if name.endswith(BUFFERS[:2])])


def nchw(feature):
    return feature.transpose(0, 3, 1, 2)


def summary(feature):
    """What `model_recipe` keeps of a feature: mean, standard deviation, 16 values."""
    flat = nchw(feature).reshape(-1)
    return {"mean": flat.mean(), "std": flat.std(), "sample": flat[:: flat.size // 16][:16]}


@pytest.mark.parametrize("case", RECIPES)
def test_recipe_float64(case):
    name, hyper, golden = RECIPES[case]["symbol"], RECIPES[case]["hyper"], arrays(RECIPE_FILE)
    x, labels = recipe_inputs(case)
    np.testing.assert_allclose(
        [x.sum(dtype=np.float64), np.abs(x).sum(dtype=np.float64)], golden[f"{hyper['input_from']}/in/x_check"]
    )
    np.testing.assert_array_equal(labels, golden[f"{hyper['input_from']}/in/label"])
    state_dict, mode = recipe_state_dict(name, hyper["seed"], hyper["num_classes"]), hyper["mode"]
    with jax.enable_x64(True):
        output, loss, (dparams, dx), state = run(name, state_dict, x, labels, train=mode == "train", dtype=np.float64)

    got = {
        "logits": output.logits,
        "loss": loss,
        "pooled_feat": output.embedding,
        "grad_input_norm": np.linalg.norm(dx),
        "grad_param_norm": gradient_norms(dparams, state),
    }
    if mode == "train":
        got["running_after"] = statistic_norms(dparams, state)
    for i, (feature, preactivation) in enumerate(zip(output.features, output.preactivations, strict=True)):
        # The original repeats the activated stem as its preactivation 0; ours is the value before the ReLU.
        before = np.maximum(preactivation, 0) if i == 0 else preactivation
        got |= {f"feats_{key}_{i}": value for key, value in summary(feature).items()}
        got |= {f"preact_feats_{key}_{i}": value for key, value in summary(before).items()}
    expected = {key.split("/")[-1][:-4]: v for key, v in golden.items() if key.startswith(f"{case}/out/")}
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(got[key], value, **F64, err_msg=key)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("case", WEIGHTS)
def test_stored_weights_float64(case, mode):
    golden = stored(case)
    output, loss, (dparams, dx), state = run_stored(case, mode, np.float64)
    close = functools.partial(np.testing.assert_allclose, **F64)
    close(output.logits, golden[f"{mode}/logits.f64"])
    close(loss, golden[f"{mode}/loss.f64"])
    close(output.embedding, golden[f"{mode}/pooled_feat.f64"])
    close(np.linalg.norm(dx), golden[f"{mode}/grad_input_norm.f64"])
    close(gradient_norms(dparams, state), golden[f"{mode}/grad_param_norm.f64"])
    if mode == "train":
        for i, feature in enumerate(output.features):
            close(feature.mean((0, 1, 2)), golden[f"train/feats_mean_{i}.f64"])
            close(feature.std((0, 1, 2)), golden[f"train/feats_std_{i}.f64"])
        after = cifar_resnet_to_torch(dparams, state)
        for key in (key for key in golden if key.startswith("train/state_after/")):
            close(after[key.split("/")[-1]], golden[key], err_msg=key)
    else:  # whole features of the first example, stored in float32
        close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
        for i, (feature, preactivation) in enumerate(zip(output.features, output.preactivations, strict=True)):
            close(nchw(feature[:1]), golden[f"eval/feats_{i}"])
            if i > 0:  # every fourth channel is stored; of the stem the original repeats the activated one
                close(nchw(preactivation[:1])[:, ::4], golden[f"eval/preact_feats_{i}"])


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("case", WEIGHTS)
def test_stored_weights_float32(case, mode):
    """Single precision: rounding of 2^-24 grows about a hundredfold over eight layers and their gradients."""
    golden = stored(case)
    output, loss, (dparams, dx), state = run_stored(case, mode, np.float32)
    assert output.logits.dtype == np.float32
    np.testing.assert_allclose(output.logits, golden[f"{mode}/logits.f64"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(loss, golden[f"{mode}/loss.f64"], rtol=1e-5)
    np.testing.assert_allclose(output.embedding, golden[f"{mode}/pooled_feat.f64"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(dx), golden[f"{mode}/grad_input_norm.f64"], rtol=1e-4)
    np.testing.assert_allclose(gradient_norms(dparams, state), golden[f"{mode}/grad_param_norm.f64"], rtol=1e-4)
    if mode == "train":
        after = cifar_resnet_to_torch(dparams, state)
        for key in (key for key in golden if key.startswith("train/state_after/")):
            np.testing.assert_allclose(after[key.split("/")[-1]], golden[key], rtol=1e-5, atol=1e-6, err_msg=key)


def stored(case):
    """The arrays of one case, by their names within it."""
    return {k.removeprefix(f"{case}/"): v for k, v in arrays(WEIGHTS_FILE).items() if k.startswith(f"{case}/")}


def run_stored(case, mode, dtype):
    golden = stored(case)
    state_dict = {k.removeprefix("state/"): v for k, v in golden.items() if k.startswith("state/")}
    x, labels = golden["in/x"], golden["in/label"]
    with jax.enable_x64(dtype == np.float64):
        return run(WEIGHTS[case]["symbol"], state_dict, x, labels, train=mode == "train", dtype=dtype)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_sizes(name):
    """Nothing is computed: the module and its output are only shapes."""
    expected = SHAPES[name]
    classes, (channels, *size) = expected["hyper"]["num_classes"], image_shape(expected)
    build = functools.partial(zoo.build, expected["symbol"], num_classes=classes, in_channels=channels)
    module = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))
    assert sum(v.size for v in jax.tree.leaves(nnx.state(module, nnx.Param))) == expected["params"]
    assert sum(v.size for v in jax.tree.leaves(nnx.state(module, nnx.BatchStat))) == expected["buffers_float"]
    images = jax.ShapeDtypeStruct((expected["logits"][0], *size, channels), jnp.float32)
    output = nnx.eval_shape(lambda module, x: module(x), module, images)
    assert output.logits.shape == tuple(expected["logits"])
    assert output.embedding.shape == tuple(expected["pooled_feat"])
    nhwc = [(b, h, w, k) for b, k, h, w in expected["feats"]]
    assert [f.shape for f in output.features] == nhwc
    assert [f.shape for f in output.preactivations] == nhwc


def test_initialisation():
    """Kaiming normal by fan-out for convolutions, uniform within 1/sqrt(fan in) for the linear layer."""
    network = functionalise(lambda rngs: CifarResNet(8, num_classes=100, channels=(32, 64, 128, 256), rngs=rngs))
    init = jax.jit(network.init)
    params, state = jax.device_get(init(jax.random.key(0)))
    other, _ = jax.device_get(init(jax.random.key(1)))
    for path, kernel in jax.tree_util.tree_leaves_with_path(params):
        if kernel.ndim == 4:
            height, width, _, out_channels = kernel.shape
            unit = kernel / np.sqrt(2 / (height * width * out_channels))
            tolerance = 5 / np.sqrt(kernel.size)
            assert abs(unit.mean()) < tolerance and abs(unit.std() - 1) < tolerance, path
    first, second = (params["stages"]["2"]["0"][name]["kernel"].ravel() for name in ("conv1", "conv2"))
    assert abs(np.corrcoef(first, second[: first.size])[0, 1]) < 0.01
    assert not np.array_equal(first, other["stages"]["2"]["0"]["conv1"]["kernel"].ravel())
    bound = 1 / np.sqrt(256)
    for value in params["classifier"].values():
        assert np.abs(value).max() <= bound
        assert np.abs(value).max() > 0.9 * bound
    np.testing.assert_allclose(params["classifier"]["kernel"].std(), bound / np.sqrt(3), rtol=0.02)
    norm = params["stages"]["0"]["0"]["norm1"]
    assert np.all(norm["scale"] == 1) and np.all(norm["bias"] == 0)
    statistics = state["stages"]["0"]["0"]["norm1"]
    assert np.all(statistics["mean"] == 0) and np.all(statistics["var"] == 1)


def test_features_are_activated_preactivations_and_classify_reads_the_embedding():
    module = CifarResNet(8, num_classes=5, channels=(4, 4, 8, 16), in_channels=1, rngs=nnx.Rngs(0))
    module.eval()
    output = module(jax.random.normal(jax.random.key(1), (2, 12, 12, 1)))
    for feature, preactivation in zip(output.features, output.preactivations, strict=True):
        np.testing.assert_array_equal(feature, np.maximum(preactivation, 0))
        assert np.any(np.asarray(preactivation) < 0)
    np.testing.assert_array_equal(module.classify(output.embedding), output.logits)


@pytest.mark.parametrize("depth", [2, 9, 18])
def test_depth_that_fits_no_network_is_refused(depth):
    with pytest.raises(ValueError, match="6 n \\+ 2"):
        CifarResNet(depth, num_classes=10, rngs=nnx.Rngs(0))


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'resnet20'"):
        zoo.build("resnet_20", num_classes=10, in_channels=3, rngs=nnx.Rngs(0))


def test_width_scales_every_stage():
    def widths(name, width):
        module = nnx.eval_shape(lambda: zoo.build(name, num_classes=10, in_channels=1, rngs=nnx.Rngs(0), width=width))
        images = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
        return [f.shape[-1] for f in nnx.eval_shape(lambda m, x: m(x), module, images).features]

    assert widths("resnet8", 4) == [4, 4, 8, 16]
    assert widths("resnet8x4", 8) == [4, 8, 16, 32]
    assert widths("small_cnn", 8) == [8, 16, 32]


def test_norms_are_those_before_the_last_activation_of_stem_and_stages():
    """One pair for each preactivation: changing it moves that one, and none before."""
    module = CifarResNet(14, num_classes=3, channels=(3, 4, 5, 6), rngs=nnx.Rngs(0))
    assert [(scale.shape, bias.shape) for scale, bias in module.norms()] == [((k,), (k,)) for k in (3, 4, 5, 6)]
    module.eval()
    x = jax.random.normal(jax.random.key(1), (1, 8, 8, 3))
    before = module(x).preactivations
    for i, norm in enumerate([module.stem_norm, *(stage[-1].norm2 for stage in module.stages)]):
        norm.bias[...] = norm.bias[...] + 1.0
        assert (module.norms()[i][1] == 1).all() and (module.norms()[i][0] == norm.scale[...]).all()
        after = module(x).preactivations
        for earlier in range(i):
            np.testing.assert_array_equal(after[earlier], before[earlier])
        np.testing.assert_allclose(after[i], before[i] + 1, atol=1e-5)
        before = after
