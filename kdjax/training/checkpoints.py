"""Checkpoints behind one module: orbax, written in the background, renamed into place only when complete.

A training checkpoint is a `TrainState`, with a description of it as JSON; the teacher is never in one, its content hash
is. A finished network is saved apart, without the optimizer. Every folder that is written has a manifest of its files
(`kdjax.training.manifest`), which is compared before anything in it is used.
"""

import copy
import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from kdjax.json_files import read_json, write_json
from kdjax.training.manifest import Sealed, damage
from kdjax.training.processes import by_first, is_first, say
from kdjax.training.state import TrainState, Variables, content_hash
from kdjax.types import Tree

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax narrates every save


DAMAGED = "train that phase again"  # a finished network that cannot be read
ASIDE = "aside"  # folder of checkpoints that are not gone on from


class CheckpointError(Exception):
    """What is wrong with a checkpoint, and the mend, in one sentence."""


class Damaged(CheckpointError):
    """A checkpoint that is there and cannot be used; without the mend."""


class Keeping:
    """Which states stay when another is written, by a function from all steps to these; an orbax policy."""

    def __init__(self, keeps: Callable[[list[int]], set[int | None]]):
        self.keeps = keeps

    def should_preserve(self, checkpoints, *, context):
        kept = self.keeps(sorted(checkpoint.step for checkpoint in checkpoints))
        return [checkpoint.step in kept for checkpoint in checkpoints]


class Checkpoints:
    """The last two states of a phase, and the best ones that these know of, under one folder.

    Args:
      folder: made if missing.
      description: JSON-like facts saved with every state, such as the teacher's hash.
    """

    def __init__(self, folder: Path, description: dict[str, Any]):
        self.folder = Path(folder).absolute()
        self.description = description
        self._good: int | None = None
        self._best_of: dict[int, int | None] = {}  # by the step of a last state: the best one until then
        self._last = self._manager("last", lambda steps: {*steps[-2:], self._good})
        self._best = self._manager("best", lambda steps: {*steps[-1:], *self._best_of.values()})

    def _manager(self, name: str, keeps: Callable[[list[int]], set[int | None]]) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=Keeping(keeps), create=True, cleanup_tmp_directories=True, temporary_path_class=Sealed,
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
        if not best:  # which is not to be there before the best one that it names
            self._best.wait_until_finished()
            self._best_of[step] = best_step(facts)
            kept = {step, self._good, *self._last.all_steps()[-1:]}
            self._best_of = {other: its for other, its in self._best_of.items() if other in kept}
        facts = copy.deepcopy(facts)  # written by another thread, while the caller goes on counting in its own
        meta = {**self.description, "facts": facts, "shapes": _shapes(_as_dict(state)), "sealed": True}
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

    def keep_for_good(self, step: int) -> None:
        """Keeps the newest state up to a step, however many come after it: from there on training diverges."""
        self._good = max((s for s in self._last.all_steps() if s <= step), default=None)

    def keep_until(self, step: int) -> int | None:
        """Puts states of later steps aside, if there is one up to this step, or none that could be gone on from; returns that."""
        good = max((s for s in self._last.all_steps() if s <= step), default=None)
        later = [s for s in self._last.all_steps() if good is None or s > good]
        self._put_aside(self._last, "last", later)
        return good

    def restore(
        self, template: TrainState, *, best: bool = False, keeps_best: bool = False
    ) -> tuple[TrainState, dict[str, Any]]:
        """The newest sound state (or the best), in the structure and with the shardings of `template`, and its facts.

        Newer states that are damaged are put aside into a folder of that name; nothing is deleted.

        Args:
          template: such a state, or its shapes with their shardings.
          best: take the best one.
          keeps_best: go back to a state whose best one is sound too.

        Raises:
          CheckpointError: if it was written by another architecture or another teacher, or none can be read.
        """
        manager, name = (self._best, "best") if best else (self._last, "last")
        passed: dict[int, Damaged] = {}
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                state, facts = self._read_sound(manager, self.folder / name / str(step), step, template)
                if keeps_best:
                    self.check_best(best_step(facts))
            except Damaged as error:
                passed[step] = error
                continue
            for error, target in zip(passed.values(), self._put_aside(manager, name, list(passed)), strict=True):
                say(f"{error}; it is kept as {target}, and training goes on from step {step}")
            if not best:
                self._best_of = {step: best_step(facts)} | {
                    other: self._best_before(other) for other in manager.all_steps() if other < step
                }
            return state, facts
        if not passed:
            raise CheckpointError(f"{self.folder / name} holds no state; start anew with --overwrite.")
        raise CheckpointError(f"{next(iter(passed.values()))}; {self._mend(passed)}.") from next(iter(passed.values()))

    def check_best(self, step: int | None) -> None:
        """Refuses a best state that is gone or damaged.

        Raises:
          Damaged: it cannot be used.
        """
        if step is None:
            return
        place = self.folder / "best" / str(step)
        if step not in self._best.all_steps():
            raise Damaged(f"The best state, {place}, is missing")
        self._check_files(place)
        self._check_meta(place, self._read(self._best, step, place, meta=ocp.args.JsonRestore())["meta"])

    def _mend(self, passed: dict[int, Damaged]) -> str:
        phase, folder = self.description.get("phase", "NAME"), self.folder.parent
        anew = f"move {folder} elsewhere to train this phase anew by --resume, which comes to the same"
        if any(str(error).startswith("The best state") or "/best/" in str(error) for error in passed.values()):
            return f"{anew}, or go on without the best state by --resume --phases.{phase}.keep last"
        return f"there is no sound one before it; {anew}"

    def _read_sound(self, manager, place, step, template):
        self._check_files(place)
        meta = self._read(manager, step, place, meta=ocp.args.JsonRestore())["meta"]
        self._check_meta(place, meta)
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

    def _check_files(self, place: Path) -> None:
        """Compares a checkpoint with its manifest, if it has one; the first of several processes does for all."""

        def check():
            try:
                wrong = damage(place)
            except FileNotFoundError:
                return
            except OSError as error:
                raise CheckpointError(f"Checkpoint {place} cannot be read ({error}); mend that, and resume.") from error
            if wrong:
                raise Damaged(f"Checkpoint {place} is damaged: {wrong}")

        by_first(check, Damaged, CheckpointError)

    def _check_meta(self, place: Path, meta: Any) -> None:
        wrong = None
        if not isinstance(meta, dict) or not isinstance(meta.get("facts"), dict) or "shapes" not in meta:
            wrong = "it does not say what it is"
        elif meta.get("sealed") and not (place / "manifest.json").exists():
            wrong = "its manifest.json is missing"
        if wrong:
            raise Damaged(f"Checkpoint {place} is damaged: {wrong}")
        if not meta.get("sealed"):
            say(f"Checkpoint {place} was written before there were checksums, so that damage to it may go unseen")

    def _best_before(self, step: int) -> int | None:
        """The best step that a last state knows of, None where that cannot be read."""
        try:
            meta = self._read(self._last, step, self.folder / "last" / str(step), meta=ocp.args.JsonRestore())["meta"]
            return best_step(meta["facts"])
        except (CheckpointError, KeyError, TypeError):
            return None

    def _put_aside(self, manager, name: str, steps: list[int]) -> list[Path]:
        """Moves states to where none is looked for; returns where to."""
        targets = []
        for step in steps:
            place, target, number = self.folder / name / str(step), self.folder / ASIDE / f"{name}-{step}", 1
            while target.exists():
                number += 1
                target = self.folder / ASIDE / f"{name}-{step}-{number}"
            targets.append(target)

            def move(place=place, target=target):
                target.parent.mkdir(exist_ok=True)
                place.rename(target)

            by_first(move, CheckpointError)
        if steps:
            manager.reload()
        return targets

    def _read(self, manager, step, place, **items):
        try:
            return manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
            raise Damaged(f"Checkpoint {place} is damaged ({_first_line(error)})") from error

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._last.wait_until_finished()
        self._best.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self._last.close()
        self._best.close()


def best_step(facts: dict[str, Any]) -> int | None:
    """The step of the best state that facts of a single network name."""
    tracks = facts.get("tracks") or []
    best = tracks[0].get("best") if len(tracks) == 1 else None
    return best and best["step"]


def save_network(folder: Path, network: Variables, facts: dict[str, Any]) -> str:
    """Writes a finished network with its facts and content hash, which is returned; replaces one that is there."""
    variables = jax.device_get(network)
    facts = {**facts, "hash": content_hash(variables.params, variables.state)}
    tree = {"params": variables.params, "state": variables.state}
    with ocp.StandardCheckpointer(temporary_path_class=Sealed) as checkpointer:
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
        wrong = damage(folder / "weights")
    except FileNotFoundError:  # of before there were manifests: its content hash tells
        wrong = ""
    if wrong:
        raise CheckpointError(f"The network in {folder} is damaged: weights/{wrong}; {DAMAGED}.")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(folder / "weights", jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
    except Exception as error:
        raise CheckpointError(
            f"The network in {folder} is damaged ({_first_line(error)}); train that phase again."
        ) from error
    variables = Variables(restored["params"], restored["state"])
    found = content_hash(*on_host((variables.params, variables.state)))
    if found != meta["hash"]:
        raise CheckpointError(
            f"The network in {folder} is damaged (its content hash is {found}, {meta['hash']} was written); "
            "train that phase again."
        )
    return variables, meta


def on_host(tree: Tree) -> Tree:
    """The arrays of a tree as NumPy's, also where other processes hold parts of them; all must ask."""

    def whole(x):
        if getattr(x, "is_fully_addressable", True) or x.is_fully_replicated:
            return x
        return jax.jit(lambda x: x, out_shardings=NamedSharding(x.sharding.mesh, PartitionSpec()))(x)

    return jax.device_get(jax.tree.map(whole, tree))


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def _shapes(tree: Tree) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def _check_shapes(saved: dict[str, str], wanted: dict[str, str], place: Path) -> None:
    named = lambda names, start: any(name.startswith(start) for name in names)
    if named(wanted, "ema/params") and named(saved, "ema/") and not named(saved, "ema/params"):
        raise CheckpointError(
            f"{place} was written by an older kdjax, whose moving average had no statistics of BatchNorm; finish that run "
            "with the version that began it, or start anew with --overwrite."
        )
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
