"""Measurements on cases whose answer is known by hand: the teacher itself, an independent network, a linear one."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import analysis
from kdjax.training import metrics
from kdjax.types import Batch, ModelOutput

RNG = np.random.default_rng(0)
TEACHER = jnp.asarray(RNG.normal(size=(400, 5)), jnp.float32)
OTHER = jnp.asarray(RNG.normal(size=(400, 5)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, 5, 400))


def test_a_student_that_is_the_teacher_is_the_teacher():
    found = analysis.functional_similarity(TEACHER + 3.0, TEACHER, LABELS)  # shifts are no difference
    same = {"agreement": 1, "when_right": 1, "same_errors": 1, "predictive_kl": 0, "js_divergence": 0,
            "activation_distance": 0, "rank_disagreement": 0}  # fmt: skip
    for name, value in same.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)
    assert analysis.agreement(-TEACHER, TEACHER) == 0 and analysis.agreement(-TEACHER, TEACHER, k=5) == 1


def test_independent_networks_agree_by_chance():
    found = analysis.functional_similarity(OTHER, TEACHER, LABELS)
    error = 4 * np.sqrt(0.2 * 0.8 / 400)
    assert abs(found["agreement"] - 0.2) < error and abs(found["rank_disagreement"] - 0.8) < error
    assert abs(analysis.agreement(OTHER, TEACHER, k=2) - 0.4) < 2 * error
    assert 0 < found["js_divergence"] < np.log(2) and found["activation_distance"] < np.sqrt(2)
    assert abs(found["same_errors"] - found["when_right"]) < 0.25, "no asymmetry without transfer"


def test_measures_of_single_examples_are_those_of_the_formulas():
    s, t = (
        jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])),
        jnp.log(jnp.array([[0.2, 0.5, 0.3], [0.1, 0.3, 0.6]])),
    )
    p, q = np.exp(s), np.exp(t)
    m = (p + q) / 2
    kl = lambda a, b: np.sum(a * np.log(a / b), axis=-1)
    assert analysis.agreement(s, t) == 0.5
    np.testing.assert_allclose(analysis.predictive_kl(s, t), kl(q, p).mean(), rtol=1e-5)
    np.testing.assert_allclose(analysis.js_divergence(s, t), (kl(p, m) / 2 + kl(q, m) / 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(analysis.activation_distance(s, t), np.linalg.norm(p - q, axis=-1).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        analysis.rank_disagreement(s, t), 3 / 6, rtol=1e-6
    )  # (0, 1, 2) and (1, 2, 0); then alike
    split = analysis.agreement_by_correctness(s, t, jnp.array([0, 2]))
    assert (split["when_right"], split["same_errors"], split["teacher_errors"]) == (1.0, 0.0, 0.5)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="same examples"):
        analysis.agreement(TEACHER, TEACHER[:, :4])
    with pytest.raises(ValueError, match="there are 5 classes"):
        analysis.agreement(TEACHER, TEACHER, k=6)


def test_calibration_by_hand():
    logits = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]]))
    labels = jnp.array([0, 1, 0, 0])
    np.testing.assert_allclose(analysis.nll(logits, labels), -np.log([0.9, 0.1, 0.6, 0.4]).mean(), rtol=1e-5)
    np.testing.assert_allclose(analysis.brier(logits, labels), np.mean([0.02, 1.62, 0.32, 0.72]), rtol=1e-5)
    np.testing.assert_allclose(
        analysis.brier(logits, labels, over_classes="mean"), analysis.brier(logits, labels) / 2, rtol=1e-6
    )
    # Of five bins (0.8, 1]: two at 0.9, one right; (0.4, 0.6]: two at 0.6, one right.
    np.testing.assert_allclose(analysis.ece(logits, labels, bins=5), 0.5 * 0.4 + 0.5 * 0.1, rtol=1e-4)
    np.testing.assert_allclose(analysis.ece(logits, labels, bins=2, adaptive=True), 0.5 * 0.4 + 0.5 * 0.1, rtol=1e-4)
    np.testing.assert_allclose(analysis.confidence(logits), 0.75, rtol=1e-5)
    np.testing.assert_allclose(analysis.entropy(jnp.zeros((3, 8))), np.log(8), rtol=1e-6)
    np.testing.assert_allclose(analysis.entropy(jnp.array([[0.0, -jnp.inf]])), 0.0)


def test_it_is_the_calibration_error_of_an_evaluation():
    """Which sums bins over batches."""
    output, batch = ModelOutput(logits=TEACHER), Batch.of(TEACHER, labels=LABELS)
    means = metrics.class_means(metrics.prediction_sums(output, batch))
    np.testing.assert_allclose(analysis.ece(TEACHER, LABELS, bins=metrics.BINS), means["ece"], rtol=1e-4)
    np.testing.assert_allclose(analysis.nll(TEACHER, LABELS), means["nll"], rtol=1e-5)


def test_half_types_are_computed_in_float32():
    half = TEACHER.astype(jnp.bfloat16)
    other = OTHER.astype(jnp.bfloat16)
    wide = [x.astype(jnp.float32) for x in (half, other)]
    for name, value in analysis.functional_similarity(half, other, LABELS).items():
        assert value.dtype == jnp.float32, name
        np.testing.assert_allclose(value, analysis.functional_similarity(*wide, LABELS)[name], rtol=1e-5, err_msg=name)
    for measure in (analysis.nll, analysis.brier, analysis.ece):
        np.testing.assert_allclose(measure(half, LABELS), measure(wide[0], LABELS), rtol=1e-5)


def test_the_readme_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (Path(analysis.__file__).parent / "README.md").read_text(), flags=re.S)
    exec(compile(code, "README", "exec"), {})


def test_a_calibrated_network_is_calibrated():
    """Labels drawn from the probabilities themselves: nothing but sampling error is left."""
    logits = 2.0 * jnp.asarray(RNG.normal(size=(20_000, 4)), jnp.float32)
    labels = jax.random.categorical(jax.random.key(0), logits)
    for adaptive in (False, True):
        assert analysis.ece(logits, labels, adaptive=adaptive) < 0.02
        assert analysis.ece(3 * logits, labels, adaptive=adaptive) > 0.1


@pytest.mark.parametrize("cka", [analysis.linear_cka, analysis.rbf_cka])
def test_cka_knows_rotations_and_strangers(cka):
    x = jnp.asarray(RNG.normal(size=(200, 6)), jnp.float32)
    rotation = jnp.asarray(np.linalg.qr(RNG.normal(size=(6, 6)))[0], jnp.float32)
    np.testing.assert_allclose(cka(x, 3 * x @ rotation + 2), 1, atol=1e-3)
    assert cka(x, jnp.asarray(RNG.normal(size=(200, 6)), jnp.float32)) < 0.3
    with pytest.raises(ValueError, match="same N"):
        cka(x, x[:10])


def test_cka_of_examples_that_coincide():
    """With more than half of the pairs alike the median distance is 0; the mean of the others is that of the two groups."""
    few = jnp.asarray(np.repeat([0.0, 1.0], [90, 10])[:, None] * np.ones((1, 4)), jnp.float32)
    other = few.at[0].set(1.0)
    np.testing.assert_allclose(analysis.rbf_cka(few, 5 * few + 2), 1, atol=1e-4)
    kernel = lambda x: np.where(np.asarray(x[:, :1] == x[None, :, 0]), 1.0, np.exp(-1 / (2 * 0.5**2)))
    centring = np.eye(100) - 1 / 100
    a, b = (centring @ kernel(x) @ centring for x in (few, other))
    np.testing.assert_allclose(
        analysis.rbf_cka(few, other), np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b), rtol=1e-3
    )
    for cka in (analysis.linear_cka, analysis.rbf_cka):
        constant = jnp.full((100, 3), 0.1)  # whose mean is not 0.1 in float32
        assert np.isnan(cka(constant, few)) and np.isnan(cka(few, constant)) and np.isnan(cka(constant, constant))


def test_the_distances_of_many_examples_fit_into_memory_and_are_exact_far_from_the_origin():
    x = jnp.asarray(RNG.normal(size=(300, 64)), jnp.float32)
    assert "300,300,64" not in str(jax.make_jaxpr(analysis.rbf_cka)(x, x)), "an array of pairs and features"
    near = x[:, :2].at[220:].add(jnp.float32(4096.0))  # most pairs are near each other, far from the mean
    exact = np.asarray(near, np.float64)
    with jax.enable_x64(True):
        want = analysis.rbf_cka(jnp.asarray(exact), jnp.asarray(np.asarray(x, np.float64)))
    np.testing.assert_allclose(analysis.rbf_cka(near, x), want, rtol=1e-4)


def test_the_plane_of_three_classes_keeps_distances_on_it():
    templates = jnp.asarray(RNG.normal(size=(3, 7)), jnp.float32)
    shown = analysis.class_plane(templates, templates)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        np.testing.assert_allclose(
            jnp.linalg.norm(shown[i] - shown[j]), jnp.linalg.norm(templates[i] - templates[j]), rtol=1e-4
        )
    with pytest.raises(ValueError, match=r"give \[3, 7\]"):
        analysis.class_plane(templates, templates[:2])
    half = templates.astype(jnp.bfloat16)
    places = analysis.class_plane(half, half)
    assert places.dtype == jnp.float32
    np.testing.assert_array_equal(places, analysis.class_plane(half.astype(jnp.float32), half.astype(jnp.float32)))


def test_grad_cam_of_a_linear_head():
    """Of a mean over places and a linear layer the weights are those of the layer: the map is relu(maps @ w)."""
    maps = jnp.asarray(RNG.normal(size=(4, 3, 3, 5)), jnp.float32)
    kernel = jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32)
    labels = jnp.array([0, 1, 2, 0])
    found = analysis.grad_cam(lambda m: jnp.mean(m, axis=(1, 2)) @ kernel, maps, labels)
    want = np.maximum(np.einsum("nhwd,dn->nhw", maps, kernel[:, labels]) / 9, 0)
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert analysis.closer_share(found, found, -found) == 1 and analysis.closer_share(found, -found, found) == 0
    assert analysis.closer_share(found, 0 * found, 0 * found) == 0.5, "maps of zeros say nothing"
    large = (1 + jnp.arange(8.0)).reshape(2, 2, 2) * 400
    assert analysis.closer_share(*(x.astype(jnp.float16) for x in (large, large, large[:, ::-1]))) == 1, "no overflow"
    with pytest.raises(TypeError, match="distilled must be floating point"):
        analysis.closer_share(large, large.astype(jnp.uint8), large)


def test_fgsm_moves_a_linear_network_as_far_as_it_may():
    kernel = jnp.array([[1.0, -1.0], [2.0, -2.0]])
    network = lambda x: x @ kernel
    x, labels = jnp.array([[0.1, 0.1], [5.0, 5.0]]), jnp.array([0, 0])
    changed = analysis.iterative_fgsm(network, x, labels, size=0.5, step=0.2)
    np.testing.assert_allclose(changed, x - 0.5, atol=1e-6)
    within = analysis.iterative_fgsm(network, x, labels, size=0.5, step=0.2, bounds=(0.0, 4.9))
    np.testing.assert_allclose(within, np.clip(x - 0.5, 0.0, 4.9), atol=1e-6)
    assert analysis.fooling_rate(network, x, changed) == 0.5 and analysis.invariance(network, x, changed) == 0.5
    assert analysis.fooling_rate(network, x, changed, where=jnp.array([True, False])) == 1
    shape, texture = jnp.array([0, 0, 1, 1]), jnp.array([1, 1, 0, 1])
    logits = jax.nn.one_hot(jnp.array([0, 1, 1, 1]), 3)
    np.testing.assert_allclose(analysis.shape_share(logits, shape, texture), 2 / 3, rtol=1e-6)


def test_the_identity_of_gradients_holds_for_linear_networks_and_no_deeper_ones():
    with jax.enable_x64(True):
        draw = lambda *shape: jnp.asarray(RNG.normal(size=shape))
        inputs, labels = draw(30, 4), jnp.asarray(RNG.integers(0, 3, 30))
        linear = lambda params, x: x @ params["w"] + params["b"][None]
        made = lambda: {"w": draw(4, 3), "b": draw(3)}
        found = analysis.gradient_identity(linear, made(), made(), inputs, labels, 0.7)
        assert found.gap < 1e-13 and abs(found.cosine - 1) < 1e-13
        deep = lambda params, x: jnp.tanh(x @ params["u"]) @ params["w"]
        other = lambda: {"u": draw(4, 5), "w": draw(5, 3)}
        assert analysis.gradient_identity(deep, other(), other(), inputs, labels, 0.7).gap > 1e-2


def test_a_perfect_teacher_takes_all_noise_away_and_the_best_strength_is_the_least():
    with jax.enable_x64(True):
        draw = lambda *shape: jnp.asarray(RNG.normal(size=shape))
        inputs, labels = draw(40, 4), jnp.asarray(RNG.integers(0, 3, 40))
        apply = lambda w, x: x @ w
        student = draw(4, 3)
        same = analysis.gradient_noise(apply, student, student, inputs, labels, 1.0)
        np.testing.assert_allclose([same.best, same.explained], 1.0, rtol=1e-12)
        np.testing.assert_allclose(same.corrected, 0.0, atol=1e-12)
        teacher = student + 0.5 * draw(4, 3)
        for centred in (False, True):
            found = analysis.gradient_noise(apply, student, teacher, inputs, labels, 0.0, centred=centred)
            np.testing.assert_allclose(found.corrected, found.plain, rtol=1e-12)
            at = lambda strength, c=centred: (
                analysis.gradient_noise(apply, student, teacher, inputs, labels, strength, centred=c).corrected
            )
            least = at(float(found.best))
            np.testing.assert_allclose(least, found.plain * (1 - found.explained), rtol=1e-10)
            assert least < at(float(found.best) + 0.1) and least < at(float(found.best) - 0.1)


def test_weights_between_networks():
    tree = lambda seed: {"a": jnp.asarray(np.random.default_rng(seed).normal(size=(3, 2))), "b": jnp.ones(2) * seed}
    first, second, third = tree(1), tree(2), tree(3)
    half = analysis.interpolated(first, second, 0.25)
    np.testing.assert_allclose(half["b"], 0.25 * 1 + 0.75 * 2)
    at, place = analysis.plane(first, second, third)
    np.testing.assert_allclose(place(first), (0, 0), atol=1e-5)
    x, y = place(second)
    assert x > 0 and abs(y) < 1e-5 and abs(place(third)[1]) > 0.1
    for weights in (first, second, third):
        for found, want in zip(jax.tree.leaves(at(*place(weights))), jax.tree.leaves(weights), strict=True):
            np.testing.assert_allclose(found, want, atol=1e-5)
    with pytest.raises(ValueError, match="on a line"):
        analysis.plane(first, second, analysis.interpolated(first, second, 0.3))
    with pytest.raises(ValueError, match="different networks"):
        analysis.interpolated(first, {"a": first["a"]}, 0.5)
