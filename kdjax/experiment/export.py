"""A finished network for other programs: its function as StableHLO, its weights as safetensors or npz, or a folder of Hugging
Face."""

import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from kdjax.experiment.artifacts import saved_experiment
from kdjax.experiment.folder import run_place
from kdjax.experiment.spec import ExperimentError
from kdjax.experiment.trained import Trained, load_trained
from kdjax.json_files import write_json

Format = Literal["stablehlo", "safetensors", "npz"]
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(trained: Trained, form: Format, path: Path) -> None:
    """Writes a finished network to a file.

    Args:
      trained: the network.
      form: "stablehlo", the whole function with its weights, from inputs as the data set stores them, `[B, ...]` for any B, to
        the output's fields, which `jax.export.deserialize(file.read_bytes()).call(inputs)` runs on CPU, GPU or TPU; or its
        weights alone as "safetensors" or "npz", by path, those of "params/" and of "state/".
      path: of the file, which is not overwritten. What it takes and the names of its classes are in PATH.json beside it.

    Raises:
      ExperimentError: there is a file, or a package is missing.
    """
    check_new(path)
    beside = path.with_name(path.name + ".json")
    check_new(beside)
    written = as_stablehlo(trained) if form == "stablehlo" else as_weights(trained, form)
    write_json(beside, facts(trained))
    with tempfile.TemporaryDirectory(prefix=".kdjax-", dir=path.parent) as temporary:
        made = Path(temporary, "written")
        made.write_bytes(written)
        made.rename(path)


def check_new(place: Path) -> None:
    """Refuses a place that is there, or at which nothing can be; makes the folder that it is in.

    Raises:
      ExperimentError: why it cannot be written to.
    """
    try:
        there = place.exists() or not place.name
        if not there:
            place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExperimentError(
            f"{place} cannot be written ({error.strerror}); name another file or folder with --to."
        ) from error
    if there:
        raise ExperimentError(f"{place} exists; name another file or folder with --to.")


def export_folder(run: str | Path, phase: str | None, folder: Path) -> Trained:
    """Writes a finished network as a folder of Hugging Face, which transformers loads, with the files of its tokenizer.

    Args:
      run: folder of the run.
      phase: which network; the student if not given.
      folder: to be made.

    Returns:
      The network.

    Raises:
      ExperimentError: the folder is there, or there are no such folders for networks of this kind.
    """
    trained, experiment = load_trained(run, phase), saved_experiment(run_place(run))
    check_new(folder)
    chosen = experiment.phase(phase) if phase else experiment.student
    if any(part.deploys for part in chosen.objective.parts):
        raise ExperimentError(
            f"The network of {chosen.name!r} is used with a part of its objective behind it, which such folders do not have; "
            "export stablehlo."
        )
    with tempfile.TemporaryDirectory(prefix=".kdjax-", dir=folder.parent) as temporary:
        made = Path(temporary, folder.name)
        try:
            trained.task.write_network(chosen.network, jax.device_get(trained.variables.params), trained.classes, made)
        except ValueError as error:
            raise ExperimentError(str(error)) from error
        made.rename(folder)
    return trained


def facts(trained: Trained) -> dict[str, Any]:
    """What a program that runs the network must know: its inputs, and which class each logit is of."""
    inputs = {
        name: {"dtype": str(x.dtype), "shape": ["batch", *x.shape[1:]]} for name, x in _named(trained.inputs).items()
    }
    return {"network": trained.network.name, "inputs": inputs, "classes": list(trained.classes), "writer": "kdjax"}


def as_stablehlo(trained: Trained) -> bytes:
    """The function with its weights inside, for any batch size on any platform."""
    try:
        import flatbuffers  # noqa: F401  jax.export needs it and does not ask for it
    except ImportError as error:
        raise ExperimentError("StableHLO needs flatbuffers; run pip install 'kdjax[export]'.") from error
    from jax import export as jax_export

    scope = jax_export.SymbolicScope()
    batch = jax_export.symbolic_shape("b", scope=scope)
    inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*batch, *x.shape[1:]), x.dtype), trained.inputs)

    def function(inputs):
        said = trained(inputs)
        return {name: value for name, value in vars(said).items() if jax.tree.leaves(value)}

    return jax_export.export(jax.jit(function), platforms=PLATFORMS)(inputs).serialize()


def as_weights(trained: Trained, form: str) -> bytes:
    """The weights by path."""
    tree = {"params": trained.variables.params, "state": trained.variables.state}
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, order="C")
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    }
    if form == "npz":
        import io

        short = [name for name, x in flat.items() if x.dtype.kind == "V"]
        if short:
            raise ExperimentError(
                f"{short[0]} is {flat[short[0]].dtype.name}, which .npz does not know; export safetensors."
            )

        file = io.BytesIO()
        np.savez(file, **flat)
        return file.getvalue()
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise ExperimentError("safetensors is not installed; run pip install 'kdjax[export]'.") from error
    shapes = {name: f"{x.dtype}{list(x.shape[1:])}" for name, x in _named(trained.inputs).items()}
    said = {"network": trained.network.name, "inputs": json.dumps(shapes), "classes": json.dumps(trained.classes)}
    return save(flat, metadata=said | {"writer": "kdjax"})


def _named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/") or "inputs": leaf for path, leaf in leaves}
