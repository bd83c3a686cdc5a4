"""CIFAR ResNets: first weights, features, widths. test_originals.py compares them with the PyTorch originals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax.models import zoo
from kdjax.models.functional import functionalise
from kdjax.models.zoo.resnet_cifar import CifarResNet


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
