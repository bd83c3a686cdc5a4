"""Whether any operation of a program makes a nan, also one that a later operation hides.

As strict as `checkify.nan_checks`, in half the time: what each operation makes is returned, and looked at in NumPy. Only
operations with programs inside, such as loops, are checkified.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jax.extend import core

CALLS = ("jit", "custom_jvp_call", "custom_vjp_call")
# Those that only move, choose or round numbers make none: a constant nan may be there to be chosen from.
MOVES = ("broadcast_in_dim", "convert_element_type", "copy", "reshape", "select_n", "squeeze", "transpose")


def without_nans(function, *arguments, **options):
    """The result of `function`, compiled with the options of a compiler, in NumPy arrays.

    Raises:
      AssertionError, jax.experimental.checkify.JaxRuntimeError: an operation makes a nan.
    """
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)

    names: list[str] = []

    def watched(*leaves):
        made, errors = [], []
        results = _run(program, leaves, made, errors)
        names[:] = [name for name, _ in made]
        return results, [array for _, array in made], errors

    leaves, made, errors = jax.device_get(jax.jit(watched, compiler_options=options)(*jax.tree.leaves(arguments)))
    for name, array in zip(names, made, strict=True):
        assert not np.any(np.isnan(array)), f"{name} makes a nan"
    for error in errors:
        error.throw()
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _run(program, given, made, errors):
    """Traces a program operation by operation; adds what each makes, or the error of those with programs inside."""
    values = dict(zip([*program.jaxpr.constvars, *program.jaxpr.invars], [*program.consts, *given], strict=True))
    read = lambda x: x.val if isinstance(x, core.Literal) else values[x]
    for operation in program.jaxpr.eqns:
        primitive, params = operation.primitive, operation.params
        taken = [read(x) for x in operation.invars]
        if primitive.name in CALLS:
            results = _run(params.get("jaxpr", params.get("call_jaxpr")), taken, made, errors)
        else:
            results = lambda *taken, bind=primitive.bind, params=params: bind(*taken, **params)
            if any(isinstance(leaf, core.ClosedJaxpr | core.Jaxpr) for leaf in jax.tree.leaves(list(params.values()))):
                error, results = checkify.checkify(results, errors=checkify.nan_checks)(*taken)
                errors.append(error)
            else:
                results = results(*taken)
            results = results if primitive.multiple_results else [results]
            if primitive.name not in MOVES:
                made += [(primitive.name, x) for x in results if jnp.issubdtype(x.dtype, jnp.floating)]
        values.update(zip(operation.outvars, results, strict=True))
    return [read(x) for x in program.jaxpr.outvars]
