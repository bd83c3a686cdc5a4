"""RetinaNet, FCOS, ATSS and SSD: what they say, and the names of their weights in mmdetection's checkpoints, there and back."""

import re

import jax
import numpy as np
import pytest
from flax import nnx

from kdjax.experiment.artifacts import saved_experiment
from kdjax.experiment.convert import convert
from kdjax.experiment.spec import ExperimentError
from kdjax.experiment.trained import load_trained
from kdjax.models import output_shapes
from kdjax.models.detectors.beginning import names_in
from kdjax.models.detectors.vgg import Normalised, pooled
from kdjax.models.weights.torch import entries, to_torch
from kdjax.tasks.detection.networks import DENSE, Detector, make_detector, maker
from tests.models.detectors.test_gfl import saved

LAST = {
    "gfl_r18": ("gfl_cls", "gfl_reg"), "retinanet_r18": ("retina_cls", "retina_reg"),
    "retinanet_edges_r18": ("atss_cls", "atss_reg"), "atss_r18": ("atss_cls", "atss_reg", "atss_centerness"),
    "atss_edges_r18": ("atss_cls", "atss_reg", "atss_centerness"), "fcos_r18": ("conv_cls", "conv_reg", "conv_centerness"),
    "fcos_edges_r18": ("conv_cls", "conv_reg", "conv_centerness"),
}  # fmt: skip


def module(name, num_classes=80, in_channels=3, **options):
    return nnx.eval_shape(lambda: maker(Detector(name=name, **options), num_classes, in_channels)(nnx.Rngs(0)))


ALIKE = {"gfl_r18", "atss_edges_r18", "fcos_edges_r18"}  # whose tables are tested elsewhere, or are those of boxes


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in ALIKE else n for n in LAST])
def test_names_of_mmdetection(name):
    """The entries of an 80-class detector on ResNet-18, by name and shape."""
    whole = module(name)
    wanted = {f"bbox_head.{last}.weight" for last in LAST[name]}
    shapes = {entry.name: entry.shape for entry in entries(whole, names_in(wanted, whole))}
    assert wanted <= set(shapes)
    head = DENSE[name]
    several, bins = (9 if head.startswith("retinanet") else 1), (17 if head in ("gfl",) or "edges" in head else 1)
    sizes = [several * 80, several * 4 * bins, several]
    for last, size in zip(LAST[name], sizes, strict=False):
        assert shapes[f"bbox_head.{last}.weight"] == (size, 256, 3, 3) and shapes[f"bbox_head.{last}.bias"] == (size,)
    normed = not head.startswith("retinanet")
    for tower in ("cls", "reg"):
        assert shapes[f"bbox_head.{tower}_convs.3.conv.weight"] == (256, 256, 3, 3)
        assert (f"bbox_head.{tower}_convs.3.gn.weight" in shapes) == normed
        assert (f"bbox_head.{tower}_convs.3.conv.bias" in shapes) == (not normed)
    assert ("bbox_head.scales.4.scale" in shapes) == normed
    p6 = 512 if head.startswith("retinanet") else 256
    assert shapes["neck.fpn_convs.3.conv.weight"] == (256, p6, 3, 3) and "backbone.layer4.1.bn2.running_var" in shapes


def test_names_and_maps_of_ssd():
    """VGG's places in a list of layers, further maps and heads, as 2.x and 3.x name them; 8,732 anchors of 300 pixels."""
    whole = module("ssd300")
    for last, others in {
        "bbox_head.cls_convs.5.weight": {"backbone.extra.7.bias", "backbone.l2_norm.weight"},
        "bbox_head.cls_convs.5.0.weight": {"neck.extra_layers.3.1.conv.bias", "neck.l2_norm.weight"},
    }.items():  # fmt: skip
        shapes = {entry.name: entry.shape for entry in entries(whole, names_in({last} | others, whole))}
        assert {last} | others <= set(shapes)
        assert shapes[last] == (4 * 81, 256, 3, 3) and shapes["backbone.features.33.weight"] == (1024, 1024, 1, 1)
    places = sorted(
        int(name.split(".")[2]) for name in shapes if name.startswith("backbone.features") and "weight" in name
    )
    assert places == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, 31, 33]
    picture = lambda *size: jax.ShapeDtypeStruct((2, *size, 3), np.float32)
    network = make_detector(Detector(name="ssd300", width=4), 80, 3)
    said = output_shapes(network, picture(300, 300))
    assert said.logits.shape == (2, 8732, 81) and said.sizes == ((38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1))
    assert said.grid.anchors.shape == (8732, 4)
    with pytest.raises(
        ValueError, match=r"SSD300 sees pictures of 300 x 300, and these are 64 x 96; set data\.image_size"
    ):
        output_shapes(network, picture(64, 96))


SMALL = [head + "_small" for head in dict.fromkeys(DENSE.values())] + ["ssd_small", "ssd_small_sigmoid"]
OFTEN = ("retinanet_edges_small", "atss_small", "fcos_edges_small", "ssd_small_sigmoid")


@pytest.mark.parametrize("name", [n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in SMALL])
def test_small_detectors_say_what_they_are(name):
    picture = jax.ShapeDtypeStruct((2, 96, 96, 1), np.float32)
    said = output_shapes(make_detector(Detector(name=name), 5, 1), picture)
    count = len(said.grid.points)
    assert said.head == name.split("_")[0] and said.logits.shape == (2, count, 5 + said.background)
    edges = DENSE.get(name, "").endswith("_edges") or said.head == "gfl"
    assert (said.edge_logits.shape == (2, count, 4, 9)) if edges else (said.regression.shape == (2, count, 4))
    assert (said.centreness is None) == (said.head not in ("fcos", "atss"))
    assert bool(said.deviations) == (not edges and said.head != "fcos")
    assert len(said.shapes[0]) == {"retinanet": 9, "ssd": 4}.get(said.head, 1)


def test_bins_are_refused_where_there_are_none():
    with pytest.raises(
        ValueError, match=r"network\.bins is 9, and the edges of fcos_small are no distributions; leave it 0"
    ):
        make_detector(Detector(name="fcos_small", bins=9), 5, 1)
    with pytest.raises(
        ValueError, match=r"network\.bins is 1, and the edges of gfl_small are distributions; give 2 or more"
    ):
        make_detector(Detector(name="gfl_small", bins=1), 5, 1)


def test_pools_round_up_and_positions_have_one_length():
    x = (
        np.random.default_rng(0).standard_normal((1, 5, 7, 3)).astype(np.float32) - 5
    )  # all below 0, as no padding may be
    by_hand = np.stack([[x[0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((0, 1)) for j in range(4)] for i in range(3)])
    np.testing.assert_array_equal(pooled(x, size=2, stride=2)[0], by_hand)
    around = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)[0]
    same = np.stack([[around[i : i + 3, j : j + 3].max((0, 1)) for j in range(7)] for i in range(5)])
    np.testing.assert_array_equal(pooled(x, size=3, stride=1)[0], same)
    layer = Normalised(3)
    np.testing.assert_allclose(np.linalg.norm(layer(x), axis=-1), 20, rtol=1e-5)
    slope = jax.grad(lambda x: layer(x).sum())(np.zeros((1, 1, 1, 3), np.float32))
    assert np.isfinite(slope).all()


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("retinanet_edges_r18", "fcos_r18", "ssd300")]


@pytest.mark.parametrize("name", ["gfl_r18", *SLOW])
def test_a_checkpoint_becomes_a_finished_detector(name, tmp_path):
    """Classes and channels are those of the file; a missing, an unexpected and a misshapen entry are named."""
    real = maker(Detector(name=name, width=8), 7, 3)
    shape = nnx.eval_shape(lambda: real(nnx.Rngs(0)))
    table = names_in({"bbox_head.atss_cls.weight", "bbox_head.gfl_cls.weight"}, shape)
    rng = np.random.default_rng(0)
    held = {entry.name: rng.uniform(0.1, 1, entry.shape).astype(np.float32) for entry in entries(shape, table)}
    constant = {"bbox_head.integral.project": np.arange(17)}
    file = saved(tmp_path / "x.safetensors", held | constant)
    made = convert(file, name, tmp_path / "run", width=8)
    canvas = "300, 300" if name == "ssd300" else "800, 1344"
    assert (made.num_classes, made.inputs, made.names) == (7, f"uint8[{canvas}, 3]", "published")
    data = saved_experiment(tmp_path / "run").data
    assert (data.stretch, data.turn) == ((True, False) if name == "ssd300" else (False, True))
    trained = load_trained(tmp_path / "run")
    back = to_torch(shape, trained.variables.params, trained.variables.state, table)
    for entry, value in held.items():
        np.testing.assert_array_equal(back[entry], value)
    lost = "neck.lateral_convs.1.conv.bias" if name != "ssd300" else "backbone.extra.3.bias"
    for changed, said in (
        ({key: value for key, value in held.items() if key != lost}, rf"no entry '{re.escape(lost)}'"),
        (held | {"neck.other.weight": np.zeros(1)}, r"neck\.other\.weight"),
        (held | {lost: np.zeros((1, 2))}, rf"{re.escape(lost)}'? .*\(1, 2\)"),
    ):
        with pytest.raises(ExperimentError, match=said):
            convert(saved(tmp_path / "part.safetensors", changed), name, tmp_path / "other", width=8)
    assert not (tmp_path / "other").exists()
