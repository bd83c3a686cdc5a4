"""Vectors of floats, tables and embeddings, with a network of one's own: from the command line, and what is not for them."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from kdjax import load_trained
from kdjax.cli import main
from kdjax.data import DataError, from_arrays
from kdjax.experiment import program as programs
from kdjax.tasks.classification import Classification, Classifier, Policy, Views
from kdjax.tasks.classification.foreign import renormalised
from kdjax.training import make_runner
from kdjax.types import ModelOutput, Network

ROOT = Path(__file__).parents[3]
SMOKE = str(ROOT / "configs/digits/smoke.py")
NET = f"{ROOT / 'tests/own_things.py'}:LinenNet"
RNG = np.random.default_rng(0)
Y = np.arange(96) % 3
X = (RNG.normal(size=(96, 6)) + 3 * np.eye(3, 6)[Y]).astype(np.float32)


def own(phase: str, width: int) -> list[str]:
    return [f"--phases.{phase}.network.name", NET, f"--phases.{phase}.network.options", f"width={width}"]


def test_vectors_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(programs, "make_runner", lambda kind, devices=None: make_runner(kind, jax.devices()[:1]))
    monkeypatch.chdir(tmp_path)
    np.savez("my.npz", x=X, y=Y)
    assert main(["data", "check", "./my.npz"]) == 0
    assert "./my.npz (train): " in capsys.readouterr().out
    line = ["distill", SMOKE, "--method", "kd", "--tiny", "--data.name", "./my.npz", "--data.labelled", "0"]
    networks = [*own("teacher", 8), *own("student", 4)]
    assert main([*line, "--run", "run"]) == 1
    assert (
        "small_cnn of the zoo is for images, and the inputs are vectors [6]; name a network" in capsys.readouterr().err
    )
    assert main([*line, "--run", "run", *networks, "--data.views.crop-padding", "1"]) == 1
    assert (
        "data.views.crop_padding is for images, and the inputs are vectors [D]; switch it off."
        in capsys.readouterr().err
    )
    assert not Path("run").exists()
    assert main([*line, "--run", "run", *networks]) == 0
    assert main(["evaluate", "run"]) == 0
    assert main([*line, "--run", "run", *networks, "--resume"]) == 0
    result = json.loads(Path("run/student/result.json").read_text())
    trained = load_trained("run")
    said = np.asarray(trained(X).logits)
    assert said.shape == (96, 3) and result["last"]["student"]["top1"] > 0
    np.savez("my.npz", x=X + 1, y=Y)
    assert main([*line, "--run", "run", *networks, "--resume"]) == 1
    assert main(["predict", "run", "my.npz"]) == 1
    assert "not made of picture files" in capsys.readouterr().err


def test_vectors_are_normalised_and_nothing_else():
    column, number = np.arange(6.0) + 1, np.arange(4, dtype=np.int32)
    for views, wanted in ((Views(), X), (Views(mean=(0.5,), std=(2.0,)), (X - 0.5) / 2),
                          (Views(mean=tuple(column), std=tuple(column)), (X - column[None]) / column[None])):  # fmt: skip
        data = Classification(views=views)
        np.testing.assert_allclose(data.evaluation_view(X[:4]), wanted[:4], rtol=1e-5, atol=1e-6)
        shown = data.train_views(X[:4], number, 0, jax.random.key(0), names=("main",)).views["main"]
        np.testing.assert_allclose(shown, wanted[:4], rtol=1e-5, atol=1e-6)
        assert data.numbered_views().count == 1
    for name, value in {"flip": True, "policy": Policy("randaugment"), "cutmix": 1.0, "crop_padding": 2}.items():
        with pytest.raises(ValueError, match=f"data.views.{name} is for images, and the inputs are vectors"):
            Classification(views=dataclasses.replace(Views(), **{name: value})).evaluation_view(X)
    with pytest.raises(ValueError, match="'strong' is made of images"):
        Classification().train_views(X[:4], number, 0, jax.random.key(0), names=("main", "strong"))
    with pytest.raises(ValueError, match=r"network.resolution is for images, and the inputs are vectors \[6\]"):
        Classification().network(Classifier(name=NET, resolution=8), _dataset())


def _dataset():
    return Classification(name=from_arrays(X, Y, test=(X, Y), name="vectors")).load()


@pytest.mark.parametrize("other", [X[:, :4], RNG.integers(0, 255, (96, 4, 4, 1), np.uint8)])
def test_what_is_evaluated_must_be_of_the_kind_that_is_trained_on(other):
    name = from_arrays(X, Y, test=(other, Y), name="unlike")
    with pytest.raises(DataError, match=r"arrays:unlike are float32 \[6\] in train and .* in test; give them alike"):
        Classification(name=name).load()


def test_a_teacher_of_other_normalisation():
    seen = Network(lambda key: ({}, {}), lambda p, s, x, **_: (ModelOutput(logits=x), s), {}, "seen")
    other = renormalised(seen, ((), ()), ((1.0,), (2.0,)))
    np.testing.assert_allclose(other.apply({}, {}, X)[0].logits, (X - 1) / 2, rtol=1e-6)
