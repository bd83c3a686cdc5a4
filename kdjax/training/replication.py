"""Which results of a program that runs once a device differ between the devices, by its jaxpr.

Under `pmap` what is returned is kept of the first device. That is right where every device computes the same: from what all have,
or from sums over all of them. A value that depends on a device's own rows otherwise (batch statistics of a layer that was not
told the axis) would become that of an eighth of the batch in silence.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

# Of variables that change in place what is read may be anything that was written.
_OF_REFERENCES = ("get", "swap", "addupdate", "masked_load", "masked_swap")
# What gives the same on every device of the axis it goes over, and what differs between them by itself.
_AGREED = ("psum", "pmax", "pmin", "all_gather", "psum_invariant", "all_gather_invariant")
_OWN = ("axis_index", "ppermute", "all_to_all", "reduce_scatter", "psum_scatter")


def differing(function: Callable, axis: str, arguments: Sequence[Any]) -> list[str]:
    """Paths of the results of a function under `pmap`, one of replicated outputs, that may differ between its devices.

    Args:
      function: what `jax.pmap` gave.
      axis: the name of its axis.
      arguments: as it is called.

    Raises:
      ValueError: this version of JAX has another form of pmap, which is not read.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    inside = _mapped(closed.jaxpr)
    if inside is None:
        raise ValueError(
            "This JAX runs pmap in a form in which kdjax cannot tell what differs between devices; use the jit runner."
        )
    over = [any(axis in _names(part) for part in spec) for spec in inside.params["in_specs"]]
    found = _varying(inside.params["jaxpr"], over, axis)
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(shapes)
    ]
    return [path for path, differs in zip(paths, found, strict=True) if differs]


def _mapped(jaxpr: Any) -> Any:
    """The equation of what runs once a device."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "shard_map":
            return equation
        for inner in _bodies(equation):
            if (found := _mapped(inner)) is not None:
                return found
    return None


def _varying(jaxpr: Any, given: Sequence[bool], axis: str) -> list[bool]:
    """Which results of a jaxpr differ, where these of its arguments do."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    differs = dict(zip(jaxpr.invars, given, strict=True))
    of = lambda atom: not isinstance(atom, jax.extend.core.Literal) and differs.get(atom, False)
    for equation in jaxpr.eqns:
        found = _of_equation(equation, [of(atom) for atom in equation.invars], axis)
        differs |= dict(zip(equation.outvars, found, strict=True))
    return [of(atom) for atom in jaxpr.outvars]


def _of_equation(equation: Any, given: list[bool], axis: str) -> list[bool]:
    name, params, outputs = equation.primitive.name, equation.params, len(equation.outvars)
    over = axis in _names(params.get("axes", params.get("axis_name", ())))
    if (name in _OWN and over) or name in _OF_REFERENCES:
        return [True] * outputs
    if name in _AGREED and over and params.get("axis_index_groups") is None:
        return [False] * outputs
    if name == "optimization_barrier":
        return given
    if name == "scan":
        return _of_scan(equation, given, axis)
    if name == "while":
        return _of_while(params, given, axis)
    if name == "cond":
        which, *rest = given
        found = [_varying(branch, rest, axis) for branch in params["branches"]]
        return [which or any(one) for one in zip(*found, strict=True)]
    bodies = _bodies(equation)
    if len(bodies) == 1 and len(getattr(bodies[0], "invars", ())) == len(given) and len(bodies[0].outvars) == outputs:
        return _varying(bodies[0], given, axis)
    return [any(given)] * outputs


def _of_scan(equation: Any, given: list[bool], axis: str) -> list[bool]:
    body = equation.params["jaxpr"].jaxpr
    # What is gone over has one axis more outside; JAX' own counts have changed their names.
    alike = lambda outer, inner: sum(a.aval.ndim == b.aval.ndim for a, b in zip(outer, inner, strict=True))
    carried = alike(equation.outvars, body.outvars)
    constants = alike(equation.invars, body.invars) - carried
    fixed, state, rows = given[:constants], given[constants : constants + carried], given[constants + carried :]
    state, found = _settled(state, lambda now: _varying(body, [*fixed, *now, *rows], axis))
    return found if equation.params["length"] else [*state, *found[carried:]]


def _of_while(params: dict[str, Any], given: list[bool], axis: str) -> list[bool]:
    asking, doing = params["cond_nconsts"], params["body_nconsts"]
    asked, fixed, state = given[:asking], given[asking : asking + doing], given[asking + doing :]

    def once(now):
        (goes_on,) = _varying(params["cond_jaxpr"], [*asked, *now], axis)
        return [goes_on or one for one in _varying(params["body_jaxpr"], [*fixed, *now], axis)]

    return _settled(state, once)[0]  # it may be that nothing is done at all


def _settled(state: list[bool], once: Callable[[list[bool]], list[bool]]) -> tuple[list[bool], list[bool]]:
    """A loop's state when going round once more changes nothing, and what that gives."""
    while True:
        found = once(state)
        now = [before or after for before, after in zip(state, found, strict=False)]
        if now == state:
            return state, found
        state = now


def _bodies(equation: Any) -> list[Any]:
    """The jaxprs that an equation runs."""
    found = [value for value in equation.params.values() if hasattr(getattr(value, "jaxpr", value), "eqns")]
    return [getattr(value, "jaxpr", value) for value in found]


def _names(value: Any) -> tuple:
    return value if isinstance(value, tuple | list) else (value,)
