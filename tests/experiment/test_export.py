"""What leaves says what the network says, where nothing of kdjax is."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest
from PIL import Image

import kdjax
from kdjax.experiment import ExperimentError
from kdjax.experiment.export import export
from kdjax.experiment.run import run
from kdjax.experiment.trained import load_trained
from tests.experiment.conftest import small

README = Path(kdjax.__file__).parent / "models/weights/README.md"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, builder):
    folder = tmp_path_factory.mktemp("exported") / "run"
    run(small(length=3), folder, builder=builder)
    return load_trained(folder)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 17, (7, 8, 8, 1), np.uint8)


def test_the_function_goes_out_whole(trained, images, tmp_path):
    """Any batch, pixels as they are stored, in a process without kdjax; with what it takes beside it."""
    export(trained, "stablehlo", tmp_path / "student.stablehlo")
    said = json.loads((tmp_path / "student.stablehlo.json").read_text())
    assert said["inputs"] == {"inputs": {"dtype": "uint8", "shape": ["batch", 8, 8, 1]}}
    assert said["classes"] == list(trained.classes) and len(said["classes"]) == 10
    network = jax.export.deserialize((tmp_path / "student.stablehlo").read_bytes())
    assert {"cpu", "cuda", "tpu"} <= set(network.platforms)
    for count in (1, 3, 7):
        want = trained(images[:count])
        found = network.call(images[:count])
        np.testing.assert_allclose(found["logits"], want.logits, atol=1e-6)
        np.testing.assert_allclose(found["embedding"], want.embedding, atol=1e-6)
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, jax.export, numpy as np; from pathlib import Path\n"
        "call = jax.export.deserialize(Path('student.stablehlo').read_bytes()).call\n"
        "np.save('said.npy', call(np.load('images.npy'))['logits'])\n"
        "assert not [name for name in sys.modules if name.startswith(('kdjax', 'flax'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "said.npy"), trained(images).logits, atol=1e-6)
    with pytest.raises(ExperimentError, match="exists; name another"):
        export(trained, "stablehlo", tmp_path / "student.stablehlo")
    for place, why in (
        (tmp_path / "student.stablehlo/x", "(Not a directory|File exists)"),
        (tmp_path / ("a" * 300), "File name too long"),
    ):
        with pytest.raises(ExperimentError, match=f"cannot be written .{why}"):
            export(trained, "npz", place)
    with pytest.raises(ExperimentError, match="exists; name another"):
        export(trained, "npz", Path())


@pytest.mark.parametrize("form", ["safetensors", "npz"])
def test_weights_go_out_by_path(trained, form, tmp_path):
    path = tmp_path / f"student.{form}"
    export(trained, form, path)
    if form == "npz":
        found = dict(np.load(path))
    else:
        safetensors = pytest.importorskip("safetensors.numpy")
        found = safetensors.load(path.read_bytes())
        head = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
        assert json.loads(head["__metadata__"]["classes"]) == list(trained.classes)
    leaves = {
        jax.tree_util.keystr(at, simple=True, separator="/"): leaf
        for at, leaf in jax.tree_util.tree_leaves_with_path(
            {"params": trained.variables.params, "state": trained.variables.state}
        )
    }
    assert set(found) == set(leaves) and any(name.startswith("state/") for name in found)
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(found[name], leaf)


def test_the_server_answers_as_the_network_does(trained, images, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python serve\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S)
    export(trained, "stablehlo", tmp_path / "student.stablehlo")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "serve"}
    exec(compile(code, "README", "exec"), names)
    file = io.BytesIO()
    Image.fromarray(images[0, ..., 0]).save(file, "PNG")
    said = names["answer"](file.getvalue())
    want = jax.nn.softmax(trained(images[:1]).logits)[0]
    assert list(said) == list(trained.classes)
    np.testing.assert_allclose(list(said.values()), want, atol=1e-6)


def test_what_lies_beside_is_left_alone(trained, tmp_path):
    beside = tmp_path / "mine.safetensors.tmp"
    beside.write_text("thesis")
    export(trained, "safetensors", tmp_path / "mine.safetensors")
    assert beside.read_text() == "thesis"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "mine.safetensors",
        "mine.safetensors.json",
        "mine.safetensors.tmp",
    ]


def test_nothing_is_overwritten(trained, tmp_path):
    (tmp_path / "student.npz.json").write_text("mine")
    with pytest.raises(ExperimentError, match=r"student\.npz\.json exists"):
        export(trained, "npz", tmp_path / "student.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["student.npz.json"]
