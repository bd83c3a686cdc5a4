"""The divergences between two softmaxes against their formulas, their limits, and what breaks in the plain forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.losses.tokens import divergences
from tests.losses import numpy_reference as reference
from tests.losses.computing import compiled, computing_in, draw, mean_and_gradient

losses, divergences = map(compiled, (losses, divergences))

STUDENT, TEACHER = draw(70, 6, 5), draw(71, 6, 5)
TOLERANCE = {"f64": {"rtol": 1e-9, "atol": 1e-13}, "f32": {"rtol": 2e-5, "atol": 1e-6}}
PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])


def numpy_divergence(name, student, teacher, *, temperature=1.0, alpha=0.1, beta=0.5, head_mass=0.5, **how):
    """(values `[...]`, the gradient of their sum by the student), in NumPy float64, by the textbook formulas."""
    all_s, all_t = reference.log_softmax(student, temperature), reference.log_softmax(teacher, temperature)
    kept = np.isfinite(all_s) & np.isfinite(all_t)
    s, t = np.where(kept, all_s, 0.0), np.where(kept, all_t, 0.0)
    p_s, p_t = np.exp(s), np.exp(t)
    forward = np.array([p_t * (t - s), -p_t])  # terms, and their slopes by log p_s
    reverse = np.array([p_s * (s - t), p_s * (s - t) + p_s])
    if name == "forward_kl":
        terms, slope = forward
        terms = -p_t * s if how.get("cross_entropy_form") else terms
    elif name == "reverse_kl":
        terms, slope = reverse
    elif name == "symmetric_kl":
        terms, slope = (1 - alpha) * forward + alpha * reverse
    elif name == "akl":
        weight = np.apply_along_axis(lambda row: head_weight(*np.split(row, 2), head_mass), -1, joined(p_s, p_t, kept))
        terms, slope = weight[..., None] * forward + (1 - weight[..., None]) * reverse
    elif name == "tvd":
        terms, slope = 0.5 * np.abs(p_t - p_s), 0.5 * np.sign(p_s - p_t) * p_s
    else:
        share = {"skew_fkl": alpha, "skew_rkl": 1 - alpha, "jsd": beta}[name]
        m = np.logaddexp(t + np.log(share), s + np.log1p(-share))
        slope_m = (1 - share) * np.exp(s - m)
        teachers = np.array([p_t * (t - m), -p_t * slope_m])
        students = np.array([p_s * (s - m), p_s * (s - m) + p_s - p_s * slope_m])
        if name == "skew_fkl":
            terms, slope = teachers
            terms = -p_t * m if how.get("cross_entropy_form") else terms
        elif name == "skew_rkl":
            terms, slope = students
        else:
            terms, slope = beta * teachers + (1 - beta) * students
            if how.get("normalized"):
                terms, slope = terms / (beta * (1 - beta)), slope / (beta * (1 - beta))
    terms, slope = np.where(kept, terms, 0.0), np.where(kept, slope, 0.0)
    return terms.sum(-1), (slope - np.exp(all_s) * slope.sum(-1, keepdims=True)) / temperature


def joined(p_s, p_t, kept):
    return np.concatenate([np.where(kept, p_s, 0.0), np.where(kept, p_t, 0.0)], axis=-1)


def head_weight(p_s, p_t, head_mass):
    """The forward KL's weight in `akl`, for one row, token by token."""
    head, mass = [], 0.0
    for token in sorted(range(len(p_t)), key=lambda v: (-p_t[v], v)):
        if mass >= head_mass:
            break
        head.append(token)
        mass += p_t[token]
    gap = np.abs(p_t - p_s)
    return gap[head].sum() / gap.sum() if gap.sum() > 0 else 0.5


LOSSES = {
    "forward_kl": {},
    "forward_kl, cross-entropy": {"cross_entropy_form": True},
    "reverse_kl": {},
    "symmetric_kl": {"alpha": 0.7},
    "jsd": {"beta": 0.2},
    "jsd, normalized": {"beta": 0.9, "normalized": True},
    "skew_fkl": {"alpha": 0.1},
    "skew_fkl, cross-entropy": {"alpha": 0.3, "cross_entropy_form": True},
    "skew_rkl": {"alpha": 0.1},
    "tvd": {},
    "akl": {"head_mass": 0.6},
}
CROSS_ENTROPIES = ("forward_kl, cross-entropy", "skew_fkl, cross-entropy")
NAMES = {key: key.partition(",")[0] for key in LOSSES}


def bound(key, **more):
    return functools.partial(getattr(divergences, NAMES[key]), **LOSSES[key], **more)


def over(keys):
    return pytest.mark.parametrize("key", keys)


EVERY = over(LOSSES)
DIVERGENCES = over([key for key in LOSSES if key not in CROSS_ENTROPIES])


@functools.partial(jax.jit, static_argnums=0)
def values_and_gradient(key, student, teacher, temperature):
    loss = bound(key, temperature=temperature)
    values, pull = jax.vjp(lambda s: loss(s, teacher), student)
    return values, pull(jnp.ones_like(values))[0]


def excluding(logits, *places):
    logits = logits.copy()
    for place in places:
        logits[place] = -np.inf
    return logits


INPUTS = {
    "plain": (STUDENT, TEACHER, 1.0),
    "soft": (STUDENT, TEACHER, 2.5),
    "fifty": (draw(72, 6, 5, scale=50), draw(73, 6, 5, scale=50), 1.0),
    "ten thousand": (draw(74, 6, 5, scale=1e4), draw(75, 6, 5, scale=1e4), 1.0),
    "one side nearly excludes": (STUDENT - 1e4 * (np.arange(5) == 2), TEACHER - 200 * (np.arange(5) == 4), 1.0),
    "excluded": (
        excluding(STUDENT, (0, 1), (2, 0), (2, 3), (3, 2)),
        excluding(TEACHER, (1, 4), (2, 0), (3, 1), (5, 0)),
        1.0,
    ),
}


@PRECISIONS
@pytest.mark.parametrize("inputs", INPUTS)
@EVERY
def test_value_and_gradient_are_those_of_the_formula(key, inputs, precision):
    student, teacher, temperature = (np.asarray(x, np.float32) for x in INPUTS[inputs])
    hyper = LOSSES[key] | {"temperature": float(temperature)}
    with np.errstate(invalid="ignore"):
        expected, expected_gradient = numpy_divergence(NAMES[key], student, teacher, **hyper)
    with computing_in(precision) as real:
        values, gradient = values_and_gradient(key, real(student), real(teacher), real(temperature))
    tolerance = TOLERANCE[precision]
    np.testing.assert_allclose(values, expected, **tolerance)
    scale = max(np.abs(expected).max(), 1)  # differences of numbers as large as the value
    np.testing.assert_allclose(gradient, expected_gradient, tolerance["rtol"], tolerance["atol"] * scale)


@EVERY
def test_where_some_probabilities_are_equal_the_gradient_is_that_of_the_formula(key):
    """A maximum or an absolute value is no smooth function there, but for the total variation the divergences are."""
    student = np.log(np.array([[0.375, 0.125, 0.25, 0.25]], np.float32))
    teacher = student[:, [1, 0, 2, 3]]
    p_s, p_t = (jnp.exp(jax.nn.log_softmax(logits)) for logits in (student, teacher))
    np.testing.assert_array_equal(p_s[:, 2:], p_t[:, 2:])
    _, gradient = values_and_gradient(key, student, teacher, np.float32(1))
    _, expected = numpy_divergence(NAMES[key], student, teacher, **LOSSES[key])
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


@EVERY
def test_one_value_for_each_row_however_the_rows_are_arranged(key):
    loss = bound(key)
    values = loss(STUDENT, TEACHER)
    assert values.shape == (6,) and values.dtype == jnp.float32
    np.testing.assert_allclose(loss(STUDENT.reshape(2, 3, 5), TEACHER.reshape(2, 3, 5)).reshape(6), values, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(loss)(STUDENT, TEACHER), values, rtol=1e-6)
    order = np.array([3, 1, 4, 0, 2])
    np.testing.assert_allclose(loss(STUDENT[:, order], TEACHER[:, order]), values, rtol=1e-5)


@EVERY
def test_a_shift_of_all_logits_changes_nothing(key):
    student, teacher = np.round(STUDENT * 8) / 8, np.round(TEACHER * 8) / 8  # exact in float32, shifted too
    expected = bound(key)(student, teacher)
    np.testing.assert_allclose(bound(key)(student + 100, teacher - 50), expected, rtol=1e-5, atol=1e-6)


@EVERY
def test_nothing_flows_into_the_teacher(key):
    by_student, by_teacher = jax.grad(lambda s, t: bound(key)(s, t).sum(), argnums=(0, 1))(STUDENT, TEACHER)
    np.testing.assert_array_equal(by_teacher, 0)
    assert np.abs(by_student).max() > 1e-3


@DIVERGENCES
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(key, scale):
    logits = excluding(scale * TEACHER, (1, 2))
    values, pull = jax.vjp(lambda s: bound(key)(s, logits), logits)
    np.testing.assert_array_equal(values, 0)
    np.testing.assert_allclose(pull(jnp.ones(6))[0], 0, atol=1e-6)


@DIVERGENCES
def test_near_its_teacher_a_student_is_right_to_rounding(key):
    student = TEACHER + 1e-3 * STUDENT
    values = bound(key)(student, TEACHER)
    expected, _ = numpy_divergence(NAMES[key], student, TEACHER, **LOSSES[key])
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=4e-7)


@EVERY
def test_half_types_are_computed_and_returned_in_float32(key):
    student, teacher = jnp.asarray(STUDENT, jnp.bfloat16), jnp.asarray(TEACHER, jnp.bfloat16)
    values = bound(key)(student, teacher)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, bound(key)(student.astype(jnp.float32), teacher.astype(jnp.float32)))
    np.testing.assert_allclose(values, bound(key)(STUDENT, TEACHER), rtol=0.1, atol=0.02)


@EVERY
def test_one_token_leaves_nothing_to_choose(key):
    values, pull = jax.vjp(lambda s: bound(key)(s, TEACHER[:, :1]), STUDENT[:, :1])
    np.testing.assert_array_equal(values, 0)
    np.testing.assert_array_equal(pull(jnp.ones(6))[0], 0)


@EVERY
def test_a_token_that_both_networks_exclude_is_as_if_it_were_not_there(key):
    student, teacher, kept = excluding(STUDENT, np.s_[:, 2]), excluding(TEACHER, np.s_[:, 2]), [0, 1, 3, 4]
    values, pull = jax.vjp(lambda s: bound(key)(s, teacher), student)
    fewer, pull_fewer = jax.vjp(lambda s: bound(key)(s, TEACHER[:, kept]), STUDENT[:, kept])
    np.testing.assert_allclose(values, fewer, rtol=1e-5)
    gradient = pull(jnp.ones(6))[0]
    np.testing.assert_allclose(gradient[:, kept], pull_fewer(jnp.ones(6))[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradient[:, 2], 0)


@EVERY
def test_a_row_without_any_token_is_nothing(key):
    student, teacher = excluding(STUDENT, np.s_[1]), excluding(TEACHER, np.s_[1], np.s_[4])
    values, pull = jax.vjp(lambda s: bound(key)(s, teacher), student)
    np.testing.assert_array_equal(values[np.array([1, 4])], 0)
    gradient = pull(jnp.ones(6))[0]
    assert np.isfinite(gradient).all() and np.isfinite(values).all()


@over([key for key in LOSSES if key != "akl"])  # whose weights are constants, which no difference quotient knows
def test_temperature_may_be_learned_beside_excluded_tokens(key):
    student, teacher, _ = INPUTS["excluded"]
    temperatures = np.array([0.5, 1.0, 2.0, 4.0, 1.0, 3.0], np.float32)
    with computing_in("f64") as real:

        def loss(temperature):
            return bound(key, temperature=temperature)(real(student), real(teacher))

        slope = jax.grad(lambda temperature: loss(temperature).sum())(real(temperatures))
        around = (loss(real(temperatures) + 1e-6) - loss(real(temperatures) - 1e-6)) / 2e-6
        np.testing.assert_allclose(slope, around, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(loss(real(temperatures))[3], loss(4.0)[3], rtol=1e-12)


# Relations among them


def test_forward_kl_is_distillation_without_its_factor():
    with computing_in("f64") as real:
        student, teacher = real(STUDENT), real(TEACHER)
        values = divergences.forward_kl(student, teacher, temperature=2.0)
        np.testing.assert_allclose(values, losses.kd(student, teacher, temperature=2.0) / 4, rtol=1e-12)
        larger = divergences.forward_kl(student, teacher, temperature=2.0, cross_entropy_form=True)
        np.testing.assert_allclose(larger - values, losses.predictive_entropy(teacher / 2), rtol=1e-12)
        swapped = divergences.reverse_kl(teacher, student, temperature=2.0)
        np.testing.assert_allclose(swapped, values, rtol=1e-12)
    assert divergences.forward_kl(jnp.array([0.0, -jnp.inf]), jnp.zeros(2)) == pytest.approx(-0.5 * np.log(2))
    assert losses.kd(jnp.array([0.0, -jnp.inf]), jnp.zeros(2), temperature=1.0) == np.inf


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_symmetric_kl_weighs_both(alpha):
    forward, reverse = divergences.forward_kl(STUDENT, TEACHER), divergences.reverse_kl(STUDENT, TEACHER)
    values = divergences.symmetric_kl(STUDENT, TEACHER, alpha=alpha)
    np.testing.assert_allclose(values, (1 - alpha) * forward + alpha * reverse, rtol=1e-6)


def test_symmetric_kl_leans_to_the_reverse_side_by_default():
    values = divergences.symmetric_kl(STUDENT, TEACHER)
    np.testing.assert_allclose(values, divergences.symmetric_kl(STUDENT, TEACHER, alpha=0.9), rtol=1e-6)


def both_ends(**how):
    forward, reverse = divergences.forward_kl(STUDENT, TEACHER), divergences.reverse_kl(STUDENT, TEACHER)
    return (0.0, forward), (1.0, reverse)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("form", [float, np.float32, jnp.float32, lambda x: jnp.full(6, x)])
def test_jsd_at_its_ends_is_a_whole_kl_for_numbers_and_traced_values(form, normalized):
    for beta, expected in both_ends():
        values = divergences.jsd(STUDENT, TEACHER, beta=form(beta), normalized=normalized)
        np.testing.assert_array_equal(values, expected)
    traced, gradient = mean_and_gradient(divergences.jsd, STUDENT, TEACHER, beta=1.0)
    np.testing.assert_allclose(traced, divergences.reverse_kl(STUDENT, TEACHER).mean(), rtol=1e-6)
    _, expected = mean_and_gradient(divergences.reverse_kl, STUDENT, TEACHER)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def test_jsd_takes_one_beta_a_token():
    beta = jnp.array([0.0, 0.3, 0.5, 0.9, 1.0, 1e-3])
    values = divergences.jsd(STUDENT, TEACHER, beta=beta)
    for i, share in enumerate(np.asarray(beta)):
        alone = divergences.jsd(STUDENT[i], TEACHER[i], beta=float(share))
        np.testing.assert_allclose(values[i], alone, rtol=1e-6)


def test_jsd_jumps_at_its_ends_and_normalized_it_does_not():
    for end, expected in both_ends():
        for distance in (1e-3, 1e-5, 1e-7):
            beta = abs(end - distance)
            near = divergences.jsd(STUDENT, TEACHER, beta=beta)
            assert (near < 0.02 * expected).all() and (near >= 0).all()
            normalized = divergences.jsd(STUDENT, TEACHER, beta=beta, normalized=True)
            np.testing.assert_allclose(normalized, expected, rtol=50 * distance + 1e-4)


@pytest.mark.parametrize("beta", [1e-40, 1 - 1e-12])
def test_jsd_nearer_to_an_end_than_the_precision_is_the_end(beta):
    expected = dict(both_ends())[round(beta)]
    for normalized in (False, True):
        np.testing.assert_array_equal(divergences.jsd(STUDENT, TEACHER, beta=beta, normalized=normalized), expected)


def test_jsd_is_bounded_and_turns_over_with_its_arguments():
    student, teacher, _ = INPUTS["ten thousand"]
    assert (divergences.jsd(student, teacher) <= np.log(2) + 1e-6).all()
    swapped = divergences.jsd(TEACHER, STUDENT, beta=0.8)
    np.testing.assert_allclose(divergences.jsd(STUDENT, TEACHER, beta=0.2), swapped, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_the_same_numbers_as_another_library(beta):
    """Which side beta weighs, and where the two ends lead, by the conventions in use."""
    with computing_in("f64") as real:
        student, teacher = real(STUDENT), real(TEACHER)
        p_s, p_t = reference.softmax(STUDENT), reference.softmax(TEACHER)

        def mixed(weight_of_teacher, of_teacher, of_student):
            m = np.log(weight_of_teacher * p_t + (1 - weight_of_teacher) * p_s)
            return of_teacher * reference.kl(np.log(p_t), m) + of_student * reference.kl(np.log(p_s), m)

        ours = divergences.jsd(student, teacher, beta=beta)
        trl_and_liger = mixed(beta, beta, 1 - beta)
        np.testing.assert_allclose(ours, trl_and_liger, rtol=1e-9)
        distillm = mixed(1 - beta, 1 - beta, beta)  # its lam is beta here
        np.testing.assert_allclose(divergences.jsd(student, teacher, beta=1 - beta), distillm, rtol=1e-9)
        # The mixture leans to the other side than the weights: no jump, and the ends the other way round.
        leaning = mixed(1 - beta, beta, 1 - beta)
        skewed = beta * divergences.skew_fkl(student, teacher, alpha=1 - beta)
        skewed += (1 - beta) * divergences.skew_rkl(student, teacher, alpha=beta)
        np.testing.assert_allclose(skewed, leaning, rtol=1e-9)
        forward, reverse = divergences.forward_kl(student, teacher), divergences.reverse_kl(student, teacher)
        if beta == 0.5:
            np.testing.assert_allclose(leaning, ours, rtol=1e-9)
            np.testing.assert_allclose(distillm, ours, rtol=1e-9)
        else:
            assert np.abs(distillm / ours - 1).max() > 0.01
            assert (leaning > 1.2 * ours).all()
        if beta in (0.001, 0.999):
            end = reverse if beta == 0.001 else forward
            assert np.abs(leaning / end - 1).max() < 0.4 and (ours < 0.01 * end).all()


def test_a_skew_of_nothing_is_the_whole_kl_and_a_whole_skew_is_nothing():
    for skewed, whole in (
        (divergences.skew_fkl, divergences.forward_kl),
        (divergences.skew_rkl, divergences.reverse_kl),
    ):
        value, gradient = mean_and_gradient(skewed, STUDENT, TEACHER, alpha=0.0)
        expected, expected_gradient = mean_and_gradient(whole, STUDENT, TEACHER)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-7)
        value, gradient = mean_and_gradient(skewed, STUDENT, TEACHER, alpha=1.0)
        assert value == 0 and not gradient.any()


@pytest.mark.parametrize("alpha", [1e-6, 0.1, 0.9, 1 - 1e-6])
def test_a_skew_bounds_the_value_at_any_size_of_logits(alpha):
    for name in ("skew_fkl", "skew_rkl"):
        for student, teacher in (STUDENT, TEACHER), INPUTS["ten thousand"][:2]:
            values = getattr(divergences, name)(student, teacher, alpha=alpha)
            expected, _ = numpy_divergence(name, student, teacher, alpha=alpha)
            np.testing.assert_allclose(values, expected, rtol=2e-5, atol=1e-7)
            assert (values <= -np.log(np.float32(alpha)) * (1 + 1e-5)).all()


# Adaptive KL


def test_akl_goes_by_the_gaps_of_head_and_tail():
    p_t, p_s = np.array([0.1, 0.4, 0.2, 0.3]), np.array([0.3, 0.25, 0.25, 0.2])
    weight = (0.15 + 0.1) / (0.2 + 0.15 + 0.05 + 0.1)  # tokens 1 and 3 are the head
    expected = weight * np.sum(p_t * np.log(p_t / p_s)) + (1 - weight) * np.sum(p_s * np.log(p_s / p_t))
    value = divergences.akl(jnp.log(p_s), jnp.log(p_t))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    # As released with TAID: the mask of sorted logits laid over gaps that are not sorted.
    mislaid = (0.15 + 0.05) / 0.5
    assert abs(weight - mislaid) > 0.05


@pytest.mark.parametrize(("head_mass", "end"), [(0.0, divergences.reverse_kl), (1.0, divergences.forward_kl)])
def test_akl_of_a_head_that_is_nothing_or_all(head_mass, end):
    np.testing.assert_allclose(
        divergences.akl(STUDENT, TEACHER, head_mass=head_mass), end(STUDENT, TEACHER), rtol=1e-5, atol=1e-6
    )


def test_akl_takes_the_lower_index_of_tokens_that_tie():
    teacher = jnp.zeros(4)  # the head is tokens 0 and 1
    forward_heavy, reverse_heavy = jnp.array([3.0, 0.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 0.0, 3.0])
    forward = divergences.forward_kl(forward_heavy, teacher)
    reverse = divergences.reverse_kl(forward_heavy, teacher)
    p = np.exp(3) / (np.exp(3) + 3)
    gaps = np.array([p - 0.25, *[0.25 - (1 - p) / 3] * 3])
    for student, weight in (forward_heavy, gaps[:2].sum()), (reverse_heavy, gaps[2:].sum()):
        weight = weight / gaps.sum()
        expected = weight * forward + (1 - weight) * reverse
        np.testing.assert_allclose(divergences.akl(student, teacher), expected, rtol=1e-5)


# What the plain forms lose


def clipped_kl(student, teacher, least=1e-7):
    p, q = (jnp.clip(jax.nn.softmax(logits), least, 1) for logits in (teacher, student))
    return jnp.sum(p * jnp.log(p / q), axis=-1)


def test_a_student_that_is_wrong_by_twenty_nats_still_learns():
    student, teacher = jnp.array([20.0, 0.0]), jnp.array([-60.0, 0.0])
    value, gradient = mean_and_gradient(divergences.forward_kl, student, teacher)
    np.testing.assert_allclose(value, 20.0, rtol=1e-6)
    np.testing.assert_allclose(gradient, [1.0, -1.0], rtol=1e-6)
    clipped, pull = mean_and_gradient(clipped_kl, student, teacher)
    assert clipped == pytest.approx(16.1, abs=0.1) and np.abs(pull).max() < 1e-6
    np.testing.assert_allclose(clipped_kl(STUDENT, TEACHER), divergences.forward_kl(STUDENT, TEACHER), rtol=1e-4)


def jsd_of_probabilities(student, teacher, beta=0.5):
    p_t, p_s = jax.nn.softmax(teacher), jax.nn.softmax(student)
    log_m = jnp.log(beta * p_t + (1 - beta) * p_s)
    of_teacher = jnp.sum(p_t * (jax.nn.log_softmax(teacher) - log_m), axis=-1)
    return beta * of_teacher + (1 - beta) * jnp.sum(p_s * (jax.nn.log_softmax(student) - log_m), axis=-1)


def test_a_mixture_that_underflows_still_has_a_logarithm():
    student, teacher = jnp.array([[200.0, 0.0, 100.0]]), jnp.array([[0.0, 200.0, 100.0]])
    value, gradient = mean_and_gradient(divergences.jsd, student, teacher)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-12)
    plain, pull = mean_and_gradient(jsd_of_probabilities, 10 * student, 10 * teacher)
    assert not (np.isfinite(plain) and np.isfinite(pull).all())
    shared = divergences.jsd(STUDENT, TEACHER)
    np.testing.assert_allclose(jsd_of_probabilities(STUDENT, TEACHER), shared, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "hyper", "message"),
    [
        (divergences.forward_kl, {"temperature": 0.0}, "temperature is 0.0; it divides the logits"),
        (divergences.jsd, {"beta": 1.5}, "beta is 1.5; it must be at least 0 and at most 1"),
        (divergences.skew_fkl, {"alpha": -0.1}, "alpha is -0.1"),
        (divergences.skew_rkl, {"alpha": 2}, "alpha is 2"),
        (divergences.symmetric_kl, {"alpha": 1.1}, "alpha is 1.1"),
        (divergences.akl, {"head_mass": 50}, "head_mass is 50"),
        (divergences.jsd, {"beta": np.full(5, 0.5)}, r"beta has shape \(5,\)"),
    ],
)
def test_refuses_a_hyperparameter_out_of_range(loss, hyper, message):
    with pytest.raises(ValueError, match=message):
        loss(STUDENT, TEACHER, **hyper)


def test_refuses_logits_that_do_not_fit():
    for key in LOSSES:
        with pytest.raises(ValueError, match="teacher_logits has 4 classes, student_logits 5"):
            bound(key)(STUDENT, TEACHER[:, :4])
        with pytest.raises(TypeError, match="teacher_logits must be floating point"):
            bound(key)(STUDENT, TEACHER.astype(int))


@pytest.mark.parametrize("temperature", [0.5, 0.9, 1.0])
@pytest.mark.parametrize(
    "key", ["forward_kl", "reverse_kl", "symmetric_kl", "jsd", "skew_fkl", "skew_rkl", "tvd", "akl"]
)
def test_tokens_masked_by_the_least_finite_number_are_out(key, temperature):
    """As Transformers masks them; divided by a temperature below 1 it is -inf."""
    masked = lambda mask: [jnp.array([[1.0, 2.0, mask]]), jnp.array([[2.0, 1.0, mask]])]
    found, expected = (
        mean_and_gradient(getattr(divergences, key), *masked(mask), temperature=temperature)
        for mask in (jnp.finfo(jnp.float32).min, -jnp.inf)
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    heads = [{"hidden": jnp.eye(1), "head": x} for x in masked(jnp.finfo(jnp.float32).min)]
    fused = losses.fused_linear_kd(
        heads[0]["hidden"],
        heads[0]["head"],
        heads[1]["hidden"],
        heads[1]["head"],
        divergence=key,
        temperature=temperature,
    )
    np.testing.assert_allclose(fused.sum, expected[0], rtol=1e-6)
