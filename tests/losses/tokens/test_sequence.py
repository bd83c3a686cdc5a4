"""Losses of token sequences: masks and counts, TAID's moving target, stored top-k teachers, two vocabularies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses.logits import logit
from kdjax.losses.tokens import divergences, sequence, topk
from tests.losses import numpy_reference as reference
from tests.losses.computing import compiled, computing_in, draw, mean_and_gradient

logit, divergences, sequence, topk = map(compiled, (logit, divergences, sequence, topk))

STUDENT, TEACHER = draw(80, 2, 4, 7), draw(81, 2, 4, 7)
MASK = np.array([[True, True, False, True], [False, True, False, False]])
EXACT = {"rtol": 1e-10, "atol": 1e-14}
NAMES = list(sequence.DIVERGENCES)
EVERY = pytest.mark.parametrize("name", NAMES)


def lm(student, teacher, mask, num_tokens=None, *, name, **hyper):
    return sequence.lm_kd(student, teacher, mask, divergence=name, num_tokens=num_tokens, **hyper)


LM = {name: functools.partial(lm, name=name) for name in NAMES}


# The mean over tokens


@EVERY
def test_lm_kd_is_the_mean_over_the_tokens_that_count(name):
    with computing_in("f64") as real:
        values = getattr(divergences, name)(real(STUDENT), real(TEACHER))
        np.testing.assert_allclose(LM[name](real(STUDENT), real(TEACHER), MASK), values[MASK].mean(), **EXACT)
        np.testing.assert_allclose(LM[name](real(STUDENT), real(TEACHER), None), values.mean(), **EXACT)


@EVERY
@pytest.mark.parametrize("junk", [0.0, 1e30, np.nan, np.inf, -np.inf])
def test_masked_tokens_may_hold_anything(name, junk):
    with computing_in("f64") as real:
        student, teacher = STUDENT.copy(), TEACHER.copy()
        student[~MASK] = teacher[~MASK] = junk
        value, gradient = mean_and_gradient(LM[name], real(student), real(teacher), MASK)
        expected, expected_gradient = mean_and_gradient(LM[name], real(STUDENT[MASK]), real(TEACHER[MASK]), None)
        np.testing.assert_allclose(value, expected, **EXACT)
        np.testing.assert_allclose(gradient[MASK], expected_gradient, **EXACT)
        np.testing.assert_array_equal(gradient[~MASK], 0)


def test_a_mask_of_integers_and_of_weights():
    values = divergences.reverse_kl(STUDENT, TEACHER)
    by_bool = sequence.lm_kd(STUDENT, TEACHER, MASK, divergence="reverse_kl")
    np.testing.assert_allclose(
        sequence.lm_kd(STUDENT, TEACHER, MASK.astype(np.int32), divergence="reverse_kl"), by_bool, rtol=1e-6
    )
    weights = np.array([[0.5, 1, 0, 2], [0, 1, 0, 0.25]], np.float32)
    expected = (weights * values).sum() / weights.sum()
    np.testing.assert_allclose(sequence.lm_kd(STUDENT, TEACHER, weights, divergence="reverse_kl"), expected, rtol=1e-6)


@EVERY
def test_no_token_at_all_is_nothing(name):
    value, gradient = mean_and_gradient(LM[name], STUDENT, TEACHER, np.zeros((2, 4), bool))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    value, gradient = mean_and_gradient(LM[name], STUDENT, TEACHER, np.zeros((2, 4), bool), 0)
    assert value == 0 and not gradient.any()


@EVERY
def test_halves_over_the_count_of_the_whole_add_up(name):
    """Accumulated steps, or devices: uneven halves, value and gradient."""
    with computing_in("f64") as real:
        student, teacher = real(STUDENT), real(TEACHER)
        whole, gradient = mean_and_gradient(LM[name], student, teacher, MASK)
        count = MASK.sum()
        parts = [
            mean_and_gradient(LM[name], student[i : i + 1], teacher[i : i + 1], MASK[i : i + 1], count) for i in (0, 1)
        ]
        np.testing.assert_allclose(sum(value for value, _ in parts), whole, **EXACT)
        np.testing.assert_allclose(jnp.concatenate([g for _, g in parts]), gradient, **EXACT)


@pytest.mark.parametrize("name", ["forward_kl", "akl"])
def test_lm_kd_spread_over_devices_is_that_of_the_whole_batch(name):
    devices = jax.devices()[:2]

    def device_share(student, teacher, mask):
        count = jax.lax.psum(jnp.sum(mask), "data")
        return sequence.lm_kd(student, teacher, mask, divergence=name, num_tokens=count)

    with computing_in("f64") as real:
        student, teacher = real(STUDENT), real(TEACHER)
        split = [x[:, None] for x in (student, teacher, jnp.asarray(MASK))]
        step = jax.pmap(jax.value_and_grad(device_share), axis_name="data", devices=devices)
        values, gradient = step(*split)
        expected, expected_gradient = mean_and_gradient(LM[name], student, teacher, MASK)
        np.testing.assert_allclose(values.sum(), expected, **EXACT)
        np.testing.assert_allclose(gradient[:, 0], expected_gradient, **EXACT)


def test_no_gradient_goes_into_the_count_the_mask_or_the_teacher():
    def loss(teacher, mask, count):
        return sequence.lm_kd(STUDENT, teacher, mask, num_tokens=count)

    gradients = jax.grad(loss, argnums=(0, 1, 2))(jnp.asarray(TEACHER), jnp.asarray(MASK, jnp.float32), 4.0)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


def test_hyperparameters_reach_the_divergence_they_belong_to():
    for name, hyper in (
        ("skew_fkl", {"alpha": 0.3}),
        ("skew_rkl", {"alpha": 0.3}),
        ("symmetric_kl", {"alpha": 0.3}),
        ("jsd", {"beta": 0.3}),
        ("tvd", {}),
    ):
        expected = getattr(divergences, name)(STUDENT, TEACHER, temperature=2.0, **hyper).mean()
        value = sequence.lm_kd(STUDENT, TEACHER, divergence=name, temperature=2.0, **{"alpha": 0.3, "beta": 0.3})
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        own = getattr(divergences, name)(STUDENT, TEACHER).mean()
        np.testing.assert_allclose(sequence.lm_kd(STUDENT, TEACHER, divergence=name), own, rtol=1e-6)


def test_lm_kd_of_half_types_is_computed_in_float32():
    student, teacher = jnp.asarray(STUDENT, jnp.bfloat16), jnp.asarray(TEACHER, jnp.bfloat16)
    value = sequence.lm_kd(student, teacher, MASK, divergence="jsd")
    assert value.dtype == jnp.float32 and value.shape == ()
    wide = sequence.lm_kd(student.astype(jnp.float32), teacher.astype(jnp.float32), MASK, divergence="jsd")
    np.testing.assert_array_equal(value, wide)


def test_lm_kd_says_what_does_not_fit():
    with pytest.raises(ValueError, match="divergence is 'foward_kl'; did you mean 'forward_kl'"):
        sequence.lm_kd(STUDENT, TEACHER, divergence="foward_kl")
    with pytest.raises(ValueError, match="did you mean 'jsd'"):
        sequence.lm_kd(STUDENT, TEACHER, divergence="js")
    with pytest.raises(ValueError, match=r"mask has shape \(2,\), student_logits leading axes \(2, 4\)"):
        sequence.lm_kd(STUDENT, TEACHER, MASK[:, 0])
    with pytest.raises(ValueError, match=r"num_tokens has shape \(2,\); give one count"):
        sequence.lm_kd(STUDENT, TEACHER, MASK, num_tokens=MASK.sum(axis=1))


# TAID


@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
def test_taid_aims_between_the_student_and_the_teacher(t):
    with computing_in("f64") as real:
        target = sequence.taid_target(real(STUDENT), real(TEACHER), t)
        expected = reference.softmax((1 - t) * np.float64(STUDENT) + t * np.float64(TEACHER))
        np.testing.assert_allclose(target, expected, rtol=1e-12)
        value, gradient = mean_and_gradient(sequence.taid, real(STUDENT), real(TEACHER), t=t)
        cross_entropy = -(expected * reference.log_softmax(STUDENT)).sum(-1)
        np.testing.assert_allclose(value, cross_entropy.mean(), rtol=1e-12)
        # No gradient through the target: at t = 0 there is none at all.
        np.testing.assert_allclose(gradient, (reference.softmax(STUDENT) - expected) / 8, **EXACT)
        if t == 1:
            whole = divergences.forward_kl(real(STUDENT), real(TEACHER), cross_entropy_form=True)
            np.testing.assert_allclose(value, whole.mean(), rtol=1e-12)


def test_taid_takes_one_t_a_token_and_any_size_of_logits():
    student, teacher = draw(82, 2, 4, 7, scale=1e4), draw(83, 2, 4, 7, scale=1e4)
    t = np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4)
    mixed = (1 - t[..., None]) * student + t[..., None] * teacher
    values, pull = jax.vjp(lambda s: sequence.taid(s, teacher, t=t), student)
    target = reference.softmax(mixed)
    np.testing.assert_allclose(values, -(target * reference.log_softmax(student)).sum(-1), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(pull(jnp.ones((2, 4)))[0], reference.softmax(student) - target, atol=1e-5)


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_taid_of_excluded_tokens(t):
    student, teacher = STUDENT.copy(), TEACHER.copy()
    student[..., 2] = teacher[..., 5] = -np.inf
    student[0, 0, 4] = teacher[0, 0, 4] = -np.inf
    kept = np.isfinite(student) & np.isfinite(teacher)
    mixed = np.where(kept, (1 - t) * np.where(kept, student, 0) + t * np.where(kept, teacher, 0), -np.inf)
    target = reference.softmax(mixed)
    log_s = np.where(kept, reference.log_softmax(student), 0)
    values, pull = jax.vjp(lambda s: sequence.taid(s, teacher, t=t), student)
    np.testing.assert_allclose(sequence.taid_target(student, teacher, t), target, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(values, -(target * log_s).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(pull(jnp.ones((2, 4)))[0], reference.softmax(student) - target, atol=1e-6)


def taid_by_hand(losses, total, t_start=0.4, t_end=1.0, alpha=5e-4, beta=0.99):
    """`t` after each step, in float64, straight from the published update."""
    t, momentum, previous, path = t_start, 0.0, None, []
    for step, loss in enumerate(losses):
        if previous is not None:
            momentum = beta * momentum + (1 - beta) * (previous - loss) / (previous + 1e-15)
            scheduled = t_start + (t_end - t_start) * step / total
            t = min(t_end, max(scheduled, t + alpha / (1 + np.exp(-momentum)) * (1 - t)))
        previous = loss
        path.append((t, momentum))
    return np.array(path)


@pytest.mark.parametrize(
    "hyper",
    [{}, {"alpha": 0.05, "beta": 0.5}, {"alpha": 0.9, "t_start": 0.2, "t_end": 0.8}],
    ids=["default", "ahead of the schedule", "up to the end"],
)
def test_taid_moves_on_as_published(hyper):
    losses = np.array([5.0, 4.0, 4.5, 2.0, 1.9, 1.9, 0.5, 3.0, 2.0, 1.0], np.float32)

    def step(state, inputs):
        state = sequence.taid_update(state, *inputs, total=10, **hyper)
        return state, (state.t, state.momentum)

    start = sequence.taid_init(hyper.get("t_start", 0.4))
    last, (t, momentum) = jax.jit(lambda s, x: jax.lax.scan(step, s, x))(start, (losses, np.arange(10)))
    expected = taid_by_hand(losses, 10, **hyper)
    np.testing.assert_allclose(t, expected[:, 0], rtol=1e-5)
    np.testing.assert_allclose(momentum, expected[:, 1], rtol=1e-4, atol=1e-7)
    assert t[0] == start.t and (np.diff(t) >= 0).all()
    assert last.started and last.previous_loss == losses[-1]
    assert [x.dtype for x in last] == [x.dtype for x in start]


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_taid_passes_over_a_loss_that_is_not_finite(loss):
    state = sequence.taid_init()
    assert sequence.taid_update(state, loss, 0, 10) == state
    state = sequence.taid_update(sequence.taid_update(state, 3.0, 0, 10), 2.0, 1, 10)
    assert sequence.taid_update(state, loss, 2, 10) == state
    assert state.momentum > 0 and 0.46 <= state.t < 0.461


def test_taid_says_what_does_not_fit():
    with pytest.raises(ValueError, match="t_start is 1"):
        sequence.taid_init(1.5)
    with pytest.raises(ValueError, match=r"loss has shape \(2,\)"):
        sequence.taid_update(sequence.taid_init(), np.ones(2), 0, 10)
    with pytest.raises(ValueError, match="t is 1"):
        sequence.taid(STUDENT, TEACHER, t=1.2)


# Stored top-k teachers


def numpy_topk(student, ids, logprobs, missing, temperature):
    """One position at a time, in float64: `[...]` values."""
    values = np.zeros(ids.shape[:-1])
    for at in np.ndindex(values.shape):
        real = ids[at] >= 0
        tokens, p = ids[at][real], np.exp(np.float64(logprobs[at][real])) ** (1 / temperature)
        q = reference.softmax(student[at], temperature)[tokens]
        if missing == "renormalize":
            p = p / p.sum()
            values[at] = np.sum(p * np.log(p / q))
            continue
        left = np.clip(1 - np.exp(np.float64(logprobs[at][real])).sum(), 0, 1) ** (1 / temperature)
        p, left = p / (p.sum() + left), left / (p.sum() + left)
        left, rest = np.clip([left, 1 - q.sum()], 1e-8, 1 - 1e-8)
        values[at] = np.sum(p * np.log(p / q)) + left * np.log(left / rest)
    return values


POLICIES = pytest.mark.parametrize("missing", ["other_bucket", "renormalize"])


@POLICIES
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_topk_is_its_formula(missing, temperature):
    with computing_in("f64") as real:
        ids, logprobs = topk.topk_signal(real(TEACHER), 3)
        ids = np.array(ids)
        ids[0, 1, 2] = ids[1, 2, 1:] = -1  # padding, whatever is stored beside it
        logprobs = np.array(logprobs)
        logprobs[0, 1, 2] = np.nan if missing == "renormalize" else 7.0
        hyper = {"missing": missing, "temperature": temperature}
        values = topk.topk_kl(real(STUDENT), ids, real(logprobs), **hyper)
        np.testing.assert_allclose(values, numpy_topk(STUDENT, ids, logprobs, missing, temperature), rtol=1e-9)
        slope = jax.grad(lambda s: topk.topk_kl(s, ids, real(logprobs), **hyper).sum())(real(STUDENT))
        direction = np.float64(draw(84, 2, 4, 7))
        ahead, behind = (
            numpy_topk(STUDENT + sign * 1e-6 * direction, ids, logprobs, missing, temperature).sum() for sign in (1, -1)
        )
        np.testing.assert_allclose(np.sum(slope * direction), (ahead - behind) / 2e-6, rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_topk_of_all_tokens_is_the_forward_kl(scale):
    student, teacher = np.float32(scale) * STUDENT, np.float32(scale) * TEACHER
    ids, logprobs = topk.topk_signal(teacher, 7)
    expected = divergences.forward_kl(student, teacher)
    for missing in ("other_bucket", "renormalize"):
        values, pull = jax.vjp(lambda s, m=missing: topk.topk_kl(s, ids, logprobs, missing=m), student)
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=4e-6)
        gap = reference.softmax(student) - reference.softmax(teacher)
        np.testing.assert_allclose(pull(jnp.ones((2, 4)))[0], gap, atol=2e-6)


def test_topk_of_an_equal_student():
    ids, logprobs = topk.topk_signal(TEACHER, 3)
    values, pull = jax.vjp(lambda s: topk.topk_kl(s, ids, logprobs), TEACHER)
    np.testing.assert_allclose(values, 0, atol=5e-7)
    np.testing.assert_allclose(pull(jnp.ones((2, 4)))[0], 0, atol=5e-6)
    # Where the rest is said to be impossible, the student that gives it something is at fault.
    values = topk.topk_kl(TEACHER, ids, logprobs, missing="renormalize")
    np.testing.assert_allclose(values, -np.log(np.exp(logprobs).sum(-1)), rtol=1e-4, atol=1e-6)


def test_topk_of_a_student_that_leaves_nothing_to_the_other_tokens():
    """Their bucket has a floor of 1e-8 on either side."""
    ids, logprobs = topk.topk_signal(0.3 * TEACHER, 3)
    certain = STUDENT.copy()
    np.put_along_axis(certain, np.array(ids), 60 + np.take_along_axis(STUDENT, np.array(ids), -1), axis=-1)
    assert np.exp(np.float64(logprobs)).sum(-1).max() < 0.9
    with computing_in("f64") as real:
        for student, stored in (certain, logprobs), (STUDENT, logprobs - np.log(np.exp(logprobs).sum(-1))[..., None]):
            values = topk.topk_kl(real(student), ids, real(stored))
            expected = numpy_topk(student, np.array(ids), np.array(stored), "other_bucket", 1.0)
            np.testing.assert_allclose(values, expected, rtol=1e-9)
    values, pull = jax.vjp(lambda s: topk.topk_kl(s, ids, logprobs), certain)
    np.testing.assert_allclose(
        values, numpy_topk(certain, np.array(ids), np.array(logprobs), "other_bucket", 1.0), rtol=0.1
    )
    assert np.isfinite(pull(jnp.ones((2, 4)))[0]).all()


@POLICIES
def test_topk_with_a_mask(missing):
    with computing_in("f64") as real:
        ids, logprobs = topk.topk_signal(real(TEACHER), 3)
        student, spoilt, unknown = STUDENT.copy(), np.array(logprobs), np.array(ids)
        student[~MASK], spoilt[~MASK], unknown[~MASK] = np.nan, np.nan, 99
        loss = functools.partial(topk.topk_kl, missing=missing)
        values, pull = jax.vjp(lambda s: loss(s, unknown, real(spoilt), MASK), real(student))
        expected, pull_few = jax.vjp(lambda s: loss(s, ids[MASK], logprobs[MASK]), real(STUDENT[MASK]))
        np.testing.assert_allclose(values[MASK], expected, **EXACT)
        np.testing.assert_array_equal(values[~MASK], 0)
        gradient = pull(jnp.ones((2, 4)))[0]
        np.testing.assert_allclose(gradient[MASK], pull_few(jnp.ones(4))[0], **EXACT)
        np.testing.assert_array_equal(gradient[~MASK], 0)
        doubled = loss(real(student), unknown, real(spoilt), 2.0 * MASK)
        np.testing.assert_allclose(doubled, 2 * values, **EXACT)


@POLICIES
def test_topk_of_a_position_with_nothing_stored_and_of_an_unknown_token(missing):
    ids, logprobs = map(np.array, topk.topk_signal(TEACHER, 3))
    ids[0, 0] = -1
    ids[1, 1, 2] = 7
    values, pull = jax.vjp(lambda s: topk.topk_kl(s, ids, logprobs, missing=missing), STUDENT)
    np.testing.assert_allclose(values[0, 0], 0, atol=1e-7)
    assert np.isnan(values[1, 1]) and np.isnan(values).sum() == 1
    gradient = pull(jnp.ones((2, 4)))[0]
    np.testing.assert_array_equal(gradient[1, 1], 0)
    np.testing.assert_allclose(gradient[0, 0], 0, atol=1e-7)
    assert np.isfinite(gradient).all() and np.abs(gradient[0, 1]).max() > 1e-3


@POLICIES
def test_topk_of_rounded_probabilities(missing):
    """Stored in float16: a sum a little above 1 is no probability below 0."""
    sharp = 3 * TEACHER
    ids, logprobs = topk.topk_signal(sharp, 5)
    stored = jnp.asarray(logprobs, jnp.float16)
    assert (np.exp(np.float64(stored)).sum(-1) > 1).any()
    values, pull = jax.vjp(lambda s: topk.topk_kl(s, ids, stored, missing=missing), STUDENT)
    np.testing.assert_allclose(values, topk.topk_kl(STUDENT, ids, logprobs, missing=missing), rtol=5e-3, atol=5e-3)
    exact = numpy_topk(STUDENT, np.asarray(ids), np.asarray(stored, np.float64), missing, 1.0)
    np.testing.assert_allclose(values, exact, rtol=1e-4, atol=1e-5)
    assert np.isfinite(pull(jnp.ones((2, 4)))[0]).all()


@POLICIES
def test_topk_at_any_size_of_logits_and_beside_excluded_tokens(missing):
    student, teacher = draw(85, 2, 4, 7, scale=1e4), draw(86, 2, 4, 7, scale=1e4)
    ids, logprobs = topk.topk_signal(teacher, 3)
    values, pull = jax.vjp(lambda s: topk.topk_kl(s, ids, logprobs, missing=missing), student)
    expected = divergences.forward_kl(student, teacher)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-3)
    gradient = pull(jnp.ones((2, 4)))[0]
    np.testing.assert_allclose(gradient, reference.softmax(student) - reference.softmax(teacher), atol=1e-5)

    student, teacher = STUDENT.copy(), TEACHER.copy()
    teacher[..., :5] = student[..., 6] = student[0, 0] = -np.inf
    ids, logprobs = topk.topk_signal(teacher, 3)
    np.testing.assert_array_equal(ids[..., 2], -1)
    np.testing.assert_array_equal(logprobs[..., 2], -np.inf)
    np.testing.assert_allclose(np.exp(logprobs).sum(-1), 1, rtol=1e-6)

    def by_temperature(student, temperature):
        return topk.topk_kl(student, ids, logprobs, missing=missing, temperature=temperature).sum()

    value, gradients = jax.value_and_grad(by_temperature, argnums=(0, 1))(student, 2.0)
    assert np.isfinite(value) and all(np.isfinite(gradient).all() for gradient in gradients)
    np.testing.assert_array_equal(gradients[0][..., 6], 0)


def test_topk_signal_is_the_teachers_best():
    ids, logprobs = topk.topk_signal(TEACHER, 3)
    assert ids.dtype == jnp.int32 and logprobs.dtype == jnp.float32
    order = np.argsort(-TEACHER, axis=-1, kind="stable")[..., :3]
    np.testing.assert_array_equal(ids, order)
    expected = np.take_along_axis(reference.log_softmax(TEACHER), order, axis=-1)
    np.testing.assert_allclose(logprobs, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(topk.topk_signal(jnp.zeros((1, 4)), 2)[0], [[0, 1]])
    sloped = jax.grad(lambda t: topk.topk_kl(STUDENT, *topk.topk_signal(t, 3)).sum())(jnp.asarray(TEACHER))
    np.testing.assert_array_equal(sloped, 0)


def both_renormalized(student, ids, logprobs):
    """The plain form: both sides normalised over the stored tokens alone."""
    log_s = jax.nn.log_softmax(jnp.take_along_axis(student, ids, axis=-1))
    log_t = jax.nn.log_softmax(logprobs)
    return jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=-1)


def test_a_student_normalised_over_the_stored_tokens_learns_the_wrong_thing():
    """A diffuse teacher, of which k of V tokens are stored: the gradient's error against that of all tokens."""
    student, teacher = draw(87, 4, 64, scale=1.0), draw(88, 4, 64, scale=1.0)
    ids, logprobs = topk.topk_signal(teacher, 32)
    assert np.exp(logprobs).sum(-1).max() < 0.9
    whole = reference.softmax(student) - reference.softmax(teacher)

    def error(loss):
        gradient = jax.grad(lambda s: loss(s, ids, logprobs).sum())(student)
        return np.linalg.norm(gradient - whole) / np.linalg.norm(whole)

    plain = error(both_renormalized)
    renormalized = error(functools.partial(topk.topk_kl, missing="renormalize"))
    bucket = error(topk.topk_kl)
    assert plain > 0.6
    assert renormalized < 0.5 * plain and bucket < 0.3 * plain


def test_topk_makes_no_second_array_of_the_vocabulary():
    logits = jax.ShapeDtypeStruct((2, 16, 32768), jnp.float32)
    ids, logprobs = (jax.ShapeDtypeStruct((2, 16, 8), kind) for kind in (jnp.int32, jnp.float32))
    size = 4 * np.prod(logits.shape)

    def total(student, ids, logprobs):
        return jnp.sum(topk.topk_kl(student, ids, logprobs))

    for function in total, jax.grad(total):  # whose one result is as large as the logits
        memory = jax.jit(function).lower(logits, ids, logprobs).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 0.1 * size


def test_topk_says_what_does_not_fit():
    ids, logprobs = topk.topk_signal(TEACHER, 3)
    with pytest.raises(ValueError, match="missing is 'zero'"):
        topk.topk_kl(STUDENT, ids, logprobs, missing="zero")
    with pytest.raises(TypeError, match="ids must be integer"):
        topk.topk_kl(STUDENT, logprobs, logprobs)
    with pytest.raises(ValueError, match=r"ids has shape \(2, 4, 3\), logprobs \(2, 4, 2\)"):
        topk.topk_kl(STUDENT, ids, logprobs[..., :2])
    with pytest.raises(ValueError, match="mask has shape"):
        topk.topk_kl(STUDENT, ids, logprobs, MASK[0])
    for k in (0, 8):
        with pytest.raises(ValueError, match=f"k is {k}; it must be from 1 to"):
            topk.topk_signal(TEACHER, k)


def test_topk_of_half_types_is_computed_in_float32():
    ids, logprobs = topk.topk_signal(jnp.asarray(TEACHER, jnp.bfloat16), 3)
    student = jnp.asarray(STUDENT, jnp.bfloat16)
    values = topk.topk_kl(student, ids, logprobs)
    assert values.dtype == logprobs.dtype == jnp.float32
    np.testing.assert_array_equal(values, topk.topk_kl(student.astype(jnp.float32), ids, logprobs))


# Two vocabularies


@pytest.mark.parametrize("longer", ["student", "teacher", "neither"])
def test_uld_compares_how_probability_falls_off(longer):
    sizes = {"student": (7, 4), "teacher": (4, 7), "neither": (7, 7)}[longer]
    with computing_in("f64") as real:
        student, teacher = STUDENT[..., : sizes[0]], TEACHER[..., : sizes[1]]
        falling = [-np.sort(-reference.softmax(x), axis=-1) for x in (student, teacher)]
        falling = [np.pad(p, [(0, 0), (0, 0), (0, 7 - p.shape[-1])]) for p in falling]
        expected = np.abs(falling[0] - falling[1]).sum(-1)
        np.testing.assert_allclose(sequence.uld(real(student), real(teacher)), expected, **EXACT)
        order = np.random.default_rng(3).permutation(sizes[1])
        np.testing.assert_allclose(sequence.uld(real(student), real(teacher[..., order])), expected, **EXACT)
        # The slope by the student's probabilities, through its softmax.
        slope = np.zeros(student.shape)
        at = np.argsort(-student, axis=-1)
        signs = np.sign(falling[0] - falling[1])[..., : sizes[0]]
        np.put_along_axis(slope, at, signs, axis=-1)
        p = reference.softmax(student)
        by_student, by_teacher = jax.grad(lambda s, t: sequence.uld(s, t).sum(), argnums=(0, 1))(
            real(student), real(teacher)
        )
        np.testing.assert_allclose(by_student, p * (slope - (p * slope).sum(-1, keepdims=True)), **EXACT)
        np.testing.assert_array_equal(by_teacher, 0)


def test_uld_of_equal_excluded_and_large_logits():
    np.testing.assert_allclose(sequence.uld(TEACHER[..., ::-1], TEACHER), 0, atol=1e-6)
    values, pull = jax.vjp(lambda s: sequence.uld(s, TEACHER), TEACHER)
    np.testing.assert_array_equal(values, 0)
    np.testing.assert_array_equal(pull(jnp.ones((2, 4)))[0], 0)
    apart = jnp.array([[1.0, -jnp.inf, 1.0]]), jnp.array([[2.0, 2.0]])
    values, pull = jax.vjp(lambda s: sequence.uld(s, apart[1]), apart[0])
    np.testing.assert_array_equal(values, 0)
    np.testing.assert_array_equal(pull(jnp.ones(1))[0], 0)
    student, teacher = draw(89, 2, 4, 7, scale=1e4), draw(90, 2, 4, 5)
    values, pull = jax.vjp(lambda s: sequence.uld(s, teacher), student)
    np.testing.assert_allclose(values, 2 * (1 - reference.softmax(teacher).max(-1)), rtol=1e-5)
    np.testing.assert_allclose(pull(jnp.ones((2, 4)))[0], 0, atol=1e-6)
    with pytest.raises(ValueError, match="line the positions"):
        sequence.uld(STUDENT, TEACHER[:1])


# --- a teacher of which the top classes are stored, for any loss ---


@pytest.mark.parametrize("k", [1, 3, 6])
def test_a_teacher_made_whole_pulls_as_its_bucket_does(k):
    """At temperature 1 the classes that are not known do not pull at each other."""
    rng = np.random.default_rng(k)
    student, teacher = jnp.asarray(2 * rng.standard_normal((2, 5, 7)), jnp.float32)
    ids, logprobs = topk.topk_signal(teacher, k)
    whole = topk.topk_teacher(student, ids, logprobs)
    np.testing.assert_allclose(jnp.sum(jnp.exp(whole), -1), 1, rtol=1e-5)
    np.testing.assert_allclose(jnp.take_along_axis(whole, ids, -1), logprobs, rtol=1e-6)
    found, wanted = (
        jax.grad(lambda s, loss=loss: jnp.sum(loss(s)))(student)
        for loss in (
            lambda s: logit.kd(s, whole, temperature=1.0),
            lambda s: topk.topk_kl(s, ids, logprobs, missing="other_bucket"),
        )
    )
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert jnp.all(jax.grad(lambda s: jnp.sum(topk.topk_teacher(s, ids, logprobs)))(student) == 0)


def test_a_teacher_of_which_everything_is_known_is_that_teacher():
    teacher = jax.nn.log_softmax(jnp.asarray([[1.0, 2.0, -3.0], [0.0, 0.0, 0.0]]))
    ids, logprobs = topk.topk_signal(teacher, 3)
    student = jnp.array([[5.0, -jnp.inf, 0.0], [1e4, -1e4, 0.0]])
    np.testing.assert_allclose(topk.topk_teacher(student, ids, logprobs), teacher, rtol=1e-6)
    part = topk.topk_teacher(student, ids[:, :1], logprobs[:, :1].astype(jnp.float16))
    assert np.all(np.isfinite(np.asarray(part)) | (np.asarray(student) == -np.inf)) and part.dtype == jnp.float32


def test_what_is_stored_must_fit_the_logits():
    with pytest.raises(ValueError, match=r"ids has shape \(2, 3\), logprobs \(2, 2\), student_logits \(2, 5\)"):
        topk.topk_teacher(jnp.zeros((2, 5)), jnp.zeros((2, 3), jnp.int32), jnp.zeros((2, 2)))


def test_padding_of_a_stored_teacher_writes_nothing():
    """Two masked tokens: the whole teacher is found again; an id beyond the vocabulary is nan, as in topk_kl."""
    teacher = jnp.array([[2.0, 1.0, -jnp.inf, -jnp.inf, 3.0]])
    student = jnp.zeros((1, 5))
    ids, logprobs = topk.topk_signal(teacher, 4)
    assert ids[0, 3] == -1
    whole = topk.topk_teacher(student, ids, logprobs)
    np.testing.assert_allclose(jnp.exp(whole), jax.nn.softmax(teacher), atol=2e-8)
    np.testing.assert_allclose(
        logit.kd(student, whole, temperature=1.0), topk.topk_kl(student, ids, logprobs), rtol=1e-5
    )
    named = jnp.where(ids < 0, 2, ids)  # padding by its log-probability alone
    np.testing.assert_array_equal(topk.topk_teacher(student, named, logprobs), whole)
    beyond = topk.topk_teacher(jnp.zeros((2, 5)), jnp.array([[4], [5]]), jnp.log(jnp.full((2, 1), 0.5)))
    np.testing.assert_array_equal(jnp.isnan(beyond).all(1), [False, True])
    with pytest.raises(TypeError, match="ids must be integer"):
        topk.topk_teacher(student, ids.astype(float), logprobs)


@pytest.mark.parametrize("missing", ["other_bucket", "renormalize"])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_a_kept_token_masked_by_the_least_finite_number_is_out(missing, temperature):
    least = jnp.finfo(jnp.float32).min
    student, logprobs, ids = (
        jnp.array([[1.0, 2.0, least]]),
        jnp.log(jnp.array([[0.7, 0.3, 1.0]])),
        jnp.array([[1, 0, 2]]),
    )
    loss = lambda last: jax.value_and_grad(
        lambda s: topk.topk_kl(s, ids, logprobs.at[0, 2].set(last), missing=missing, temperature=temperature).sum()
    )(student)
    for found, expected in zip(loss(least), loss(-jnp.inf), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
