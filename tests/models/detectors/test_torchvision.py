"""RetinaNet, FCOS and SSD300 against torchvision's whole networks: classes, boxes and anchors, by its entries' names."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax.models.detectors.beginning import adapted, names_in, weights_of
from kdjax.models.functional import functionalise
from kdjax.models.weights.torch import entries, from_torch
from kdjax.tasks.detection.networks import Detector, maker
from kdjax.tasks.detection.published import is_published, read_published
from tests.golden_cases import FOLDER, nhwc
from tests.losses.computing import computing_in
from tests.models.detectors.test_gfl import saved

GOLDEN = np.load(FOLDER / "torchvision_detectors.npz")
MANIFEST = json.loads((FOLDER / "manifest_torchvision.json").read_text())
NAMES = {"retinanet": "retinanet_torchvision_r18", "fcos": "fcos_torchvision_r18", "ssd300": "ssd300_torchvision"}


def filled(name):
    """The state dict that the original had, see the manifest."""
    held = {}
    for k, (entry, shape) in enumerate(MANIFEST[name]["entries"]):
        wave = np.sin((np.arange(np.prod(shape)) + 1.0) * (0.7 + 0.11 * k)).reshape(shape)
        if entry.endswith("running_var") or (len(shape) == 1 and entry.endswith("weight")):
            held[entry] = 1 + 0.3 * wave
        else:
            held[entry] = wave * (np.sqrt(3.0 / np.prod(shape[1:])) if len(shape) == 4 else 0.1)
    return held


def module(name, rngs):
    hyper = MANIFEST[name]["hyper"]
    model = Detector(name=NAMES[name], **{key: hyper[key] for key in ("width", "channels") if key in hyper})
    return maker(model, hyper["num_classes"] - (name == "ssd300"), 3)(rngs)


PRECISIONS = [("f64", 1e-9), ("f32", 2e-4)]
CASES = [pytest.param(name, *way, marks=[pytest.mark.slow] if name == "ssd300" or way[0] == "f32" else [], id=f"{name}-{way[0]}")
         for name in NAMES for way in PRECISIONS]  # fmt: skip


@pytest.mark.parametrize(("name", "precision", "tolerance"), CASES)
def test_outputs_are_the_originals(name, precision, tolerance):
    image = GOLDEN["image"] if name != "ssd300" else np.sin((np.arange(270000) + 1.0) * 0.37).reshape(1, 3, 300, 300)
    with computing_in(precision) as real:
        functional = functionalise(functools.partial(module, name))
        shape = nnx.eval_shape(lambda: module(name, nnx.Rngs(0)))
        held = adapted(filled(name), shape)
        params, state = jax.tree.map(real, from_torch(shape, held, names_in(held, shape)))
        run = jax.jit(lambda x: functional.call(params, state, lambda made: made(x), train=False)[0])
        output = run(real(nhwc(image.astype(np.float32))))
        step = MANIFEST["strides"][name]
        close = functools.partial(np.testing.assert_allclose, rtol=10 * tolerance, atol=tolerance)
        logits = output.logits if name != "ssd300" else jnp.roll(output.logits, 1, axis=-1)  # background is their first
        close(logits[:, ::step], GOLDEN[f"{name}/cls_logits"])
        close(output.regression[:, ::step], GOLDEN[f"{name}/bbox_regression"])
        close(output.grid.anchors[::step] if name != "fcos" else output.grid.points, expected_places(name), atol=1e-4)
        if name == "fcos":
            close(output.centreness[..., None], GOLDEN["fcos/bbox_ctrness"])


def expected_places(name):
    """Anchors, or of FCOS, which has none but for the assignment, their centres."""
    anchors = GOLDEN[f"{name}/anchors"]
    return anchors if name != "fcos" else (anchors[:, :2] + anchors[:, 2:]) / 2


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_entries_of_the_released_sizes(name):
    """Names and shapes, the new ones and those of files from before 0.13."""
    wanted = {entry: tuple(shape) for entry, shape in MANIFEST["released"][name]}
    whole = nnx.eval_shape(lambda: maker(Detector(name=NAMES[name].replace("r18", "r50")), 91, 3)(nnx.Rngs(0)))
    assert {entry.name: entry.shape for entry in entries(whole, names_in(wanted, whole))} == wanted
    old = {entry.replace("_blocks.0.0.", "_blocks.0.").replace("_blocks.1.0.", "_blocks.1.").replace("_blocks.2.0.", "_blocks.2.")
           for entry in wanted}  # fmt: skip
    if name == "retinanet":
        for i in range(4):
            old = {entry.replace(f".conv.{i}.0.", f".conv.{2 * i}.") for entry in old}
    assert {entry.name for entry in entries(whole, names_in(old, whole))} == old


@pytest.mark.parametrize("name", ["fcos_torchvision_r18", "ssd300_torchvision"])
def test_a_checkpoint_is_read(name, tmp_path):
    """Classes are those of the file; SSD's background, its first there, is the last."""
    shape = nnx.eval_shape(lambda: maker(Detector(name=name, width=4), 7, 3)(nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    table = names_in({"backbone.fpn.inner_blocks.0.0.bias"}, shape)
    held = {entry.name: rng.uniform(0.1, 1, entry.shape).astype(np.float32) for entry in entries(shape, table)}
    file = saved(tmp_path / "x.safetensors", held)
    assert is_published(name)
    found, model, canvas = read_published(file, name, width=4, image_size=0, mean=(), std=())
    ssd = name.startswith("ssd")
    assert (found.num_classes, model.name, canvas) == (7, name, (300, 300) if ssd else (800, 1344))
    params = weights_of(file, shape)
    if ssd:
        theirs = held["head.classification_head.module_list.2.bias"].reshape(6, 8)
        ours = np.reshape(params["params/head/classes/2/bias"], (6, 8))
        np.testing.assert_array_equal(ours, np.concatenate([theirs[:, 1:], theirs[:, :1]], axis=1))
    else:
        np.testing.assert_array_equal(params["params/head/edges/bias"], held["head.regression_head.bbox_reg.bias"])
