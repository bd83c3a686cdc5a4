"""The losses of a Generalized Focal Loss head against the original implementation, and at their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from tests.golden_cases import cases
from tests.losses.computing import compiled, computing_in, draw
from tests.losses.tokens.head_case import head_weights, locations, maps, rows

losses = compiled(losses)

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])


def check_weighted(case, precision, function, scale=1.0):
    """Values of each example, and the loss they make, each times its weight, with its gradient."""
    with computing_in(precision) as real:

        def loss(logits):
            values = function(logits, real)
            return scale * jnp.sum(real(case.inputs["weight"]) * values) / case.hyper["avg_factor"], values

        (value, values), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(real(case.inputs["pred"]))
        case.check(values, "out", "elem", precision)
        case.check(value, "out", "loss", precision)
        case.check(gradient, "grad", "pred", precision)


@PRECISIONS
@pytest.mark.parametrize("case", cases("det_qfl"), ids=repr)
def test_quality_focal_golden(case, precision):
    def function(logits, real):
        return losses.quality_focal(logits, case.inputs["label"], real(case.inputs["score"]), beta=case.hyper["beta"])

    check_weighted(case, precision, function)


@PRECISIONS
@pytest.mark.parametrize("case", cases("det_dfl", symbol="DistributionFocalLoss"), ids=repr)
def test_distribution_focal_golden(case, precision):
    def function(logits, real):
        return losses.distribution_focal(logits, real(case.inputs["label"]))

    check_weighted(case, precision, function, scale=case.hyper["loss_weight"])


@PRECISIONS
@pytest.mark.parametrize("case", cases("det_dfl", symbol="Integral"), ids=repr)
def test_integral_golden(case, precision):
    with computing_in(precision) as real:

        def squares(logits):
            values = losses.integral(jnp.reshape(logits, (len(logits), 4, -1)))
            return jnp.sum(values**2), values

        (value, values), gradient = jax.jit(jax.value_and_grad(squares, has_aux=True))(real(case.inputs["logits"]))
        case.check(values, "out", "value", precision)
        case.check(value, "out", "loss", precision)
        case.check(gradient, "grad", "logits", precision)


@PRECISIONS
@pytest.mark.parametrize("case", cases("ld_head", symbol="GFLHead.loss_single"), ids=repr)
def test_gfl_head_golden(case, precision):
    with computing_in(precision) as real:
        labels, boxes, centres = locations(case, real)

        def loss(logits, edges):
            terms = losses.gfl_terms(
                logits,
                edges,
                labels,
                boxes,
                centres,
                stride=case.hyper["stride"],
                label_weights=real(case.inputs["label_weights"].reshape(-1)),
                num_positives=case.hyper["num_total_samples"],
                **head_weights(case),
            )
            return terms["cls"] + terms["box"] + terms["dfl"], terms

        learn = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (value, terms), (by_class, by_edge) = learn(rows(case, "cls_score", real), rows(case, "bbox_pred", real))
        case.check(value, "out", "loss", precision)
        for ours, theirs in ("cls", "loss_cls"), ("box", "loss_bbox"), ("dfl", "loss_dfl"), ("weight", "weight_sum"):
            case.check(terms[ours], "out", theirs, precision)
        case.check(maps(by_class, case.inputs["cls_score"]), "grad", "cls_score", precision)
        case.check(maps(by_edge, case.inputs["bbox_pred"]), "grad", "bbox_pred", precision)


# --- what the formulas promise ---


def plain_quality_focal(logits, labels, qualities, beta):
    """In float64, from the paper."""
    logits = np.float64(logits)
    q = np.where(np.arange(logits.shape[-1]) == np.asarray(labels)[..., None], np.asarray(qualities)[..., None], 0.0)
    entropy = q * np.logaddexp(0, -logits) + (1 - q) * np.logaddexp(0, logits)
    sigmoid = np.where(
        logits > 0, 1 / (1 + np.exp(-np.abs(logits))), np.exp(-np.abs(logits)) / (1 + np.exp(-np.abs(logits)))
    )
    return np.sum(np.abs(q - sigmoid) ** beta * entropy, axis=-1)


@jax.jit
def focal_and_gradient(logits, labels, qualities, beta):
    """The values, and the gradient of their sum by the logits."""
    values, pull = jax.vjp(lambda z: losses.quality_focal(z, labels, qualities, beta=beta), logits)
    return values, pull(jnp.ones_like(values))[0]


@pytest.mark.parametrize("beta", [1.0, 2.0])
@pytest.mark.parametrize("scale", [3.0, 1e4])
def test_quality_focal_is_its_formula(scale, beta):
    logits, labels, qualities = draw(50, 2, 3, 4, scale=scale), np.array([[0, 4, 2], [3, -1, 1]]), np.full((2, 3), 0.7)
    values, gradient = focal_and_gradient(logits, labels, np.float32(qualities), beta)
    np.testing.assert_allclose(values, plain_quality_focal(logits, labels, qualities, beta), rtol=2e-5, atol=1e-6)
    assert np.isfinite(gradient).all()
    by_row, _ = focal_and_gradient(logits, labels, np.float32(qualities), np.float32([beta, 1.0, 2.0]))
    np.testing.assert_allclose(by_row[:, 0], values[:, 0], rtol=1e-5)


def test_quality_focal_sends_nothing_back_where_the_score_is_right():
    logits, quality = jnp.zeros((1, 1)), jnp.full(1, 0.5)
    learn = jax.jit(
        jax.value_and_grad(
            lambda z, b: losses.quality_focal(z, jnp.zeros(1, int), quality, beta=b).sum(), argnums=(0, 1)
        )
    )
    for beta in (0.5, 1.0, 2.0):
        value, pulls = learn(logits, beta)
        assert value == 0 and pulls[0][0, 0] == 0 and pulls[1] == 0


def test_quality_focal_of_an_excluded_class():
    logits = jnp.array([[-jnp.inf, 1.0], [1.0, -jnp.inf]])
    values, gradient = focal_and_gradient(logits, np.array([1, 1]), np.ones(2, np.float32), 2.0)
    np.testing.assert_allclose(values[0], losses.quality_focal(logits[0, 1:], jnp.array(0), jnp.array(1.0)), rtol=1e-6)
    assert values[1] == jnp.inf
    assert np.isfinite(gradient).all()


def test_nothing_flows_into_qualities_and_targets():
    logits = jnp.asarray(draw(51, 3, 5))
    by_quality = jax.jit(jax.grad(lambda q: losses.quality_focal(logits, jnp.array([0, 1, 2]), q).sum()))(
        jnp.full(3, 0.5)
    )
    by_target = jax.jit(jax.grad(lambda t: losses.distribution_focal(logits, t).sum()))(jnp.full(3, 1.5))
    np.testing.assert_array_equal(by_quality, 0)
    np.testing.assert_array_equal(by_target, 0)


@pytest.mark.parametrize("target", [0.0, 1.0, 2.5, 3.75, 4.0])
def test_distribution_focal_is_a_cross_entropy_of_two_bins(target):
    logits = jnp.asarray(draw(52, 5))
    lower = min(int(target), 3)
    shares = np.zeros(5, np.float32)
    shares[[lower, lower + 1]] = lower + 1 - target, target - lower
    expected = losses.cross_entropy_with_targets(logits, jnp.asarray(shares))
    np.testing.assert_allclose(losses.distribution_focal(logits, jnp.array(target)), expected, rtol=1e-6)


def test_distribution_focal_outside_the_bins_is_nan_there_alone():
    logits = jnp.asarray(draw(53, 3, 5))
    values, pull = jax.vjp(lambda z: losses.distribution_focal(z, jnp.array([-0.1, 2.0, 4.1])), logits)
    np.testing.assert_array_equal(np.isnan(values), [True, False, True])
    gradient = pull(jnp.array([0.0, 1.0, 0.0]))[0]
    assert np.isfinite(gradient).all() and np.abs(gradient[1]).max() > 0.01


def test_edges_of_ten_thousand_and_excluded_bins():
    logits = draw(54, 4, 6, scale=1e4)
    top = logits.argmax(-1).astype(np.float32)
    np.testing.assert_allclose(losses.integral(logits), top, rtol=1e-6)
    values, pull = jax.vjp(lambda z: losses.distribution_focal(z, top), logits)
    np.testing.assert_array_equal(values, 0)
    assert np.isfinite(pull(jnp.ones(4))[0]).all()
    fewer = jnp.array([1.0, -jnp.inf, 0.5])
    np.testing.assert_allclose(losses.integral(fewer), 2 / (1 + np.exp(0.5)), rtol=1e-6)


def test_integral_over_other_bins():
    grid = np.linspace(-2, 2, 17, dtype=np.float32)
    np.testing.assert_allclose(losses.integral(jnp.zeros((3, 17)), bins=grid), 0, atol=1e-7)
    sure = 100.0 * jax.nn.one_hot(jnp.array([0, 16]), 17)
    np.testing.assert_allclose(losses.integral(sure, bins=grid), [-2, 2], rtol=1e-6)


# --- a head ---

N, CLASSES, BINS = 5, 3, 9


def made_up_head():
    labels = np.array([0, 3, 2, -1, 1])
    centres = np.abs(draw(60, N, 2, scale=30.0)) + 40
    reach = np.abs(draw(61, N, 4, scale=10.0)) + 1
    boxes = np.asarray(losses.distance2bbox(centres, reach))
    return draw(62, N, CLASSES), draw(63, N, 4, BINS), labels, boxes, centres


def test_background_and_unweighted_locations_may_hold_anything():
    logits, edges, labels, boxes, centres = made_up_head()
    weights = np.array([1.0, 0.0, 1.0, 1.0, 0.5], np.float32)

    def loss(z, e, b, c):
        terms = losses.gfl_terms(z, e, labels, b, c, stride=8, label_weights=weights)
        return terms["cls"] + terms["box"] + terms["dfl"], terms

    learn = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (expected, terms), (by_class, by_edge) = learn(logits, edges, boxes, centres)
    assert terms["weight"] == pytest.approx(np.sum(1 / (1 + np.exp(-logits[[0, 2, 4]].max(-1)))), rel=1e-5)
    spoilt = [np.array(x) for x in (logits, edges, boxes, centres)]
    spoilt[0][1] = np.nan
    for array in spoilt[1:]:
        array[[1, 3]] = np.nan
    z, e, b, c = spoilt
    (value, _), (z_gradient, e_gradient) = learn(z, e, b, c)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(z_gradient, by_class)
    np.testing.assert_array_equal(e_gradient, by_edge)
    np.testing.assert_array_equal(by_edge[jnp.array([1, 3])], 0)
    np.testing.assert_array_equal(by_class[1], 0)
    assert np.abs(by_class[3]).max() > 0


def test_a_batch_of_images_and_levels_at_once():
    logits, edges, labels, boxes, centres = made_up_head()
    strides = np.array([8.0, 8.0, 16.0, 16.0, 16.0], np.float32)
    terms = jax.jit(losses.gfl_terms)
    together = terms(logits, edges, labels, boxes, centres, stride=strides, num_positives=3)
    levels = [
        terms(logits[s], edges[s], labels[s], boxes[s], centres[s], stride=stride, num_positives=3)
        for s, stride in ((slice(0, 2), 8), (slice(2, 5), 16))
    ]
    for name, total in together.items():
        np.testing.assert_allclose(levels[0][name] + levels[1][name], total, rtol=1e-5, err_msg=name)
    batch = [np.stack([x, x]) for x in (logits, edges, labels, boxes, centres)]
    batched = terms(*batch, stride=strides)
    mapped = jax.jit(jax.vmap(lambda *image: losses.gfl_terms(*image, stride=strides)))(*batch)
    for name, total in together.items():
        np.testing.assert_allclose(batched[name], [total] * 2, rtol=1e-5)
        np.testing.assert_allclose(mapped[name], [total] * 2, rtol=1e-5)


def test_refuses_what_does_not_fit():
    logits, edges, labels, boxes, centres = made_up_head()
    with pytest.raises(ValueError, match=r"target_boxes covers \(4, 4\), class_logits \(5,\) locations"):
        losses.gfl_terms(logits, edges, labels, boxes[:4], centres, stride=8)
    with pytest.raises(ValueError, match=r"edge_logits covers \(5, 3\)"):
        losses.gfl_terms(logits, edges[:, :3], labels, boxes, centres, stride=8)
    with pytest.raises(ValueError, match=r"qualities has shape \(4,\); it must be \(5,\)"):
        losses.quality_focal(logits, labels, jnp.ones(4))
    with pytest.raises(ValueError, match=r"targets has shape \(5,\); it must be \(5, 4\)"):
        losses.distribution_focal(edges, jnp.ones(5))
    with pytest.raises(ValueError, match=r"bins has shape \(8,\), edge_logits 9 bins"):
        losses.integral(edges, bins=jnp.ones(8))
    with pytest.raises(ValueError, match="beta is -1"):
        losses.quality_focal(logits, labels, jnp.ones(5), beta=-1)
    with pytest.raises(TypeError, match="labels must be integer"):
        losses.quality_focal(logits, labels * 1.0, jnp.ones(5))
