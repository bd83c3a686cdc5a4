"""Losses of written responses against the numbers of DistiLLM-2 and MiniLLM, and what a rule says of its edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import distillm2, distillm2_alpha, forward_kl, lm_kd, minillm_advantages, minillm_policy
from tests.golden_cases import cases
from tests.losses.computing import compiled, computing_in, draw

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])
IGNORED = -100


def shifted(case, real):
    """Logits of both, the tokens that they are of, which count, and who wrote a row."""
    student, teacher = (real(case.inputs[name]) for name in ("student", "teacher"))
    labels = jnp.asarray(case.inputs["labels"])[:, 1:]
    wrote = jnp.arange(len(labels)) >= len(labels) // 2
    return student, teacher[:, :-1], labels, labels != IGNORED, wrote


@functools.partial(jax.jit, static_argnames="most")
@functools.partial(jax.value_and_grad, has_aux=True)
def published(student, teacher, labels, kept, wrote, gaps, beta, most):
    """The loss, and what each row comes to by either rule, as if the teacher or the student had written it."""
    student, shares = student[:, :-1], []
    for side, gap in enumerate(gaps):
        by = jnp.full(len(labels), bool(side))
        alpha = most if gap is None else distillm2_alpha(student, teacher, labels, by, kept, gap=gap, alpha=most)
        shares.append(jnp.broadcast_to(alpha, (len(labels),)))
    values = distillm2(student, teacher, wrote, kept, alpha=jnp.where(wrote, shares[1], shares[0]), beta=beta)
    sides = [distillm2(student, teacher, jnp.full(len(labels), side), kept, alpha=shares[side]) for side in (0, 1)]
    return 2 * jnp.mean(values), sides


@PRECISIONS
@pytest.mark.parametrize("case", [c for c in cases("distillm2") if c.hyper["loss_type"] == "distillm_v2"], ids=repr)
def test_distillm2_golden(case, precision):
    """Either gap is given or none, and the weight grows in the first half of the training."""
    with computing_in(precision) as real:
        hyper = case.hyper
        beta = 1 + 0.5 * min(1, 2 * hyper["step"] / hyper["max_steps"])
        gaps = tuple(None if hyper[name] is None else real(hyper[name]) for name in ("logp_logq", "logq_logp"))
        (value, sides), gradient = published(*shifted(case, real), gaps, real(beta), most=hyper["base_alpha"])
        case.check(value, "out", "loss", precision)
        for name, values in zip(("forward", "reverse"), sides, strict=True):
            case.check(values, "out", name, precision)
        case.check(gradient, "grad", "student", precision)


@PRECISIONS
@pytest.mark.parametrize("case", [c for c in cases("distillm2") if c.hyper["loss_type"] == "distillm_v1"], ids=repr)
def test_a_fixed_mixture_golden(case, precision):
    """The code's first version as its second runs it: the reverse on all, where that is what it says."""
    with computing_in(precision) as real:
        student, teacher, _, kept, _ = shifted(case, real)

        @jax.value_and_grad
        def loss(student):
            values = distillm2(student[:, :-1], teacher, jnp.ones(len(student)), kept, alpha=case.hyper["base_alpha"])
            return 2 * jnp.mean(values)

        value, gradient = jax.jit(loss)(student)
        case.check(value, "out", "loss", precision)
        case.check(gradient, "grad", "student", precision)


def test_what_a_written_row_gives():
    student, teacher = draw(0, 3, 4, 7), draw(1, 3, 4, 7)
    wrote, mask = np.array([True, False, True]), np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    holed = np.where(mask[..., None] == 0, np.nan, student)
    loss = lambda s: distillm2(s, teacher, wrote, mask, beta=0.5)
    values, gradient = jax.jit(lambda s: (loss(s), jax.grad(lambda s: jnp.sum(loss(s)))(s)))(holed)
    assert values[2] == 0 and np.isfinite(values).all() and np.isfinite(gradient).all()
    for wrong, said in (({"beta": 2.5}, "beta is 2.5"), ({"alpha": -0.1}, "alpha is -0.1")):
        with pytest.raises(ValueError, match=said):
            distillm2(student, teacher, wrote, **wrong)
    with pytest.raises(ValueError, match="one value a row"):
        distillm2(student, teacher, wrote[:2])


def test_a_share_is_finite_where_both_find_a_response_as_likely():
    """And sends nothing back where that is asked for."""
    logits, labels, wrote = draw(0, 2, 3, 5), np.zeros((2, 3), int), np.array([True, False])

    @jax.jit
    def gradients(student):
        share = lambda s, stop: jnp.sum(distillm2_alpha(s, logits, labels, wrote, gap=0.1, stop_gradient=stop))
        return jax.grad(share)(student, False), jax.grad(share)(student + 1.0, True)

    free, stopped = gradients(logits)
    assert np.isfinite(free).all() and not np.any(stopped)


@PRECISIONS
@pytest.mark.parametrize("case", [c for c in cases("minillm") if "gamma" in c.hyper], ids=repr)
def test_minillm_policy_golden(case, precision):
    with computing_in(precision) as real:
        rewards, new, old, w = (real(case.inputs[name]) for name in ("rewards", "logprobs", "old_logprobs", "w"))
        mask, gamma, clip = case.inputs["mask"], case.hyper["gamma"], case.hyper["cliprange"]

        @functools.partial(jax.value_and_grad, has_aux=True)
        def loss(new):
            worth = minillm_advantages(rewards, mask, gamma=gamma, whiten="use_whitening=False" not in case.symbol)
            values = minillm_policy(new, old, worth, mask, clip=clip, importance=w)
            return jnp.sum(values) / jnp.sum(mask), worth

        (value, worth), gradient = jax.jit(loss)(new)
        case.check(worth, "out", "advantages", precision)
        case.check(value, "out", "loss", precision)
        case.check(gradient, "grad", "logprobs", precision)


@PRECISIONS
@pytest.mark.parametrize("case", [c for c in cases("minillm") if "gamma" not in c.hyper], ids=repr)
def test_the_other_terms_of_minillm_golden(case, precision):
    """The single step is the reverse KL; on plain text the cross-entropies of labels and of the teacher are mixed."""
    with computing_in(precision) as real:
        student, teacher = (real(case.inputs[name]) for name in ("student", "teacher"))
        share, label = case.hyper.get("kd_ratio"), case.inputs.get("label")

        @functools.partial(jax.value_and_grad, has_aux=True)
        def loss(student):
            if share is None:
                return lm_kd(student, teacher, case.inputs["mask"], divergence="reverse_kl"), {}
            kept = label != IGNORED
            mean = lambda values: jnp.sum(jnp.where(kept, values, 0)) / jnp.sum(kept)
            log_p = jax.nn.log_softmax(student)
            lm = mean(-jnp.take_along_axis(log_p, jnp.where(kept, label, 0)[..., None], axis=-1)[..., 0])
            kd = mean(forward_kl(student, teacher, cross_entropy_form=True))
            return (1 - share) * lm + share * kd, {"lm": lm, "kd": kd}

        (value, parts), gradient = jax.jit(loss)(student)
        case.check(value, "out", "loss", precision)
        case.check(gradient, "grad", "student", precision)
        for name, part in parts.items():
            case.check(part, "out", name, precision)


def test_advantages_without_padding_are_white_and_wrong_ones_refused():
    rewards, mask = draw(2, 3, 5), np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    values = compiled(minillm_advantages)(rewards, mask, count_padding=False)
    assert np.mean(values[mask > 0]) == pytest.approx(0, abs=1e-6) and np.var(
        values[mask > 0], ddof=1
    ) == pytest.approx(1)
    holed = np.where(mask == 0, np.nan, rewards)
    np.testing.assert_array_equal(
        compiled(minillm_advantages)(holed, mask, count_padding=False)[mask > 0], values[mask > 0]
    )
    with pytest.raises(ValueError, match="mask has shape"):
        minillm_advantages(rewards, mask[:2])
    with pytest.raises(ValueError, match="clip is 0"):
        minillm_policy(rewards, rewards, rewards, mask, clip=0)
