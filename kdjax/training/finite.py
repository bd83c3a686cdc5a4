"""What is done where training is no longer finite: it is written down, and the run stops, leaves the step out, or goes back."""

import math
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.json_files import write_json
from kdjax.training.processes import is_first, of_all
from kdjax.types import Array, Tree

OnNan = Literal["stop", "skip", "restore"]
IN_A_ROW, IN_ALL = 10, 100  # steps that are left out before training stops after all
RESTORED = 3  # times that a phase goes back
ABSURD = 1000.0  # times the first loss (or 1, if that is less)
FINITE = "finite"  # metric of a step: whether the parameters, statistics and moving average that it made are


class NotFinite(Exception):
    """A step or an evaluation that is not finite.

    Attributes:
      step: its number.
      names: of what is not finite.
      values: all that is known of it.
      sound: states up to this step are known to give a finite loss.
    """

    def __init__(self, step: int, names: list[str], values: dict[str, Any], sound: int):
        super().__init__(f"{', '.join(names)} is not finite at step {step}")
        self.step, self.names, self.values, self.sound = step, names, values, sound


def all_finite(tree: Tree) -> Array:
    """Whether every floating value of a tree is finite, as a bool scalar."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.asarray([jnp.all(jnp.isfinite(x)) for x in floats])) if floats else jnp.asarray(True)


def chosen(ok: Array, new: Tree, old: Tree) -> Tree:
    """The new values where they are ok, the old ones elsewhere."""
    return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)


def not_finite(row: dict[str, tuple[float, float]]) -> list[str]:
    """What of a step is not finite; nothing if its loss, its gradient and what it made are (a peer's too)."""
    bad = [name for name, (value, _) in row.items() if not np.isfinite(value)]
    for who in ("", "peer_"):
        if f"{who}{FINITE}" in row and not row[f"{who}{FINITE}"][0]:
            bad.append(f"{who}parameters")
    checked = {f"{who}{what}" for who in ("", "peer_") for what in ("loss", "gradient_norm", "parameters")}
    return bad if checked & set(bad) else []


def without_flags(row: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a step that are logged."""
    return {name: value for name, value in row.items() if name.removeprefix("peer_") != FINITE}


def missing_numbers(data: Any, where: str = "") -> list[str]:
    """Paths, from `where` on, of the numbers in nested dicts and lists that are not finite."""
    if isinstance(data, dict | list):
        items = data.items() if isinstance(data, dict) else enumerate(data)
        return [path for key, item in items for path in missing_numbers(item, f"{where}.{key}".lstrip("."))]
    return [where] if isinstance(data, float) and not math.isfinite(data) else []


def write_down(folder: Path, phase: str, error: NotFinite, index: Any, params: Tree) -> Path:
    """Writes what is known of a step that is not finite: its terms, the examples of its batch and norms of the parameters.

    Args:
      folder: of the phase.
      phase: its name.
      error: the step.
      index: positions of its examples in the training split, this process's; None if they are not known.
      params: parameters as they are now, after the step (or before, where it was left out).

    Returns:
      The file.
    """
    norms = jax.jit(lambda tree: jax.tree.map(norm, tree))(params)
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): plain(np.asarray(value).item())
        for path, value in jax.tree_util.tree_leaves_with_path(norms)
    }
    path = folder / f"not-finite-{error.step}.json"
    said = {
        "phase": phase,
        "step": error.step,
        "not_finite": error.names,
        "values": {name: plain(value) for name, value in error.values.items()},
        "examples": None if index is None else np.ravel(of_all(index)).tolist(),
        "parameter_norms": named,
    }
    if is_first():
        write_json(path, said)
    return path


def norm(x: Array) -> Array:
    """The norm of all values, without overflow where they are finite."""
    x = jnp.abs(x.astype(jnp.float32))
    largest = jnp.maximum(jnp.max(x, initial=0.0), jnp.finfo(x.dtype).tiny)
    return largest * jnp.sqrt(jnp.sum(jnp.square(x / largest)))


def plain(value: float) -> float | str:
    """A number, or "nan" and "inf" as words: JSON has none."""
    return float(value) if math.isfinite(value) else str(float(value))
