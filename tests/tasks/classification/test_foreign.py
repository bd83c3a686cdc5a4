"""Teachers from elsewhere: trained on images normalised in another way, on more, fewer or renamed classes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.cli import main
from kdjax.data import from_arrays
from kdjax.experiment import program
from kdjax.models import from_apply, module_paths, output_shapes
from kdjax.tasks.classification import Classifier
from kdjax.tasks.classification.foreign import reclassified, renormalised, resized
from kdjax.tasks.classification.networks import make_classifier
from kdjax.training import make_runner

RNG = np.random.default_rng(0)
NETWORK = from_apply(lambda w, x: x.mean((1, 2)) @ w, jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32), name="linear")


def said(network, x):
    return network.apply(*network.init(None), jnp.asarray(x), train=False)[0].logits


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))),
        (((), ()), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        (((0.5,), (0.5,)), ((), ())),
    ],
)
def test_each_network_sees_its_own_normalisation(ours, theirs):
    pixels = RNG.random((5, 2, 2, 3))
    shown = lambda pair: ((pixels - np.asarray(pair[0] or 0.0)) / np.asarray(pair[1] or 1.0)).astype(np.float32)
    wanted = said(NETWORK, shown(theirs))
    assert np.abs(said(NETWORK, shown(ours)) - wanted).max() > 0.1
    np.testing.assert_allclose(said(renormalised(NETWORK, ours, theirs), shown(ours)), wanted, rtol=1e-5, atol=1e-6)


def test_the_same_normalisation_is_the_same_network_and_other_channels_are_refused():
    same = ((0.5,), (0.2,))
    assert renormalised(NETWORK, same, same) is NETWORK
    with pytest.raises(ValueError, match="a normalisation of other channels"):
        renormalised(NETWORK, ((0.5,) * 3, (0.2,) * 3), ((0.5,) * 2, (0.2,) * 2))


def test_each_network_sees_its_own_resolution():
    x = RNG.random((5, 6, 4, 3)).astype(np.float32)
    wanted = said(NETWORK, jax.image.resize(x, (5, 8, 8, 3), "bilinear"))
    large = resized(NETWORK, 8)
    np.testing.assert_array_equal(said(large, x), wanted)
    square = jnp.asarray(x[:, :4])
    np.testing.assert_array_equal(said(resized(NETWORK, 4), square), said(NETWORK, square))
    inputs = jax.ShapeDtypeStruct((2, 6, 6, 3), np.float32)
    plain, other = (make_classifier(Classifier(width=4, resolution=r), inputs, 3) for r in (0, 12))
    maps = [[f.shape[1:3] for f in output_shapes(network, inputs).features] for network in (plain, other)]
    assert maps == [[(3, 3), (2, 2), (1, 1)], [(6, 6), (3, 3), (2, 2)]]
    assert module_paths(other, inputs)["stages/0/0"][1:3] == (6, 6)
    with pytest.raises(ValueError, match="resolution is -1; use pixels"):
        Classifier(resolution=-1)


def test_classes_go_by_name():
    x, logits = RNG.random((5, 2, 2, 3)), said(NETWORK, RNG.random((5, 2, 2, 3)) * 0 + 1)
    logits = said(NETWORK, x)
    theirs = ("cat", "dog", "eel", "fox")
    assert reclassified(NETWORK, theirs, theirs) is NETWORK
    found = said(reclassified(NETWORK, theirs, ("fox", "cat")), x)
    np.testing.assert_array_equal(found, logits[:, [3, 0]])
    wider = reclassified(NETWORK, theirs, ("owl", "dog", "cat", "eel", "fox"))
    found = said(wider, x)
    np.testing.assert_array_equal(found[:, 1:], logits[:, [1, 0, 2, 3]])
    np.testing.assert_array_equal(found[:, 0], -np.inf)
    assert output_shapes(wider, jnp.asarray(x)).logits.shape == (5, 5)
    with pytest.raises(ValueError, match=r"knows none of the data's classes \(a, b\); its own are cat, dog, eel, fox"):
        reclassified(NETWORK, theirs, ("a", "b"))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Pictures of four classes, and of three of them in another order with one that the others lack."""
    folder = tmp_path_factory.mktemp("sets")
    for name, classes in {"four": ("cat", "dog", "eel", "fox"), "other": ("owl", "fox", "cat")}.items():
        y = np.arange(60) % len(classes)
        x = RNG.integers(0, 256, (60, 8, 8, 1), np.uint8)
        np.savez(
            folder / f"{name}.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:], class_names=classes
        )
    return folder


def test_a_teacher_of_other_classes_and_normalisation_teaches_what_it_knows(sets, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "make_runner", lambda kind, devices=None: make_runner(kind, jax.devices()[:1]))
    monkeypatch.chdir(sets)
    config = ["digits/smoke", "--tiny", "--data.labelled", "0", "--data.batch-size", "16"]
    first = [
        "train",
        *config,
        "--data.name",
        "four.npz",
        "--run",
        str(tmp_path / "a"),
        "--phases.teacher.network.width",
        "6",
    ]
    assert main([*first, "--data.views.mean", "0.5", "--data.views.std", "0.25"]) == 0
    second = ["distill", *config, "--method", "kd", "--data.name", "other.npz", "--teacher", str(tmp_path / "a")]
    assert main([*second, "--run", str(tmp_path / "b")]) == 0
    saved = json.loads((tmp_path / "b/experiment.json").read_text())["phases"][0]["network"]
    assert saved["classes"] == ["cat", "dog", "eel", "fox"] and saved["width"] == 6
    assert saved["mean"] == [0.5] and saved["std"] == [0.25]
    result = json.loads((tmp_path / "b/student/result.json").read_text())
    assert result["teacher_hash"] == json.loads((tmp_path / "a/teacher/result.json").read_text())["hash"]
    assert main(["evaluate", str(tmp_path / "b")]) == 0
    capsys.readouterr()
    # Of the same name in another order, said by hand and wrongly.
    wrong = [
        "--phases.teacher.weights",
        str(tmp_path / "a"),
        "--phases.teacher.network.width",
        "6",
        "--run",
        str(tmp_path / "c"),
    ]
    assert main(["distill", *config, "--method", "kd", "--data.name", "other.npz", *wrong]) == 1
    error = capsys.readouterr().err
    assert "has 4 classes" in error and "network.classes" in error and not (tmp_path / "c").exists()


def test_arrays_at_hand_may_name_their_classes():
    assert from_arrays(np.zeros((4, 8, 8, 1), np.uint8), np.arange(4) % 2, class_names=("a", "b"))


@pytest.mark.parametrize(
    "theirs, ours", [(("crane", "dog", "crane", "cat"), ("cat", "dog", "crane")), (("a", "b", "c", "d"), ("a", "a"))]
)
def test_two_classes_of_one_name_are_refused(theirs, ours):
    with pytest.raises(ValueError, match=r"two classes called '(crane|a)', and classes are matched by name"):
        reclassified(NETWORK, theirs, ours)
