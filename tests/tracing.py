"""How often a compiled function is traced: once, unless a call needs another program.

Not by the size of `jax.jit`'s cache: it is one cache for the whole process, and reads 0 once that is full.
"""

import functools

import jax


def traced_once(function):
    """`jax.jit(function)`, which fails when it is traced a second time."""
    traces = []

    @jax.jit
    @functools.wraps(function)
    def once(*arguments):
        traces.append(arguments)
        assert len(traces) == 1, "a call of the same shapes was traced anew"
        return function(*arguments)

    return once
