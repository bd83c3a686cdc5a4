"""Published weights as the folder of a finished run, which teaches, is evaluated and exported as any other."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from kdjax.data.class_names import named_twice
from kdjax.experiment.folder import RESULT, open_run
from kdjax.experiment.networks import make_network
from kdjax.experiment.spec import Experiment, ExperimentError, Phase
from kdjax.json_files import write_json
from kdjax.models import zoo
from kdjax.models.weights.files import WeightsError, read_weights
from kdjax.models.weights.names import NAMES
from kdjax.models.weights.names.imagenet import CENTRED
from kdjax.models.weights.zoo import zoo_from_torch
from kdjax.models.zoo.cifar import CIFAR
from kdjax.tasks import Task, kinds
from kdjax.tasks.facts import dataset_of
from kdjax.tasks.task import Published
from kdjax.training import Variables, count_parameters
from kdjax.training.checkpoints import save_network
from kdjax.training.processes import by_first
from kdjax.types import Tree

PHASE = "teacher"
TREES = ("params", "state")


class Usual(NamedTuple):
    """What most published weights of a kind of network were trained on: the set, the images' side, and their normalisation."""

    data: str
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, network: str) -> "Usual":
        """That of a network of the zoo."""
        if network in CIFAR:
            return CIFAR100
        return IMAGENET._replace(mean=(0.5,), std=(0.5,)) if network in CENTRED else IMAGENET


IMAGENET = Usual("imagenet2012", 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR100 = Usual("cifar100", 32, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


@dataclasses.dataclass(frozen=True)
class Converted:
    """What came of a file: the network's name, counts, and whose names the entries had ("published" or "kdjax")."""

    network: str
    num_classes: int
    parameters: int
    inputs: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    names: str


def convert(
    path: Path,
    network: str,
    folder: Path,
    *,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    classes: Sequence[str] = (),
    data: str = "",
    image_size: int = 0,
    width: int = 0,
    ema: bool = False,
    overwrite: bool = False,
) -> Converted:
    """Makes the folder of a finished run of a file of weights.

    Args:
      path: the file, see `kdjax.models.weights.files.read_weights`: a published state dict, or what `kdjax export` or Flax wrote
        of a network of the zoo ("params" and "state").
      network: which network it is of, of the zoo, or a detector such as gfl_r50.
      folder: of the run.
      mean, std: normalisation that it was trained with, of each channel, of pixels scaled to 0..1; one number is that of all.
        If not given: CIFAR-100's for the networks of the CIFAR benchmarks, 0.5 for those that timm trained with it (its ViTs,
        `mobilenetv1_100`, `tf_efficientnet_lite0`), and ImageNet's for all others (of SSD300 its mean, of pixels in 0..255,
        undivided).
      classes: names of its classes, in its order; empty if they are not known.
      data: data set on which `kdjax evaluate` measures it; of those two, if not given, and COCO of detectors.
      image_size: height and width of the images that it is for, in pixels; 32 or 224, if not given; of detectors 800 and 1344,
        or 300.
      width: of the first stage, where that is not the published one; 0 for that.
      ema: take the running average of the weights that a checkpoint holds beside them.
      overwrite: delete a run that is in the folder.

    Raises:
      ExperimentError: the file is damaged or of another network; the message names what is missing, unexpected or of another
        shape. Nothing was written.
    """
    by_task = next(
        (kind for kind in kinds().values() if issubclass(kind, Task) and kind.knows_published(network)), None
    )
    read = by_task.read_published if by_task else _read_of_zoo
    options = {"data": data, "width": width, "image_size": image_size, "ema": ema}
    try:
        found, make_task, model = read(path, network, mean=tuple(mean), std=tuple(std), **options)
        mean, std = (_each(values, found.channels, name) for values, name in ((found.mean, "mean"), (found.std, "std")))
        num_classes, task = found.num_classes, make_task(mean, std)
        facts = {
            "name": task.name, "num_classes": num_classes, "num_examples": 0, "targets": list(found.targets),
            "class_names": list(classes), "inputs": found.inputs,
        }  # fmt: skip
        if classes and len(classes) != num_classes:
            raise ValueError(f"it has {num_classes} classes, and {len(classes)} names were given for them")
        made = make_network(task, model, dataset_of(facts))
        variables = _filled(jax.eval_shape(made.init, jax.random.key(0)), found.trees)
    except WeightsError as error:
        raise ExperimentError(str(error)) from error
    except ValueError as error:
        raise ExperimentError(f"{path} does not become a {network}: {str(error).rstrip('.')}.") from error
    experiment = Experiment(name=network, data=task, phases=(Phase(name=PHASE, network=model),))
    open_run(folder, experiment, overwrite=overwrite)
    known = {
        "phase": PHASE,
        "network": made.name,
        "num_classes": num_classes,
        "class_names": list(classes),
        "data": facts,
    }
    count = count_parameters(variables.params)
    result = {"phase": PHASE, "network": made.name, "parameters": count, "steps": 0, "seconds": 0.0,
              "last": {"step": 0, "student": {}}, "hash": save_network(folder / PHASE, variables, known)}  # fmt: skip
    by_first(lambda: write_json(folder / PHASE / RESULT, result), ExperimentError)
    shown = found.inputs if isinstance(found.inputs, str) else found.inputs["image"]
    return Converted(made.name, num_classes, count, shown, mean, std, found.names)


def _read_of_zoo(path, network, *, data, width, image_size, mean, std, ema):
    """As `Task.read_published`, of a network of the zoo that classifies images."""
    usual = Usual.of(network)
    data, image_size = data or usual.data, image_size or usual.image_size
    if network not in zoo.NETWORKS:
        zoo.build(network, num_classes=1, in_channels=1, rngs=nnx.Rngs(0))  # which says what there is
    held = read_weights(path)
    trees, names = _own(held), "kdjax"
    options = {"width": width or None, "image_size": (image_size, image_size)}
    if trees is None:
        if network not in NAMES:
            raise ValueError(f"no published names are known for {network}; give weights that kdjax export wrote")
        params, state = zoo_from_torch(network, held, **options, ema=ema)
        trees, names = _flat({"params": params, "state": state}), "published"
    num_classes, channels = _sizes(network, trees, options)

    def make_task(mean, std):
        of = kinds()["Classification"].of_published
        return of(network, width, data=data, image_size=image_size, channels=channels, mean=mean, std=std)[0]

    model = kinds()["Classifier"](name=network, width=width)
    inputs = f"uint8[{image_size}, {image_size}, {channels}]"
    found = Published(trees, num_classes, channels, inputs, ("labels",), mean or usual.mean, std or usual.std, names)
    return found, make_task, model


def read_names(path: Path) -> tuple[str, ...]:
    """Names of classes from a text file, one a line.

    Raises:
      ExperimentError: it cannot be read, or one comes twice.
    """
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeError) as error:
        raise ExperimentError(f"{path} cannot be read as text ({error}); give a file with a name a line.") from error
    twice = named_twice(names)
    if twice is not None:
        raise ExperimentError(f"{path} names {twice!r} twice; give every class a name of its own.")
    return names


def _own(held: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """The arrays by path, where they are called as kdjax calls them; else None."""
    flat = _flat(held)
    return flat if flat and all(name.split("/")[0] in TREES and "/" in name for name in flat) else None


def _flat(tree: Tree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _sizes(network: str, trees: dict[str, np.ndarray], options: dict[str, Any]) -> tuple[int, int]:
    """Classes and channels of a network, from the first array whose shape follows them."""

    def shapes(num_classes, in_channels):
        make = lambda: zoo.build(network, num_classes=num_classes, in_channels=in_channels, rngs=nnx.Rngs(0), **options)
        flat = nnx.to_flat_state(nnx.state(nnx.eval_shape(make), nnx.Param))
        return {"/".join(map(str, ("params", *path))): variable.get_value().shape for path, variable in flat}

    usual, found = shapes(10, 3), []
    for other in (shapes(11, 3), shapes(10, 4)):
        name, shape = next((n, shape) for n, shape in other.items() if shape != usual[n])
        if name not in trees or len(np.shape(trees[name])) != len(shape):
            raise ValueError(f"{name} is missing, or has not {len(shape)} axes")
        axis = next(i for i, size in enumerate(shape) if size != usual[name][i])
        found.append(int(np.shape(trees[name])[axis]))
    if min(found) < 1:
        raise ValueError("it has no classes, or no channels")
    return found[0], found[1]


def _each(values: Sequence[float], channels: int, name: str) -> tuple[float, ...]:
    values = tuple(float(value) for value in values)
    if len(values) not in (1, channels):
        raise ValueError(f"it sees {channels} channels, and --{name} has {len(values)} values; give one a channel")
    return values * channels if len(values) == 1 else values


def _filled(template: tuple[Tree, Tree], trees: dict[str, np.ndarray]) -> Variables:
    """Variables of the template's types with these values.

    Raises:
      ValueError: some are missing, unexpected, or of another shape.
    """
    wanted = _flat(dict(zip(TREES, template, strict=True)))
    missing, more = sorted(wanted.keys() - trees.keys()), sorted(trees.keys() - wanted.keys())
    other = [name for name in wanted if name in trees and wanted[name].shape != np.shape(trees[name])]
    wrong = [f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
             for what, names in (("missing are", missing), ("unexpected are", more)) if names]  # fmt: skip
    wrong += [f"{name} is {list(np.shape(trees[name]))}, expected {list(wanted[name].shape)}" for name in other[:1]]
    if wrong:
        raise ValueError("; ".join(wrong))

    def fill(path, leaf):
        return np.asarray(trees[jax.tree_util.keystr(path, simple=True, separator="/")]).astype(leaf.dtype)

    filled = jax.tree_util.tree_map_with_path(fill, dict(zip(TREES, template, strict=True)))
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(filled)):
        raise ValueError("it has nan or inf; take another checkpoint")
    return Variables(filled["params"], filled["state"])


__all__ = ["Converted", "convert", "read_names"]
