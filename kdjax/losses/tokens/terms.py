"""The parts of the divergences, one token each, and how they are summed over a vocabulary without keeping arrays of its size.

A term takes the student's and the teacher's log-probabilities and the share of the mixture, where there is one, all of which
broadcast to `[..., V]`. It returns what the token adds and its slope by the student's log-probability, or several that add up.
"""

import functools
from collections.abc import Callable, Hashable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from kdjax.losses import logspace

Array = jax.Array
Term = Callable[[Array, Array, Array | None], tuple[Array, Array]]

# From here on exp(gap) may overflow, and the larger probability is taken out of the mixture first.
FAR = 30.0
# Of the least finite number, what stands in for the logarithm of no probability: no probability either, and no nan beside it.
NOTHING = 0.999


def forward(log_s: Array, log_t: Array, share) -> tuple[Array, Array]:
    p_t = jnp.exp(log_t)
    return p_t * (log_t - log_s), -p_t


def forward_cross_entropy(log_s: Array, log_t: Array, share) -> tuple[Array, Array]:
    p_t = jnp.exp(log_t)
    return p_t * -log_s, -p_t


def reverse(log_s: Array, log_t: Array, share) -> tuple[Array, Array]:
    p_s = jnp.exp(log_s)
    return p_s * (log_s - log_t), p_s * (log_s - log_t) + p_s


def both(log_s: Array, log_t: Array, share: Array) -> tuple[Array, tuple[Array, Array]]:
    """With the two slopes apart: added up before they go through the softmax, the first is rounded to the size of the second."""
    (value, slope), (reversed_value, reversed_slope) = forward(log_s, log_t, share), reverse(log_s, log_t, share)
    rest = 1 - share
    return rest * value + share * reversed_value, (rest * slope, share * reversed_slope)


def skew_forward(log_s: Array, log_t: Array, share: Array) -> tuple[Array, Array]:
    p_t, from_teacher = jnp.exp(log_t), log_mixture(log_s - log_t, share, 1 - share)  # log m - log p_t
    return -p_t * from_teacher, _slope_of_skew_forward(log_s, log_t, share)


def skew_forward_cross_entropy(log_s: Array, log_t: Array, share: Array) -> tuple[Array, Array]:
    p_t, from_teacher = jnp.exp(log_t), log_mixture(log_s - log_t, share, 1 - share)
    return -p_t * (from_teacher + log_t), _slope_of_skew_forward(log_s, log_t, share)


def _slope_of_skew_forward(log_s: Array, log_t: Array, share: Array) -> Array:
    from_student = log_mixture(log_t - log_s, 1 - share, share)  # log m - log p_s, to rounding of itself
    return -jnp.exp(log_t + jnp.log1p(-share) - from_student)


def skew_reverse(log_s: Array, log_t: Array, share: Array) -> tuple[Array, Array]:
    from_student = log_mixture(log_t - log_s, share, 1 - share)
    p_s = jnp.exp(log_s)
    return -p_s * from_student, -p_s * (from_student + jnp.expm1(jnp.log(share) - from_student))


def skew_reverse_fixed(log_s: Array, log_t: Array, share: Array) -> tuple[Array, Array]:
    """Without a gradient through the student in the mixture."""
    within = lax.stop_gradient(log_s)
    from_student, p_s = log_mixture(log_t - within, share, 1 - share), jnp.exp(log_s)
    return -p_s * (from_student + (within - log_s)), p_s * (1 - from_student)


def jsd(log_s: Array, log_t: Array, share: Array) -> tuple[Array, Array]:
    rest = 1 - share
    of_teacher, of_student = _to_mixture(log_s, log_t, share, rest)
    of_student = rest * of_student
    return share * of_teacher + of_student, of_student  # what goes through the mixture cancels


def jsd_normalized(log_s: Array, log_t: Array, share: Array) -> tuple[Array, Array]:
    # Divided one by one, since a product of shares would lose small ones.
    rest = 1 - share
    of_teacher, of_student = _to_mixture(log_s, log_t, share, rest)
    of_student = of_student / share
    return of_teacher / rest + of_student, of_student


def _to_mixture(log_s: Array, log_t: Array, share: Array, rest: Array) -> tuple[Array, Array]:
    of_teacher = -jnp.exp(log_t) * log_mixture(log_s - log_t, share, rest)
    return of_teacher, -jnp.exp(log_s) * log_mixture(log_t - log_s, rest, share)


def _with_ends(within: Term) -> Term:
    """The forward KL at a share of 0 and the reverse KL at 1."""

    def ended(log_s: Array, log_t: Array, share: Array) -> tuple[Array, Array]:
        low, high = share < jnp.finfo(share.dtype).tiny, share >= 1
        found = within(log_s, log_t, jnp.where(low | high, 0.5, share))
        found = jax.tree.map(lambda x, end: jnp.where(low, end, x), found, forward(log_s, log_t, share))
        return jax.tree.map(lambda x, end: jnp.where(high, end, x), found, reverse(log_s, log_t, share))

    return ended


jsd_to_the_ends, jsd_normalized_to_the_ends = _with_ends(jsd), _with_ends(jsd_normalized)


def variation(log_s: Array, log_t: Array, share) -> tuple[Array, Array]:
    return jax.tree.map(lambda x: 0.5 * x, twice_variation(log_s, log_t, share))


def twice_variation(log_s: Array, log_t: Array, share) -> tuple[Array, Array]:
    p_s = jnp.exp(log_s)
    gap = p_s - jnp.exp(log_t)
    side = jnp.sign(gap)
    return gap * side, side * p_s  # the slope of jnp.abs at 0 is 1


# Of sums and products alone, with nothing selected: the CPU's compiler melts a pass over the vocabulary into one loop then,
# and keeps no array of its size.
ALONE = (forward, forward_cross_entropy, reverse, twice_variation)


def log_mixture(gap: Array, stay: Array, move: Array) -> Array:
    """`log(stay + move * exp(gap))`: `log m - log a` for `m = stay * a + move * b` and `gap = log b - log a`.

    `stay + move` is 1. Exactly 0 where `gap` is, and right to rounding of the result itself for small shares, small gaps
    and gaps that overflow; a share of 0 leaves no trace of the other side.
    """
    inside = (stay > 0) & (move > 0)
    at_end = jnp.where(stay > 0, 0, gap)
    stay, move = jnp.where(inside, stay, 0.5), jnp.where(inside, move, 0.5)
    far = gap > FAR
    inner = jnp.where(far, -gap, gap)
    step = move * jnp.expm1(inner)
    close = ~far & (step > -0.5)
    grown = jnp.where(far, move, stay) + jnp.where(far, stay, move) * jnp.exp(inner)
    value = jnp.where(close, jnp.log1p(jnp.where(close, step, 0)), jnp.where(far, gap, 0) + jnp.log(grown))
    return jnp.where(inside, value, at_end)


def head_share(p_s: Array, p_t: Array, head_mass: Array) -> Array:
    """`[...]`: the head's part of `sum |p_t - p_s|`, one half where that is 0."""
    falling, gap = lax.sort((-p_t, jnp.abs(p_t - p_s)), num_keys=1, is_stable=True)
    up_to = jnp.cumsum(-falling, axis=-1)
    before = jnp.concatenate([jnp.zeros_like(up_to[..., :1]), up_to[..., :-1]], axis=-1)
    head = jnp.sum(jnp.where(before < head_mass[..., None], gap, 0), axis=-1)
    total = jnp.sum(gap, axis=-1)
    return jnp.where(total > 0, head / jnp.where(total > 0, total, 1), 0.5)


def log_softmaxes(student: Array, teacher: Array, temperature: Array) -> tuple[Array, Array, Array]:
    """Log-probabilities of both, `[..., V]`, 0 outside the boolean mask `[..., V]` of tokens that both know."""
    kept = (student != -jnp.inf) & (teacher != -jnp.inf)
    log_s, log_t = (_finite(logspace.log_softmax(logits, temperature)) for logits in (student, teacher))
    return jnp.where(kept, log_s, 0), jnp.where(kept, log_t, 0), kept


def _finite(log_p: Array) -> Array:
    """Of logits near the least finite number, as masks have them, the division by a temperature makes -inf."""
    return jnp.maximum(log_p, NOTHING * float(jnp.finfo(log_p.dtype).min))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def summed(term: Term, student: Array, teacher: Array, temperature: Array, share: Array | None) -> Array:
    """The sum of a term over the tokens that both networks know, `[...]` of logits `[..., V]` and numbers `[...]`.

    The derivative by the student's logits is written out: each pass over the vocabulary reads logits and numbers a row, and
    takes the exponentials it needs anew, so that a compiler keeps no array of log-probabilities. Derivatives by anything else,
    and second ones, are those of automatic differentiation.
    """
    return value_and_slope(term, student, teacher, temperature, share, differentiate=False)[0]


@functools.partial(summed.defjvp, symbolic_zeros=True)
def _summed_jvp(term: Term, primals, tangents):
    if not all(x is None or isinstance(x, SymbolicZero) for x in tangents[1:]):
        return jax.jvp(functools.partial(_automatic, term), primals, _instantiated(primals, tangents))
    value, slope = _value_and_slope(term, *primals)
    if isinstance(tangents[0], SymbolicZero):
        return value, jnp.zeros_like(value)
    return value, jnp.sum(slope * tangents[0], axis=-1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _value_and_slope(term: Term, student, teacher, temperature, share) -> tuple[Array, Array]:
    return value_and_slope(term, student, teacher, temperature, share)


@_value_and_slope.defjvp
def _value_and_slope_jvp(term: Term, primals, tangents):
    def found(*arrays):
        value, pull = jax.vjp(lambda student: _automatic(term, student, *arrays[1:]), arrays[0])
        return value, pull(jnp.ones_like(value))[0]

    return jax.jvp(found, primals, tangents)


def _automatic(term: Term, student, teacher, temperature, share) -> Array:
    """The same, as it is differentiated automatically."""
    log_s, log_t, kept = log_softmaxes(student, teacher, temperature)
    terms, _ = term(log_s, log_t, None if share is None else share[..., None])
    return jnp.sum(jnp.where(kept, terms, 0), axis=-1)


def value_and_slope(
    term: Term,
    student: Array,
    teacher: Array,
    temperature: Array,
    share: Array | None,
    *,
    axis_name: Hashable = None,
    differentiate: bool = True,
) -> tuple[Array, Array | None]:
    """The sums `[...]`, and their slope by the student's logits `[..., V]`, or None; neither is to be differentiated.

    Args:
      axis_name: the mapped axis that the vocabulary is spread over.
    """
    over = functools.partial(_over, axis_name)
    temperature, share = temperature[..., None], None if share is None else share[..., None]
    normalizers = (_normalizer(logits, temperature, axis_name) for logits in (student, teacher))
    rows = *normalizers, 1 / temperature, share
    if term not in ALONE:
        value, slopes, p_s = _parts(term, student, teacher, rows)
        value = over(jnp.sum(value, axis=-1))
        if not differentiate:
            return value, None
        pulls = [over(jnp.sum(slope, axis=-1, keepdims=True)) for slope in slopes]
        return value, sum(slope - p_s * pull for slope, pull in zip(slopes, pulls, strict=True)) / temperature

    least = float(jnp.finfo(temperature.dtype).min)
    constants = [jnp.full_like(temperature, number) for number in (NOTHING * least, least, 1)]
    # Barriers around the numbers a row: what a pass computes of them is its own, and not kept for the next.
    rows = lax.optimization_barrier((rows, constants))
    value = over(jnp.sum(_parts_alone(term, student, teacher, *rows)[0], axis=-1))
    if not differentiate:
        return value, None
    rows = lax.optimization_barrier(rows)
    pull = over(jnp.sum(_parts_alone(term, student, teacher, *rows)[1], axis=-1, keepdims=True))
    rows = lax.optimization_barrier(rows)
    _, slope, p_s = _parts_alone(term, student, teacher, *rows)
    return value, (slope - p_s * pull) * rows[0][2]


def _parts(term: Term, student: Array, teacher: Array, rows) -> tuple[Array, list[Array], Array]:
    """For every token: what it adds, its slopes, and the student's probability."""
    (top_s, total_s), (top_t, total_t), sharpness, share = rows
    log_s, log_t = (student - top_s) * sharpness - total_s, (teacher - top_t) * sharpness - total_t
    kept = (student != -jnp.inf) & (teacher != -jnp.inf)
    value, slopes = term(jnp.where(kept, _finite(log_s), 0), jnp.where(kept, _finite(log_t), 0), share)
    return jnp.where(kept, value, 0), [jnp.where(kept, x, 0) for x in jax.tree.leaves(slopes)], jnp.exp(log_s)


def _parts_alone(term: Term, student: Array, teacher: Array, rows, constants) -> tuple[Array, Array, Array]:
    """The same of a term of `ALONE`, in sums, products, maxima and exponentials of arrays and numbers a row, and nothing else."""
    (top_s, total_s), (top_t, total_t), sharpness, share = rows
    nothing, least, one = constants
    log_s = jnp.maximum((student - top_s) * sharpness - total_s, nothing)
    log_t = jnp.maximum((teacher - top_t) * sharpness - total_t, nothing)
    value, slope = term(log_s, log_t, share)
    is_in = lambda logits: jnp.maximum(logits - jnp.maximum(logits, least), -one) + one  # 0 for -inf, 1 for others
    kept = is_in(student) * is_in(teacher)
    return kept * value, kept * slope, jnp.exp(log_s)


def _normalizer(logits: Array, temperature: Array, axis_name: Hashable) -> tuple[Array, Array]:
    """The largest logit of a row and the logarithm of its sum of exponentials, `[..., 1]`; 0 and 0 in a row without tokens."""
    top = jnp.max(logits, axis=-1, keepdims=True)
    top = top if axis_name is None else lax.pmax(top, axis_name)
    top = jnp.where(top == -jnp.inf, 0, top)
    total = _over(axis_name, jnp.sum(jnp.exp((logits - top) / temperature), axis=-1, keepdims=True))
    return lax.optimization_barrier(top), jnp.log(jnp.where(total == 0, 1, total))


def _over(axis_name: Hashable, x: Array) -> Array:
    """The sum over all parts of the vocabulary."""
    return x if axis_name is None else lax.psum(x, axis_name)


def _instantiated(primals, tangents):
    return tuple(
        jax.tree.map(jnp.zeros_like, primal) if isinstance(tangent, SymbolicZero) else tangent
        for primal, tangent in zip(primals, tangents, strict=True)
    )
