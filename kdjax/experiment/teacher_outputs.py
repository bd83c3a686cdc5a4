"""A phase's batches with what its teacher says of them, kept between runs in a teacher cache."""

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data import Pipeline
from kdjax.places import cache_folder, local
from kdjax.tasks import Dataset, Task
from kdjax.training import Runner, Variables, content_hash
from kdjax.training.processes import any_of, by_first, is_first, of_first
from kdjax.training.teacher_cache import CacheError, Storage, TeacherCache, with_teacher
from kdjax.types import Batch, Clock, ModelOutput, Network

PROBE = "said.npy"  # what the teacher said of the first examples, in its folder of a cache


def outputs_folder(named: str) -> Path:
    """The folder of all caches of teachers' outputs: the named one, or one of the user's cache."""
    return local(named, CacheError, "A folder of teachers' outputs") if named else cache_folder("teachers")


def check_outputs_folder(named: str) -> None:
    """Refuses a folder in which nothing can be kept, before a teacher is trained for it. What is there already may do without.

    Raises:
      CacheError: it cannot be made or written.
    """
    folder = outputs_folder(named)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"outputs")
    except OSError as error:
        raise CacheError(
            f"A teacher's outputs cannot be kept in {folder} ({error.strerror or error}); name another folder with --cache-dir."
        ) from error


class StoredOutputs:
    """Batches with what a teacher said of their examples, `[N, ..., C]`, whatever their view."""

    def __init__(self, pipeline: Pipeline, logits: np.ndarray):
        self.pipeline, self.logits = pipeline, logits

    def iterate(self, start: int) -> Iterator[Batch]:
        for batch in self.pipeline.iterate(start):
            yield dataclasses.replace(batch, teacher=ModelOutput(logits=self.logits[batch.index]))


class TeacherOutputs:
    """Batches with the teacher's outputs, from a cache that grows as views come up.

    Several processes find out together what is missing and all hold all of it; the first one writes it down.

    Args:
      pipeline: the batches.
      task, dataset: whose views are numbered.
      teacher, variables: the network that says it, as the step would run it, whole on every device.
      storage: in which form it is kept.
      folder: of all caches; the user's cache folder if empty.
      data_seed, clock: which views come up when.
      runner: the devices.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        task: Task,
        dataset: Dataset,
        teacher: Network,
        variables: Variables,
        *,
        storage: Storage,
        folder: str,
        data_seed: int,
        clock: Clock,
        runner: Runner,
    ):
        views, at_once = task.numbered_views(), task.eval_batch_size

        def say(variables, inputs, numbers):
            shown = views.show(inputs, numbers)
            return teacher.apply(variables.params, variables.state, shown, train=False)[0].logits.astype(jnp.float32)

        raw = dataset.shapes(at_once)["inputs"]
        logits = jax.eval_shape(say, variables, raw, jax.ShapeDtypeStruct((at_once,), np.int32))
        description = {
            "teacher": content_hash(*jax.device_get((variables.params, variables.state))),
            "data": dataset.train.fingerprint(),
            "views": views.facts,
        }
        digest = hashlib.sha256(json.dumps([description, storage.name], sort_keys=True).encode()).hexdigest()[:16]
        make = lambda: TeacherCache(
            outputs_folder(folder) / digest, description, examples=len(dataset.train), views=views.count,
            shape=logits.shape[1:], storage=storage, writes=is_first(),
        )  # fmt: skip
        if jax.process_count() > 1:
            by_first(make, CacheError)  # the folder is there when the others look
        self.cache = make()
        self.found = len(self.cache)
        if any_of(self.found != of_first(self.found)):
            raise CacheError(
                f"The processes of this run find different outputs in {self.cache.folder}; name a folder on a disk that all "
                "hosts see, with --cache-dir."
            )
        key, everyone = jax.random.key(data_seed), jnp.arange(len(dataset.train), dtype=jnp.int32)
        numbers = jax.jit(lambda number: views.numbers(everyone, number, key))
        compiled = jax.jit(say, out_shardings=runner.replicated)

        def placed(x: np.ndarray) -> jax.Array:
            return jax.make_array_from_callback(x.shape, runner.sharded, lambda part: x[part])

        def answer(examples: np.ndarray, numbers: np.ndarray) -> np.ndarray:
            inputs = jax.tree.map(placed, dataset.train.read(examples)["inputs"])
            return np.asarray(compiled(variables, inputs, placed(numbers.astype(np.int32))))

        rows = np.resize(np.arange(min(len(dataset.train), at_once)), at_once)
        self._check(answer(rows, np.zeros(at_once, np.int32)))
        self._iterate = with_teacher(
            pipeline.iterate, self.cache, steps_per_pass=clock.steps_per_pass or clock.steps_per_epoch,
            rows=pipeline.indices, numbers=lambda number: np.asarray(numbers(number)), answer=answer, at_once=at_once,
        )  # fmt: skip

    def _check(self, said: np.ndarray) -> None:
        """Refuses a cache of a teacher that has these weights and says something else: by another normalisation, or other code.

        Raises:
          CacheError: it does, or what was said there cannot be read.
        """
        path = self.cache.folder / PROBE

        def keep():
            with contextlib.suppress(OSError):  # what is all there already may lie where nothing can be written
                if not path.exists():
                    temporary = path.with_suffix(f".{os.getpid()}.npy")
                    np.save(temporary, said)
                    temporary.replace(path)

        by_first(keep, CacheError)
        if not path.exists():
            return
        try:
            before = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise CacheError(f"{path} cannot be read ({error}); delete {path.parent}.") from error
        # Devices differ in the last digits, and in fewer where they multiply in less precision.
        same = before.shape == said.shape and alike(before, said)
        if any_of(not same):
            raise CacheError(
                f"The outputs in {path.parent} are of a teacher with the same weights that says something else of the same "
                "inputs: another mean and std, or other code; name another --cache-dir, or delete that folder."
            )

    def iterate(self, start: int) -> Iterator[Batch]:
        return self._iterate(start)

    def facts(self) -> dict[str, Any]:
        """How much the teacher had to say anew, and what keeping it changed."""
        return {"storage": self.cache.storage.name, "found": self.found, "computed": len(self.cache) - self.found,
                **self.cache.error()}  # fmt: skip


def alike(before: np.ndarray, said: np.ndarray) -> bool:
    """Whether two outputs are the same but for the last digits; a class that is out (-inf) is out in both."""
    there = before != -np.inf
    if not np.array_equal(there, said != -np.inf):
        return False
    before, said = before[there], said[there]
    return not len(before) or bool(np.abs(before - said).max() <= 0.01 * max(before.std(), said.std()) + 1e-4)
