"""tf_kd_self, tf_kd_regularizer and stability_metric against NumPy, the released forms and the paper's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses.logits.logit import kd
from kdjax.losses.logits.teacher_free import stability_metric, tf_kd_regularizer, tf_kd_self
from tests.losses import numpy_reference as reference
from tests.losses.computing import compiled, computing_in, draw, mean_and_gradient

kd, stability_metric, tf_kd_regularizer, tf_kd_self = map(
    compiled, (kd, stability_metric, tf_kd_regularizer, tf_kd_self)
)

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])
STUDENT, TEACHER = draw(130, 6, 5), draw(131, 6, 5)
LABELS = np.array([0, 1, 2, 3, 4, 2])
TOLERANCE = {"f64": {"rtol": 1e-9, "atol": 1e-12}, "f32": {"rtol": 2e-5, "atol": 1e-6}}


def virtual_teacher(labels, classes, correct):
    rest = np.full((len(labels), classes), (1 - correct) / max(classes - 1, 1))
    rest[np.arange(len(labels)), labels] = correct
    return rest


def numpy_regularizer(student, labels, temperature, multiplier, correct, official):
    """`[B]` values and `[B, C]` gradients of their sum."""
    classes = student.shape[-1]
    v = virtual_teacher(labels, classes, correct)
    if official:
        scale, log_q, warmth = multiplier / classes, reference.log_softmax(v, temperature), 1.0
    else:
        with np.errstate(divide="ignore"):
            scale, log_q, warmth = (
                multiplier * temperature**2,
                reference.log_softmax(np.log(v), temperature),
                temperature,
            )
    value = scale * reference.kl(log_q, reference.log_softmax(student, warmth))
    return value, scale / warmth * (reference.softmax(student, warmth) - np.exp(log_q))


@PRECISIONS
@pytest.mark.parametrize("scale", [3.0, 1e4])
def test_tf_kd_self_is_kd_divided_by_the_classes_or_not(precision, scale):
    student, teacher = draw(132, 6, 5, scale=scale), draw(133, 6, 5, scale=scale)
    values, gradients = reference.kd(student, teacher, 6.0), reference.kd_gradient(student, teacher, 6.0)
    with computing_in(precision) as real:
        for official, share in (True, 10.0), (False, 50.0):
            value, gradient = mean_and_gradient(
                TF_SELF[official], real(student), real(teacher), temperature=6.0, multiplier=50.0
            )
            np.testing.assert_allclose(value, share * values.mean(), **TOLERANCE[precision])
            np.testing.assert_allclose(gradient, share * gradients / 6, **TOLERANCE[precision])


TF_SELF = {official: functools.partial(tf_kd_self, official=official) for official in (True, False)}
TF_REG = {official: functools.partial(tf_kd_regularizer, official=official) for official in (True, False)}
FORMS = pytest.mark.parametrize("official", [True, False])


def test_tf_kd_self_is_kd():
    ours = tf_kd_self(STUDENT, TEACHER, temperature=3.0, official=False)
    np.testing.assert_allclose(ours, kd(STUDENT, TEACHER, temperature=3.0), rtol=1e-6)
    # Exact but for how a compiler sums each of the two: float32's rounding, times the square of the released temperature.
    np.testing.assert_allclose(
        tf_kd_self(STUDENT, STUDENT), 0, atol=20.0**2 * np.finfo(np.float32).eps / STUDENT.shape[-1]
    )
    by_student, by_teacher = jax.grad(lambda s, t: tf_kd_self(s, t).sum(), argnums=(0, 1))(STUDENT, TEACHER)
    np.testing.assert_array_equal(by_teacher, 0)
    assert np.abs(by_student).max() > 1e-3
    student, teacher, kept = STUDENT.copy(), TEACHER.copy(), [0, 1, 2, 4]
    student[:, 3] = teacher[:, 3] = -np.inf
    value, gradient = mean_and_gradient(TF_SELF[True], jnp.asarray(student), jnp.asarray(teacher), temperature=2.0)
    np.testing.assert_allclose(value, reference.kd(STUDENT[:, kept], TEACHER[:, kept], 2.0).mean() / 5, rtol=2e-5)
    np.testing.assert_array_equal(gradient[:, 3], 0)


@FORMS
@PRECISIONS
@pytest.mark.parametrize("scale", [3.0, 1e4])
@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_tf_kd_regularizer_is_its_formula(temperature, scale, precision, official):
    student = draw(134, 6, 5, scale=scale)
    values, gradients = numpy_regularizer(student, LABELS, temperature, 10.0, 0.9, official)
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(
            TF_REG[official], real(student), LABELS, temperature=temperature, multiplier=10.0, correct_prob=0.9
        )
    np.testing.assert_allclose(value, values.mean(), **TOLERANCE[precision])
    np.testing.assert_allclose(gradient, gradients / 6, **TOLERANCE[precision])


@FORMS
@pytest.mark.parametrize("correct", [0.0, 0.99, 1.0])
def test_any_trust_in_the_label(official, correct):
    values, gradients = numpy_regularizer(STUDENT, LABELS, 4.0, 1.0, correct, official)
    value, gradient = mean_and_gradient(
        TF_REG[official], jnp.asarray(STUDENT), LABELS, temperature=4.0, correct_prob=correct
    )
    np.testing.assert_allclose(value, values.mean(), **TOLERANCE["f32"])
    np.testing.assert_allclose(gradient, gradients / 6, **TOLERANCE["f32"])


def test_what_the_two_forms_are():
    # The paper's, at temperature 1, is label smoothing over the other classes, less the virtual teacher's entropy.
    ours = tf_kd_regularizer(STUDENT, LABELS, temperature=1.0, correct_prob=0.9, official=False)
    v = virtual_teacher(LABELS, 5, 0.9)
    expected = -np.sum(v * reference.log_softmax(STUDENT), axis=-1) + np.sum(v * np.log(v), axis=-1)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    # The released one is close to a pull towards uniformity, whatever the label.
    ours = tf_kd_regularizer(STUDENT, LABELS, temperature=40.0, multiplier=5.0)
    uniform = -np.mean(reference.log_softmax(STUDENT), axis=-1) - np.log(5)
    np.testing.assert_allclose(ours, uniform, atol=0.2)
    assert np.abs(ours - uniform).max() > 1e-3


@FORMS
def test_classes_labels_and_shapes(official):
    loss = TF_REG[official]
    one, pull = jax.vjp(lambda s: loss(s, LABELS * 0), STUDENT[:, :1])
    np.testing.assert_array_equal(one, 0)
    np.testing.assert_array_equal(pull(jnp.ones(6))[0], 0)
    two = loss(STUDENT[:, :2], LABELS % 2, temperature=2.0)
    expected, _ = numpy_regularizer(STUDENT[:, :2], LABELS % 2, 2.0, 1.0, 0.99, official)
    np.testing.assert_allclose(two, expected, rtol=2e-5)
    for label in (-1, 5):
        labels = np.where(np.arange(6) == 2, label, LABELS)
        values, pull = jax.vjp(lambda s, y=labels: loss(s, y), STUDENT)
        assert np.isnan(values[2]) and np.isfinite(np.delete(values, 2)).all()
        gradient = pull(jnp.where(jnp.isnan(values), 0.0, 1.0))[0]
        np.testing.assert_array_equal(gradient[2], 0)
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-3
    # Equal to the target: nothing to learn.
    temperature = 3.0
    v = virtual_teacher(LABELS, 5, 0.99)
    target = v / temperature if official else np.log(v)
    values, pull = jax.vjp(lambda s: loss(s, LABELS, temperature=temperature), jnp.float32(target))
    np.testing.assert_allclose(values, 0, atol=5e-6)
    np.testing.assert_allclose(pull(jnp.ones(6))[0], 0, atol=5e-6)
    half = jnp.asarray(STUDENT, jnp.bfloat16)
    assert loss(half, LABELS).dtype == jnp.float32
    np.testing.assert_array_equal(loss(half, labels=LABELS), loss(half.astype(jnp.float32), LABELS))
    temperatures = jnp.array([[2.0], [4.0]])
    sources = loss(STUDENT.reshape(2, 3, 5), LABELS.reshape(2, 3), temperature=temperatures)
    np.testing.assert_allclose(sources[1], loss(STUDENT[3:], LABELS[3:], temperature=4.0), rtol=1e-6)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"correct_prob is 1\.5"):
        tf_kd_regularizer(STUDENT, LABELS, correct_prob=1.5)
    with pytest.raises(ValueError, match="temperature is 0"):
        tf_kd_self(STUDENT, TEACHER, temperature=0)
    with pytest.raises(TypeError, match="labels must be integer"):
        tf_kd_regularizer(STUDENT, LABELS.astype(np.float32))
    with pytest.raises(ValueError, match=r"multiplier has shape \(3,\)"):
        tf_kd_self(STUDENT, TEACHER, multiplier=jnp.ones(3))


# --- stability ---


def numpy_stability(probs, labels, entry):
    variances = []
    for c in range(probs.shape[-1]):
        own = np.float64(probs[labels == c])
        if len(own):
            gaps = own - own.mean(axis=0)
            variances.append(np.mean(np.sum(gaps**2, axis=-1) if entry == "vector" else gaps[:, c] ** 2))
    return 1 - np.mean(variances)


PROBS = np.float32(reference.softmax(draw(135, 40, 5)))
OF = np.random.default_rng(136).integers(0, 4, 40)  # nobody is of class 4


@PRECISIONS
@pytest.mark.parametrize("entry", ["vector", "label"])
def test_stability_is_its_formula(entry, precision):
    assert set(OF) == {0, 1, 2, 3}
    with computing_in(precision) as real:
        metric = jax.jit(functools.partial(stability_metric, num_classes=5, entry=entry))
        ours = metric(real(PROBS), OF)
        assert ours.shape == () and ours.dtype == real(0).dtype
        rtol = 1e-12 if precision == "f64" else 1e-6
        np.testing.assert_allclose(ours, numpy_stability(PROBS, OF, entry), rtol=rtol)
        # Rows of no class are as if absent.
        probs, labels = np.concatenate([PROBS, np.full((2, 5), np.nan)]), np.concatenate([OF, [-1, 5]])
        np.testing.assert_allclose(metric(real(probs), labels), ours, rtol=1e-6)


def test_stability_at_its_ends():
    same = np.eye(5, dtype=np.float32)[OF]
    for entry in "vector", "label":
        assert stability_metric(same, OF, 5, entry=entry) == 1
        assert stability_metric(PROBS, np.full(40, -1), 5, entry=entry) == 1
        assert stability_metric(PROBS[:3], np.arange(3), 5, entry=entry) == 1  # one example a class varies by nothing
    # Half the answers of every class are sure of one class, half of another.
    split = np.eye(5, dtype=np.float32)[np.arange(40) % 2]
    np.testing.assert_allclose(stability_metric(split, np.arange(40) // 10, 5), 0.5, rtol=1e-6)
    # More columns than classes are no trouble for whole vectors.
    assert stability_metric(split, np.zeros(40, int), 1) == 0.5


def test_stability_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="entry is 'both'"):
        stability_metric(PROBS, OF, 5, entry="both")
    with pytest.raises(ValueError, match="probs has 5 columns, num_classes is 4"):
        stability_metric(PROBS, OF, 4, entry="label")
    with pytest.raises(ValueError, match=r"probs has shape \(2, 20, 5\)"):
        stability_metric(PROBS.reshape(2, 20, 5), OF.reshape(2, 20), 5)
    with pytest.raises(ValueError, match=r"labels has shape \(39,\)"):
        stability_metric(PROBS, OF[1:], 5)
