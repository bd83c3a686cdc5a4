"""Checkpoints behind one module: orbax, written in the background, renamed into place only when complete.

A training checkpoint is a `TrainState`, with a description of it as JSON; the teacher is never in one, its content hash
is. A finished network is saved apart, without the optimizer.
"""

import copy
import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from kdjax.json_files import read_json, write_json
from kdjax.training.processes import is_first
from kdjax.training.state import TrainState, Variables, content_hash
from kdjax.types import Tree

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax narrates every save


DAMAGED = "train that phase again"  # a finished network that cannot be read


class CheckpointError(Exception):
    """What is wrong with a checkpoint, and the mend, in one sentence."""


class Checkpoints:
    """The last two states of a phase, and its best one (with the one before), under one folder.

    Args:
      folder: made if missing.
      description: JSON-like facts saved with every state, such as the teacher's hash.
    """

    def __init__(self, folder: Path, description: dict[str, Any]):
        self.folder = Path(folder).absolute()
        self.description = description
        self._last = self._manager("last", keep=2)
        self._best = self._manager("best", keep=2)

    def _manager(self, name: str, keep: int) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, cleanup_tmp_directories=True,
            # Both may be writing one step: processes must not take one's barrier for the other's.
            multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=name),
        )  # fmt: skip
        return ocp.CheckpointManager(self.folder / name, options=options)

    def save(self, state: TrainState, step: int, facts: dict[str, Any], *, best: bool = False) -> None:
        """Begins to write a state; returns once its values are copied, so that it may be donated.

        Args:
          state: what to save.
          step: its number.
          facts: JSON-like facts about this state, given back by `restore`.
          best: write it to the place of the best one instead of the last ones.
        """
        manager = self._best if best else self._last
        if step in manager.all_steps():  # left by a run that was stopped later than where this one goes on
            manager.wait_until_finished()
            manager.delete(step)
        facts = copy.deepcopy(facts)  # written by another thread, while the caller goes on counting in its own
        meta = {**self.description, "facts": facts, "shapes": _shapes(_as_dict(state))}
        manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(_as_dict(state)), meta=ocp.args.JsonSave(meta)),
            force=True,
        )

    def forget_best_after(self, step: int) -> None:
        """Drops best states of later steps: they are of a future that a resumed run has not had."""
        self._best.wait_until_finished()
        for later in [s for s in self._best.all_steps() if s > step]:
            self._best.delete(later)

    def latest(self) -> int | None:
        """Step of the newest complete state, or None."""
        return self._last.latest_step()

    def restore(self, template: TrainState, *, best: bool = False) -> tuple[TrainState, dict[str, Any]]:
        """The newest complete state (or the best), in the structure and with the shardings of `template`, and its facts.

        Raises:
          CheckpointError: if it was written by another architecture or another teacher, or cannot be read.
        """
        manager = self._best if best else self._last
        step = manager.latest_step()
        place = self.folder / ("best" if best else "last") / str(step)
        meta = self._read(manager, step, place, meta=ocp.args.JsonRestore())["meta"]
        _check_shapes(meta["shapes"], _shapes(_as_dict(template)), place)
        for key, value in self.description.items():
            if meta.get(key) != value:
                raise CheckpointError(
                    f"{place} was written with {key} {meta.get(key)!r}, now it is {value!r}; "
                    "restore what it was, or start anew with --overwrite."
                )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _as_dict(template))
        restored = self._read(manager, step, place, state=ocp.args.StandardRestore(abstract))["state"]
        return TrainState(**restored), meta["facts"]

    def _read(self, manager, step, place, **items):
        try:
            return manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
            others = [s for s in manager.all_steps() if s != step]
            mend = (
                f"delete it to go on from step {max(others)}" if others else "delete it, or start anew with --overwrite"
            )
            raise CheckpointError(f"Checkpoint {place} is damaged ({_first_line(error)}); {mend}.") from error

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._last.wait_until_finished()
        self._best.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self._last.close()
        self._best.close()


def save_network(folder: Path, network: Variables, facts: dict[str, Any]) -> str:
    """Writes a finished network with its facts and content hash, which is returned; replaces one that is there."""
    variables = jax.device_get(network)
    facts = {**facts, "hash": content_hash(variables.params, variables.state)}
    tree = {"params": variables.params, "state": variables.state}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(folder).absolute() / "weights", tree, force=True)
    meta = {**facts, "shapes": _shapes(tree)}
    if is_first():
        write_json(Path(folder) / "network.json", meta)
    return facts["hash"]


def load_network(folder: Path, template: Variables) -> tuple[Variables, dict[str, Any]]:
    """A network that `save_network` wrote, checked against the architecture of `template` and its own hash."""
    folder = Path(folder).absolute()
    if not (folder / "network.json").exists():
        raise CheckpointError(f"{folder} holds no finished network; give the folder of a phase that has ended.")
    meta = read_json(folder / "network.json", CheckpointError, DAMAGED)
    for key in ("shapes", "hash"):
        if key not in meta:
            raise CheckpointError(f"{folder / 'network.json'} is damaged: it has no {key!r}; {DAMAGED}.")
    tree = {"params": template.params, "state": template.state}
    _check_shapes(meta.pop("shapes"), _shapes(tree), folder)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(folder / "weights", jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
    except Exception as error:
        raise CheckpointError(
            f"The network in {folder} is damaged ({_first_line(error)}); train that phase again."
        ) from error
    variables = Variables(restored["params"], restored["state"])
    found = content_hash(*jax.device_get((variables.params, variables.state)))
    if found != meta["hash"]:
        raise CheckpointError(
            f"The network in {folder} is damaged (its content hash is {found}, {meta['hash']} was written); "
            "train that phase again."
        )
    return variables, meta


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def _shapes(tree: Tree) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def _check_shapes(saved: dict[str, str], wanted: dict[str, str], place: Path) -> None:
    for name in [*wanted, *saved]:
        if saved.get(name) != wanted.get(name):
            there, here = saved.get(name, "missing"), wanted.get(name, "missing")
            raise CheckpointError(
                f"{place} is of another architecture: {name} is {there} there and {here} here; "
                "use the configuration it was written with."
            )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:120]}" if text else type(error).__name__
