"""A network by reference: `my_models.py:TinyNet`, built with what its constructor asks for under the usual names."""

import inspect
import typing
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

import jax
from flax import linen as nn
from flax import nnx

from kdjax.models.linen import from_linen
from kdjax.models.nnx import from_nnx
from kdjax.references import label, load_reference, read_options
from kdjax.types import Network, Tree

# What a network may want to know of the data, by the names that constructors have for it.
USUAL = {
    "num_classes": ("num_classes", "n_classes", "nclasses", "num_labels", "classes", "num_outputs", "out_features", "output_dim"),
    "in_channels": ("in_channels", "in_chans", "num_channels", "input_channels", "channels", "in_features", "input_dim"),
    "image_size": ("image_size", "img_size", "input_size", "resolution"),
}  # fmt: skip
# Of these, names that may also mean a width or the like: they are filled in where they must be given, and nothing else is.
PERHAPS = {
    "classes",
    "out_features",
    "output_dim",
    "num_channels",
    "channels",
    "in_features",
    "input_dim",
    "resolution",
}


def from_reference(
    reference: str, inputs: Tree, *, facts: Mapping[str, Any], options: tuple[str, ...] = (), **taps: Any
) -> Network:
    """The network that a reference names.

    Args:
      reference: of a class of NNX or Linen modules, a Linen module, a `Network`; or of a function that returns one of these
        and says which behind its arguments (`-> nnx.Module`). It is called with what it asks for: of `facts` under any usual
        name, `rngs`, and `options`.
      inputs: example inputs (or their shapes) with a batch axis.
      facts: what is known of the data: "num_classes", "in_channels", "image_size".
      options: further arguments as "name=value".
      taps: as in `from_nnx`.

    Raises:
      ValueError: there is no such thing, or it asks for more; in one sentence.
    """
    found, given = load_reference(reference), read_options(options)
    name = " ".join([label(reference), *(f"({', '.join(options)})" for _ in options[:1])])
    if isinstance(found, Network | nn.Module | nnx.Module):
        if given:
            raise ValueError(f"{reference} is built already, so it takes no options; name its class.")
        return _adapted(found, inputs, name, taps)
    kind = found if isinstance(found, type) else _returned(found, reference)
    arguments = _arguments(found, reference, _known(facts, _parameters(found)), given)
    if issubclass(kind, nnx.Module):
        takes_rngs = "rngs" in _parameters(found)
        return from_nnx(lambda rngs: found(**arguments, **({"rngs": rngs} if takes_rngs else {})), name=name, **taps)
    if issubclass(kind, nn.Module | Network):
        return _adapted(found(**arguments), inputs, name, taps)
    raise ValueError(f"{reference} is a {kind.__name__}; name a class of nnx.Module or linen.Module, or a Network.")


def _adapted(found: Any, inputs: Tree, name: str, taps: Mapping[str, Any]) -> Network:
    if isinstance(found, Network):
        if any(taps.values()):
            raise ValueError(f"{name} is a Network, which gives features itself; leave features and embedding out.")
        return found
    if isinstance(found, nn.Module):
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
        return from_linen(found, shapes, name=name, **taps)
    return from_nnx(found, name=name, **taps)


def _returned(function: Any, reference: str) -> type:
    """What a function says it returns. It is asked, for a saved run must not be able to call just anything."""
    if not callable(function):
        raise ValueError(
            f"{reference} is a {type(function).__name__}; name a class of modules, or a function that makes one."
        )
    try:
        kind = typing.get_type_hints(function).get("return")
    except Exception:
        kind = None
    if not (isinstance(kind, type) and issubclass(kind, nnx.Module | nn.Module | Network)):
        raise ValueError(
            f"{reference} does not say what it returns; write `-> nnx.Module`, or what it is, behind its arguments."
        )
    return kind


def _parameters(function: Any) -> dict[str, inspect.Parameter]:
    """What a function or class asks for; of a class its constructor is asked, for NNX's metaclass hides it."""
    if not isinstance(function, type):
        return dict(inspect.signature(function).parameters)
    own = dict(inspect.signature(function.__init__).parameters)
    own.pop(next(iter(own)))
    return own


def _known(facts: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """What is known of the data, by the names that these parameters have for it."""
    known = {}
    for fact, value in facts.items():
        names = [name for name in USUAL.get(fact, (fact,)) if name in parameters]
        sure = [name for name in names if name not in PERHAPS]
        needed = [name for name in names if parameters[name].default is inspect.Parameter.empty]
        known |= dict.fromkeys(sure or needed, value)
    return known


def _arguments(
    function: Callable, reference: str, known: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    parameters = _parameters(function)
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in options:
            if name not in named:
                near = get_close_matches(name, named, n=1) or [", ".join(n for n in named if n != "rngs")]
                raise ValueError(f"{reference} takes no {name!r}; it takes {near[0]}.")
    values = {name: known[name] for name in named if name in known} | dict(options)
    missing = [n for n, p in named.items() if p.default is p.empty and n not in values and n != "rngs"]
    if missing:
        raise ValueError(f"{reference} needs {', '.join(missing)}; set the network's options, such as {missing[0]}=3.")
    return values
