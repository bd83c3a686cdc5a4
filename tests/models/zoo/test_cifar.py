"""What all networks of the CIFAR benchmarks have in common: first weights, image sizes, widths, groups of BatchNorm, remat."""

import dataclasses
import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax.models import zoo
from kdjax.models.functional import functionalise
from kdjax.models.rematerialization import Recomputable
from kdjax.models.zoo.cifar import CIFAR
from kdjax.models.zoo.layers import shuffled
from kdjax.models.zoo.normalization import BatchNorm
from kdjax.models.zoo.wide_resnet import WideBlock


@dataclasses.dataclass(frozen=True)
class Family:
    """One network of it at a small width; what its convolutions and its classifier are drawn from; image to last feature."""

    name: str
    width: int
    convolutions: str = "kaiming normal"
    classifier: str = "uniform"
    bias: str = "uniform"
    halvings: int = 2


FAMILIES = [
    Family("resnet8", 4),
    Family("wrn_16_2", 4, bias="zero"),
    Family("vgg8", 4, classifier="normal", bias="zero", halvings=3),
    Family("mobilenetv2", 4, classifier="normal", bias="zero", halvings=4),
    Family("shufflenetv1", 120, convolutions="uniform", halvings=3),
    Family("shufflenetv2", 8, convolutions="uniform", halvings=3),
    Family("resnet18_cifar", 4, halvings=3),
    Family("resnet50_cifar", 4, halvings=3),
]
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def small(family, **options):
    options = {"num_classes": 5, "in_channels": 2, "width": family.width} | options
    return functools.partial(zoo.build, family.name, **options)


def abstract(build):
    return nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))


def shapes(module, *image):
    return nnx.eval_shape(lambda m, x: m(x), module, jax.ShapeDtypeStruct(image, jnp.float32))


@functools.cache
def outline(family):
    """The small network without numbers."""
    return abstract(small(family))


@functools.cache
def drawn(family):
    """`(params, state)` of the small network."""
    return jax.device_get(jax.jit(functionalise(lambda rngs: small(family)(rngs=rngs)).init)(jax.random.key(0)))


@every_family
def test_first_weights(family):
    """Of each convolution the scale is that of its own shape; all together have the moments of the distribution."""
    params, state = drawn(family)
    kernels = [v for path, v in jax.tree_util.tree_leaves_with_path(params) if v.ndim == 4]
    units = []
    for kernel in kernels:
        height, width, inputs, outputs = kernel.shape
        variance = (
            1 / (3 * height * width * inputs) if "uniform" in family.convolutions else 2 / (height * width * outputs)
        )
        units.append(kernel.ravel() / math.sqrt(variance))
        assert abs(units[-1].std() - 1) < 5 / math.sqrt(kernel.size), kernel.shape
    units = np.concatenate(units)
    assert abs(units.mean()) < 5 / math.sqrt(units.size) and abs(units.std() - 1) < 5 / math.sqrt(units.size)
    fourth = 9 / 5 if family.convolutions == "uniform" else 3
    assert abs((units**4).mean() - fourth) < 50 / math.sqrt(units.size)
    kernel, bias = params["classifier"]["kernel"], params["classifier"]["bias"]
    bound = 1 / math.sqrt(len(kernel))
    std = 0.01 if family.classifier == "normal" else bound / math.sqrt(3)
    assert abs(kernel.std() / std - 1) < 3 / math.sqrt(kernel.size)
    assert family.classifier == "normal" or np.abs(kernel).max() <= bound
    assert not bias.any() if family.bias == "zero" else 0 < np.abs(bias).max() <= bound
    for path, value in jax.tree_util.tree_leaves_with_path((params, state)):
        leaf = path[-1].key
        if leaf in ("scale", "var"):
            assert (value == 1).all(), path
        elif leaf in ("bias", "mean") and path[1].key != "classifier":
            assert not value.any(), path


@every_family
@pytest.mark.parametrize("image", [(33, 31), (64, 64), (224, 224), (8, 8)], ids=str)
def test_images_of_any_size(family, image):
    output = shapes(outline(family), 2, *image, 2)
    assert output.logits.shape == (2, 5) and output.embedding.shape[0] == 2
    first, last = output.features[0].shape, output.features[-1].shape
    assert len(output.features) == len(output.preactivations)
    assert [f.shape for f in output.features] == [p.shape for p in output.preactivations]
    halvings = family.halvings + (family.name == "vgg8" and image[0] == 64)
    rounded = math.floor if family.name == "vgg8" else math.ceil  # pools leave a rest out, padded strides do not
    assert last[1:3] == tuple(functools.reduce(lambda n, _: rounded(n / 2), range(halvings), n) for n in image)
    assert first[1:3] == tuple(-(-n // 2) if family.name == "mobilenetv2" else n for n in image)


@pytest.mark.parametrize("image", [(7, 32), (32, 7), (64, 12)])
def test_images_that_pools_leave_nothing_of_are_refused(image):
    with pytest.raises(ValueError, match=f"{image[0]}x{image[1]} leaves nothing"):
        shapes(abstract(functools.partial(zoo.build, "vgg8", num_classes=5, in_channels=1)), 1, *image, 1)


@every_family
def test_features_preactivations_and_classify(family):
    """`features[i] == relu(preactivations[i])`, but where the docstrings say otherwise."""
    module = nnx.jit(lambda rngs: small(family)(rngs=rngs))(nnx.Rngs(0))
    module.eval()
    values = jax.random.normal(jax.random.key(1), (1, 16, 16, 2))
    for _, variable in nnx.to_flat_state(nnx.state(module, nnx.BatchStat)):  # else the deep ones vanish
        variable.set_value(jnp.asarray(0.5 * jax.device_get(variable.get_value())))
    output = jax.jit(lambda x: module(x))(values)
    relu = functools.partial(np.maximum, 0)
    for i, (feature, preactivation) in enumerate(zip(output.features, output.preactivations, strict=True)):
        expected = relu(preactivation)
        if family.name == "shufflenetv2" and i > 0:
            expected = shuffled(jnp.asarray(expected), 2)
        elif family.name == "mobilenetv2" and i > 0:
            expected = preactivation
        elif family.name == "wrn_16_2":
            norm = module.last_norm if i == 3 else module.stages[i][0].norm1
            feature, expected = norm(feature), preactivation
            assert np.any(np.asarray(output.features[i]) < 0)
        np.testing.assert_allclose(feature, expected, rtol=1e-5, atol=1e-6, err_msg=str(i))
        assert np.any(np.asarray(preactivation) < 0)
    np.testing.assert_allclose(module.classify(output.embedding), output.logits, rtol=1e-5, atol=1e-6)


@every_family
def test_norms_are_those_before_the_activation(family):
    """A pair for each preactivation, every place of which moves with the bias as it is."""
    params, state = drawn(family)
    network = functionalise(lambda rngs: small(family)(rngs=rngs))
    norms = lambda params: network.call(params, state, lambda module: module.norms(), train=False)[0]
    if family.name.startswith("shuffle"):
        with pytest.raises(ValueError, match="no BatchNorm of all channels before the last ReLU"):
            norms(params)
        return
    x = jax.random.normal(jax.random.key(1), (1, 8, 8, 2))

    @jax.jit
    @jax.jacrev
    def gradients(params):
        output, _ = network.call(params, state, lambda module: module(x), train=False)
        return jnp.stack([jnp.sum(p) for p in output.preactivations])

    found = jax.device_get(gradients(params))
    sizes = [p.shape for p in shapes(outline(family), 1, 8, 8, 2).preactivations]
    assert [(scale.shape, bias.shape) for scale, bias in norms(params)] == [((k,), (k,)) for *_, k in sizes]
    for i, (_, height, width, channels) in enumerate(sizes):
        _, bias = norms(jax.tree.map(operator.itemgetter(i), found))[i]  # the gradient of the one that norms() lists
        np.testing.assert_allclose(bias, np.full(channels, height * width), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "width", "said"),
    [
        ("shufflenetv1", 100, "multiple of 120"),
        ("shufflenetv2", 25, "must be even"),
        ("mobilenetv2", 1, "at least 2"),
    ],
)
def test_widths_that_do_not_divide_are_refused(name, width, said):
    with pytest.raises(ValueError, match=said):
        zoo.build(name, num_classes=5, in_channels=3, width=width, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("name", "width", "channels"),
    [
        ("wrn_16_1", 4, [4, 4, 8, 16]),
        ("wrn_40_2", 8, [4, 8, 16, 32]),
        ("vgg13", 8, [8, 16, 32, 64, 64]),
        ("mobilenetv2", 32, [32, 24, 32, 96, 320]),  # full width
        ("shufflenetv1", 120, [12, 120, 240, 480]),
        ("shufflenetv2", 176, [24, 176, 352, 704]),  # published as 1.5x
        ("resnet18_cifar", 8, [8, 8, 16, 32, 64]),
        ("resnet50_cifar", 8, [8, 32, 64, 128, 256]),
    ],
)
def test_widths(name, width, channels):
    module = abstract(functools.partial(zoo.build, name, num_classes=5, in_channels=1, width=width))
    assert [f.shape[-1] for f in shapes(module, 1, 32, 32, 1).features] == channels


@pytest.mark.parametrize(("cls", "depth"), [("wrn_16_1", 12), ("vgg8", 10), ("resnet18_cifar", 34)])
def test_depths_that_there_are_not_are_refused(cls, depth):
    module = type(abstract(functools.partial(zoo.build, cls, num_classes=5, in_channels=1)))
    options = {"channels": (4, 4, 8, 16)} if cls == "wrn_16_1" else {}
    with pytest.raises(ValueError, match=f"depth.*{depth}"):
        module(depth, num_classes=5, rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize(("channels", "stride", "changes"), [(4, 1, False), (4, 2, True), (6, 1, True)])
def test_a_wide_block_has_a_shortcut_of_its_own_where_the_shape_changes(channels, stride, changes):
    block = nnx.eval_shape(lambda: WideBlock(4, channels, stride=stride, rngs=nnx.Rngs(0)))
    assert (block.shortcut is not None) == changes
    size = (7 + stride) // stride, (4 + stride) // stride
    assert shapes(block, 2, 8, 5, 4).shape == (2, *size, channels)


def test_shuffled_interleaves_the_runs_of_channels():
    x = jnp.arange(12).reshape(1, 12)
    np.testing.assert_array_equal(shuffled(x, 3)[0], [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11])
    np.testing.assert_array_equal(shuffled(x, 1), x)


@pytest.mark.parametrize("name", CIFAR)
def test_groups_of_batchnorm_and_remat_reach_every_layer(name):
    module = abstract(functools.partial(zoo.build, name, num_classes=5, in_channels=3, batchnorm_groups=2, remat=True))
    parts = [part for _, part in nnx.iter_modules(module)]
    assert {part.groups for part in parts if isinstance(part, BatchNorm)} == {2}
    blocks = [part for part in parts if isinstance(part, Recomputable)]
    assert blocks and all(block.recompute for block in blocks)
    convolutions = sum(isinstance(part, nnx.Conv) for part in parts)
    inside = sum(isinstance(part, nnx.Conv) for block in blocks for _, part in nnx.iter_modules(block))
    assert convolutions - inside <= 2  # the stem, and the last one before the pool
