"""What the README prints is true: its examples run as printed, its tables are the generated ones."""

import re
import shlex
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from kdjax.cli import main
from kdjax.experiment import program
from kdjax.experiment.config import load_config
from kdjax.objectives.catalogue import markdown
from kdjax.training import make_runner


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(program, "make_runner", lambda kind, devices=None: make_runner(kind, jax.devices()[:1]))


README = Path(__file__).parents[1] / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.S)


def between(name):
    return (
        re.search(rf"<!-- {name}: begin -->\n(.*?)<!-- {name}: end -->", README.read_text(), flags=re.S)
        .group(1)
        .strip()
    )


def test_the_loss_example_runs_alone(capsys):
    exec(compile(blocks("python")[0], "README", "exec"), {})
    assert "Array" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_step_examples_run_one_after_the_other(capsys):
    """The second replaces the two lines that make the networks, so it goes on from the first."""
    scope = {}
    exec(compile(blocks("python")[1], "README", "exec"), scope)
    assert "dkd" in capsys.readouterr().out and int(scope["state"].step) == 3
    exec(compile(blocks("python")[2], "README", "exec"), scope)
    assert int(scope["state"].step) == 1 and set(scope["metrics"]) >= {"loss", "cross_entropy", "dkd", "top1"}
    exec(compile(blocks("python")[3], "README", "exec"), scope)
    count = scope["metrics"]["forward_kl"][1]
    assert count == scope["metrics"]["cross_entropy"][1] == scope["metrics"]["top1"][1] == scope["real"].sum()


def test_the_examples_from_python_run_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    tiny = [line.replace('"digits/smoke"', "tiny") for line in blocks("python")[4].splitlines()]
    scope = {"tiny": load_config("digits/smoke")("kd").tiny()}
    exec(compile("\n".join(tiny), "README", "exec"), scope)
    assert scope["results"]["student"]["steps"] == 6 and scope["found"].report.exists()
    assert scope["predict"](np.zeros((2, 8, 8, 1), np.uint8)).logits.shape == (2, 10)
    exec(compile(blocks("python")[5], "README", "exec"), scope)
    assert scope["student"]["student"]["teacher_hash"] == scope["teacher"]["student"]["hash"]


def own_pictures(home):
    """What the README calls your own: ~/pets, and pets.npz."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 16, 16, 3), np.uint8)
    for i, picture in enumerate(pixels):
        place = home / "pets" / ("train" if i < 40 else "val") / ("cat", "dog")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{i}.png")
    y = np.arange(48) % 2
    np.savez(home / "pets.npz", x_train=pixels[:40], y_train=y[:40], x_test=pixels[40:], y_test=y[40:])


def test_the_commands_run_in_their_order(tmp_path, monkeypatch, capsys):
    """Shrunk; each finds what the ones before it have made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(README.parent / "tests/own_things.py", "my_models.py")
    own_pictures(tmp_path)
    shutil.copy("my_models.py", "my_method.py")
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("kdjax ")]
    for line in commands:
        words = shlex.split(line.replace("digits-smoke", "digits-smoke-tiny"), comments=True)[1:]
        if not {"CONFIG", "RUN"} & set(words) and "..." not in words:
            shrunk = ["--tiny"] * (words[0] in ("compare", "distill"))
            assert main([*words, *shrunk]) == 0, (line, capsys.readouterr().err)


def test_the_table_of_methods_is_the_generated_one():
    assert between("methods table") == markdown()


def test_commands_name_configs_that_exist():
    named = re.findall(r"configs/\S+\.py", (README.parent / "configs/README.md").read_text() + README.read_text())
    assert named and all((README.parent / path).exists() for path in named)
