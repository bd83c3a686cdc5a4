"""The GFL detector against the original's whole networks: every map, every logit, every gradient, by mmdetection's names."""

import functools
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax.models import from_nnx
from kdjax.models.detectors.backbones import ResNetBackbone
from kdjax.models.detectors.beginning import weights_of
from kdjax.models.detectors.fixed import Fixed
from kdjax.models.detectors.gfl import GFL
from kdjax.models.functional import functionalise
from kdjax.models.weights.beginning import begun
from kdjax.models.weights.names.mmdetection import GFL as NAMES
from kdjax.models.weights.torch import from_torch, to_torch
from tests.golden_cases import cases, nchw, nhwc
from tests.losses.computing import computing_in

CASES = cases("gfl_model")
IGNORED = "bbox_head.integral.project"


def detector(case, rngs):
    h = case.hyper
    backbone = ResNetBackbone(
        h["depth"], width=h["base_channels"], in_channels=case.inputs["image"].shape[1],
        frozen_stages=h["frozen_stages"], rngs=rngs,
    )  # fmt: skip
    return GFL(
        backbone, num_classes=h["num_classes"], strides=tuple(h["strides"]), pyramid_channels=h["fpn_channels"],
        bins=h["reg_max"] + 1, depth=h["stacked_convs"], groups=h["gn_groups"], rngs=rngs,
    )  # fmt: skip


@functools.cache
def ours(case, precision):
    """`(loss, outputs, gradients by the original's names, gradient by the image)`."""
    with computing_in(precision) as real:
        functional = functionalise(lambda rngs: detector(case, rngs))
        shape = nnx.eval_shape(lambda: detector(case, nnx.Rngs(0)))
        stored = {name: value for name, value in case.params.items() if name != IGNORED}
        params, state = jax.tree.map(real, from_torch(shape, stored, NAMES))

        def loss(params, image):
            def run(module):
                maps = module.backbone(image)
                return maps, module(image)

            (maps, output), _ = functional.call(params, state, run, train=True)
            total, split = 0.0, np.cumsum([h * w for h, w in output.sizes])[:-1]
            for i, (c, e) in enumerate(
                zip(jnp.split(output.logits, split, 1), jnp.split(output.edge_logits, split, 1), strict=True)
            ):
                for name, value in (("cls", c), ("reg", e)):
                    weights = nhwc(case.inputs[f"proj_{name}_{i}"])
                    total += jnp.sum(jnp.reshape(value, weights.shape) * real(weights))
            return total, (maps, output)

        image = real(nhwc(case.inputs["image"]))
        (value, aux), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, image)
        listed = to_torch(shape, grads[0], jax.tree.map(np.zeros_like, state), NAMES)
        return value, *aux, listed, grads[1]


@pytest.mark.parametrize("precision", ["f64", pytest.param("f32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_outputs_and_gradients_golden(case, precision):
    value, maps, output, listed, by_image = ours(case, precision)
    case.check(value, "out", "loss", precision)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6 if precision == "f64" else 1e-4)
    tiny = 1e-9 if precision == "f64" else 2e-5
    outputs, split = case.outputs["f64"], np.cumsum([h * w for h, w in output.sizes])[:-1]
    found = {f"c_{i + 1}": x for i, x in enumerate(maps)} | {f"p_{i}": x for i, x in enumerate(output.features)}
    for i, (c, e) in enumerate(
        zip(np.split(output.logits, split, 1), np.split(output.edge_logits, split, 1), strict=True)
    ):
        size = output.sizes[i]
        found |= {f"cls_{i}": c.reshape(len(c), *size, -1), f"reg_{i}": e.reshape(len(e), *size, -1)}
    for name, array in found.items():
        wanted = outputs[name]
        close(nchw(array), wanted, atol=tiny * np.abs(wanted).max(), err_msg=name)
    wanted = case.grads["f64"]["image"]
    close(nchw(by_image), wanted, atol=10 * tiny * np.abs(wanted).max())
    names = case.note.removeprefix("gnorm order: ").split()
    norms = {n: np.linalg.norm(g) for n, g in listed.items()}
    assert set(names) <= set(norms)
    close([norms[n] for n in names], outputs["gnorm"], atol=10 * tiny * outputs["gnorm"].max())
    for name, wanted in case.gparams["f64"].items():
        close(listed[name], wanted, atol=10 * tiny * np.abs(wanted).max(), err_msg=name)


def test_what_is_fixed_is_no_parameter_and_statistics_stay():
    """The stem, the first stage, and of the others the statistics of BatchNorm. The network is not taken for deaf."""
    case = CASES[0]
    network = from_nnx(lambda rngs: detector(case, rngs), output=lambda said: said)
    params, state = jax.jit(network.init)(jax.random.key(0))
    assert "stem" not in params["backbone"] and "0" not in params["backbone"]["stages"]
    assert set(params["backbone"]["stages"]["1"]["0"]["layers"]["0"]["norm"]) == {"scale", "bias"}
    module = detector(case, nnx.Rngs(0))
    assert {type(v) for _, v in nnx.iter_graph(module.backbone.stem) if isinstance(v, nnx.Variable)} == {Fixed}
    image = jnp.ones((2, 64, 64, 3))
    output, after = jax.jit(functools.partial(network.apply, train=True))(params, state, image)
    jax.tree.map(np.testing.assert_array_equal, state, after)
    np.testing.assert_allclose(jax.nn.sigmoid(output.logits), 0.01, rtol=0.2)  # the prior


def saved(path, entries):
    """A file of safetensors."""
    offset, header, body = 0, {}, b""
    for name, value in entries.items():
        data = np.ascontiguousarray(value, np.float32).tobytes()
        header[name] = {"dtype": "F32", "shape": list(np.shape(value)), "data_offsets": [offset, offset + len(data)]}
        offset, body = offset + len(data), body + data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def test_it_begins_from_files_of_others(tmp_path):
    """mmdetection's file of the whole detector, torchvision's of the backbone alone; what does not fit is named."""
    case = CASES[0]
    network, shape = (
        f(lambda rngs: detector(case, rngs)) for f in (from_nnx, lambda f: nnx.eval_shape(lambda: f(nnx.Rngs(0))))
    )
    whole = saved(tmp_path / "detector.safetensors", case.params)
    stored = {name: value for name, value in case.params.items() if name != IGNORED}
    params, state = begun(network, weights_of(whole, shape)).init(jax.random.key(0))
    for name, value in to_torch(shape, params, state, NAMES).items():
        if name in stored and "num_batches" not in name:
            np.testing.assert_array_equal(value, stored[name])
    prefix = "backbone."
    resnet = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
    alone = saved(tmp_path / "resnet.safetensors", resnet | {"fc.weight": np.ones((5, 8)), "fc.bias": np.ones(5)})
    half, _ = begun(network, weights_of(alone, shape)).init(jax.random.key(0))
    fresh, _ = network.init(jax.random.key(0))
    same = lambda a, b: bool(np.array_equal(a, b))
    assert all(jax.tree.leaves(jax.tree.map(same, half["backbone"], params["backbone"])))
    assert all(jax.tree.leaves(jax.tree.map(same, half["head"], fresh["head"])))
    resnet.pop("conv1.weight")
    with pytest.raises(
        ValueError, match=r"part\.safetensors is not the ResNet of torchvision .* no entry 'conv1\.weight'"
    ):
        weights_of(saved(tmp_path / "part.safetensors", resnet), shape)
