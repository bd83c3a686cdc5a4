"""The networks for ImageNet against the numbers of their originals: outputs, features, gradients, running statistics."""

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
from kdjax.models.weights.names import imagenet, timm, torchvision
from kdjax.models.weights.torch import entries, filled, laid_out
from kdjax.models.zoo.convnext import ConvNeXt
from kdjax.models.zoo.inverted import InvertedNet, MobileNetV1
from kdjax.models.zoo.mobilenets import efficientnet, mobilenet_v1, mobilenet_v2, mobilenet_v3
from kdjax.models.zoo.normalization import BatchNorm
from kdjax.models.zoo.regnet import RegNetY
from kdjax.models.zoo.resnet import ResNet
from kdjax.models.zoo.swin import Swin
from kdjax.models.zoo.vit import ViT
from tests.models.zoo.originals import recipe

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
MANIFEST = json.loads((GOLDEN / "manifest_imagenet.json").read_text())
CASES, FULL = MANIFEST["small"], MANIFEST["full"]
F64 = {"rtol": 1e-8, "atol": 1e-11}

V1 = mobilenet_v1(0.5, table=((64, 1), (128, 2), (128, 1), (256, 2)))
V2 = mobilenet_v2(0.5, table=((3, 1, 16, 1, 1), (3, 6, 24, 2, 2), (3, 6, 32, 1, 2)))
V3_TABLE = ((3, 16, 16, 1, 0, 1), (3, 64, 24, 0, 0, 2), (5, 72, 40, 1, 1, 2), (5, 120, 40, 1, 1, 1))
V3 = mobilenet_v3(0.5, table=V3_TABLE, hidden=64)
EFFICIENT_TABLE, COUNTS = ((3, 1, 16, 1, 1), (3, 6, 24, 2, 2), (5, 6, 40, 1, 2)), (1, 2, 1)
EFFICIENT = {
    f"{'tf_' * tensorflow}efficientnet_{'lite0' if lite else 'b0'}": efficientnet(
        0.5, lite=lite, tensorflow=tensorflow, table=EFFICIENT_TABLE
    )
    for lite in (False, True) for tensorflow in (False, True)
}  # fmt: skip
BLOCKS = (2, 1, 1, 1)

# case -> network of its size and kind, names of its entries
NETWORKS = {
    "resnet_basic": (functools.partial(ResNet, BLOCKS, bottleneck=False, width=8), torchvision.RESNET),
    "resnet_bottleneck": (functools.partial(ResNet, BLOCKS, bottleneck=True, width=8), torchvision.RESNET),
    "mobilenet_v1": (functools.partial(MobileNetV1, V1), timm.inverted(V1, COUNTS)),
    "mobilenet_v2": (functools.partial(InvertedNet, V2), torchvision.mobilenet_v2(V2)),
    "mobilenet_v3": (functools.partial(InvertedNet, V3), torchvision.mobilenet_v3(V3)),
    **{name: (functools.partial(InvertedNet, d), timm.inverted(d, COUNTS)) for name, d in EFFICIENT.items()},
    "vit": (functools.partial(ViT, (48, 32), width=24, heads=3, depth=4), timm.VIT),
    "deit_distilled": (functools.partial(ViT, (48, 32), width=24, heads=3, depth=4, distilled=True), timm.VIT),
    "convnext": (functools.partial(ConvNeXt, (1, 2, 1, 1), width=8), timm.CONVNEXT),
    "swin": (functools.partial(Swin, (40, 32), (2, 2), width=16, heads=(2, 4), window=4), timm.SWIN),
    "regnety": (functools.partial(RegNetY, (1, 2), (16, 32), group=8), torchvision.REGNET),
}


@functools.cache
def golden():
    with np.load(GOLDEN / "model_imagenet.npz") as z:
        return {name: z[name] for name in z.files}


def inputs(case):
    """Images and labels, by which every network here is asked."""
    rs = np.random.RandomState(case["seed"] + 999)
    images = rs.standard_normal(case["images"]).astype(np.float32)
    return images.transpose(0, 2, 3, 1), rs.randint(0, case["num_classes"], case["images"][0])


def run(name, case):
    """`(output, loss, gradients of parameters and images, state after)` in evaluation and in training, float64: one program."""
    make, names = NETWORKS[name]
    make = functools.partial(make, num_classes=case["num_classes"])
    network = functionalise(lambda rngs: make(rngs=rngs))
    layout = entries(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))), names)
    state_dict = recipe(case["state_dict"], case["seed"])
    params, state = jax.tree.map(lambda v: v.astype(np.float64), filled(layout, state_dict))
    images, labels = inputs(case)

    def loss(params, images, train):
        output, after = network.call(params, state, lambda module: module(images), train=train)
        picked = jnp.take_along_axis(jax.nn.log_softmax(output.logits), labels[:, None], axis=1)
        return -jnp.mean(picked), (output, after)

    @jax.jit
    def both(params, images):
        gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        return {mode: gradient(params, images, mode == "train") for mode in ("eval", "train")}

    return layout, jax.device_get(both(params, images.astype(np.float64)))


# Of each family another runs by default.
SLOW = ("resnet_basic", "efficientnet_lite0", "tf_efficientnet_b0", "vit")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES])
def test_small_networks_are_their_originals_in_float64(name):
    case, stored = CASES[name], golden()
    with jax.enable_x64(True):
        layout, said = run(name, case)
    order = {entry: j for j, (entry, _) in enumerate(case["state_dict"])}
    for mode, ((loss, (output, after)), (dparams, dimages)) in said.items():
        expected = {k.split("/")[-1]: v for k, v in stored.items() if k.startswith(f"{name}/{mode}/")}
        gradients = laid_out(layout, dparams, after)
        trained = [k for k in order if not k.endswith(("running_mean", "running_var", "num_batches_tracked"))]
        dimages = dimages.transpose(0, 3, 1, 2)
        probe = np.random.RandomState(case["seed"] + 998).standard_normal(dimages.shape)
        got = {
            "logits": output.logits,
            "loss": loss,
            "grad_input": np.array([np.linalg.norm(dimages), (dimages * probe).sum()]),
            "grad_norms": np.array([np.linalg.norm(gradients[k]) for k in trained]),
        }
        # Sums of entries by a wave: they tell one order of the entries from another.
        waves = (np.cos(np.arange(gradients[k].size) + case["seed"] + order[k]) for k in trained)
        probes = np.array([gradients[k].ravel() @ wave for k, wave in zip(trained, waves, strict=True)])
        scale = got["grad_norms"]
        np.testing.assert_allclose(probes, expected.pop("grad_probes"), rtol=1e-8, atol=1e-8 * scale.max())
        for key in expected:
            if key[:-1] in ("features", "preactivations"):
                feature = getattr(output, key[:-1])[int(key[-1])]
                assert list(feature.shape) == case["shapes"][key]
                flat = feature.reshape(-1)
                got[key] = np.concatenate([[flat.mean(), flat.std()], flat[:: max(flat.size // 16, 1)][:16]])
        if mode == "train":
            running = [k for k in order if k.endswith(("running_mean", "running_var"))]
            got["running"] = np.array([np.linalg.norm(gradients[k]) for k in running])
            if output.taps:
                got["heads"] = np.stack([output.taps["class"], output.taps["distillation"]])
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(got[key], value, **F64, err_msg=f"{mode} {key}")


LARGE = ("resnet101", "resnet152", "vit_small", "vit_base", "deit_small", "deit_base", "regnety", "mobilenet_v3_large",
         "efficientnet_b0", "tf_efficientnet_b0", "efficientnet_lite0", "resnet34")  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * name.startswith(LARGE)) for name in imagenet.NAMES]
)
def test_full_networks_have_the_entries_of_their_originals(name):
    """Nothing is computed: every entry by name, shape and place in the order, and as many parameters, for each publisher."""
    module = nnx.eval_shape(lambda: zoo.build(name, num_classes=1000, in_channels=3, rngs=nnx.Rngs(0)))
    published = {case: facts for case, facts in FULL.items() if case.split("/")[0] == name}
    layouts = [entries(module, names) for names in imagenet.NAMES[name]]
    with np.load(GOLDEN / "names_imagenet.npz") as z:
        for case, facts in published.items():
            assert sum(v.size for v in jax.tree.leaves(nnx.state(module, nnx.Param))) == facts["params"]
            expected = [line.split(" ") for line in z[case].tobytes().decode().split("\n")]
            expected = [(entry, tuple(map(int, shape))) for entry, *shape in expected]
            assert expected in [listed(layout) for layout in layouts], case


def listed(layout):
    """Names and shapes of the entries, each BatchNorm's counter behind it."""
    made = []
    for entry in layout:
        made.append((entry.name, entry.shape))
        if entry.counter:
            made.append((entry.counter, ()))
    return made


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv1_100", "mobilenet_v2", "efficientnet_b0", "regnety_160"])
def test_what_a_network_says_of_itself_holds(name):
    """Shapes alone: the embedding is as wide as the last features, norms are those of the preactivations."""
    module = nnx.eval_shape(lambda: zoo.build(name, num_classes=7, in_channels=1, width=8, rngs=nnx.Rngs(0)))
    output = nnx.eval_shape(lambda m, x: m(x), module, jax.ShapeDtypeStruct((2, 64, 64, 1), jnp.float32))
    assert output.logits.shape == (2, 7)
    assert output.embedding.shape == (2, output.features[-1].shape[-1])
    assert [f.shape[1] for f in output.features[:5]] == [32, 16, 8, 4, 2]
    if output.preactivations:
        assert [p.shape for p in output.preactivations] == [f.shape for f in output.features]
        widths = [p.shape[-1] for p in output.preactivations]
        assert [scale.shape for scale, _ in nnx.eval_shape(lambda m: m.norms(), module)] == [(k,) for k in widths]
    classified = nnx.eval_shape(lambda m, x: m.classify(x), module, output.embedding)
    assert classified.shape == output.logits.shape


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_images_of_another_size_are_refused(name):
    module = nnx.eval_shape(
        lambda: zoo.build(name, num_classes=3, in_channels=3, width=6, image_size=(32, 64), rngs=nnx.Rngs(0))
    )
    with pytest.raises(ValueError, match=r"images of 64x32 pixels.*build it with image_size=\(64, 32\)"):
        nnx.eval_shape(lambda m, x: m(x), module, jax.ShapeDtypeStruct((1, 64, 32, 3), jnp.float32))
    with pytest.raises(ValueError, match="30x30 pixels are not cut into patches"):
        zoo.build(name, num_classes=3, in_channels=3, image_size=(30, 30), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("blocks", "image", "least"), [((1,) * 4, (31, 33), 32), ((1,) * 4, (40, 8), 32), ((1, 1), (8, 7), 8)]
)
def test_images_that_cuts_leave_nothing_of_are_refused(blocks, image, least):
    """An empty map has no mean: the logits would be nan."""
    module = nnx.eval_shape(lambda: ConvNeXt(blocks, width=4, num_classes=3, rngs=nnx.Rngs(0)))
    shapes = lambda *size: nnx.eval_shape(lambda m, x: m(x), module, jax.ShapeDtypeStruct((1, *size, 3), jnp.float32))
    with pytest.raises(
        ValueError, match=f"till {image[0]}x{image[1]} leaves nothing; it takes {least}x{least} or more"
    ):
        shapes(*image)
    assert shapes(least, least + 1).features[-1].shape[1:3] == (1, 1)


def test_first_weights():
    """Kaiming normal by fan-out where that is published, 0.02 for transformers; biases 0, scales 1."""
    network = functionalise(lambda rngs: ResNet(BLOCKS, bottleneck=True, num_classes=9, width=16, rngs=rngs))
    params, state = jax.device_get(jax.jit(network.init)(jax.random.key(0)))
    for path, kernel in jax.tree_util.tree_leaves_with_path(params):
        if kernel.ndim == 4:
            unit = kernel / np.sqrt(2 / (kernel.shape[0] * kernel.shape[1] * kernel.shape[3]))
            assert abs(unit.std() - 1) < 5 / np.sqrt(kernel.size) and abs(unit.mean()) < 5 / np.sqrt(kernel.size), path
    norm = params["stages"]["0"]["0"]["layers"]["2"]["norm"]
    assert (norm["scale"] == 1).all() and (norm["bias"] == 0).all()
    assert (state["stem"]["norm"]["mean"] == 0).all() and (state["stem"]["norm"]["var"] == 1).all()
    network = functionalise(lambda rngs: ViT((32, 32), num_classes=9, width=64, heads=1, depth=1, rngs=rngs))
    params = jax.device_get(jax.jit(network.init)(jax.random.key(0))[0])
    kernel = params["blocks"]["0"]["mlp"]["wide"]["kernel"]
    assert abs(kernel.std() / 0.02 - 1) < 5 / np.sqrt(kernel.size)
    assert (params["blocks"]["0"]["mlp"]["wide"]["bias"] == 0).all()
    network = functionalise(lambda rngs: MobileNetV1(V1, num_classes=9, rngs=rngs))
    kernel = jax.device_get(jax.jit(network.init)(jax.random.key(0))[0])["blocks"]["3"]["depthwise"]["conv"]["kernel"]
    assert abs(kernel.std() / np.sqrt(2 / 9) - 1) < 5 / np.sqrt(kernel.size)  # fan-out within a group: nine positions


def test_blocks_are_computed_again_and_groups_normalised_by_themselves_where_asked():
    for name in ("resnet18", "mobilenet_v2", "deit_tiny_distilled_patch16_224"):
        module = nnx.eval_shape(
            lambda name=name: zoo.build(
                name, num_classes=3, in_channels=3, width=8, remat=True, batchnorm_groups=2, rngs=nnx.Rngs(0)
            )
        )
        parts = [part for _, part in nnx.iter_modules(module)]
        assert any(getattr(part, "recompute", False) for part in parts), name
        assert all(part.groups == 2 for part in parts if isinstance(part, BatchNorm)), name
