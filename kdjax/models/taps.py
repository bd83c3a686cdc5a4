"""Intermediate values of a model by module path, and where they go in a `ModelOutput`."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import jax

from kdjax.types import ModelOutput

Paths = str | Sequence[str]
INPUT = ":input"  # behind a path: what the module is given, not what it returns


@dataclasses.dataclass(frozen=True)
class Taps:
    """Which values are kept, by field of the `ModelOutput`: `(field, name or "", path)` for each.

    A path names a submodule, "layers/3", and means what it returns; "head:input" means its first input.
    """

    wanted: tuple[tuple[str, str, str], ...]

    @classmethod
    def of(
        cls, taps: Mapping[str, str] | None, features: Paths, preactivations: Paths, embedding: str | None
    ) -> "Taps":
        several = lambda paths: (paths,) if isinstance(paths, str) else tuple(paths)
        wanted = [("taps", name, path) for name, path in (taps or {}).items()]
        wanted += [("features", "", path) for path in several(features)]
        wanted += [("preactivations", "", path) for path in several(preactivations)]
        wanted += [("embedding", "", embedding)] if embedding is not None else []
        return cls(tuple(wanted))

    @property
    def modules(self) -> dict[str, tuple[bool, bool]]:
        """`(its output is kept, its input is kept)` by path of the module."""
        paths = [path for _, _, path in self.wanted]
        names = dict.fromkeys(path.removesuffix(INPUT) for path in paths)
        return {name: (name in paths, name + INPUT in paths) for name in names}

    def fill(self, output: ModelOutput, records: Mapping[str, "Record"]) -> ModelOutput:
        """The output with what was recorded, by path with its suffix; a field that is named here is replaced.

        Raises:
          ValueError: a module ran not once; or what is to be a feature or an embedding is no array.
        """
        fields: dict[str, Any] = {}
        for field, name, path in self.wanted:
            title = f"Tap {name!r}" if field == "taps" else f"{field}={path!r}"
            values = records[path].each(title, path.removesuffix(INPUT))
            if field == "taps":
                fields.setdefault(field, dict(output.taps))[name] = values[0] if len(values) == 1 else tuple(values)
                continue
            for value in values:
                if not hasattr(value, "shape"):
                    raise ValueError(f"{title}: the module gives a {type(value).__name__} there, not an array; "
                                     "name another module.")  # fmt: skip
            if field == "embedding":
                if len(values) > 1:
                    raise ValueError(f"{title}: the module runs in a loop; an embedding is one array.")
                fields[field] = values[0]
            else:
                fields[field] = (*fields.get(field, ()), *values)
        return dataclasses.replace(output, **fields)


@dataclasses.dataclass
class Record:
    """What one module gave in a forward pass.

    Attributes:
      shapes: of the values when it gave them.
      values: the same as they came out of the model; a loop (`nnx.scan`, `nn.scan`) has stacked them.
    """

    shapes: list = dataclasses.field(default_factory=list)
    values: tuple = ()

    def each(self, title: str, path: str) -> list:
        """The one value, or one for each turn of a loop."""
        if len(self.values) != 1:
            lost = (
                f", {len(self.shapes)} times in a loop that hands nothing out"
                if self.shapes and not self.values
                else ""
            )
            raise ValueError(
                f"{title}: the module at {path!r} ran {len(self.values)} times in one forward pass{lost}; "
                "tap a module that runs exactly once."
            )
        (value,) = self.values
        inside = self.shapes[-1] if self.shapes else shapes_of(value)
        if shapes_of(value) == inside:
            return [value]
        count = jax.tree.leaves(value)[0].shape[0]
        return [jax.tree.map(lambda x, i=i: x[i], value) for i in range(count)]


def shapes_of(value: Any) -> Any:
    """The shapes of all arrays in a value."""
    return jax.tree.map(lambda x: getattr(x, "shape", None), value)


def no_module(path: str, paths: Iterable[str], where: str) -> ValueError:
    """The error for a path at which there is no module, with the nearest of those there are."""
    near = get_close_matches(path, list(paths), n=3, cutoff=0.3) or sorted(paths)[:5]
    return ValueError(f"No module at {path!r} in {where}; there are {', '.join(near)} (…).")
