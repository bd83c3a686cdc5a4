"""align_gradients against the original implementation and its geometry; scale_gradient against the learned temperature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import schedules
from kdjax.losses.gradients import align_gradients, project_conflict, scale_gradient
from kdjax.losses.logits.logit import kd
from kdjax.types import Clock
from tests.golden_cases import cases
from tests.losses import numpy_reference as reference
from tests.losses.computing import compiled, computing_in, draw

align_gradients, project_conflict, scale_gradient, kd = map(
    compiled, (align_gradients, project_conflict, scale_gradient, kd)
)

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])


def as_tree(flat):
    """A flat gradient as a nest of arrays of several ranks."""
    half = len(flat) // 2
    return {"a": flat[:half], "rest": [flat[half:-2].reshape(-1, 1), flat[-2], flat[-1:]]}


def as_vector(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def numpy_projection(auxiliary, main):
    main, auxiliary = np.float64(main), np.float64(auxiliary)
    dot = auxiliary @ main
    return auxiliary - dot / (main @ main) * main if dot < 0 else auxiliary


# --- alignment ---


@PRECISIONS
@pytest.mark.parametrize("case", cases("dhkd", symbol="OptimGradAlign._project_conflicting"), ids=repr)
def test_align_gradients_golden(case, precision):
    main, auxiliary = case.inputs["grads"]
    # Parameters that an objective does not use have a gradient of zero, as under jax.grad.
    np.testing.assert_array_equal(case.inputs["grads"][case.inputs["has"] == 0], 0)
    with computing_in(precision) as real:
        whole = align_gradients(real(main), real(auxiliary))
        case.check(whole, "out", "merged", precision)
        nested = align_gradients(as_tree(real(main)), as_tree(real(auxiliary)))
        assert jax.tree.structure(nested) == jax.tree.structure(as_tree(main))
        case.check(as_vector(nested), "out", "merged", precision)


def test_golden_has_gradients_that_agree_and_some_that_do_not():
    dots = [np.dot(*case.inputs["grads"]) for case in cases("dhkd", symbol="OptimGradAlign._project_conflicting")]
    assert min(dots) < 0 < max(dots)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_left_is_not_against_the_main_gradient(seed):
    main, auxiliary = draw(70 + seed, 12), draw(80 + seed, 12)
    with computing_in("f64") as real:
        for sign in (1, -1):
            ours = as_vector(project_conflict(as_tree(real(sign * auxiliary)), as_tree(real(main))))
            np.testing.assert_allclose(ours, numpy_projection(sign * auxiliary, main), rtol=1e-12, atol=1e-14)
            assert ours @ main > -1e-12
            merged = as_vector(align_gradients(as_tree(real(main)), as_tree(real(sign * auxiliary))))
            np.testing.assert_allclose(merged, main + ours, rtol=1e-12, atol=1e-14)


def test_gradients_that_agree_are_added_as_they_are():
    main, auxiliary = jnp.array([1.0, 2.0]), jnp.array([3.0, -1.0])
    np.testing.assert_array_equal(project_conflict(auxiliary, main), auxiliary)
    np.testing.assert_array_equal(align_gradients(main, auxiliary), main + auxiliary)
    opposite = align_gradients(main, -2 * main)
    np.testing.assert_allclose(opposite, main, rtol=1e-6)


def test_one_dot_product_over_all_leaves_not_one_a_leaf():
    main, auxiliary = {"a": jnp.array([3.0]), "b": jnp.array([1.0])}, {"a": jnp.array([1.0]), "b": jnp.array([-1.0])}
    merged = align_gradients(main, auxiliary)  # against each other in b, not altogether
    np.testing.assert_array_equal([merged["a"][0], merged["b"][0]], [4.0, 0.0])


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_no_main_gradient_is_too_small_or_too_large(scale):
    main, auxiliary = draw(70, 12), draw(80, 12)
    auxiliary = auxiliary if auxiliary @ main < 0 else -auxiliary
    ours = project_conflict(jnp.asarray(auxiliary), jnp.asarray(scale * main))
    np.testing.assert_allclose(ours, numpy_projection(auxiliary, main), rtol=1e-4, atol=1e-6)


def test_no_main_gradient_leaves_the_auxiliary_one_alone():
    auxiliary = as_tree(jnp.asarray(draw(80, 12)))
    nothing = jax.tree.map(jnp.zeros_like, auxiliary)
    np.testing.assert_array_equal(as_vector(project_conflict(auxiliary, nothing)), as_vector(auxiliary))
    np.testing.assert_array_equal(as_vector(align_gradients(nothing, auxiliary)), as_vector(auxiliary))
    np.testing.assert_array_equal(as_vector(align_gradients(auxiliary, nothing)), as_vector(auxiliary))
    assert align_gradients({}, {}) == {}


def test_half_types_are_accumulated_in_float32():
    main, auxiliary = jnp.full(4096, 0.5, jnp.bfloat16), jnp.full(4096, -0.25, jnp.bfloat16)
    auxiliary = auxiliary.at[0].set(64)
    merged = align_gradients(main, auxiliary)
    assert merged.dtype == jnp.bfloat16
    expected = 0.5 + numpy_projection(auxiliary, main)
    np.testing.assert_allclose(np.float64(merged), expected, rtol=2**-7)
    assert align_gradients(main, auxiliary.astype(jnp.float32)).dtype == jnp.float32


def test_align_gradients_compiled():
    main, auxiliary = as_tree(jnp.asarray(draw(71, 12))), as_tree(jnp.asarray(draw(81, 12)))
    np.testing.assert_allclose(
        as_vector(jax.jit(align_gradients)(main, auxiliary)), as_vector(align_gradients(main, auxiliary)), rtol=1e-5
    )


def test_align_gradients_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="the structure of auxiliary is"):
        align_gradients({"a": jnp.ones(2)}, {"b": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"auxiliary\['a'\] has shape \(3,\), that of main \(2,\)"):
        align_gradients({"a": jnp.ones(2)}, {"a": jnp.ones(3)})
    with pytest.raises(TypeError, match="every leaf of auxiliary must be floating point"):
        align_gradients(jnp.ones(2), jnp.ones(2, int))


# --- scaling, and the learned temperature ---


def kd_with_reversal(theta, student, teacher, factor, start, width):
    temperature = start + width * jax.nn.sigmoid(scale_gradient(theta, factor))
    return jnp.mean(kd(student, teacher, temperature=temperature[0]))


@PRECISIONS
@pytest.mark.parametrize("case", [c for c in cases("ctkd") if "t_start" in c.hyper], ids=repr)
def test_reversed_temperature_golden(case, precision):
    start, width = case.hyper["t_start"], case.hyper["t_end"]
    student, teacher, theta = case.inputs["student"], case.inputs["teacher"], case.params["global_T"]
    with computing_in(precision) as real:
        value, (by_theta, by_student) = jax.jit(jax.value_and_grad(kd_with_reversal, argnums=(0, 1)))(
            real(theta), real(student), real(teacher), real(case.hyper["lambda_"]), start, width
        )
        case.check(value, "out", "loss", precision)
        case.check(by_student, "grad", "student", precision)
        if case.finite[precision]:
            case.check(by_theta, "gparam", "global_T", precision)
        else:  # the reference sends nan into its temperature
            sigmoid = 1 / (1 + np.exp(-np.float64(theta)))
            slope = reference.kd_temperature_gradient(student, teacher, start + width * sigmoid).mean()
            expected = case.hyper["lambda_"] * slope * width * sigmoid * (1 - sigmoid)
            # T^2 and the softmaxes pull against each other, which costs float32 a digit.
            np.testing.assert_allclose(by_theta, expected, rtol=1e-8 if precision == "f64" else 1e-4)


@pytest.mark.parametrize("case", cases("ctkd", symbol="CosineDecay / LinearDecay"), ids=repr)
def test_factor_of_the_reversal_golden(case):
    first, last, loops = (case.hyper[name] for name in ("max_value", "min_value", "num_loops"))
    clock = Clock(steps_per_epoch=3, total_steps=3 * (int(case.inputs["epoch"].max()) + 1))
    # The linear decay starts at 0 whatever it is told, and stops one epoch short of its end.
    expressed = {
        "cosine": schedules.Cosine(first, last, schedules.epochs(loops)),
        "linear": schedules.Linear(0.0, (last - first) * (loops - 1) / loops, schedules.epochs(max(loops - 1, 1))),
    }
    for name, schedule in expressed.items():
        factors = [schedule(clock.at(3 * epoch)) for epoch in case.inputs["epoch"]]
        np.testing.assert_allclose(
            factors, case.outputs["f64"][name], rtol=2e-6, atol=2e-7 * max(abs(first), abs(last), 1)
        )


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.3, 2])
def test_scale_gradient_changes_nothing_but_the_gradient(factor):
    x = jnp.asarray(draw(90, 3))
    value, pull = jax.vjp(lambda x: scale_gradient(x, factor), x)
    np.testing.assert_array_equal(value, x)
    np.testing.assert_allclose(pull(jnp.ones(3))[0], np.full(3, factor), rtol=1e-6)
    traced = jax.jit(jax.grad(lambda x, f: jnp.sum(scale_gradient(x, f) ** 2)))(x, factor)
    np.testing.assert_allclose(traced, 2 * factor * x, rtol=1e-6)
    np.testing.assert_array_equal(jax.jvp(lambda x: scale_gradient(x, factor), (x,), (x,))[1], jnp.float32(factor) * x)


def test_scale_gradient_of_trees_types_and_factor():
    tree = {"half": jnp.ones(2, jnp.bfloat16), "scalar": jnp.float32(3.0)}
    value, pull = jax.vjp(lambda t: scale_gradient(t, jnp.float32(-0.5)), tree)
    assert value["half"].dtype == jnp.bfloat16
    (back,) = pull(value)
    assert back["half"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.float32(back["half"]), [-0.5, -0.5])
    assert back["scalar"] == -1.5
    assert jax.grad(lambda f: scale_gradient(jnp.float32(3.0), f))(2.0) == 0
    with pytest.raises(ValueError, match=r"factor has shape \(2,\)"):
        scale_gradient(jnp.ones(2), jnp.ones(2))
    with pytest.raises(TypeError, match="x must be floating point"):
        scale_gradient(jnp.ones(2, int), 1.0)
