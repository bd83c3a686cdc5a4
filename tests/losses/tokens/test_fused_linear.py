"""Distillation from hidden states, a few rows at a time, against the losses of whole logits."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from kdjax import losses
from tests.losses.computing import compiled, computing_in, draw

losses = compiled(losses)

ROWS, WIDTH, TEACHER_WIDTH, TOKENS = 7, 4, 3, 8
STUDENT = {"hidden": draw(1, ROWS, WIDTH, scale=1), "head": draw(2, WIDTH, TOKENS, scale=1), "bias": draw(3, TOKENS)}
TEACHER = {
    "hidden": draw(4, ROWS, TEACHER_WIDTH, scale=1),
    "head": draw(5, TEACHER_WIDTH, TOKENS, scale=1),
    "bias": draw(6, TOKENS),
}
ARRAYS = {"student": STUDENT, "teacher": TEACHER}
LABELS = np.array([3, -100, 0, 7, -100, 5, 2])
WEIGHTS = np.array([1.0, 0.5, 0.0, 2.0, 1.0, 0.0, 1.5], np.float32)
KEPT = WEIGHTS != 0
TOLERANCE = {"f64": {"rtol": 1e-10, "atol": 1e-12}, "f32": {"rtol": 3e-5, "atol": 3e-6}}
PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])
BETAS = np.array([0.0, 0.3, 1.0, 0.5, 1e-3, 0.9, 1.0], np.float32)
DIVERGENCES = {
    "forward_kl": {},
    "reverse_kl": {},
    "jsd": {"beta": 0.3},
    "jsd, forward": {"beta": 0.0},
    "jsd, reverse": {"beta": 1},
    "jsd, by row": {"beta": BETAS},
    "skew_fkl": {"alpha": 0.2},
    "skew_rkl": {"alpha": 0.2},
    "symmetric_kl": {"alpha": 0.3},
    "tvd": {},
    "akl": {"head_mass": 0.6},
}
EVERY = pytest.mark.parametrize("key", DIVERGENCES)
SEVEN = ["forward_kl", "reverse_kl", "jsd", "skew_fkl", "skew_rkl", "symmetric_kl", "tvd"]
ALL = pytest.mark.parametrize("key", [*SEVEN, "akl"])  # which sorts whole rows
SEVEN = pytest.mark.parametrize("key", SEVEN)


def fused(student, teacher, labels=None, *, key, chunk_size=3, **how):
    arrays = student["hidden"], student["head"], teacher["hidden"], teacher["head"], labels
    how |= {"student_bias": student.get("bias"), "teacher_bias": teacher.get("bias")}
    return losses.fused_linear_kd(
        *arrays, divergence=key.partition(",")[0], chunk_size=chunk_size, **DIVERGENCES[key], **how
    )


def dense(student, teacher, labels=None, *, key, temperature=1.0, kd_weight=1.0, ce_weight=1.0, weights=None):
    """The same from whole logits, by the losses of one row."""

    def logits(x):
        z = x["hidden"] @ x["head"]
        return z + jnp.broadcast_to(x["bias"], z.shape) if "bias" in x else z

    z_s, z_t = logits(student), logits(teacher)
    weights = jnp.ones(z_s.shape[:-1], z_s.dtype) if weights is None else jnp.asarray(weights, z_s.dtype)
    loss = getattr(losses, key.partition(",")[0])
    kd = jnp.sum(weights * loss(z_s, z_t, temperature=temperature, **DIVERGENCES[key]))
    ce = ce_count = jnp.zeros((), z_s.dtype)
    if labels is not None:
        labelled = labels != -100
        values = losses.cross_entropy(z_s, jnp.where(labelled, labels, 0))
        ce, ce_count = (jnp.sum(weights * jnp.where(labelled, x, 0)) for x in (values, 1.0))
    return losses.FusedLinearKD(kd_weight * kd + ce_weight * ce, jnp.sum(weights), kd, ce, ce_count)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("key", "chunk_size"))
def with_gradient(loss, student, *rest, **how):
    def total(student):
        found = loss(student, *rest, **how)
        return found.sum, found

    gradient, found = jax.grad(total, has_aux=True)(student)
    return found, gradient


def same(found, expected, precision, scale=1.0):
    tolerance = TOLERANCE[precision]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, tolerance["rtol"], tolerance["atol"] * scale)


@PRECISIONS
@EVERY
def test_values_and_gradients_are_those_of_the_losses_of_whole_logits(key, precision):
    with computing_in(precision) as real:
        student, teacher = jax.tree.map(real, (STUDENT, TEACHER))
        found = with_gradient(fused, student, teacher, key=key)
        same(found, with_gradient(dense, student, teacher, key=key), precision)
        assert all(np.abs(gradient).max() > 1e-3 for gradient in found[1].values())


@PRECISIONS
@EVERY
def test_with_labels_weights_and_temperature_too(key, precision):
    with computing_in(precision) as real:
        student, teacher = jax.tree.map(real, (STUDENT, TEACHER))
        how = {"temperature": real(1.7), "kd_weight": real(0.6), "ce_weight": real(0.3), "weights": WEIGHTS}
        found = with_gradient(fused, student, teacher, LABELS, key=key, **how)
        same(found, with_gradient(dense, student, teacher, LABELS, key=key, **how), precision)
        assert found[0].count == 6 and found[0].ce_count == 4.5


@pytest.mark.parametrize("chunk_size", [1, 2, 7, 1000])
def test_the_size_of_chunks_changes_nothing(chunk_size):
    with computing_in("f64") as real:
        student, teacher = jax.tree.map(real, (STUDENT, TEACHER))
        expected = with_gradient(dense, student, teacher, LABELS, key="jsd")
        found = with_gradient(fused, student, teacher, LABELS, key="jsd", chunk_size=chunk_size)
        same(found, expected, "f64")


@pytest.mark.parametrize("weights", [WEIGHTS, KEPT], ids=["numbers", "bools"])
@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e30])
def test_rows_of_weight_zero_may_hold_anything(junk, weights):
    student, teacher = ({**x, "hidden": np.where(KEPT[:, None], x["hidden"], junk)} for x in (STUDENT, TEACHER))
    labels = np.where(KEPT, LABELS, 999)
    how = {"key": "jsd", "weights": weights}
    found, gradient = with_gradient(fused, student, teacher, labels, **how)
    same((found, gradient), with_gradient(dense, STUDENT, TEACHER, LABELS, **how), "f32")
    np.testing.assert_array_equal(gradient["hidden"][~KEPT], 0)


@pytest.mark.parametrize("rows", [ROWS, 0])
def test_no_row_at_all_is_nothing(rows):
    student, teacher = ({**x, "hidden": x["hidden"][:rows]} for x in (STUDENT, TEACHER))
    found, gradient = with_gradient(
        fused, student, teacher, LABELS[:rows], key="forward_kl", weights=np.zeros(rows, np.float32)
    )
    for number in jax.tree.leaves((found, gradient)):
        np.testing.assert_array_equal(number, 0)


def test_leading_axes_and_values_by_row():
    def on_grid(tree):
        return {**tree, "hidden": jnp.reshape(real(tree["hidden"])[:6], (2, 3, -1))}

    with computing_in("f64") as real:
        temperature = real([[1.0, 2.0, 0.5]])
        how = {"key": "skew_rkl", "weights": real(WEIGHTS[:6].reshape(2, 3)), "temperature": temperature}
        student, teacher = (jax.tree.map(real, on_grid(x)) for x in (STUDENT, TEACHER))
        labels = LABELS[:6].reshape(2, 3)
        found = with_gradient(fused, student, teacher, labels, **how)
        same(found, with_gradient(dense, student, teacher, labels, **how), "f64")
        assert found[1]["hidden"].shape == (2, 3, WIDTH)


def excluding(tree, *tokens, **more):
    bias = tree["bias"].copy()
    bias[list(tokens)] = -np.inf
    return {**tree, "bias": bias, **more}


@PRECISIONS
@ALL
def test_excluded_tokens_and_logits_of_ten_thousand(key, precision):
    labels = np.array([3, -100, 0, 6, 2, 5, 2])  # 5 is a token that the student excludes
    student = excluding(STUDENT, 1, 5, hidden=STUDENT["hidden"] * np.logspace(-2, 4, ROWS, dtype=np.float32)[:, None])
    teacher = excluding(TEACHER, 1, 7, hidden=TEACHER["hidden"] * np.logspace(4, -2, ROWS, dtype=np.float32)[:, None])
    with computing_in(precision) as real:
        student, teacher = jax.tree.map(real, (student, teacher))
        (found, gradient), (expected, expected_gradient) = (
            with_gradient(loss, student, teacher, labels, key=key, temperature=real(1.3)) for loss in (fused, dense)
        )
        assert found.ce == np.inf and np.isfinite(found.kd)
        same(found, expected, precision)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
        same(gradient, expected_gradient, precision, scale=1e4)
        np.testing.assert_array_equal(gradient["bias"][np.array([1, 5])], 0)


@pytest.mark.parametrize("who", ["student", "teacher"])
@ALL
def test_a_network_without_any_token_has_nothing_to_compare(key, who):
    student, teacher = (excluding(x, *range(TOKENS)) if who == name else x for name, x in ARRAYS.items())
    found, gradient = with_gradient(fused, student, teacher, key=key, temperature=2.0)
    assert found.sum == 0
    for array in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(array, 0)


def test_a_label_out_of_range_is_nan_and_sends_nothing_back():
    found, gradient = with_gradient(fused, STUDENT, TEACHER, np.where(np.arange(ROWS) == 4, TOKENS, LABELS), key="jsd")
    expected, expected_gradient = with_gradient(fused, STUDENT, TEACHER, LABELS, key="jsd")
    assert np.isnan(found.sum) and np.isnan(found.ce) and found.kd == expected.kd
    same(gradient, expected_gradient, "f32")


def test_another_label_may_stand_for_none():
    labels = np.where(LABELS == -100, 6, LABELS)
    found = with_gradient(fused, STUDENT, TEACHER, labels, key="jsd", ignore_index=6)
    same(found, with_gradient(fused, STUDENT, TEACHER, LABELS, key="jsd"), "f32")


def test_as_a_part_of_a_larger_function():
    def larger(loss, x, parameters):
        hidden = jnp.tanh(x @ parameters["layer"])
        student = {"hidden": hidden, "head": parameters["head"]}
        found = loss(student, jax.tree.map(real, TEACHER), LABELS, key="jsd", weights=WEIGHTS)
        return jnp.exp(found.sum / found.count) + jnp.sum(parameters["head"] ** 2) - found.kd + found.ce_count

    with computing_in("f64") as real:
        parameters = {"layer": real(draw(8, 5, WIDTH)), "head": real(STUDENT["head"])}
        found, expected = (
            jax.value_and_grad(functools.partial(larger, loss), argnums=1)(real(draw(9, ROWS, 5)), parameters)
            for loss in (fused, lambda *a, **k: dense(*a, **k)._replace(kd=jax.lax.stop_gradient(dense(*a, **k).kd)))
        )
        same(found, expected, "f64", scale=100)


def test_nothing_flows_into_what_is_constant():
    def total(student, teacher, weights, hyper):
        return fused(student, teacher, LABELS, key="skew_fkl", weights=weights, **hyper).sum

    hyper = {"temperature": 2.0, "kd_weight": 0.5, "ce_weight": 0.5}
    by_student, *others = jax.grad(total, argnums=(0, 1, 2, 3))(STUDENT, TEACHER, WEIGHTS, hyper)
    for gradient in jax.tree.leaves(others):
        np.testing.assert_array_equal(gradient, 0)
    assert all(np.abs(x).max() > 1e-3 for x in by_student.values())


@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float16])
def test_half_types_are_multiplied_into_float32(kind):
    half = jax.tree.map(lambda x: jnp.asarray(x, kind), (STUDENT, TEACHER))
    found, gradient = with_gradient(fused, *half, LABELS, key="jsd")
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    expected, expected_gradient = with_gradient(dense, *wide, LABELS, key="jsd")
    same(found, expected, "f32")
    eps = jnp.finfo(kind).eps
    for name in gradient:
        assert gradient[name].dtype == kind
        ours, theirs = (np.asarray(x, np.float32) for x in (gradient[name], expected_gradient[name]))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2 * eps * np.abs(theirs).max())


def test_a_gradient_too_small_for_float16_is_there_once_it_is_scaled():
    def total(loss, student, teacher):
        return 1e6 * loss(student, teacher, key="jsd", weights=jnp.full(ROWS, 1e-6)).sum

    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.float16), (STUDENT, TEACHER))
    gradient = jax.grad(functools.partial(total, fused))(*half)
    expected = jax.grad(functools.partial(total, dense))(*jax.tree.map(lambda x: x.astype(jnp.float32), half))
    for name in gradient:
        np.testing.assert_allclose(gradient[name].astype(jnp.float32), expected[name], rtol=0.01, atol=1e-4)


def test_many_small_gradients_of_a_bfloat16_head_add_up():
    """Added up in bfloat16 they would stop at 256 times one of them."""
    student, teacher = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (STUDENT, TEACHER))
    many = [{**x, "hidden": jnp.tile(x["hidden"][:1], (2000, 1))} for x in (student, teacher)]
    _, gradient = with_gradient(fused, *many, key="forward_kl", chunk_size=1)
    one = [{**x, "hidden": x["hidden"][:1]} for x in (student, teacher)]
    _, expected = with_gradient(fused, *one, key="forward_kl", chunk_size=1)
    for name in ("head", "bias"):
        ours, theirs = (np.asarray(x[name], np.float32) for x in (gradient, expected))
        np.testing.assert_allclose(ours, 2000 * theirs, rtol=0.02, atol=1e-3)


def test_gradients_are_computed_only_when_asked_for():
    def total(student):
        return fused(student, TEACHER, LABELS, key="jsd").sum

    products = [jax.jit(f).lower(STUDENT).as_text().count("stablehlo.dot_general") for f in (total, jax.grad(total))]
    assert products == [2, 4]


def test_a_second_derivative_is_refused():
    def total(head):
        return fused({**STUDENT, "head": head}, TEACHER, key="jsd").sum

    with pytest.raises(NotImplementedError, match="first derivatives only"):
        jax.grad(lambda head: jnp.sum(jax.grad(total)(head) ** 2))(STUDENT["head"])


def test_memory_does_not_grow_with_the_rows():
    width, tokens, size = 8, 4096, 64
    a_chunk, a_head = 4 * size * tokens, 4 * width * tokens

    def temporaries(loss, rows):
        tree = {
            "hidden": jax.ShapeDtypeStruct((rows, width), jnp.float32),
            "head": jax.ShapeDtypeStruct((width, tokens), jnp.float32),
        }
        step = jax.jit(jax.value_and_grad(lambda student, teacher: loss(student, teacher, key="jsd").sum))
        return step.lower(tree, tree).compile().memory_analysis().temp_size_in_bytes

    few, many = (temporaries(functools.partial(fused, chunk_size=size), rows) for rows in (256, 2048))
    by_row = 4 * width * (2048 - 256)  # one copy of hidden states
    assert many - few < 2 * by_row
    assert many - a_head < 10 * a_chunk
    assert temporaries(dense, 2048) > 10 * many


# A vocabulary spread over devices

TREE = {"hidden": P(), "head": P(None, "vocabulary"), "bias": P("vocabulary")}


@SEVEN
def test_a_vocabulary_spread_over_eight_devices(key):
    labels, weights = np.array([3, -100, 0, 6, 2, 999, 2]), np.where(np.arange(ROWS) == 5, 0, WEIGHTS)
    student, teacher = excluding(STUDENT, 1), excluding(TEACHER, 1, 7)
    with computing_in("f64") as real:
        student, teacher = jax.tree.map(real, (student, teacher))
        how = {"key": key, "temperature": 1.7, "kd_weight": 0.6, "ce_weight": 0.3, "weights": weights}
        expected = with_gradient(dense, student, teacher, np.where(weights == 0, -100, labels), **how)
        for tree in student, teacher:
            tree["hidden"] = jnp.where((weights != 0)[:, None], tree["hidden"], jnp.nan)
            tree["head"] = jnp.moveaxis(jnp.reshape(tree["head"], (-1, 8, TOKENS // 8)), 1, 0)
            tree["bias"] = jnp.reshape(tree["bias"], (8, TOKENS // 8))
        over = {"hidden": None, "head": 0, "bias": 0}
        step = jax.pmap(
            lambda s, t: with_gradient(functools.partial(fused, axis_name="vocabulary"), s, t, labels, **how),
            axis_name="vocabulary",
            in_axes=(over, over),
        )
        found, gradient = step(student, teacher)
        for device in range(8):
            here = jax.tree.map(operator.itemgetter(device), (found, gradient["hidden"]))
            same(here, (expected[0], expected[1]["hidden"]), "f64")
        head, bias = np.moveaxis(gradient["head"], 0, 1).reshape(-1, TOKENS), gradient["bias"].reshape(TOKENS)
        same((head, bias), (expected[1]["head"], expected[1]["bias"]), "f64")


@pytest.mark.parametrize("how", ["inside", "inside, checked", "outside, checked"])
def test_rows_over_one_axis_and_the_vocabulary_over_another(how):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "vocabulary"))
    specs = {**TREE, "hidden": P("data")}
    with computing_in("f64") as real:
        student, teacher = jax.tree.map(real, (STUDENT, TEACHER))
        for tree in student, teacher:
            tree["hidden"] = jnp.concatenate([tree["hidden"], tree["hidden"][:1] + 1])
        labels = jnp.asarray([*LABELS, 4])
        expected = with_gradient(dense, student, teacher, labels, key="jsd")[1]

        def total(student, teacher, labels):
            return fused(student, teacher, labels, key="jsd", axis_name="vocabulary", chunk_size=3).sum

        def gradient_inside(*args):
            gradient = jax.grad(total)(*args)
            if how == "inside":  # the checked one has done so
                gradient |= {name: jax.lax.psum(gradient[name], "data") for name in ("head", "bias")}
            return gradient

        mapped = functools.partial(jax.shard_map, mesh=mesh, in_specs=(specs, specs, P("data")))
        if how == "outside, checked":
            whole = mapped(lambda *args: jax.lax.psum(total(*args), "data"), out_specs=P())
            step = jax.grad(whole)
        else:
            step = mapped(gradient_inside, out_specs=specs, check_vma=how != "inside")
        same(jax.jit(step)(student, teacher, labels), expected, "f64")


# A teacher of which the most likely tokens are stored


@PRECISIONS
@pytest.mark.parametrize("missing", ["other_bucket", "renormalize"])
def test_a_stored_teacher_is_that_of_whole_logits(missing, precision):
    """With labels, weights and a temperature; rows of weight 0 may hold anything."""
    with computing_in(precision) as real:
        student, teacher = jax.tree.map(real, (STUDENT, TEACHER))
        ids, logprobs = losses.topk_signal(teacher["hidden"] @ teacher["head"] + teacher["bias"][None], 3)
        logprobs = jnp.where((WEIGHTS == 0)[:, None], jnp.nan, logprobs)
        how = {"missing": missing, "temperature": real(1.7)}

        def whole(student):
            z = student["hidden"] @ student["head"] + student["bias"][None]
            kd = losses.topk_kl(z, ids, logprobs, real(WEIGHTS), **how)
            ce = jnp.where(LABELS != -100, losses.cross_entropy(z, jnp.where(LABELS == -100, 0, LABELS)), 0)
            return jnp.sum(0.6 * kd + 0.3 * real(WEIGHTS) * ce)

        def few(student):
            return losses.fused_linear_kd(
                student["hidden"], student["head"], labels=LABELS, student_bias=student["bias"], topk=(ids, logprobs),
                weights=real(WEIGHTS), kd_weight=0.6, ce_weight=0.3, chunk_size=3, **how,
            ).sum  # fmt: skip

        for found, expected in zip(*(jax.jit(jax.value_and_grad(f))(student) for f in (few, whole)), strict=True):
            same(found, expected, precision)
        np.testing.assert_allclose(few(student), whole(student), rtol=1e-5)  # where nothing is differentiated


# What is refused


def call(**changed):
    arrays = {f"{who}_{part}": x[part] for who, x in ARRAYS.items() for part in x}
    return losses.fused_linear_kd(**arrays | changed)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"teacher_head": None}, ValueError, "There is no teacher; give teacher_hidden and teacher_head, or topk"),
        (
            {"topk": (LABELS[:, None], WEIGHTS[:, None])},
            ValueError,
            "topk is a teacher by itself; leave teacher_hidden",
        ),
        (
            {"divergence": "akl", "axis_name": "v"},
            ValueError,
            "akl is of whole rows of the vocabulary, .* leave axis_name out",
        ),
        ({"student_head": STUDENT["head"].T}, ValueError, r"student_head \(8, 4\): give .* must be transposed"),
        ({"teacher_head": STUDENT["head"]}, ValueError, r"teacher_hidden has shape \(7, 3\), teacher_head \(4, 8\)"),
        ({"student_head": np.zeros((4, 0), np.float32)}, ValueError, "at least one column"),
        (
            {"teacher_hidden": TEACHER["hidden"][:6]},
            ValueError,
            r"teacher_hidden has leading axes \(6,\).* same tokens",
        ),
        (
            {"teacher_head": TEACHER["head"][:, :5], "teacher_bias": None},
            ValueError,
            "teacher_head has 5 columns, student_head 8: select those",
        ),
        ({"student_bias": np.zeros(7, np.float32)}, ValueError, r"student_bias has shape \(7,\)"),
        ({"teacher_hidden": TEACHER["hidden"].astype(int)}, TypeError, "teacher_hidden must be floating point"),
        ({"labels": LABELS[:3]}, ValueError, r"labels has shape \(3,\), student_hidden leading axes \(7,\)"),
        ({"labels": np.zeros(7, np.float32)}, TypeError, "labels must be integer"),
        ({"weights": np.ones((7, 1), np.float32)}, ValueError, r"weights has shape \(7, 1\).* one weight a row"),
        ({"divergence": "forward"}, ValueError, "did you mean 'forward_kl'"),
        ({"divergence": ""}, ValueError, "divergence is ''"),
        ({"divergence": "topk_kl"}, ValueError, "divergence is 'topk_kl'"),
        ({"chunk_size": 0}, ValueError, "chunk_size is 0"),
        ({"temperature": 0.0}, ValueError, "temperature is 0.0"),
        ({"divergence": "jsd", "beta": 1.5}, ValueError, "beta is 1.5"),
        ({"divergence": "skew_rkl", "alpha": np.full(5, 0.1)}, ValueError, r"alpha has shape \(5,\)"),
        ({"ce_weight": np.ones(7)}, ValueError, r"ce_weight has shape \(7,\)"),
    ],
)
def test_refuses_what_does_not_fit(changed, error, message):
    with pytest.raises(error, match=message):
        call(**changed)


def test_labels_alone_are_the_cross_entropy_without_a_teacher():
    weights = np.where(KEPT, WEIGHTS, 0)
    with computing_in("f64") as real:
        student, hidden = jax.tree.map(real, STUDENT), real(STUDENT["hidden"])

        def fused_alone(hidden):
            found = losses.fused_linear_kd(
                hidden,
                student["head"],
                labels=LABELS,
                divergence=None,
                weights=weights,
                student_bias=student["bias"],
                chunk_size=3,
            )
            return found.sum, (found.ce, found.kd, found.ce_count)

        def dense_alone(hidden):
            values = losses.cross_entropy(
                hidden @ student["head"] + student["bias"][None], np.where(LABELS < 0, 0, LABELS)
            )
            return jnp.sum(values * weights * (LABELS >= 0)), None

        (total, (ce, kd, count)), gradient = jax.value_and_grad(fused_alone, has_aux=True)(hidden)
        (expected, _), expected_gradient = jax.value_and_grad(dense_alone, has_aux=True)(hidden)
        np.testing.assert_allclose(
            [total, ce, kd, count], [expected, expected, 0, np.sum(weights * (LABELS >= 0))], 1e-10
        )
        np.testing.assert_allclose(gradient, expected_gradient, 1e-9, 1e-12)


@pytest.mark.parametrize("more", [{}, {"labels": LABELS, "teacher_head": TEACHER["head"]}])
def test_without_a_divergence_there_are_labels_and_no_teacher(more):
    with pytest.raises(ValueError, match="divergence is None: give labels, and no teacher"):
        losses.fused_linear_kd(STUDENT["hidden"], STUDENT["head"], divergence=None, **more)
