"""What a call of a Linen module does inside: whether its layers heed training, what its submodules give and note."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from kdjax.models import modes
from kdjax.models.taps import INPUT, Record, Taps, no_module, shapes_of
from kdjax.types import Axis, Tree

NOTED = ("intermediates", "losses")  # collections that hold what a call noted down, which is no state


class Watch:
    """Stands between every call of a submodule and the caller: tells it the mode and the axis, and notes what happened.

    Attributes:
      seen: shapes of what each module gave, by path.
      modules: those modules, bound as they were.
      normalised: whether a BatchNorm ran.
      writes: for every module with batch statistics that ran, whether it wrote them.
      drops: for every dropout, whether it dropped.
      noted: shapes of what each module noted itself, by name: inside the loop, if it is in one.
    """

    def __init__(self, kept: Taps = Taps(()), train: bool = False, axis: Axis = None):
        self.kept, self.train, self.axis = kept.modules, train, axis
        self.seen: dict[str, Any] = {}
        self.modules: dict[str, linen.Module] = {}
        self.records = {path: Record() for _, _, path in kept.wanted}
        self.normalised, self.writes, self.drops = False, [], []
        self.noted: dict[str, set] = {}

    def __call__(self, following, args, kwargs, context):
        module = context.module
        if context.method_name == "setup" or module.scope is None:
            return following(*args, **kwargs)
        if context.method_name != "__call__":
            return self._noting(module, following, args, kwargs)
        path = "/".join(module.path)
        for name in ("use_running_average", "deterministic"):
            if getattr(module, name, True) is None and kwargs.get(name) is None and len(args) == 1:
                kwargs = {**kwargs, name: not self.train}
        if hasattr(module, "use_running_average") and hasattr(module, "axis_name"):
            object.__setattr__(module, "axis_name", self.axis)
            self.normalised = True
        if isinstance(module, linen.Dropout) and module.rate > 0:
            self.drops.append(_said(module, "deterministic", args, kwargs) is not True)
        result = self._noting(module, following, args, kwargs)
        self.seen[path] = shapes_of(result)
        self.modules[path] = module
        gives, given = self.kept.get(path, (False, False))
        for suffix, wished, value in (("", gives, result), (INPUT, given, (*args, *kwargs.values(), None)[0])):
            if wished:
                self.records[path + suffix].shapes.append(shapes_of(value))
                module.sow("intermediates", f"tapped{suffix}", value)
        return result

    def _noting(self, module: linen.Module, following, args, kwargs) -> Any:
        """Runs a method, and notes what it writes of its module's own."""
        before = _own(module, "batch_stats")
        result = following(*args, **kwargs)
        for collection in NOTED:
            for name, value in _own(module, collection).items():
                self.noted.setdefault(name, set()).update(jnp.shape(leaf) for leaf in jax.tree.leaves(value))
        if before:
            after = _own(module, "batch_stats")
            self.writes.append(any(after[name] is not value for name, value in before.items()))
        return result

    def unheard(self, state: Tree) -> str:
        """What a training call left as in evaluation, or ""."""
        if jax.tree.leaves(state.get("batch_stats", {})) and not any(self.writes):
            return modes.STATISTICS
        return modes.DROPOUT if self.drops and not any(self.drops) else ""

    def unknown_statistics(self, state: Tree) -> bool:
        """Whether batch statistics are taken over an axis that none of the modules seen here was told."""
        return self.train and self.axis is not None and "batch_stats" in state and not self.normalised

    def read(self, intermediates: Mapping) -> dict[str, Record]:
        """What was recorded."""
        for path, record in self.records.items():
            name = path.removesuffix(INPUT)
            if name not in self.seen:
                raise no_module(name, set(self.seen) - {""}, "the model")
            node: Any = intermediates
            for part in name.split("/"):
                node = node.get(part, {}) if isinstance(node, Mapping) else {}
            record.values = node.get(f"tapped{path.removeprefix(name)}", ()) if isinstance(node, Mapping) else ()
        return self.records


def _own(module: linen.Module, collection: str) -> dict[str, Any]:
    """The variables of a module itself. One that is not written stays the very same object, in a loop too."""
    found = module.variables.get(collection, {})
    return {name: value for name, value in found.items() if not isinstance(value, Mapping)}


def _said(module: linen.Module, name: str, args: tuple, kwargs: dict) -> Any:
    """What a layer of Flax's is told by its second argument, or else by its field of the same name."""
    given = kwargs.get(name, args[1] if len(args) > 1 else None)
    return getattr(module, name) if given is None else given
