"""kdjax as somebody installs it: the wheel has what the commands name, and its types are seen. Minutes, and pip."""

import json
import os
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

USER = """
import jax, jax.numpy as jnp, numpy as np
import kdjax
from kdjax import losses
from kdjax.losses import dkd
from kdjax.data import Crop
from kdjax.experiment import Experiment, Phase
from kdjax.models import from_apply, from_linen, from_nnx, output_shapes
from kdjax.objectives import DKD, KD, CrossEntropy, Objective, bind
from kdjax.tasks.classification import Classification, Classifier, Views
from kdjax.training import Variables
from kdjax.types import Batch, ModelOutput

s, t = jnp.ones((2, 3)), np.zeros((2, 3), np.float32)
a: jax.Array = losses.kd(s, t, temperature=2)
b: jax.Array = dkd(s, t, labels=np.array([0, 1]), alpha=jnp.float32(1.0), beta=8)
x, y = losses.dkd_parts(s, t, labels=jnp.array([0, 1]))
ModelOutput(logits=s), Variables({}, {}), Batch.of(s, labels=np.array([0, 1]))
objective: Objective = CrossEntropy() + 2.0 * DKD(temperature=2.0)
Experiment(data=Classification(name="digits", views=Views(flip=True)), phases=(Phase(network=Classifier(), objective=KD()),))
print(kdjax.run("digits/smoke", method="kd").folder)
"""
WRONG = USER + 'losses.kd(s, "teacher")\nlosses.kdd(s, t)\n'


def test_a_type_checker_accepts_a_users_file_and_finds_what_is_wrong(tmp_path):
    def checked(text):
        (tmp_path / "user.py").write_text(text)
        command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--ignore-missing-imports", "user.py"]
        command.insert(3, "--no-implicit-reexport")  # as pyright has it of installed packages: what is public is said
        return subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True
        )

    right, wrong = checked(USER), checked(WRONG)
    assert right.returncode == 0, right.stdout
    assert 'Argument 2 to "kd" has incompatible type "str"' in wrong.stdout
    assert 'has no attribute "kdd"' in wrong.stdout and "Found 2 errors" in wrong.stdout


@pytest.mark.skipif(
    find_spec("basedpyright") is None, reason="pip install basedpyright, a pyright that needs no Node.js"
)
def test_pyright_accepts_a_users_file_and_finds_what_is_wrong(tmp_path):
    settings = {"typeCheckingMode": "standard", "extraPaths": [str(ROOT)], "reportUnusedExpression": False}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))

    def checked(text):
        (tmp_path / "user.py").write_text(text)
        command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "user.py"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    right, wrong = checked(USER), checked(WRONG)
    assert right.returncode == 0, right.stdout
    assert '"str" is not assignable' in wrong.stdout or "type \"Literal['teacher']\"" in wrong.stdout, wrong.stdout
    assert '"kdd" is not a known attribute' in wrong.stdout and "2 errors" in wrong.stdout, wrong.stdout


def test_the_wheel_is_whole(tmp_path):
    """Its configs and types are there, and the command finds them from any folder."""
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(wheel, check=True, capture_output=True)
    venv.create(tmp_path / "venv", with_pip=True, system_site_packages=False)
    python = tmp_path / "venv/bin/python"
    found = next(tmp_path.glob("*.whl"))
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", found], check=True)
    # The packages that kdjax needs are those of this environment.
    ours = subprocess.run([sys.executable, "-c", "import jax; print(jax.__path__[0])"], capture_output=True, text=True)
    packages = str(Path(ours.stdout.strip()).parent)
    place = subprocess.run(
        [python, "-c", "import kdjax; print(kdjax.__path__[0])"], cwd=tmp_path, capture_output=True, text=True
    )
    (Path(place.stdout.strip()).parent / "ours.pth").write_text(packages + "\n")
    command = [tmp_path / "venv/bin/kdjax"]
    listed = subprocess.run([*command, "configs"], cwd=tmp_path, capture_output=True, text=True)
    assert "digits/smoke" in listed.stdout, listed.stderr
    run = [*command, "distill", "digits/smoke", "--method", "kd", "--tiny", "--run", "run", "--data-dir", "data"]
    ended = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0 and (tmp_path / "run/student/result.json").exists(), ended.stderr
    assert (Path(place.stdout.strip()) / "py.typed").exists()
