"""Everything in kdjax that reads files, each with a sound file of its kind, and what a sound value of it is."""

import contextlib
import io
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from breaking.mutations import NASTY
from kdjax.json_files import read_json, write_json


class Reader(NamedTuple):
    """What reads a kind of file.

    Attributes:
      name: of it.
      make: `(folder) -> path` of a sound file.
      read: `path -> value`.
      errors: names of the exceptions that are sentences.
      sound: `(value, value of the sound file, whether bytes were changed) -> what is wrong with it, or ""`.
      share: how many of the inputs, beside those of others.
    """

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    errors: tuple[str, ...]
    sound: Callable[[Any, Any, bool], str]
    share: int = 4


def result() -> dict[str, Any]:
    metrics = {"top1": 0.75, "nll": 0.8, "ece": 0.05, "agreement": 0.9}
    last = {"step": 20, "student": metrics, "teacher": metrics}
    return {
        "phase": "student", "network": "small_cnn (width 8)", "parameters": 1234, "extra_parameters": 0, "seed": 0,
        "data_seed": 0, "steps": 20, "examples_visited": 1437, "last": last, "best": last, "kept": "last", "seconds": 3.2,
        "train_seconds": 2.1, "examples_per_s": 512.5, "device": "1 x cpu", "hash": "0123456789abcdef",
        "teacher_hash": "fedcba9876543210", "teacher_frozen": None,
        "teacher_cache": {"storage": "float32", "found": 1, "computed": 2, "largest_change": 0.0},
    }  # fmt: skip


def network() -> dict[str, Any]:
    data = {"name": "digits", "num_classes": 10, "num_examples": 1437, "targets": ["labels"],
            "class_names": list("0123456789"), "inputs": "uint8[8, 8, 1]"}  # fmt: skip
    return {"phase": "student", "network": "small_cnn (width 8)", "num_classes": 10, "class_names": list("0123456789"),
            "data": data, "hash": "0123456789abcdef", "shapes": {"params/dense/kernel": "float32[64, 10]"}}  # fmt: skip


def saved(name: str, data: Callable[[], dict[str, Any]]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_json(folder / name, data())
        return folder / name

    return make


def same_if_bytes(value: Any, sound: Any, changed_bytes: bool) -> str:
    return "another value behind a checksum" if changed_bytes and value != sound else ""


def experiment_data() -> dict[str, Any]:
    from kdjax.experiment.config import load_config
    from kdjax.experiment.serialization import to_data

    return to_data(load_config("digits/smoke")("kd"))


def sound_experiment(value: Any, sound: Any, changed_bytes: bool) -> str:
    """One that was changed may be read, for people edit it; then it is said on standard error."""
    from kdjax.experiment import ExperimentError

    try:
        read_json(KEPT["path"], ExperimentError, "")
    except ExperimentError:
        return ""
    return same_if_bytes(value, sound, changed_bytes)


def read_experiment(path: Path) -> Any:
    from kdjax.experiment.serialization import load, to_data

    KEPT["path"] = path
    with contextlib.redirect_stderr(io.StringIO()):
        found = load(path)
    found.problems()
    return to_data(found)


def read_result(path: Path) -> Any:
    from kdjax.experiment.folder import read_result
    from kdjax.experiment.tables import show_results
    from kdjax.terminal import make_console

    found = read_result(path.parent)
    if all(name in found for name in ("network", "parameters", "last")):
        experiment = _smoke()
        console = make_console(file=io.StringIO(), width=100)
        show_results(experiment, {"student": found}, path.parent, console)
        shown = console.file.getvalue()
        if any(sign in shown for sign in ("\x1b", "\x07", "\u202e")):
            raise AssertionError("a control character reaches the terminal")
    return found


def _smoke() -> Any:
    if "smoke" not in KEPT:
        from kdjax.experiment.config import load_config

        KEPT["smoke"] = load_config("digits/smoke")("kd")
    return KEPT["smoke"]


KEPT: dict[str, Any] = {}


def read_network(path: Path) -> Any:
    from kdjax.experiment.folder import read_network
    from kdjax.tasks.facts import dataset_of

    found = read_network(path.parent)
    if found.get("data"):
        dataset_of(found["data"])
    return found


def make_metrics(folder: Path) -> Path:
    rows = [
        {"step": i, "kind": "eval" if i % 3 == 0 else "train", "loss": 1.5 / (i + 1), "top1": None} for i in range(12)
    ]
    from kdjax.training.writers import MetricWriter

    writer = MetricWriter(folder)
    for row in rows:
        writer.write(row.pop("step"), row.pop("kind"), {name: math.nan if v is None else v for name, v in row.items()})
    writer.close()
    return writer.path


def read_rows(path: Path) -> Any:
    from kdjax.training.writers import read_metrics

    return read_metrics(path)


def sound_rows(rows: Any, sound: Any, changed_bytes: bool) -> str:
    fine = all(isinstance(row["step"], int) and isinstance(row["kind"], str) for row in rows)
    return "" if fine else "a row without step or kind"


def open_cache(folder: Path) -> Any:
    from kdjax.training.teacher_cache import Storage, TeacherCache

    return TeacherCache(folder, {"teacher": "t"}, examples=40, views=2, shape=(10,), storage=Storage("float32"))


def make_cache(file: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        logits = np.random.default_rng(0).normal(size=(60, 10)).astype(np.float32)
        open_cache(folder).add(iter([(np.arange(30), logits[:30]), (np.arange(30, 60), logits[30:])]))
        return next(folder.glob(file))

    return make


def read_cache(path: Path) -> Any:
    cache = open_cache(path.parent)
    return cache._rows[: len(cache)].tobytes(), cache._place.tobytes()


def make_outputs(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        logits = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
        path = folder / name
        if name.endswith("npz"):
            np.savez(path, logits=logits, index=np.arange(20))
        else:
            path.write_text(
                "".join(f"{json.dumps({'index': i, 'logits': row.tolist()})}\n" for i, row in enumerate(logits))
            )
        return path

    return make


def read_outputs(path: Path) -> Any:
    from kdjax.data.outputs import read_outputs

    return read_outputs(path, 20)


def sound_outputs(found: Any, sound: Any, changed_bytes: bool) -> str:
    if found.dtype != np.float32 or found.ndim < 2 or len(found) != 20:
        return f"outputs are {found.dtype} {found.shape}"
    return "outputs are infinite" if np.isposinf(found).any() else ""


def make_arrays(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, (24, 4, 4, 1), np.uint8)
    np.savez(folder / "set.npz", x_train=x, y_train=np.arange(24) % 3, x_test=x[:6], y_test=np.arange(6) % 3)
    return folder / "set.npz"


def read_arrays(path: Path) -> Any:
    from kdjax.data import load

    with contextlib.redirect_stderr(io.StringIO()):
        return [load(str(path), split=split) for split in ("train", "test")]


def sound_arrays(found: Any, sound: Any, changed_bytes: bool) -> str:
    for source in found:
        if source.images.dtype not in (np.uint8, np.float32) or source.images.ndim != 4:
            return f"images are {source.images.dtype} {source.images.shape}"
        if len(source.images) != len(source.labels) or not (0 <= source.labels.min() <= source.labels.max() < 10**6):
            return "labels do not fit"
    return ""


def make_picture(form: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from PIL import Image

        pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"picture.{form}")
        return folder / f"picture.{form}"

    return make


def read_picture(path: Path) -> Any:
    from kdjax.data.pictures import Reading

    return Reading().decode(str(path))


def sound_picture(found: Any, sound: Any, changed_bytes: bool) -> str:
    return "" if found.dtype == np.uint8 and found.ndim == 3 else f"a picture is {found.dtype} {found.shape}"


def make_torch(folder: Path) -> Path:
    """A state dict; it is changed entry by entry, in memory."""
    from flax import nnx

    from kdjax.models import zoo
    from kdjax.models.weights.names import NAMES
    from kdjax.models.weights.torch import entries

    rng = np.random.default_rng(0)
    module = nnx.eval_shape(lambda: zoo.build("resnet8", num_classes=10, in_channels=3, rngs=nnx.Rngs(0)))
    KEPT["torch"] = {entry.name: rng.random(entry.shape, np.float32) for entry in entries(module, NAMES["resnet8"])}
    (folder / "state_dict").touch()
    return folder / "state_dict"


def read_torch(path: Path) -> Any:
    from kdjax.models.weights.torch import cifar_resnet_from_torch

    return cifar_resnet_from_torch(KEPT["changed"])


def sound_torch(found: Any, sound: Any, changed_bytes: bool) -> str:
    import jax

    for leaf in jax.tree.leaves(found):
        if leaf.dtype.kind != "f" or not np.isfinite(leaf).all():
            return f"a weight is {leaf.dtype}, or not finite"
    return ""


def torch_changed(chance: random.Random) -> dict[Any, Any]:
    made = dict(KEPT["torch"])
    for _ in range(chance.choice((1, 1, 2))):
        name = chance.choice(list(made))
        value = made[name]
        if not isinstance(value, np.ndarray):
            continue
        size = value.shape
        match chance.randrange(12):
            case 0:
                del made[name]
            case 1:
                made[
                    chance.choice(
                        (f"{name}x", 3, None, ("a", 1), "module.x", "layer1.999999999.conv1.weight", "layer1.")
                    )
                ] = value
            case 2:
                made[name] = np.asarray(value).astype(
                    chance.choice(("complex64", "int8", "bool", "O", "S3", "U4", "M8[s]", "f2"))
                )
            case 3:
                made[name] = chance.choice(NASTY)
            case 4:
                made[name] = [[1.0], [1.0, 2.0]]
            case 5:
                made[name] = np.full(size, chance.choice((np.nan, np.inf, -np.inf)), np.float32)
            case 6:
                made[name] = np.zeros((*size[:-1], chance.choice((0, 7))) if size else (3,), np.float32)
            case 7:
                made = {chance.choice(("model", "state_dict", "net", 5)): made, "epoch": 3}
                return made
            case 8:
                made = {f"{chance.choice(('module.', '_orig_mod.'))}{key}": v for key, v in made.items()}
            case 9:
                made[name] = np.asarray(value)[None]
            case 10:
                made[name] = np.asarray(value) - 100
            case _:
                made["model"] = made
    return made


GOLDEN = Path(__file__).parents[2] / "tests" / "golden"


def make_saved(name: str) -> Callable[[Path], Path]:
    """A file that PyTorch saved."""

    def make(folder: Path) -> Path:
        return Path(shutil.copy(GOLDEN / name, folder / name))

    return make


def make_safetensors(folder: Path) -> Path:
    path, x, y = folder / "x.safetensors", np.arange(6, dtype=np.float32), np.arange(3)
    header = {
        "x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "y": {"dtype": "I64", "shape": [3], "data_offsets": [24, 48]},
        "none": {"dtype": "BF16", "shape": [0, 7], "data_offsets": [48, 48]},
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + x.tobytes() + y.tobytes())
    return path


def make_msgpack(folder: Path) -> Path:
    from flax.serialization import to_bytes

    path = folder / "x.msgpack"
    path.write_bytes(to_bytes({"params": {"kernel": np.ones((3, 4), np.float32)}, "step": 7}))
    return path


def read_weights(path: Path) -> Any:
    from kdjax.models.weights.files import read_weights
    from kdjax.models.weights.torch import arrays

    found = read_weights(path)
    with contextlib.suppress(ValueError):  # in a sentence, which "PyTorch state dict" looks at
        arrays(found)
    return found


def sound_weights(found: Any, sound: Any, changed_bytes: bool) -> str:
    arrays = [value for value in found.values() if isinstance(value, np.ndarray)]
    return "an array is larger than the file" if sum(value.nbytes for value in arrays) > 10**5 else ""


def readers() -> list[Reader]:
    own, data = ("ExperimentError",), ("DataError",)
    return [
        Reader("experiment.json", saved("experiment.json", experiment_data), read_experiment, own, sound_experiment),
        Reader("result.json", saved("result.json", result), read_result, own, same_if_bytes),
        Reader("network.json", saved("network.json", network), read_network, (*own, "ValueError"), same_if_bytes),
        Reader("metrics.jsonl", make_metrics, read_rows, ("CheckpointError",), sound_rows),
        Reader(
            "teacher cache: description", make_cache("description.json"), read_cache, ("CacheError",), same_if_bytes
        ),
        Reader("teacher cache: outputs", make_cache("*.array_record"), read_cache, ("CacheError",), same_if_bytes),
        Reader("teacher's outputs, .npz", make_outputs("said.npz"), read_outputs, data, sound_outputs),
        Reader("teacher's outputs, .jsonl", make_outputs("said.jsonl"), read_outputs, data, sound_outputs),
        Reader("arrays, .npz", make_arrays, read_arrays, data, sound_arrays),
        Reader("picture, .png", make_picture("png"), read_picture, ("Unreadable",), sound_picture, 2),
        Reader("picture, .jpeg", make_picture("jpeg"), read_picture, ("Unreadable",), sound_picture, 2),
        Reader("weights, safetensors", make_safetensors, read_weights, ("WeightsError",), sound_weights),
        Reader("weights, PyTorch's", make_saved("torch_zip.pth"), read_weights, ("WeightsError",), sound_weights),
        Reader(
            "weights, PyTorch's of old", make_saved("torch_legacy.pth"), read_weights, ("WeightsError",), sound_weights
        ),
        Reader("weights, msgpack", make_msgpack, read_weights, ("WeightsError",), sound_weights),
        Reader("PyTorch state dict", make_torch, read_torch, ("ValueError",), sound_torch),
    ]
