"""Intermediate values of an NNX model by module path, without touching that model."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from flax import nnx


def install_taps(module: nnx.Module, taps: Mapping[str, str]) -> dict[str, list]:
    """Makes the submodules at `taps` record what they return.

    Args:
      module: the module of this call (a merged copy: the user's own is never changed).
      taps: name to path, such as `{"stage3": "layers/3"}`; list elements by their number.

    Returns:
      A dict from name to the list of recorded outputs, filled while the module runs.
    """
    records: dict[str, list] = {name: [] for name in taps}
    for name, path in taps.items():
        node = _find(module, path)
        node.__class__ = _recording(type(node), records[name])
    return records


def collect(records: Mapping[str, list], taps: Mapping[str, str]) -> dict:
    """The recorded outputs by name; a module that ran not once, or more than once, is refused."""
    for name, values in records.items():
        if len(values) != 1:
            raise ValueError(
                f"Tap {name!r}: the module at {taps[name]!r} ran {len(values)} times in one forward pass; "
                "tap a module that runs exactly once."
            )
    return {name: values[0] for name, values in records.items()}


def _recording(cls: type, record: list) -> type:
    def __call__(self, *args, **kwargs):
        result = cls.__call__(self, *args, **kwargs)
        record.append(result)
        return result

    return type(cls.__name__, (cls,), {"__call__": __call__})


def _find(module: nnx.Module, path: str) -> nnx.Module:
    modules = {"/".join(map(str, parts)): node for parts, node in nnx.iter_modules(module) if parts}
    if path not in modules:
        raise no_module(path, modules, type(module).__name__)
    return modules[path]


def no_module(path: str, paths: Iterable[str], where: str) -> ValueError:
    """The error for a path at which there is no module, with the nearest of those there are."""
    near = get_close_matches(path, list(paths), n=3, cutoff=0.3) or sorted(paths)[:5]
    return ValueError(f"No module at {path!r} in {where}; there are {', '.join(near)} (…).")
