"""kdjax: knowledge distillation in JAX and Flax.

`kdjax.distill`, `run`, `compare`, `grid`, `reproduce` and `load_trained` are imported when they are asked for, so that `import
kdjax.losses` costs no more than jax and chex.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdjax.experiment.distill import distill as distill
    from kdjax.experiment.interactive import compare as compare
    from kdjax.experiment.interactive import grid as grid
    from kdjax.experiment.interactive import reproduce as reproduce
    from kdjax.experiment.interactive import run as run
    from kdjax.experiment.trained import load_trained as load_trained

__version__ = "0.1.0"

_HOMES = {
    "compare": "kdjax.experiment.interactive",
    "distill": "kdjax.experiment.distill",
    "grid": "kdjax.experiment.interactive",
    "load_trained": "kdjax.experiment.trained",
    "reproduce": "kdjax.experiment.interactive",
    "run": "kdjax.experiment.interactive",
}
_ROOMS = ("analysis", "data", "experiment", "losses", "models", "objectives", "schedules", "tasks", "training", "types")


def __dir__() -> list[str]:
    return sorted((*_HOMES, *_ROOMS, "__version__"))


def _find(name: str):
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"kdjax.{name}")
    raise AttributeError(f"kdjax has no {name!r}; it has {', '.join(__dir__()[1:])}.")


if not TYPE_CHECKING:  # a type checker knows what there is
    __getattr__ = _find
