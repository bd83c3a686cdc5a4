"""PyTorch state dicts of CIFAR ResNets: both directions, and one clear sentence for every misfit."""

import functools
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from kdjax.models import zoo
from kdjax.models.functional import functionalise
from kdjax.models.weights.torch import cifar_resnet_from_torch, cifar_resnet_to_torch
from kdjax.models.weights.zoo import zoo_from_torch, zoo_to_torch
from tests.models.zoo.originals import ours

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
MANIFEST = json.loads((GOLDEN / "manifest_models.json").read_text())["methods"]
WEIGHTS = MANIFEST["weights_resnet8"]["cases"]
SHAPES = {name: case for name, case in MANIFEST["model_shapes"]["cases"].items() if "state_dict" in case}


def stored(case):
    """The state dict of one case of `weights_resnet8`."""
    start = f"{case}/state/"
    with np.load(GOLDEN / MANIFEST["weights_resnet8"]["file"]) as z:
        return {name.removeprefix(start): z[name] for name in z.files if name.startswith(start)}


@pytest.fixture
def resnet8():
    """One of ten classes, which the tests below spoil and pick apart."""
    return stored(next(name for name, case in WEIGHTS.items() if case["hyper"]["num_classes"] == 10))


@pytest.mark.parametrize("case", WEIGHTS)
def test_round_trip_keeps_names_order_and_values(case):
    state_dict = stored(case)
    back = cifar_resnet_to_torch(*cifar_resnet_from_torch(state_dict))
    assert list(back) == WEIGHTS[case]["state_names"]
    for name, value in state_dict.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name, strict=True)


def test_layouts(resnet8):
    params, state = cifar_resnet_from_torch(resnet8)
    kernel = params["stages"]["1"]["0"]["shortcut_conv"]["kernel"]
    assert kernel.shape == (1, 1, 16, 32)
    assert kernel[0, 0, 3, 7] == resnet8["layer2.0.downsample.0.weight"][7, 3, 0, 0]
    assert params["stem_conv"]["kernel"][0, 2, 1, 5] == resnet8["conv1.weight"][5, 1, 0, 2]
    assert params["classifier"]["kernel"][5, 9] == resnet8["fc.weight"][9, 5]
    np.testing.assert_array_equal(state["stem_norm"]["var"], resnet8["bn1.running_var"])


@pytest.mark.parametrize("case", SHAPES)
def test_trees_are_those_of_our_networks(case):
    """Names and shapes equal what `init` of the same network gives; nothing is computed."""
    shapes, name = dict(SHAPES[case]["state_dict"]), ours(SHAPES[case]["symbol"])
    state_dict = {entry: np.broadcast_to(np.float32(0), shape) for entry, shape in shapes.items()}
    classes, channels = SHAPES[case]["hyper"]["num_classes"], next(iter(shapes.values()))[1]
    network = functionalise(functools.partial(zoo.build, name, num_classes=classes, in_channels=channels))
    expected = jax.eval_shape(network.init, jax.random.key(0))
    got = zoo_from_torch(name, state_dict)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    assert jax.tree.map(np.shape, got) == jax.tree.map(lambda v: v.shape, expected)
    back = zoo_to_torch(name, *got)
    assert [(entry, list(value.shape)) for entry, value in back.items()] == list(shapes.items())
    if name.startswith("resnet") and not name.endswith("_cifar"):  # of which depth and widths are read off too
        assert jax.tree.map(np.shape, cifar_resnet_from_torch(state_dict)) == jax.tree.map(np.shape, got)
        assert list(cifar_resnet_to_torch(*got)) == list(state_dict)


def test_step_counters_may_be_absent(resnet8):
    without = {name: value for name, value in resnet8.items() if not name.endswith("num_batches_tracked")}
    jax.tree.map(np.testing.assert_array_equal, cifar_resnet_from_torch(without), cifar_resnet_from_torch(resnet8))


@pytest.mark.parametrize(
    "name", ["conv1.weight", "layer2.0.bn1.bias", "layer3.0.downsample.1.running_var", "fc.weight"]
)
def test_missing_entry_is_named(resnet8, name):
    del resnet8[name]
    with pytest.raises(ValueError, match=re.escape(f"no entry '{name}'")):
        cifar_resnet_from_torch(resnet8)


@pytest.mark.parametrize(
    "name", ["layer1.0.conv3.weight", "layer1.0.downsample.0.weight", "layer4.0.conv1.weight", "head"]
)
def test_unknown_entry_is_named(resnet8, name):
    resnet8[name] = np.zeros(16, np.float32)
    with pytest.raises(ValueError, match=re.escape(f"an entry '{name}', which")):
        cifar_resnet_from_torch(resnet8)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("layer2.0.bn1.bias", (31,)),
        ("layer1.0.conv2.weight", (16, 16, 1, 1)),
        ("conv1.weight", (16, 3, 7, 7)),
        ("layer3.0.conv1.weight", (64, 32)),
        ("fc.bias", (100,)),
    ],
)
def test_misshapen_entry_is_named(resnet8, name, shape):
    resnet8[name] = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=re.escape(f"entry '{name}' has shape")):
        cifar_resnet_from_torch(resnet8)


def test_blocks_of_another_depth_are_missed(resnet8):
    """One entry of a second block makes it a ResNet-14, of which the rest is missing."""
    resnet8["layer1.1.conv1.weight"] = np.zeros((16, 16, 3, 3), np.float32)
    with pytest.raises(ValueError, match=re.escape("no entry 'layer1.1.bn1.weight'")):
        cifar_resnet_from_torch(resnet8)


def test_what_wraps_a_state_dict_is_taken_off(resnet8):
    expected = cifar_resnet_from_torch(resnet8)
    parallel = {"module." + name: value for name, value in resnet8.items()}
    for saved in (
        parallel,
        {"_orig_mod." + name: value for name, value in parallel.items()},
        {"model": resnet8, "epoch": 240, "best_acc": 0.7},
        {"state_dict": parallel, "optimizer": {"state": {}}},
        {"state_dict": {"model": resnet8}},
    ):
        found = cifar_resnet_from_torch(saved)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))


def test_what_is_there_is_said_where_an_entry_is_missing():
    with pytest.raises(ValueError, match=r"no entry 'conv1.weight'; it has weights, epoch$"):
        cifar_resnet_from_torch({"weights": np.zeros(3), "epoch": 1})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda x: x.astype(np.complex64), "is complex64, expected floats"),
        (lambda x: x.astype(np.int8), "is int8, expected floats"),
        (lambda x: x.astype(object), "is object, expected floats"),
        (lambda x: x.astype(str), "expected floats"),
        (lambda x: [[1.0], [1.0, 2.0]], "is no array"),
        (lambda x: None, "is object, expected floats"),
        (lambda x: np.full_like(x, np.nan), "has nan or inf"),
        (lambda x: np.where(x == x.max(), np.inf, x), "has nan or inf"),
    ],
)
def test_what_is_no_weight_is_refused_by_its_name(value, said, resnet8):
    resnet8["layer2.0.conv1.weight"] = value(resnet8["layer2.0.conv1.weight"])
    with pytest.raises(ValueError, match=rf"entry 'layer2\.0\.conv1\.weight' .*{said}"):
        cifar_resnet_from_torch(resnet8)


def test_checkpoints_that_are_none_are_refused(resnet8):
    inside_itself = dict(resnet8)
    inside_itself["model"] = inside_itself
    for saved, said in (
        ({**resnet8, 3: np.zeros(3)}, "entry 3, whose name is no text"),
        ({**resnet8, None: np.zeros(3)}, "entry None, whose name is no text"),
        ([1, 2], "is a list, expected names"),
        (inside_itself, "'model'"),
        ({**resnet8, "layer1.99999.conv1.weight": np.zeros(1)}, "block 99999, and only"),
        ({**resnet8, "bn1.running_var": -np.ones(16, np.float32)}, "variance below 0"),
    ):
        with pytest.raises(ValueError, match=said):
            cifar_resnet_from_torch(saved)
