"""Objectives between the examples of a batch: which loss of which outputs they are, and what they train."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.models.functional import functionalise
from kdjax.objectives import CC, ICKD, METHODS, PKT, RKD, AffinityKD, KernelCC, bind
from kdjax.objectives.relations.relational import ChannelEmbedding, TwoEmbeddings
from kdjax.reduction import group_losses
from kdjax.schedules import Linear, steps
from kdjax.types import Batch, Clock, Context, DataInfo, ModelOutput
from tests.golden_cases import cases
from tests.losses.computing import computing_in, draw

ROWS, DEVICES = 16, 8
WHERE = np.arange(ROWS) % 5 != 2


def said(seed, width):
    return ModelOutput(
        logits=draw(seed, ROWS, 3), embedding=draw(seed + 1, ROWS, width), features=(draw(seed + 2, ROWS, 2, 2, width),)
    )


STUDENT, TEACHER = said(100, 4), said(110, 5)


def context():
    batch = Batch.of(jnp.zeros((ROWS, 1)), jnp.zeros(ROWS, jnp.int32), where=WHERE)
    return Context(*jax.tree.map(jnp.asarray, (STUDENT, TEACHER)), batch, Clock(10, 5).at(4))


def mean_of(objective):
    terms, _ = bind(objective, STUDENT, TEACHER, DataInfo(3)).apply({}, {}, context(), train=True)
    (found,) = terms.values()
    return found.sum / found.count


PLAIN = {
    "rkd": (RKD(distance=3.0, angle=2.0), lambda s, t: losses.rkd(s, t, distance=3.0, angle=2.0)),
    "rkd_schedule": (
        RKD(distance=Linear(0.0, 10.0, steps(10)), angle=0.0),
        lambda s, t: losses.rkd(s, t, distance=4.0, angle=0.0),
    ),
    "pkt": (PKT(), losses.pkt),
    "cc_kernel": (KernelCC(gamma=0.7, order=3), lambda s, t: losses.cc(s, t, gamma=0.7, order=3)),
    "affinity": (AffinityKD(), lambda s, t: losses.affinity_kd(s, t)),
    "affinity_of_choice": (
        AffinityKD(
            affinity="gaussian", sigma=2.0, normalization="row_softmax", temperature=0.5, loss="kl", drop_diagonal=True
        ),
        lambda s, t: losses.affinity_kd(
            s,
            t,
            affinity="gaussian",
            sigma=2.0,
            normalization="row_softmax",
            temperature=0.5,
            loss="kl",
            drop_diagonal=True,
        ),
    ),
    "affinity_poly": (
        AffinityKD(affinity="poly", constant=2.0, degree=3, normalization="frobenius"),
        lambda s, t: losses.affinity_kd(s, t, affinity="poly", constant=2.0, degree=3, normalization="frobenius"),
    ),
    "affinity_schedule": (
        AffinityKD(normalization="row_softmax", temperature=Linear(1.0, 3.5, steps(10)), loss="l1"),
        lambda s, t: losses.affinity_kd(s, t, normalization="row_softmax", temperature=2.0, loss="l1"),
    ),
}


@pytest.mark.parametrize(("objective", "loss"), PLAIN.values(), ids=PLAIN)
def test_the_loss_of_the_kept_rows_embeddings(objective, loss):
    found = mean_of(objective)
    expected = jnp.mean(loss(STUDENT.embedding[WHERE], TEACHER.embedding[WHERE]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert expected > 1e-5


@pytest.mark.parametrize("objective", [RKD(), CC(width=3), ICKD()], ids=lambda objective: type(objective).__name__)
def test_eight_devices_give_the_gradient_of_one(objective):
    """Also of the parameters that are trained beside, which every device adds its share to."""
    bound = bind(objective, STUDENT, TEACHER, DataInfo(3))
    params, state = bound.init(jax.random.key(0))

    def share(params, student, ctx):
        ctx = Context(student, ctx.teacher, ctx.batch, ctx.progress, axis=ctx.axis)
        terms, _ = bound.apply(params, state, ctx, train=True)
        return sum(group_losses(terms, ctx.axis).values())

    step = jax.grad(share, argnums=(0, 1))
    ctx = context()
    by_params, by_student = step(params, ctx.student, ctx)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(by_student)) > 1e-4

    def on_device(params, student, teacher, batch):
        found = step(params, student, Context(student, teacher, batch, ctx.progress, axis="data"))
        return jax.lax.psum(found[0], "data"), found[1]

    split = functools.partial(jax.tree.map, lambda x: x.reshape(DEVICES, -1, *x.shape[1:]))
    found = jax.pmap(on_device, axis_name="data", in_axes=(None, 0, 0, 0))(
        params, split(ctx.student), split(ctx.teacher), split(ctx.batch)
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: close(a[0], b), found[0], by_params)
    jax.tree.map(lambda a, b: close(a.reshape(b.shape), b), found[1], by_student)


def test_ickd_projects_the_student_to_the_teachers_channels():
    bound = bind(ICKD(), STUDENT, TEACHER, DataInfo(3))
    params, state = bound.init(jax.random.key(0))
    assert params["ickd"]["conv"]["kernel"].shape == (1, 1, 4, 5) and set(params["ickd"]["conv"]) == {"kernel"}
    assert params["ickd"]["norm"]["scale"].shape == (5,)
    terms, after = bound.apply(params, state, context(), train=True)
    projected = STUDENT.features[0] @ np.asarray(params["ickd"]["conv"]["kernel"])[0, 0]
    normal = (projected - projected.mean((0, 1, 2))) / np.sqrt(projected.var((0, 1, 2)) + 1e-5)
    expected = jnp.mean(losses.ickd(normal, TEACHER.features[0])[WHERE])
    np.testing.assert_allclose(terms["ickd"].sum / terms["ickd"].count, expected, rtol=1e-4)
    assert np.abs(after["ickd"]["norm"]["mean"]).max() > 0
    kept = jax.eval_shape(functionalise(lambda rngs: ChannelEmbedding(4, 5, rngs=rngs)).init, jax.random.key(0))[0]
    assert jax.tree.structure(kept) == jax.tree.structure(params["ickd"])


NAMES = {"0.linear": "student", "1.linear": "teacher"}


def embeddings(case, real):
    turn = lambda x: real(x.T if x.ndim == 2 else x)
    return {
        ours: {"kernel": turn(case.params[f"{theirs}.weight"]), "bias": turn(case.params[f"{theirs}.bias"])}
        for theirs, ours in NAMES.items()
    }


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("case", [case for case in cases("cc") if "feat_dim" in case.hyper], ids=repr)
def test_cc_with_its_embeddings_golden(case, precision):
    """Both embeddings learn; the teacher's features under one of them do not."""
    with computing_in(precision) as real:
        student, teacher = real(case.inputs["student"]), real(case.inputs["teacher"])
        widths = student.shape[1], teacher.shape[1], case.hyper["feat_dim"]
        module = functionalise(lambda rngs: TwoEmbeddings(*widths, rngs=rngs))

        def loss(params, student, teacher):
            embedded, _ = module.call(params, {}, lambda m: m(student, teacher), train=True)
            return jnp.mean(losses.cc_neighbours(*embedded))

        step = jax.value_and_grad(loss, argnums=(0, 1, 2))
        value, (by_params, by_student, by_teacher) = step(embeddings(case, real), student, teacher)
        case.check(value, "out", "loss", precision)
        case.check(by_student, "grad", "student", precision)
        np.testing.assert_array_equal(by_teacher, 0)
        for theirs, ours in NAMES.items():
            case.check(by_params[ours]["kernel"].T, "gparam", f"{theirs}.weight", precision)
            case.check(by_params[ours]["bias"], "gparam", f"{theirs}.bias", precision)


def test_cc_embeds_both_sides_to_one_width():
    bound = bind(CC(), STUDENT, TEACHER, DataInfo(3))
    params, state = bound.init(jax.random.key(0))
    assert params["cc"]["student"]["kernel"].shape == (4, 128) and params["cc"]["teacher"]["kernel"].shape == (5, 128)
    terms, _ = bound.apply(params, state, context(), train=True)
    embedded = [
        said.embedding[WHERE] @ np.asarray(params["cc"][role]["kernel"])
        for role, said in (("student", STUDENT), ("teacher", TEACHER))
    ]
    np.testing.assert_allclose(
        terms["cc"].sum / terms["cc"].count, jnp.mean(losses.cc_neighbours(*embedded)), rtol=1e-4
    )


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (AffinityKD(affinity="manhattan"), "affinity is 'manhattan'; it must be one of dot, cosine"),
        (AffinityKD(loss="kl"), 'loss="kl" compares rows that are distributions'),
        (AffinityKD(affinity="poly", degree=0), "degree is 0"),
        (ICKD(stage=3), "stage=3, but the student network gives 1 stages"),
    ],
)
def test_what_cannot_be_built_is_refused(objective, message):
    with pytest.raises(ValueError, match=message):
        bind(objective, STUDENT, TEACHER, DataInfo(3))


def test_ickd_of_vectors_is_refused():
    flat = ModelOutput(logits=STUDENT.logits, features=(STUDENT.embedding,))
    with pytest.raises(ValueError, match=r"Features are \(4,\) and \(2, 2, 5\) without the batch"):
        bind(ICKD(), flat, TEACHER, DataInfo(3))


def test_weights_of_the_catalogue():
    weights = {
        name: [part.weight for part in METHODS[name].objective.parts] for name in ("rkd", "pkt", "cc", "ickd", "sp")
    }
    assert weights == {"rkd": [1, 1], "pkt": [1, 30000], "cc": [1, 0.02], "ickd": [1, 2.5], "sp": [1, 3000]}
    assert METHODS["affinity"].objective.parts[1] == AffinityKD(weight=100.0)
    for name in "affinity", "cc_kernel":
        assert "not verified" in METHODS[name].setting
