"""Pictures and arrays of one's own from the command line and from Python: read, cropped, trained on, evaluated."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from kdjax.cli import main
from kdjax.data import Crop, Pipeline, from_arrays
from kdjax.experiment import ExperimentError, Phase
from kdjax.experiment import program as programs
from kdjax.experiment.run import run
from kdjax.objectives import DKD, KD, CrossEntropy, bind
from kdjax.schedules import steps
from kdjax.tasks.classification import Classification, Classifier, Views
from kdjax.training import make_runner
from kdjax.training.optimizers import AdamW
from kdjax.types import DataInfo, ModelOutput
from tests.experiment.conftest import builder, data_dir, small

__all__ = ["builder", "data_dir"]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A tree of pictures of many sizes: red cats, green dogs; one is grey and one has a palette."""
    root = tmp_path_factory.mktemp("my") / "pets"
    for split, count in (("train", 20), ("val", 6)):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = RNG.integers(0, 60, (10 + i, 14, 3), np.uint8)
                pixels[..., label] += 150
                image = Image.fromarray(pixels)
                image = {3: image.convert("L"), 4: image.convert("P")}.get(i, image)
                image.save(root / split / name / f"{i}.{'jpg' if i > 4 else 'png'}")
    return root


def test_pictures_from_the_command_line(pets, data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(programs, "make_runner", lambda kind, devices=None: make_runner(kind, jax.devices()[:1]))
    monkeypatch.chdir(pets.parent)
    options = [
        "--data.name",
        "pets",
        "--data.image-size",
        "8",
        "--data.batch-size",
        "16",
        "--data.labelled",
        "0",
        "--data-dir",
        data_dir,
        "--tiny",
    ]
    config = str(Path(__file__).parents[3] / "configs/digits/smoke.py")
    run_folder = str(tmp_path / "run")
    assert main(["distill", config, "--method", "kd", "--run", run_folder, *options]) == 0
    first = json.loads((tmp_path / "run/student/result.json").read_text())
    assert main(["evaluate", run_folder, "--data-dir", data_dir]) == 0
    assert "12 test" in capsys.readouterr().out
    assert json.loads((tmp_path / "run/experiment.json").read_text())["data"]["crop"]["train"] == "inception"
    again = [*options, "--phases.student.teacher-cache", "float32", "--run", str(tmp_path / "cached")]
    assert main(["distill", config, "--method", "kd", *again]) == 1
    assert "data.crop.train=inception crops every picture anew" in capsys.readouterr().err
    assert not (tmp_path / "cached").exists() and first["steps"] == 6
    assert main(["data", "check", "pets"]) == 0
    assert "pets (train): 40 pictures, 0 of them unreadable, 20 sizes" in capsys.readouterr().out
    (pets / "train/cat/bad.png").write_bytes(b"")
    assert main(["data", "check", "pets"]) == 1
    assert main(["distill", config, "--method", "kd", "--run", str(tmp_path / "bad"), *options]) == 1
    assert "pets/train/cat/bad.png is empty" in capsys.readouterr().err and not (tmp_path / "bad").exists()
    (pets / "train/cat/bad.png").unlink()


def test_arrays_from_python(builder, tmp_path):
    """Floats as they are, with soft labels: a colour each, which is learned."""
    labels = np.arange(96) % 3
    x = RNG.normal(size=(96, 8, 8, 1)).astype(np.float32) * 0.1 + labels[:, None, None, None] - 1
    soft = np.full((96, 3), 0.05)
    soft[np.arange(96), labels] = 0.9
    name = from_arrays(x, soft, test=(x[:30], labels[:30]), class_names=("low", "middle", "high"), name="levels")
    data = {"name": name, "views": Views(mixup=0.1, cutmix=0.1)}
    experiment = small(
        CrossEntropy() + KD(temperature=1.0), length=60, data=data, evaluate_every=steps(60), checkpoint_every=steps(60)
    )
    experiment = experiment.replace_phase("teacher", duration=experiment.student.duration)
    experiment = experiment.replace_phase("student", network=Classifier(width=4), optimizer=AdamW(learning_rate=0.02))
    results = run(experiment, tmp_path / "run", builder=builder)
    assert results["student"]["last"]["student"]["top1"] > 0.8
    with pytest.raises(ExperimentError, match="'dkd' reads labels as class indices, and the data has soft ones"):
        plain = small(DKD(), data={"name": name})
        builder.program(plain, plain.student)


def test_a_saved_path_is_read_from_anywhere(tmp_path, monkeypatch):
    """Of arrays, and of a folder by its bare name; names of sets stay."""
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", x_train=np.zeros((4, 2, 2, 1), np.uint8))
    (tmp_path / "my pictures").mkdir()
    (tmp_path / "digits").mkdir()
    for name in ("mine.npz", "./mine.npz", "my pictures"):
        assert Classification(name=name).name == str(tmp_path / name)
    for name in ("digits", "cifar100", "none.npz"):
        assert Classification(name=name).name == name
    (tmp_path / "said.npz").write_bytes(b"")
    phase = Phase(network=Classifier(name="small_cnn"), teacher_outputs="said.npz")
    assert phase.teacher_outputs == str(tmp_path / "said.npz")


def test_soft_labels_are_refused_by_what_reads_classes():
    output = ModelOutput(logits=jnp.zeros((4, 3)))
    with pytest.raises(ValueError, match="'dkd' reads labels as class indices"):
        bind(DKD(), output, output, DataInfo(3, soft=True))
    bind(CrossEntropy() + KD(), output, output, DataInfo(3, soft=True))


def test_a_fixed_crop_may_be_kept_by_the_teacher_cache(pets):
    fixed = Classification(name=str(pets), image_size=8, crop=Crop(train="center"))
    assert fixed.numbered_views().facts["reading"]["size"] == 8
    assert "reading" not in Classification().numbered_views().facts  # what was kept before is found again
    dataset = fixed.load()
    assert dataset.resident and dataset.arrays.shape == (40, 8, 8, 3)
    varying = dataclasses.replace(fixed, crop=Crop())
    with pytest.raises(ValueError, match="crops every picture anew in every pass"):
        varying.numbered_views()
    loaded = varying.load()
    assert loaded.arrays is None and loaded.shapes(4)["inputs"].shape == (4, 8, 8, 3)
    assert Pipeline(loaded.train, loaded.train_index, batch_size=4, data_seed=0)[0].inputs.shape == (4, 8, 8, 3)
    assert isinstance(fixed.network(Classifier(), dataset).name, str)


def test_one_mean_is_that_of_all_channels_and_floats_are_not_scaled():
    images = RNG.integers(0, 255, (2, 4, 4, 3), np.uint8)
    data = Classification(views=Views(mean=(0.5,), std=(0.25,)))
    np.testing.assert_allclose(data.evaluation_view(images), (images / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-5)
    floats = images.astype(np.float32)
    np.testing.assert_allclose(data.evaluation_view(floats), (floats - 0.5) / 0.25, rtol=1e-6)
    shown = data.train_views(floats, np.arange(2), 0, jax.random.key(0), names=("main",)).views["main"]
    np.testing.assert_allclose(shown, (floats - 0.5) / 0.25, rtol=1e-6)
    with pytest.raises(ValueError, match="made of images of uint8"):
        data.train_views(floats, np.arange(2), 0, jax.random.key(0), names=("main", "strong"))


def test_a_dry_run_knows_the_shapes_of_a_set_that_is_not_there(tmp_path):
    dataset = Classification(name="cifar100").stand_in(str(tmp_path))
    assert dataset.shapes(2)["inputs"].shape == (2, 32, 32, 3) and dataset.info.num_classes == 100
    assert (len(dataset.train), len(dataset.held)) == (50_000, 10_000) and "not here" in dataset.description
    large = Classification(name="imagenet2012", image_size=224).stand_in(str(tmp_path))
    assert large.shapes(2)["inputs"].shape == (2, 224, 224, 3) and not large.resident
    assert Classification(name="imagenet2012").stand_in(str(tmp_path)) is None
    assert Classification(name="pets").stand_in(str(tmp_path)) is None
