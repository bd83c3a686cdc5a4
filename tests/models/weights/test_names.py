"""A table of names makes any network readable: every kind of layer, parameters of no layer, and every misfit in one sentence."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax.models import zoo
from kdjax.models.weights.names import NAMES
from kdjax.models.weights.torch import entries, from_torch, to_torch
from kdjax.models.weights.zoo import zoo_from_torch, zoo_to_torch
from kdjax.models.zoo.normalization import BatchNorm

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"


class Block(nnx.Module):
    def __init__(self, *, rngs):
        self.depthwise = nnx.Conv(6, 6, (3, 3), feature_group_count=6, use_bias=False, rngs=rngs)
        self.grouped = nnx.Conv(6, 4, (1, 1), feature_group_count=2, rngs=rngs)
        self.norm = BatchNorm(4)
        self.drop = nnx.Dropout(0.5, rngs=rngs)  # whose streams are no weights


class Everything(nnx.Module):
    def __init__(self, *, rngs):
        self.token = nnx.Param(jnp.arange(4.0))
        self.places = nnx.Param(jnp.zeros((1, 5, 4)))
        self.scales = nnx.Param(jnp.zeros((2, 3)))
        self.blocks = nnx.List([Block(rngs=rngs), Block(rngs=rngs)])
        self.layer_norm = nnx.LayerNorm(4, rngs=rngs)
        self.qkv = nnx.Linear(4, 12, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)


TABLE = (
    ("token", "cls_token", (None, None, 0)),
    ("places", "encoder.pos_embedding"),
    ("scales", "gamma", (1, 0)),
    ("blocks", "encoder.layers"),
    ("blocks/1", "encoder.last"),  # the longest part counts
    ("depthwise", "conv.0"),
    ("grouped", "conv.1"),
    ("norm", "bn"),
    ("layer_norm", "ln"),
    ("qkv/kernel", "attn.in_proj_weight"),
    ("qkv/bias", "attn.in_proj_bias"),
    ("head", "head"),
)
BLOCK = {
    "conv.0.weight": (6, 1, 3, 3),
    "conv.1.weight": (4, 3, 1, 1),
    "conv.1.bias": (4,),
    "bn.weight": (4,),
    "bn.bias": (4,),
    "bn.running_mean": (4,),
    "bn.running_var": (4,),
    "bn.num_batches_tracked": (),
}
SHAPES = {
    "cls_token": (1, 1, 4),
    "encoder.pos_embedding": (1, 5, 4),
    "gamma": (3, 2),
    **{f"encoder.layers.0.{name}": shape for name, shape in BLOCK.items()},
    **{f"encoder.last.{name}": shape for name, shape in BLOCK.items()},
    "ln.weight": (4,),
    "ln.bias": (4,),
    "attn.in_proj_weight": (12, 4),
    "attn.in_proj_bias": (12,),
    "head.weight": (3, 4),
    "head.bias": (3,),
}


@pytest.fixture(scope="module")
def module():
    return nnx.eval_shape(lambda: Everything(rngs=nnx.Rngs(0)))


@pytest.fixture
def state_dict():
    rng = np.random.default_rng(0)
    made = {name: rng.random(shape).astype(np.float32) for name, shape in SHAPES.items()}
    return {name: np.zeros((), np.int64) if name.endswith("tracked") else value for name, value in made.items()}


def test_both_ways_and_in_order(module, state_dict):
    params, state = from_torch(module, state_dict, TABLE)
    _, wanted, kept = nnx.split(module, nnx.Param, nnx.BatchStat, ...)[:3]
    for tree, template in ((params, wanted), (state, kept)):
        shapes = {tuple(map(str, path)): v.get_value().shape for path, v in nnx.to_flat_state(template)}
        found = {tuple(k.key for k in path): v.shape for path, v in jax.tree_util.tree_leaves_with_path(tree)}
        assert found == shapes
    back = to_torch(module, params, state, TABLE)
    assert list(back) == list(SHAPES)
    for name, value in state_dict.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name, strict=True)


def test_layouts(module, state_dict):
    params, state = from_torch(module, state_dict, TABLE)
    assert (
        params["blocks"]["0"]["depthwise"]["kernel"][1, 2, 0, 5]
        == state_dict["encoder.layers.0.conv.0.weight"][5, 0, 1, 2]
    )
    assert (
        params["blocks"]["1"]["grouped"]["kernel"][0, 0, 2, 3] == state_dict["encoder.last.conv.1.weight"][3, 2, 0, 0]
    )
    assert params["scales"][1, 2] == state_dict["gamma"][2, 1]
    assert params["token"][3] == state_dict["cls_token"][0, 0, 3]
    assert params["qkv"]["kernel"][1, 7] == state_dict["attn.in_proj_weight"][7, 1]
    assert params["layer_norm"]["scale"][2] == state_dict["ln.weight"][2]
    np.testing.assert_array_equal(state["blocks"]["1"]["norm"]["var"], state_dict["encoder.last.bn.running_var"])


def test_all_misfits_are_in_one_sentence_by_name_and_number(module, state_dict):
    for name in ("encoder.last.bn.bias", "ln.bias"):
        del state_dict[name]
    state_dict |= {f"extra.{i}": np.zeros(2) for i in range(6)}
    state_dict |= {"gamma": np.zeros((2, 3)), "head.weight": np.zeros((10, 4)), "head.bias": np.zeros(10)}
    with pytest.raises(ValueError) as refused:
        from_torch(module, state_dict, TABLE)
    said = str(refused.value)
    for part in (
        "no entry 'encoder.last.bn.bias' (nor 'ln.bias'; 2 in all)",
        "an entry 'extra.0', which the network does not have (nor 'extra.1', 'extra.2', 'extra.3'; 6 in all)",
        "'gamma' has shape (2, 3), expected (3, 2)",
        "'head.bias' has shape (10,), expected (3,); 3 in all",
    ):
        assert part in said
    assert "\n" not in said and said.count("encoder.last.bn.bias") == 1


def test_nothing_that_fits_is_met_with_what_is_there(module):
    with pytest.raises(ValueError, match=r"no entry 'cls_token' .* 23 in all\); it has weights, epoch; "):
        from_torch(module, {"weights": np.zeros(3), "epoch": 1}, TABLE)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (TABLE[1:], "say nothing of token in token"),
        (tuple(row for row in TABLE if row[0] != "grouped"), "say nothing of grouped in blocks/0/grouped/"),
        ((*TABLE[:-1], ("head", "ln")), "the entry of another parameter"),
        ((*TABLE, ("token/x", "y"))[1:], "say nothing of token"),
    ],
)
def test_tables_that_leave_something_out_are_refused(module, table, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        entries(module, table)


def test_averages_of_weights(module, state_dict):
    expected = from_torch(module, state_dict, TABLE)
    other = {name: value + 1 for name, value in state_dict.items()}
    averaged = {**{f"module.{name}": value for name, value in state_dict.items()}, "n_averaged": np.int64(3)}

    def same(found):
        return all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(expected)))

    for name in ("model_ema", "state_dict_ema", "ema"):
        assert same(from_torch(module, {name: averaged, "epoch": 1}, TABLE))  # there is no other
        both = {"model": other, name: averaged}
        assert not same(from_torch(module, both, TABLE))
        assert same(from_torch(module, both, TABLE, ema=True))
    with pytest.raises(ValueError, match="no running average"):
        from_torch(module, {"model": other}, TABLE, ema=True)


def test_networks_by_name():
    """Classes and input channels are those of the entries."""
    manifest = json.loads((GOLDEN / "manifest_models.json").read_text())["methods"]["weights_resnet8"]
    with np.load(GOLDEN / manifest["file"]) as z:
        state_dict = {name.removeprefix("full/state/"): z[name] for name in z.files if "/state/" in name}
    state_dict["conv1.weight"] = state_dict["conv1.weight"][:, :2]
    params, state = zoo_from_torch("resnet8", state_dict)
    assert params["classifier"]["kernel"].shape == (64, 10) and params["stem_conv"]["kernel"].shape == (3, 3, 2, 16)
    back = zoo_to_torch("resnet8", params, state)
    assert list(back) == list(state_dict)
    assert all(np.array_equal(back[name], value) for name, value in state_dict.items())
    with pytest.raises(ValueError, match=r"has shape \(16, 2, 3, 3\), expected \(8, 2, 3, 3\)"):
        zoo_from_torch("resnet8", state_dict, width=8)
    with pytest.raises(ValueError, match=r"no entry 'layer1\.1\.conv1\.weight'"):
        zoo_from_torch("resnet14", state_dict)
    with pytest.raises(ValueError, match="no published names are known for small_cnn"):
        zoo_from_torch("small_cnn", state_dict)
    with pytest.raises(ValueError, match="did you mean"):
        zoo_from_torch("resnet15", state_dict)
    del state_dict["fc.weight"]
    with pytest.raises(ValueError, match=r"no entry 'fc\.weight'"):
        zoo_from_torch("resnet8", state_dict)


def test_every_table_is_of_a_network():
    assert NAMES.keys() <= zoo.NETWORKS.keys()


def test_names_of_networks_with_four_stages():
    """As the original's modules are called; no list of theirs is stored."""
    module = nnx.eval_shape(lambda: zoo.build("resnet50_cifar", num_classes=7, in_channels=3, rngs=nnx.Rngs(0)))
    names = [entry.name for entry in entries(module, NAMES["resnet50_cifar"])]
    assert names[:6] == [
        "conv1.weight",
        "bn1.weight",
        "bn1.bias",
        "bn1.running_mean",
        "bn1.running_var",
        "layer1.0.conv1.weight",
    ]
    block = [name for name in names if name.startswith("layer2.0.") and name.endswith(".weight")]
    layers = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "shortcut.0", "shortcut.1")
    assert block == [f"layer2.0.{layer}.weight" for layer in layers]
    assert not any(name.startswith("layer1.1.shortcut") for name in names)
    assert names[-2:] == ["linear.weight", "linear.bias"]
    assert {name.split(".")[1] for name in names if name.startswith("layer4.")} == {"0", "1", "2"}
