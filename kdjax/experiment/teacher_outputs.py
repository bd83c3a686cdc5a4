"""A phase's batches with what its teacher says of them, kept between runs."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data import Pipeline, Views
from kdjax.experiment.images import Images
from kdjax.training import Runner, Variables, content_hash
from kdjax.training.processes import any_of, by_first, is_first, of_first
from kdjax.training.teacher_cache import CacheError, Storage, TeacherCache, with_teacher
from kdjax.types import Batch, Clock, Network


def check_views(views: Views) -> None:
    """Raises unless an example's view is one of a few that are numbered."""
    if views.mixup:
        raise ValueError(
            f"data.views.mixup={views.mixup} mixes each view with a neighbour's in the batch, so that none comes twice; set "
            "mixup to 0, or teacher_cache to empty."
        )


class Remembered:
    """Batches with the teacher's outputs, from a cache that grows as views come up.

    Several processes find out together what is missing and all hold all of it; the first one writes it down.

    Args:
      pipeline: the batches.
      images: of the experiment.
      views: how the training images are shown.
      teacher, variables: the network that says it, as the step would run it.
      storage: in which form it is kept.
      folder: of all caches; the user's cache folder if empty.
      data_seed, clock: which views come up when.
      runner: the devices.
      at_once: examples in a batch of the teacher's.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        images: Images,
        views: Views,
        teacher: Network,
        variables: Variables,
        *,
        storage: Storage,
        folder: str,
        data_seed: int,
        clock: Clock,
        runner: Runner,
        at_once: int,
    ):
        facts = {name: getattr(views, name) for name in ("crop_padding", "flip", "mean", "std")}
        description = {
            "teacher": content_hash(*jax.device_get((variables.params, variables.state))),
            "data": images.train.fingerprint(),
            "views": facts,
        }
        digest = hashlib.sha256(json.dumps([description, storage.name], sort_keys=True).encode()).hexdigest()[:16]
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kdjax" / "teachers"
        make = lambda: TeacherCache(
            Path(folder or home) / digest, description, examples=len(images.train), views=views.num_views(),
            classes=images.info.num_classes, storage=storage, writes=is_first(),
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
        key, everyone = jax.random.key(data_seed), jnp.arange(len(images.train), dtype=jnp.int32)
        numbers = jax.jit(lambda number: views.numbers(everyone, number, key))

        def say(variables, shown, numbers):
            inputs = views.show(shown, numbers)
            return teacher.apply(variables.params, variables.state, inputs, train=False)[0].logits.astype(jnp.float32)

        compiled = jax.jit(say, out_shardings=runner.replicated)

        def placed(x: np.ndarray) -> jax.Array:
            return jax.make_array_from_callback(x.shape, runner.sharded, lambda part: x[part])

        def answer(examples: np.ndarray, numbers: np.ndarray) -> np.ndarray:
            shown = images.train.fetch(examples)[0], numbers.astype(np.int32)
            return np.asarray(compiled(variables, *map(placed, shown)))

        self._iterate = with_teacher(
            pipeline.iterate, self.cache, steps_per_pass=clock.steps_per_pass or clock.steps_per_epoch,
            rows=pipeline.indices, numbers=lambda number: np.asarray(numbers(number)), answer=answer, at_once=at_once,
        )  # fmt: skip

    def iterate(self, start: int) -> Iterator[Batch]:
        return self._iterate(start)

    def facts(self) -> dict[str, Any]:
        """How much the teacher had to say anew, and what keeping it changed."""
        return {"storage": self.cache.storage.name, "found": self.found, "computed": len(self.cache) - self.found,
                **self.cache.error()}  # fmt: skip
