"""OFD, ReviewKD, SemCKD, SRRL and SimKD: what only their objectives decide, on the networks of the zoo and on many devices."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from kdjax import losses
from kdjax.experiment import ExperimentError
from kdjax.experiment.phase import unfit
from kdjax.models import from_nnx, output_shapes, zoo
from kdjax.objectives import KD, METHODS, OFD, SRRL, ReviewKD, SemCKD, SimKD, bind, check
from kdjax.objectives.features.classifier_reuse import read_by_classifier
from kdjax.objectives.features.connectors import ask_teacher
from kdjax.objectives.features.review import nearest
from kdjax.objectives.features.semckd import unit
from kdjax.reduction import group_losses
from kdjax.training import Variables
from kdjax.types import Batch, Clock, Context, DataInfo, ModelOutput
from tests.losses.computing import computing_in, draw

ROWS, CLASSES, DEVICES = 16, 5, 8
WHERE = np.array([1, 1, 0, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 0], bool)
OBJECTIVES = {"ofd": OFD(), "reviewkd": ReviewKD(), "semckd": SemCKD(), "srrl": SRRL(), "srrl_pooled": SRRL(form="pooled"),
              "simkd": SimKD()}  # fmt: skip
SEMCKD, REVIEWKD = SemCKD(student_stages=(-2, -1), teacher_stages=(-3, -1)), ReviewKD(stages=(-3, -1))
FEWER = OBJECTIVES | {"semckd": SEMCKD, "reviewkd": REVIEWKD}  # stages, to compile less
EVERY = pytest.mark.parametrize("name", OBJECTIVES)
STUDENT, TEACHER = ((3, 2), (2, 3), (1, 4)), ((4, 3), (2, 4), (2, 6))  # size and channels of each stage
SCALE, BIAS = [[draw(seed + i, k, scale=1.0) for i, (_, k) in enumerate(TEACHER)] for seed in (460, 470)]
WEIGHT = draw(480, 6, CLASSES)


def said(stages, seed, rows=ROWS):
    """A network that has three stages; all that it says is drawn by itself."""
    maps = tuple(draw(seed + i, rows, size, size, k, scale=1.0) for i, (size, k) in enumerate(stages))
    return ModelOutput(
        logits=draw(seed + 3, rows, CLASSES), features=maps, preactivations=tuple(x - 0.1 for x in maps),
        embedding=draw(seed + 4, rows, stages[-1][1]),
    )  # fmt: skip


OURS, THEIRS = said(STUDENT, 440), said(TEACHER, 450)


def call(part, *arrays):
    if part == "norms":
        return tuple(zip(SCALE, BIAS, strict=True))
    return {"classify": lambda x: x @ jnp.asarray(WEIGHT, x.dtype)}[part](*arrays)


@functools.cache
def bound_to(objective):
    return bind(objective, OURS, THEIRS, DataInfo(CLASSES))


def apply(bound, params, state, student, teacher, where, axis=None, train=True, teacher_call=call):
    rows = where.shape[0]
    batch = Batch.of(jnp.zeros(rows), jnp.zeros(rows, jnp.int32), where=where)
    ctx = Context(student, teacher, batch, Clock().at(0), axis=axis, teacher_call=teacher_call)
    return bound.apply(params, state, ctx, train=train)


@functools.cache
def start(objective):
    return jax.jit(bound_to(objective).init)(jax.random.key(0))


@functools.cache
def compiled(objective, train, teacher_call):
    def mean(variables, *rest):
        terms, _ = apply(bound_to(objective), *variables, *rest, train=train, teacher_call=teacher_call)
        return sum(group_losses(terms).values())

    return jax.jit(mean)


def value(objective, student=OURS, teacher=THEIRS, where=WHERE, *, variables=None, train=True, teacher_call=call):
    """Mean over the rows that count."""
    return float(compiled(objective, train, teacher_call)(variables or start(objective), student, teacher, where))


@pytest.mark.slow  # with small maps: tests/objectives/test_conformance_execution.py
@EVERY
def test_eight_devices_are_one(name):
    """Loss, gradients of student and modules, and statistics after; rows that do not count lie unevenly."""
    bound = bound_to(FEWER[name])
    variables = jax.device_get(start(FEWER[name]))
    with computing_in("f64") as real:
        wide = functools.partial(jax.tree.map, real)
        params, state = wide(variables)
        student, teacher = wide(OURS), wide(THEIRS)

        def share(params, student, teacher, where, axis=None):
            terms, after = apply(bound, params, state, student, teacher, where, axis)
            return sum(group_losses(terms, axis).values()), after

        by_both = jax.value_and_grad(share, argnums=(0, 1), has_aux=True)
        (one, after), (by_params, by_student) = jax.jit(by_both)(params, student, teacher, WHERE)
        split = lambda tree: jax.tree.map(lambda x: jnp.reshape(x, (DEVICES, -1, *x.shape[1:])), tree)
        (shares, afters), (each_params, each_student) = jax.pmap(
            lambda s, t, w: by_both(params, s, t, w, "data"), axis_name="data"
        )(split(student), split(teacher), split(WHERE))
        exact = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
        exact(jnp.sum(shares), one)
        jax.tree.map(lambda ours, theirs: exact(jnp.sum(ours, 0), theirs), each_params, by_params)
        jax.tree.map(lambda ours, theirs: exact(jnp.reshape(ours, theirs.shape), theirs), each_student, by_student)
        jax.tree.map(lambda ours, theirs: exact(ours[3], theirs), afters, after)
    assert float(one) > 1e-3
    assert max(np.abs(g).max() for g in jax.tree.leaves(by_student)) > 1e-6
    # A gradient of zero is a branch that nothing reaches, but for what a BatchNorm takes out again.
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(by_params))


@EVERY
def test_rows_that_do_not_count_leave_no_trace_in_evaluation_mode(name):
    objective = FEWER[name]
    expected = value(objective, train=False)
    for junk in (0.0, 1e3, np.nan):
        put = lambda x, junk=junk: np.where(WHERE.reshape(-1, *[1] * (x.ndim - 1)), x, np.float32(junk))
        student, teacher = (jax.tree.map(put, output) for output in (OURS, THEIRS))
        np.testing.assert_allclose(value(objective, student, teacher, train=False), expected, rtol=1e-5)
    assert value(objective, where=np.zeros(ROWS, bool), train=False) == 0
    assert abs(value(objective, where=~WHERE, train=False) / expected - 1) > 1e-3


@EVERY
def test_the_teacher_is_not_taught(name):
    """Even where nobody has stopped the gradient before."""
    mean = compiled(FEWER[name], False, call)
    for leaf in jax.tree.leaves(jax.grad(mean, argnums=2)(start(FEWER[name]), OURS, THEIRS, WHERE)):
        np.testing.assert_array_equal(leaf, 0)


# --- on the networks of the zoo ---


def network(name, channels, **options):
    make = lambda rngs: zoo.build(name, num_classes=CLASSES, in_channels=channels, rngs=rngs, **options)
    return from_nnx(make, parts=("classify", "norms"))


PAIRS = {
    "digits": (network("small_cnn", 1, width=4), network("small_cnn", 1, width=6), (8, 8, 1)),
    "fashion": (network("small_cnn", 1, width=4), network("small_cnn", 1, width=6), (28, 28, 1)),
    "cifar": (network("resnet8", 3, width=4), network("resnet14", 3, width=6), (32, 32, 3)),
    "cifar from a small one": (network("resnet8", 3, width=4), network("small_cnn", 3, width=6), (32, 32, 3)),
    "small from cifar": (network("small_cnn", 3, width=4), network("resnet8", 3, width=6), (32, 32, 3)),
}


@functools.cache
def outputs_of(pair):
    """What both say of four images."""
    *networks, size = PAIRS[pair]
    return [output_shapes(network, jax.ShapeDtypeStruct((4, *size), jnp.float32)) for network in networks]


@functools.cache
def teacher_variables(pair):
    return jax.eval_shape(PAIRS[pair][1].init, jax.random.key(0))


@pytest.mark.parametrize("pair", PAIRS)
@EVERY
def test_every_pair_of_networks_is_bridged(name, pair):
    """By shapes alone, which is all that can fail."""
    teacher = PAIRS[pair][1]
    ours, theirs = outputs_of(pair)
    bound = bind(OBJECTIVES[name], ours, theirs, DataInfo(CLASSES))
    params, state = jax.eval_shape(bound.init, jax.random.key(0))
    variables = teacher_variables(pair)

    def terms(params, state, ours, theirs, variables):
        ask = lambda part, *arrays: teacher.parts[part](*variables, *arrays)
        return apply(bound, params, state, ours, theirs, jnp.ones(4, bool), teacher_call=ask)[0]

    (term,) = jax.eval_shape(terms, params, state, ours, theirs, variables).values()
    assert term.sum.shape == () and term.sum.dtype == jnp.float32


def test_the_weights_are_the_published_ones():
    written = {name: [(type(part).__name__, part.weight) for part in METHODS[name].objective.parts] for name in METHODS}
    assert written["ofd"] == [("CrossEntropy", 1.0), ("OFD", 0.001)]
    assert written["semckd"] == [("CrossEntropy", 1.0), ("KD", 1.0), ("SemCKD", 400.0)]
    assert written["srrl"] == [("CrossEntropy", 1.0), ("SRRL", 1.0)]
    assert written["simkd"] == [("SimKD", 1.0)]
    weight = written["reviewkd"][1][1]
    clock = Clock(total_steps=100, steps_per_epoch=2)
    np.testing.assert_allclose([weight(clock.at(step)) for step in (0, 1, 2, 39, 40, 90)], [0.25, 0.25, 0.5, 5, 5, 5])


# --- OFD ---


def test_each_stage_of_ofd_weighs_half_of_the_next():
    objective = OFD()
    params, state = start(objective)
    alone = []
    for i, stage in enumerate(objective.stages):
        keep = lambda tree, i=i: {"ofd": {"stages": {"0": tree["ofd"]["stages"][str(i)]}}}
        alone.append(value(OFD(stages=(stage,)), variables=(keep(params), keep(state))))
    np.testing.assert_allclose(value(objective, variables=(params, state)), alone @ np.array([0.25, 0.5, 1]), rtol=1e-5)
    assert min(alone) > 1


def test_ofd_takes_the_margin_of_the_stage():
    """From what the teacher says of its BatchNorms, in the order of its preactivations."""
    base = value(OFD(stages=(-1,)))
    for changed, differs in ((0, False), (2, True)):
        norms = [(s, b - 2) if i == changed else (s, b) for i, (s, b) in enumerate(zip(SCALE, BIAS, strict=True))]
        assert (abs(value(OFD(stages=(-1,)), teacher_call=lambda part, norms=norms: norms) - base) > 1e-3) == differs


def test_the_teacher_of_ofd_runs_as_released_or_in_evaluation_mode():
    assert OFD().teacher_mode == "train" and OFD(teacher_train_bn=False).teacher_mode == "eval"


def test_ofd_says_what_a_teacher_without_norms_lacks():
    expected = (
        r"OFD asks the teacher for 'norms', the scale and bias of the BatchNorm .*: give the model a method norms\(\) and "
        r"name it among the parts of the network, from_nnx\(model, parts=\('norms',\)\)"
    )
    with pytest.raises(ValueError, match=expected):
        value(OFD(), teacher_call=lambda part: {}[part])
    with pytest.raises(ValueError, match=r"norms\(\) gives 2 pairs for its 3 preactivations"):
        value(OFD(), teacher_call=lambda part: call(part)[:2])
    bare = dataclasses.replace(THEIRS, preactivations=())
    assert "reads teacher.preactivations, which the teacher network does not give" in check(OFD(), OURS, bare)[0]


def test_a_part_that_fails_by_itself_is_not_taken_for_missing():
    with pytest.raises(KeyError, match="other"):
        ask_teacher(lambda part: {}["other"], "norms", who="OFD", what="something")
    with pytest.raises(ValueError, match="SimKD asks the teacher for 'classify'"):
        ask_teacher(None, "classify", who="SimKD", what="its classifier")


# --- ReviewKD ---


@pytest.mark.parametrize(("length", "cells", "expected"), [(2, 4, [0, 0, 1, 1]), (4, 7, [0, 0, 1, 1, 2, 2, 3]),
                                                           (3, 4, [0, 0, 1, 2]), (4, 3, [0, 1, 2]), (5, 2, [0, 2]),
                                                           (1, 3, [0, 0, 0]), (3, 3, [0, 1, 2])])  # fmt: skip
def test_nearest_repeats_rows_as_torch_does(length, cells, expected):
    x = draw(490, 2, length, 2, 3)
    np.testing.assert_array_equal(nearest(jnp.asarray(x), (cells, 2)), x[:, expected])
    np.testing.assert_array_equal(nearest(jnp.asarray(x.swapaxes(1, 2)), (2, cells)), x[:, expected].swapaxes(1, 2))
    gradient = jax.grad(lambda x: nearest(x, (cells, 2)).sum())(jnp.asarray(x))
    counts = np.bincount(expected, minlength=length)
    np.testing.assert_array_equal(gradient, np.broadcast_to(counts[None, :, None, None], x.shape))


def test_later_stages_help_earlier_ones_and_not_the_reverse():
    """Of the fused map of each level: which of the student's maps move it?"""
    module = bound_to(REVIEWKD).modules["reviewkd"]
    params, state = (tree["reviewkd"] for tree in start(REVIEWKD))
    maps = [*OURS.features[::2], OURS.embedding[:, None, None, :]]
    sizes = [(4, 4), (2, 2), (1, 1)]
    run = lambda maps: module.call(params, state, lambda m: m(maps, sizes), train=False)[0]
    fused, pull = jax.vjp(jax.jit(run), maps)
    assert [x.shape[1:] for x in fused] == [(4, 4, 3), (2, 2, 6), (1, 1, 6)]
    for level in range(3):
        chosen = [jnp.ones_like(x) if i == level else jnp.zeros_like(x) for i, x in enumerate(fused)]
        moved = [np.abs(g).max() > 0 for g in pull(chosen)[0]]
        assert moved == [i >= level for i in range(3)]


def test_the_fusion_is_as_wide_as_the_students_vector_up_to_a_limit():
    for width, expected in ((512, 4), (3, 3)):
        params = jax.eval_shape(bound_to(ReviewKD(width=width)).init, jax.random.key(0))[0]["reviewkd"]
        assert params["levels"]["0"]["embed"]["conv"]["kernel"].shape == (1, 1, 2, expected)
        assert "gate" not in params["levels"]["3"] and params["levels"]["0"]["gate"]["kernel"].shape[-1] == 2


# --- SemCKD ---


def test_semckd_is_made_for_one_size_of_batch():
    with pytest.raises(
        ValueError, match=r"built for batches of 16 rows, over all devices, and this one has 12: .* batch_size=12"
    ):
        value(SEMCKD, said(STUDENT, 440, 12), said(TEACHER, 450, 12), WHERE[:12])
    for rows, widths in ((64, (64, 32, 16)), (1, (1, 2, 1))):
        objective = dataclasses.replace(SEMCKD, batch_size=rows)
        variables = jax.eval_shape(bound_to(objective).init, jax.random.key(0))
        key = variables[0]["semckd"]["keys"]["0"]
        assert (*key["hidden"]["kernel"].shape, key["out"]["kernel"].shape[1]) == widths
        with pytest.raises(ValueError, match=f"built for batches of {rows} rows"):
            jax.eval_shape(compiled(objective, True, call), variables, OURS, THEIRS, WHERE)


def test_the_temperature_of_semckd_evens_the_attention_out():
    module = bound_to(SEMCKD).modules["semckd"]
    params, state = (tree["semckd"] for tree in start(SEMCKD))
    student, teacher = OURS.features[1:], THEIRS.features[::2]

    def attend(temperature):
        run = lambda m: (m.attention(student, teacher, WHERE, None, temperature), m.project(student, teacher))
        return module.call(params, state, run, train=False)[0]

    attention, projected = jax.jit(attend)(1e6)
    np.testing.assert_allclose(attention, 1 / 2, rtol=1e-5)
    assert np.abs(jax.jit(attend)(1.0)[0] - 1 / 2).max() > 0.05
    hot = value(dataclasses.replace(SEMCKD, temperature=1e6), variables=start(SEMCKD), train=False)
    even = losses.semckd(projected, teacher, np.full((ROWS, 2, 2), 1 / 2, np.float32))
    np.testing.assert_allclose(hot, np.mean(even[WHERE]), rtol=1e-4)


@pytest.mark.slow
def test_the_published_weight_of_semckd_goes_with_the_published_learning_rate():
    """No warm-up, on maps as after a ReLU. With a sum over the student's stages in place of their mean it diverges."""
    rectified = lambda said: dataclasses.replace(said, features=tuple(np.maximum(x, 0) for x in said.features))
    student = rectified(said(((8, 8), (4, 16), (2, 32)), 440, 32))
    teacher = rectified(said(((8, 24), (4, 48), (2, 96)), 450, 32))
    bound = bind(METHODS["semckd"].objective.objectives[-1], student, teacher, DataInfo(CLASSES))
    params, state = jax.jit(bound.init)(jax.random.key(0))
    optimizer = optax.sgd(0.05, momentum=0.9)

    @jax.jit
    def step(params, momentum, student, teacher):  # not constants, which the compiler would compute with
        loss = lambda p: sum(group_losses(apply(bound, p, state, student, teacher, np.ones(32, bool))[0]).values())
        value, gradient = jax.value_and_grad(loss)(params)
        updates, momentum = optimizer.update(gradient, momentum)
        return optax.apply_updates(params, updates), momentum, value

    momentum, values = optimizer.init(params), []
    for _ in range(20):
        params, momentum, value = step(params, momentum, student, teacher)
        values.append(float(value))
    assert values[-1] < values[0] / 4, values


def test_a_vector_of_length_one_of_any_vector():
    x = np.float32([[3, 4], [0, 0], [3e30, 4e30], [3e-30, -4e-30]])
    np.testing.assert_allclose(unit(x), [[0.6, 0.8], [0, 0], [0.6, 0.8], [0.6, -0.8]], rtol=1e-6)
    gradient = jax.grad(lambda x: unit(x)[:, 0].sum())(x)
    np.testing.assert_allclose(gradient[:2], [[0.64 / 5, -0.48 / 5], [0, 0]], rtol=1e-5)
    assert np.isfinite(gradient).all()


# --- SRRL and SimKD ---


def test_the_forms_of_srrl_read_what_they_say():
    assert SRRL().reads[0] == "student.features" and SRRL(form="pooled").reads[0] == "student.embedding"
    without = dataclasses.replace(OURS, features=())
    assert not check(SRRL(form="pooled"), without, THEIRS)
    assert "reads student.features" in check(SRRL(), without, THEIRS)[0]
    assert value(SRRL()) != value(SRRL(form="pooled"))


def test_srrl_gives_the_teachers_classifier_the_average_of_its_map():
    wide = dataclasses.replace(OURS, features=(draw(491, ROWS, 3, 3, 4),))
    connect = lambda module: module(wide.features[-1])
    connected, _ = bound_to(SRRL()).modules["srrl"].call(*(t["srrl"] for t in start(SRRL())), connect, train=False)
    vector = np.maximum(connected, 0).mean((1, 2))
    expected = losses.srrl(vector, THEIRS.embedding, vector @ WEIGHT, THEIRS.logits)
    np.testing.assert_allclose(value(SRRL(), wide, train=False), np.mean(expected[WHERE]), rtol=1e-5)


def test_simkd_deploys_the_teachers_classifier_on_its_projection():
    objective = SimKD()
    module = bound_to(objective).modules["simkd"]
    variables = (tree["simkd"] for tree in start(objective))
    wide = dataclasses.replace(OURS, features=(draw(492, ROWS, 2, 2, 4), draw(493, ROWS, 2, 2, 4)), taps={"a": WHERE})
    deployed, projected = module.call(
        *variables, lambda m: (objective.deploy(m, wide, call), m(wide.features[-1])), train=False
    )[0]
    assert objective.deploys and projected.shape == (ROWS, 1, 1, 6), "averaged to the smaller of both maps first"
    np.testing.assert_allclose(deployed.logits, projected[:, 0, 0] @ WEIGHT, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(deployed.embedding, projected[:, 0, 0])
    assert deployed.features is wide.features and deployed.taps is wide.taps


def test_simkd_fails_before_training_where_it_could_not_be_deployed():
    with pytest.raises(ValueError, match=r"SimKD asks the teacher for 'classify', its classifier"):
        value(SimKD(), teacher_call=lambda part, x: {}[part])
    other = dataclasses.replace(THEIRS, embedding=jnp.zeros((ROWS, 7)))
    with pytest.raises(
        ValueError,
        match=r"average of its last map, \(2, 2, 6\), projected from the student's \(1, 1, 4\); this one reads 7",
    ):
        bind(SimKD(), OURS, other, DataInfo(CLASSES))


# --- what cannot be bridged ---


@pytest.mark.parametrize("objective", [OFD(), ReviewKD(), SemCKD()], ids=lambda o: type(o).__name__)
def test_too_few_stages_are_refused_with_those_there_are(objective):
    few = dataclasses.replace(OURS, features=OURS.features[:2], preactivations=OURS.preactivations[:2])
    with pytest.raises(
        ValueError, match=r"Stage -3 is not among the student's (features|preactivations), which are 2 \(-2 to 1\)"
    ):
        bind(objective, few, THEIRS, DataInfo(CLASSES))
    flat = dataclasses.replace(THEIRS, features=(THEIRS.embedding,) * 3, preactivations=(THEIRS.embedding,) * 3)
    with pytest.raises(
        ValueError, match=r"Stage -3 of the teacher's \w+ is \(6,\) without the batch; it must be a map"
    ):
        bind(objective, OURS, flat, DataInfo(CLASSES))


@pytest.mark.parametrize("objective", [OFD(stages=()), SemCKD(student_stages=()), SemCKD(teacher_stages=())])
def test_no_stage_at_all_is_refused(objective):
    with pytest.raises(ValueError, match="has no stages to match"):
        bind(objective, OURS, THEIRS, DataInfo(CLASSES))


def test_vectors_are_refused_where_maps_are_read():
    flat = dataclasses.replace(OURS, features=(OURS.embedding,))
    for objective in (SRRL(), SimKD()):
        with pytest.raises(ValueError, match=r"Stage -1 of the student's features is \(4,\)"):
            bind(objective, flat, THEIRS, DataInfo(CLASSES))


def test_connectors_start_as_released():
    """Kaiming normal by fan out for OFD, uniform by fan in with gain 1 for ReviewKD."""
    wide = ModelOutput(
        features=(jnp.zeros((1, 1, 1, 64)),) * 3,
        preactivations=(jnp.zeros((1, 1, 1, 64)),) * 3,
        embedding=jnp.zeros((1, 64)),
    )
    drawn = lambda objective: bind(objective, wide, wide, DataInfo(CLASSES)).init(jax.random.key(0))[0]
    kernel = drawn(OFD(stages=(-1,)))["ofd"]["stages"]["0"]["conv"]["kernel"]
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / 64), rtol=0.05)
    fusion = drawn(ReviewKD(stages=(-1,)))["reviewkd"]["levels"]["0"]
    for layer, inputs in (("embed", 64), ("out", 9 * 64)):
        bound = np.sqrt(3 / inputs)
        assert 0.98 * bound < np.abs(fusion[layer]["conv"]["kernel"]).max() <= bound


def test_modules_are_nnx_modules_without_convolution_biases():
    """Every convolution but the gates has a BatchNorm or the teacher's maps behind it."""
    for name, objective in OBJECTIVES.items():
        params = jax.eval_shape(bound_to(objective).init, jax.random.key(0))[0]
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        assert not [path for path in paths if "conv" in path and "bias" in path], name
    assert issubclass(type(objective.build(OURS, THEIRS, DataInfo(CLASSES), nnx.Rngs(0))), nnx.Module)


def test_simkd_matches_what_the_teachers_classifier_reads():
    """Of a network that normalises behind its last block that is not its last map; and a teacher whose classifier reads no mean
    of a map is refused once its weights are known."""
    rng = np.random.default_rng(0)
    last, raw = (rng.standard_normal((4, 3, 3, 8)).astype(np.float32) for _ in range(2))
    behind = np.maximum(last, 0)
    resnet = ModelOutput(features=(behind,), preactivations=(last,), embedding=behind.mean((1, 2)))
    tapped = ModelOutput(features=(behind,), embedding=behind.mean((1, 2)))
    wide = ModelOutput(features=(raw,), preactivations=(last,), embedding=behind.mean((1, 2)))
    tokens = ModelOutput(features=(raw,), embedding=raw[:, 0, 0])
    for said in (resnet, tapped, wide):
        np.testing.assert_array_equal(read_by_classifier(said), behind)
        assert SimKD().check_teacher(said) == ""
    assert SimKD().check_teacher(dataclasses.replace(tokens, embedding=None)) == ""
    apply = lambda params, state, inputs, train: (tokens, {})

    class Stand(SimpleNamespace):
        __hash__ = object.__hash__  # as a program has it

    program = Stand(
        phase=SimpleNamespace(name="student", teachers=("teacher",)),
        networks=SimpleNamespace(
            teacher=SimpleNamespace(apply=apply), objective=SimpleNamespace(parts={"simkd": SimKD(), "kd": KD()})
        ),
        feeding=SimpleNamespace(sample=lambda: raw), compiled=SimpleNamespace(whole=lambda variables: variables),
    )  # fmt: skip
    with pytest.raises(ExperimentError, match=r"Phase 'student': SimKD gives .* this one reads something else"):
        unfit(program, Variables({}, {}))
