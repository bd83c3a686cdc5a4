"""Objectives that match features stage by stage: what each compares, trains and refuses, and what it draws."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.objectives import (
    AB,
    AT,
    CWD,
    FSP,
    FT,
    KDSVD,
    MGD,
    NST,
    SRD,
    VID,
    CrossEntropy,
    Paraphrase,
    WeightedFeatures,
    bind,
)
from kdjax.reduction import group_losses
from kdjax.training import Variables, init_state, make_step
from kdjax.training.optimizers import SGD, build
from kdjax.types import Batch, Clock, Context, DataInfo, ModelOutput, Network
from tests.losses.computing import draw

ROWS, CLASSES, DEVICES = 8, 5, 4
SHAPES = (4, 4), (4, 4), (2, 2)
WHERE = np.array([1, 1, 0, 0, 1, 0, 1, 1], bool)  # the second device of four has no row
HEAD = draw(300, 6, CLASSES, scale=1.0)
EXACT = {"rtol": 1e-5, "atol": 1e-6}


def output(seed, width, rows=ROWS, shapes=SHAPES, embedding=None):
    maps = lambda seed: tuple(
        draw(seed + i, rows, *shape, width * (1 + i // 2), scale=1.0) for i, shape in enumerate(shapes)
    )
    return ModelOutput(
        logits=draw(seed + 9, rows, CLASSES),
        features=maps(seed),
        preactivations=maps(seed + 20),
        embedding=draw(seed + 19, rows, embedding or 2 * width, scale=1.0),
    )


STUDENT, TEACHER = output(310, 2), output(360, 3)
CLASSIFY = {"classify": lambda z: z @ HEAD}


def teacher_call(part, *arrays):
    return CLASSIFY[part](*arrays)


def context(student=STUDENT, teacher=TEACHER, where=WHERE, **more):
    rows = Batch.of(np.zeros(ROWS), np.zeros(ROWS, np.int32), index=100 + np.arange(ROWS), where=where)
    more = {"key": jax.random.key(7), "teacher_call": teacher_call} | more
    return Context(student=student, teacher=teacher, batch=rows, progress=Clock().at(0), **more)


def bound_to(objective, student=STUDENT, teacher=TEACHER):
    return bind(objective, student, teacher, DataInfo(CLASSES, 200))


@functools.cache
def made(objective, *shapes):
    """The objective bound to two outputs, which are `shapes` of `leaf_shapes`, and its parameters and state."""
    student, teacher = (jax.tree.unflatten(tree, [np.zeros(shape, np.float32) for shape in at]) for tree, *at in shapes)
    bound = bound_to(objective, student, teacher)
    return bound, bound.init(jax.random.key(1))


def leaf_shapes(said):
    leaves, tree = jax.tree.flatten(said)
    return tree, *(leaf.shape for leaf in leaves)


@functools.partial(jax.jit, static_argnames=("objective", "teacher_call", "axis"))
def evaluate(student, params, teacher, state, batch, key, *, objective, teacher_call=teacher_call, axis=None):
    """`(mean loss, new state), gradients` by student, parameters and teacher: one program for all calls of these shapes."""
    bound, _ = made(objective, leaf_shapes(student), leaf_shapes(teacher))

    def loss(student, params, teacher):
        ctx = context(student, teacher, key=key, teacher_call=teacher_call, axis=axis)
        terms, after = bound.apply(params, state, dataclasses.replace(ctx, batch=batch), train=True)
        return sum(group_losses(terms, axis).values()), after

    return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(student, params, teacher)


def whole(objective, ctx=None, *, params=None, state=None):
    """What `evaluate` gives in a context, by the objective's own parameters and state unless others are given."""
    ctx = context() if ctx is None else ctx
    _, own = made(objective, leaf_shapes(ctx.student), leaf_shapes(ctx.teacher))
    params, state = own[0] if params is None else params, own[1] if state is None else state
    given = ctx.student, params, ctx.teacher, state, ctx.batch, ctx.key
    return evaluate(*given, objective=objective, teacher_call=ctx.teacher_call, axis=ctx.axis)


def run(objective, ctx=None, **own):
    """`(mean loss, gradient by the student's output, gradient by the parameters, new state)` of a single objective."""
    (value, after), (by_student, by_params, _) = whole(objective, ctx, **own)
    return value, by_student, by_params, after


def mean(values):
    return np.mean(np.asarray(values)[WHERE])


def last(said):
    return said.features[-1]


ALL = {
    "at": AT(), "at, paper": AT(squared=False, p=4), "nst": NST(), "vid": VID(), "ab": AB(), "mgd": MGD(), "cwd": CWD(),
    "mgd, positions": MGD(masked="positions", mask_ratio=0.5, stage=0), "fsp": FSP(), "kdsvd": KDSVD(),
    "kdsvd, width": KDSVD(columns="width", k=2), "ft": FT(), "paraphrase": Paraphrase(), "srd": SRD(),
    "srd, correlation": SRD(mode="correlation", bn_eps=0.0, log_eps=1e-5), "weighted": WeightedFeatures(),
    "weighted, sampled": WeightedFeatures(fisher="sampled"), "plain": WeightedFeatures(weighting="none"),
}  # fmt: skip
over_all = pytest.mark.parametrize("objective", ALL.values(), ids=ALL)


# --- what all of them keep to ---


@over_all
def test_the_gradient_goes_where_the_objective_says(objective):
    value, by_student, by_params, _ = run(objective)
    assert np.isfinite(value) and value != 0
    moved = {
        f"student.{field.name}"
        for field in dataclasses.fields(by_student)
        if any(np.any(leaf != 0) for leaf in jax.tree.leaves(getattr(by_student, field.name)))
    }
    assert moved == {read for read in objective.reads if read.startswith("student.")}
    assert bool(jax.tree.leaves(by_params)) == bool(objective.trains) or isinstance(objective, KDSVD)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((by_student, by_params)))


@over_all
def test_nothing_flows_into_the_teacher(objective):
    _, (*_, by_teacher) = whole(objective)
    assert jax.tree.leaves(by_teacher)
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), by_teacher)


@over_all
def test_missing_rows_count_for_nothing(objective):
    """Two batches that differ in those rows only. FT's translator has a BatchNorm, which sees them: in evaluation it does not."""
    if isinstance(objective, FT | AB):
        pytest.skip("normalises by the batch")
    change = lambda said: jax.tree.map(
        lambda x: np.where(np.reshape(WHERE, (-1,) + (1,) * (x.ndim - 1)), x, 3 - x), said
    )
    found, by_student, by_params, _ = run(objective)
    other, by_other, by_others, _ = run(objective, context(change(STUDENT), change(TEACHER)))
    np.testing.assert_allclose(found, other, **EXACT)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), by_params, by_others)
    for ours, theirs in zip(jax.tree.leaves(by_student), jax.tree.leaves(by_other), strict=True):
        np.testing.assert_allclose(ours[WHERE], theirs[WHERE], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(theirs[~WHERE], 0)


@pytest.mark.parametrize("name", ["mgd", "mgd, positions", "srd", "srd, correlation", "weighted, sampled"])
def test_four_devices_and_another_order_of_rows_change_nothing(name):
    """What is drawn follows the index of an example, and statistics are of the whole batch."""
    objective = ALL[name]
    _, (params, state) = made(objective, leaf_shapes(STUDENT), leaf_shapes(TEACHER))
    value, by_student, by_params, _ = run(objective)

    def share(student, teacher, batch, axis):
        key = context().key
        (value, _), gradients = evaluate(student, params, teacher, state, batch, key, objective=objective, axis=axis)
        return value, gradients[:2]

    batch = jax.tree.map(np.asarray, context().batch)
    order = np.array([5, 2, 7, 0, 1, 6, 3, 4])
    shuffled, (by_shuffled, _) = share(*jax.tree.map(lambda x: x[order], (STUDENT, TEACHER, batch)), None)
    np.testing.assert_allclose(shuffled, value, **EXACT)
    split = jax.tree.map(lambda x: x.reshape(DEVICES, ROWS // DEVICES, *x.shape[1:]), (STUDENT, TEACHER, batch))
    mapped = jax.pmap(lambda *arrays: share(*arrays, "data"), axis_name="data", devices=jax.devices()[:DEVICES])
    shares, (by_split, params_split) = mapped(*split)
    np.testing.assert_allclose(np.sum(shares), value, **EXACT)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.sum(a, 0), b, rtol=1e-4, atol=1e-5), params_split, by_params
    )
    for field in ("features", "embedding"):
        whole, mixed, parts = (jax.tree.leaves(getattr(tree, field)) for tree in (by_student, by_shuffled, by_split))
        for a, b, c in zip(whole, mixed, parts, strict=True):
            np.testing.assert_allclose(b, a[order], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(c.reshape(a.shape), a, rtol=1e-4, atol=1e-5)


# --- what each compares ---


def test_stages_are_added_up():
    pairs = list(zip(STUDENT.features, TEACHER.features, strict=True))
    expected = sum(mean(losses.at(*pair)) for pair in pairs)
    np.testing.assert_allclose(run(AT())[0], expected, **EXACT)
    np.testing.assert_allclose(run(AT(stages=None))[0], expected, **EXACT)
    np.testing.assert_allclose(run(AT(stages=(1,), p=4))[0], mean(losses.at(*pairs[1], p=4)), **EXACT)
    np.testing.assert_allclose(
        run(AT(stages=(-1,), squared=False))[0], mean(losses.at(*pairs[2], squared=False)), **EXACT
    )
    np.testing.assert_allclose(run(NST(stages=(0, 2)))[0], mean(losses.nst(*pairs[0]) + losses.nst(*pairs[2])), **EXACT)


def test_boundaries_are_of_preactivations_each_stage_twice_the_one_before():
    alike = output(410, 3)
    ctx = context(alike)
    assert bound_to(AB(), alike).modules == {}
    values = [losses.ab(s, t, margin=0.5) for s, t in zip(alike.preactivations, TEACHER.preactivations, strict=True)]
    expected = 3 / 1000 * mean(values[0] / 4 + values[1] / 2 + values[2])
    np.testing.assert_allclose(run(AB(margin=0.5), ctx)[0], expected, **EXACT)
    expected = 3 / 1000 * mean(values[1] / 2 + values[2])
    np.testing.assert_allclose(run(AB(margin=0.5, stages=(-2, -1)), ctx)[0], expected, **EXACT)


def test_connectors_and_bridges_stand_only_where_shapes_differ():
    mixed = dataclasses.replace(
        STUDENT, **{f: (*getattr(STUDENT, f)[:2], getattr(TEACHER, f)[2]) for f in ("features", "preactivations")}
    )
    for objective in (AB(), FSP(), KDSVD()):
        (name,) = bound_to(objective, mixed).modules
        params, _ = bound_to(objective, mixed).init(jax.random.key(0))
        assert set(params[name]["stages"]) == {"0", "1"}
        assert np.isfinite(run(objective, context(mixed))[0])
        alike = output(410, 3)
        assert bound_to(objective, alike).modules == {}
    assert bound_to(CWD(), mixed).modules == {} != bound_to(CWD()).modules
    params, _ = bound_to(MGD(), mixed).init(jax.random.key(0))
    assert set(params["mgd"]) == {"first", "second"}


def test_flows_and_directions_are_the_losses_of_the_bridged_stages():
    alike = output(410, 3)
    np.testing.assert_allclose(
        run(FSP(), context(alike))[0], mean(jax.jit(losses.fsp)(alike.features, TEACHER.features)), **EXACT
    )
    np.testing.assert_allclose(
        run(FSP(stages=(0, 2)), context(alike))[0],
        mean(losses.fsp([alike.features[i] for i in (0, 2)], [TEACHER.features[i] for i in (0, 2)])), **EXACT,
    )  # fmt: skip
    for objective, hyper in ((KDSVD(k=2), {"k": 2}), (KDSVD(columns="width"), {"columns": "width"})):
        wanted = jax.jit(functools.partial(losses.kdsvd, **hyper))(alike.features, TEACHER.features)
        np.testing.assert_allclose(run(objective, context(alike))[0], mean(wanted), rtol=1e-4)
    params, _ = bound_to(FSP()).init(jax.random.key(1))
    kernels = [params["fsp"]["stages"][str(i)] for i in range(3)]
    bridged = [
        x @ k["kernel"][0, 0] + k["bias"].reshape(1, 1, 1, -1) for x, k in zip(STUDENT.features, kernels, strict=True)
    ]
    np.testing.assert_allclose(run(FSP())[0], mean(losses.fsp(bridged, TEACHER.features)), rtol=1e-4)


def test_channels_go_through_one_convolution():
    params, _ = bound_to(CWD()).init(jax.random.key(1))
    bridge = params["cwd"]["stages"]["0"]
    bridged = last(STUDENT) @ bridge["kernel"][0, 0] + bridge["bias"].reshape(1, 1, 1, -1)
    wanted = losses.cwd(bridged, last(TEACHER), temperature=2.0)
    np.testing.assert_allclose(run(CWD(temperature=2.0))[0], mean(wanted), rtol=1e-4)


def test_regressors_see_the_pooled_map():
    """The student's larger map is pooled before the regression, the teacher's larger one to the student's."""
    larger = output(420, 2, shapes=((8, 8), (4, 4), (4, 4)))
    params, _ = bound_to(VID(), larger).init(jax.random.key(1))
    expected = 0.0
    for i, (s, t) in enumerate(zip(larger.features, TEACHER.features, strict=True)):
        own = params["vid"]["stages"][str(i)]
        x = np.asarray(losses.adaptive_average_pool(s, t.shape[1:3]))
        for j in range(3):
            x = x @ own["layers"][str(j)]["kernel"][0, 0]
            x = np.maximum(x, 0) if j < 2 else x
        expected += mean(losses.vid(x, t, jnp.log1p(jnp.exp(own["log_scale"])) + 1e-5))
    np.testing.assert_allclose(run(VID(), context(larger))[0], expected, rtol=1e-4)


@pytest.mark.parametrize("log_scale", [-1e4, -50.0, 1e4])
def test_variances_of_any_logarithm_are_finite(log_scale):
    """`log(1 + exp(·))`, as it is written in the released codes, overflows."""
    params, _ = bound_to(VID(stages=(0,))).init(jax.random.key(1))
    params["vid"]["stages"]["0"]["log_scale"] = jnp.full(3, log_scale)
    value, _, by_params, _ = run(VID(stages=(0,)), params=params)
    assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(by_params))


# --- masked generation ---


def generated(params, x, kept):
    """In NumPy, the 3x3 convolutions by shifted sums."""

    def conv(x, layer):
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        height, width = x.shape[1:3]
        shifted = (padded[:, i : i + height, j : j + width] @ layer["kernel"][i, j] for i in range(3) for j in range(3))
        return sum(shifted) + np.asarray(layer["bias"])

    x = x @ params["align"]["kernel"][0, 0] + np.asarray(params["align"]["bias"])
    return conv(np.maximum(conv(np.where(kept, x, 0), params["first"]), 0), params["second"])


def test_nothing_masked_is_the_block_by_itself():
    params, _ = bound_to(MGD()).init(jax.random.key(1))
    own = jax.tree.map(np.float64, params["mgd"])
    wanted = np.sum((generated(own, last(STUDENT), True) - last(TEACHER)) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(run(MGD(mask_ratio=0.0))[0], mean(wanted), rtol=1e-4)
    wanted = np.sum((generated(own, last(STUDENT), False) - last(TEACHER)) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(run(MGD(mask_ratio=1.0))[0], mean(wanted), rtol=1e-4)


@pytest.mark.parametrize(("masked", "axes"), [("channels", (1, 2)), ("positions", (3,))])
def test_whole_channels_or_whole_positions_are_masked(masked, axes):
    """What of the student's map is sent a gradient, where the aligned width is its own, and how much of it on average."""
    alike = output(430, 3)
    kept = []
    for step in range(40):
        ctx = context(alike, where=np.ones(ROWS, bool), key=jax.random.key(step))
        _, by_student, _, _ = run(MGD(stage=0, mask_ratio=0.3, masked=masked), ctx)
        seen = np.asarray(by_student.features[0]) != 0
        kept.append(seen.any(axis=axes))
        np.testing.assert_array_equal(seen.all(axis=axes), kept[-1])
    kept = np.stack(kept)
    assert 0.66 < kept.mean() < 0.74  # of about a thousand draws, or many more
    rows = kept.reshape(40, ROWS, -1)
    assert len(np.unique(rows[0], axis=0)) > 1 and len(np.unique(rows[:, 0], axis=0)) > 1, "examples and steps differ"


# --- factor transfer ---


def test_the_paraphraser_is_state_of_one_objective_as_it_is_parameters_of_the_other():
    first, _ = bound_to(Paraphrase()).init(jax.random.key(5))
    params, state = bound_to(FT()).init(jax.random.key(2))
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    assert shapes(first["paraphrase"]["paraphraser"]) == shapes(state["ft"]["paraphraser"])
    assert set(params["ft"]) == {"translator"} and set(first["paraphrase"]) == {"paraphraser"}
    value = run(FT())[0]
    trained = {"ft": {**state["ft"], "paraphraser": first["paraphrase"]["paraphraser"]}}
    assert abs(run(FT(), state=trained)[0] - value) > 1e-5, "the factors are those of the paraphraser"


def test_no_step_moves_the_frozen_paraphraser():
    """Neither a gradient nor weight decay."""

    def network(said):
        apply = lambda params, state, inputs, **_: (jax.tree.map(lambda x: x * params["gain"], said), state)
        return Network(lambda key: ({"gain": jnp.ones(())}, {}), apply)

    student, teacher = network(STUDENT), network(TEACHER)
    bound, clock = bound_to(CrossEntropy() + 200.0 * FT()), Clock()
    optimizer = build(SGD(learning_rate=0.1, weight_decay=0.1), clock, bound)
    state = init_state(student, bound, optimizer, seed=0)
    step = jax.jit(make_step(student, teacher, bound, optimizer, clock=clock))
    after, _ = step(state, Variables(*teacher.init(jax.random.key(0))), context().batch)
    before, now = (s.state["objective"]["ft"]["paraphraser"] for s in (state, after))
    jax.tree.map(np.testing.assert_array_equal, now, before)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params["objective"], state.params["objective"])
    assert min(jax.tree.leaves({k: v["kernel"] for k, v in moved["ft"]["translator"]["convs"].items()})) > 0


def test_the_rate_is_the_share_of_channels():
    params, _ = bound_to(Paraphrase(stage=0, rate=0.7)).init(jax.random.key(1))
    widths = [params["paraphrase"]["paraphraser"]["encoder"]["convs"][str(i)]["kernel"].shape[2:] for i in range(3)]
    assert widths == [(3, 3), (3, 2), (2, 2)]
    params, _ = bound_to(Paraphrase(stage=0, rate=0.1)).init(jax.random.key(1))
    assert params["paraphrase"]["paraphraser"]["decoder"]["convs"]["0"]["kernel"].shape[2:] == (1, 1)
    with pytest.raises(ValueError, match="rate is 0"):
        bound_to(FT(rate=0.0))


# --- embeddings ---


def projected(objective, name):
    params, _ = bound_to(objective).init(jax.random.key(1))
    return STUDENT.embedding @ params[name]["kernel"] + params[name]["bias"].reshape(1, -1)


@pytest.mark.parametrize("hyper", [{}, {"mode": "correlation", "bn_eps": 0.0, "log_eps": 1e-5}, {"exponent": 2.0}])
def test_srd_is_the_loss_of_the_projected_rows(hyper):
    objective = SRD(**hyper)
    wanted = losses.srd(projected(objective, "srd")[WHERE], TEACHER.embedding[WHERE], **hyper)
    np.testing.assert_allclose(run(objective)[0], wanted, rtol=1e-5)


def test_entries_are_weighed_by_the_information_of_the_teachers_classifier():
    """For a linear classifier `z W`: the variance, under the teacher's probabilities, of the entries of W's rows."""
    logits = np.float64(TEACHER.embedding) @ HEAD
    p = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    information = p @ np.float64(HEAD).T ** 2 - (p @ np.float64(HEAD).T) ** 2
    gap = np.float64(projected(WeightedFeatures(), "weighted_features")) - TEACHER.embedding
    np.testing.assert_allclose(run(WeightedFeatures())[0], mean((information * gap**2).sum(1)), rtol=1e-4)
    np.testing.assert_allclose(run(WeightedFeatures(weighting="none"))[0], mean((gap**2).sum(1)), rtol=1e-4)
    drawn = [run(WeightedFeatures(fisher="sampled"), context(key=jax.random.key(i)))[0] for i in range(60)]
    assert np.std(drawn) > 0
    np.testing.assert_allclose(np.mean(drawn), mean((information * gap**2).sum(1)), atol=3 * np.std(drawn) / 60**0.5)
    same = dataclasses.replace(TEACHER, embedding=np.repeat(TEACHER.embedding[:1], ROWS, axis=0))
    by_row = WeightedFeatures(fisher="sampled").information(context(teacher=same))
    assert len(np.unique(np.round(by_row, 5), axis=0)) > 1, "examples draw by themselves"


def test_embeddings_of_one_width_need_no_projector():
    alike = output(440, 3)
    assert bound_to(WeightedFeatures(), alike).modules == {}
    wanted = np.sum((alike.embedding - TEACHER.embedding) ** 2, axis=1)
    np.testing.assert_allclose(run(WeightedFeatures(weighting="none"), context(alike))[0], mean(wanted), rtol=1e-4)
    assert bound_to(SRD(), alike).modules, "the projector is what that method is about"


# --- what does not fit ---


def test_what_cannot_be_bridged_is_refused_with_both_shapes():
    two = dataclasses.replace(STUDENT, features=STUDENT.features[:2])
    flat = dataclasses.replace(STUDENT, features=tuple(x.reshape(ROWS, -1) for x in STUDENT.features))
    with pytest.raises(ValueError, match="The student gives 2 stages of features, the teacher 3"):
        bound_to(FSP(), two)
    with pytest.raises(ValueError, match="Stage -3 is not among the student's features, which are 2"):
        bound_to(AT(), two)
    with pytest.raises(ValueError, match=r"is \(32,\) without the batch; it must be a map"):
        bound_to(NST(), flat)
    with pytest.raises(ValueError, match=r"student's stage is \(8, 8, 2\), the teacher's \(4, 4, 3\)"):
        bound_to(KDSVD(columns="width"), output(450, 2, shapes=((8, 8), (4, 4), (2, 2))))
    with pytest.raises(ValueError, match="FSP compares neighbouring stages, and there is 1"):
        bound_to(FSP(stages=(0,)))
    with pytest.raises(ValueError, match=r"No projector bridges the student's 2x2 map to the teacher's 3x3"):
        bound_to(AB(stages=(-1,)), teacher=output(460, 3, shapes=((4, 4), (4, 4), (3, 3))))
    with pytest.raises(ValueError, match="name at least one stage"):
        bound_to(VID(stages=()))


def test_a_teacher_without_its_classifier_is_refused_with_the_mend():
    def call(part, *arrays):
        raise KeyError(part)

    for teacher_call in (call, None):
        with pytest.raises(ValueError, match="WeightedFeatures asks the teacher for 'classify'"):
            run(WeightedFeatures(), context(teacher_call=teacher_call))
