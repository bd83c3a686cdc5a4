"""What every objective of the catalogue keeps to, whatever its loss: see `tests/objectives/conformance.py`.

A failure names the rule and the subject. An objective that is right and still breaks one gets a line in `EXCEPTIONS` there.
"""

import dataclasses
import functools

import chex
import hypothesis.extra.numpy as arrays
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdjax.objectives import KD, CrossEntropy, MultiTeacherKD, RandomTeacher
from kdjax.objectives.logits.wrappers import Wrapper
from kdjax.reduction import group_losses
from kdjax.types import Context
from tests.objectives.conformance import (
    CLASSES,
    CLOCK,
    EXCEPTIONS,
    LABELLED,
    QUICK,
    ROUNDED,
    ROWS,
    STEP,
    VIEWS,
    WHERE,
    batch,
    bound,
    cast,
    chain,
    classifier,
    draw,
    evaluation,
    exact,
    expected,
    initial,
    marked,
    normalises,
    on_logits,
    on_rows,
    reason,
    refused,
    run,
    subjects,
    targets,
)
from tests.objectives.nans import without_nans
from tests.training.test_step import compilations


@pytest.fixture(params=marked(), scope="module")
def subject(request):
    return request.param


def assert_zero(tree):
    for leaf in jax.tree.leaves(tree):
        np.testing.assert_array_equal(leaf, 0)


def assert_same(found, wanted, subject, *names):
    for name in names or ("value", "student", "params", "state", "terms"):
        chex.assert_trees_all_close(getattr(found, name), getattr(wanted, name), **exact(subject))


def assert_finite(result):
    for leaf in jax.tree.leaves((result.value, result.student, result.params, result.state)):
        assert np.all(np.isfinite(np.asarray(leaf, np.float32)))
    assert_zero(result.frozen)


# --- the table itself ---


def test_every_exception_is_of_a_subject():
    known = {cls.__name__ for part in subjects().values() for one in chain(part) for cls in type(one).__mro__}
    for declared in (*EXCEPTIONS.values(), ROUNDED):
        assert set(declared) <= known | set(subjects())


# --- where the gradient goes ---


def test_the_gradient_goes_to_what_the_objective_reads_and_nowhere_else(subject):
    """By the student's outputs, in the views that it compares; never into teacher or peer."""
    part = subjects()[subject]
    result = run(subject, draw(0), batch())
    assert_finite(result)
    moved = {
        f"student.{field.name}"
        for output in result.student.values()
        for field in dataclasses.fields(output)
        if any(np.any(leaf != 0) for leaf in jax.tree.leaves(getattr(output, field.name)))
    }
    seen = {view for view, output in result.student.items() if any(np.any(x != 0) for x in jax.tree.leaves(output))}
    with expected("the gradient goes to what the objective reads", subject):
        assert moved == {read for read in part.reads if read.startswith("student.")}
        assert seen <= set(part.views) and set(part.views) - seen <= {"main"}
        assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(result.params))


# --- symmetries ---


def test_the_order_of_the_rows_does_not_matter(subject):
    order = np.random.default_rng(1).permutation(ROWS)
    said, rows = draw(0), batch()
    before = run(subject, said, rows)
    after = run(subject, *on_rows((said, rows), lambda x: x[order]))
    wanted = before._replace(student=on_rows(before.student, lambda x: x[order]))
    with expected("the order of the rows does not matter", subject):
        assert_same(after, wanted, subject)


def test_the_order_of_the_classes_does_not_matter(subject):
    order = np.array([4, 0, 6, 2, 1, 5, 3])

    def permute(tree):
        """Along all axes that are as long as there are classes."""
        return jax.tree.map(
            lambda x: functools.reduce(
                lambda x, axis: np.take(x, order, axis) if x.shape[axis] == CLASSES else x, range(x.ndim), x
            ),
            tree,
        )

    said, rows, (params, _) = draw(0), batch(), initial(subject)
    before = run(subject, said, rows)
    labels = np.argsort(order)[rows.labels].astype(np.int32)
    rows = dataclasses.replace(rows, targets={"labels": labels, "multi_hot": permute(rows.targets["multi_hot"])})
    after = run(subject, permute(said), rows, params=permute(params), kernel=permute(classifier()))
    with expected("the order of the classes does not matter", subject):
        assert_same(after, permute(before), subject, "value", "student", "params")


def test_a_shift_of_all_logits_of_a_row_changes_nothing(subject):
    rng = np.random.default_rng(2)
    said, rows = draw(0), batch()
    before = run(subject, said, rows)
    after = run(subject, on_logits(said, lambda _, x: x + 10 * rng.standard_normal((*x.shape[:-1], 1))), rows)
    with expected("a shift of all logits of a row changes nothing", subject):
        assert_same(after, before, subject, "value", "student", "params")


def test_a_student_that_equals_its_teacher_has_nothing_to_learn(subject):
    """The teacher's other channels are zero: no inner product, and no distance, knows of them."""
    part = subjects()[subject]
    if not any(read.startswith(("teacher.", "peer.")) for read in part.reads):
        pytest.skip("has no teacher")
    said = draw(0)

    def alike(theirs, ours):
        wider = [(0, 0)] * (theirs.ndim - 1) + [(0, theirs.shape[-1] - ours.shape[-1])]
        return np.pad(ours, wider)

    for role in ("teacher", "peer"):
        for view, output in said[role].items():
            ours = said["student"][view]
            taps = {"members": np.repeat(ours.logits[:, None], 2, axis=1)} if output.taps else {}
            alone = dataclasses.replace(output, taps={})
            said[role][view] = dataclasses.replace(jax.tree.map(alike, alone, ours), taps=taps)
    result = run(subject, said, batch())
    with expected("a student that equals its teacher has nothing to learn", subject):
        np.testing.assert_allclose(result.value, 0, atol=1e-6)  # a correlation may have 1e-8 beside its norms
        for leaf in jax.tree.leaves((result.student, result.params)):
            np.testing.assert_allclose(leaf, 0, atol=1e-6)


# --- rows that do not count ---


def test_missing_rows_are_as_if_they_were_not_there(subject):
    """Even where they hold nan in all that is said of them; and without them no operation gives a nan on the way."""
    said, rows = draw(0), batch()
    missing = on_rows(said, lambda x: np.where(np.reshape(WHERE, (-1,) + (1,) * (x.ndim - 1)), x, np.nan))
    result = run(subject, missing, rows)
    assert_zero((on_rows(result.student, lambda x: x[~WHERE]), result.frozen))
    there = on_rows((said, rows), lambda x: x[WHERE])
    with refused("batches may have any size", subject), jax.enable_x64(True):
        arguments = *cast((*initial(subject), classifier(), there[0]), np.float64), there[1], np.int32(STEP)
        wanted = without_nans(evaluation(subject, train=not normalises(subject)), *arguments, **QUICK)
    if reason("batches may have any size", subject):
        return
    with expected("missing rows are as if they were not there", subject):
        assert_same(result._replace(student=on_rows(result.student, lambda x: x[WHERE])), wanted, subject)
        assert_zero(wanted.frozen)


def test_an_empty_batch_gives_zero(subject):
    result = run(subject, draw(0), batch(where=np.zeros(ROWS, bool)), dtype=np.float32)
    assert_finite(result)
    assert_zero((result.value, result.student, result.params))


def test_a_batch_without_labels_is_learned_from_without_labels(subject):
    result = run(subject, draw(0), batch(labelled=np.zeros(ROWS, bool)), dtype=np.float32)
    assert_finite(result)
    if all(term.count == 0 for term in result.terms.values()):
        assert_zero((result.value, result.student, result.params))


@pytest.mark.parametrize("number", [-1, 99])
def test_labels_that_may_not_be_used_are_never_read(subject, number):
    """Of missing rows, and of rows that may not show theirs."""
    rows = batch()
    changed = jax.tree.map(
        lambda x: np.where(np.reshape(WHERE & LABELLED, (-1,) + (1,) * (x.ndim - 1)), x, np.int32(number)), rows.targets
    )
    other = dataclasses.replace(rows, targets=changed)
    chex.assert_trees_all_equal(*(run(subject, draw(0), one, dtype=np.float32) for one in (rows, other)))


# --- finite, whatever the numbers ---


def _sure(seed, high, low):
    """One class at `high`, the others at `low`: another one for every role."""

    def change(role, logits):
        rng = np.random.default_rng([seed, *role.encode()])
        choice = rng.integers(0, logits.shape[-1], logits.shape[:-1])
        return np.where(choice[..., None] == np.arange(logits.shape[-1]), high, low)

    return change


def _excluded(role, logits):
    """The teacher knows its first, first two, ... choices only, so that on some rows the label is not among them."""
    known = 1 + np.arange(len(logits)) % logits.shape[-1]
    ranked = np.argsort(np.argsort(-logits, axis=-1), axis=-1)
    out = ranked >= np.reshape(known, (-1,) + (1,) * (logits.ndim - 1))
    return logits if role == "student" else np.where(out, -np.inf, logits)


LOGITS = {
    "sure": _sure(1, 1e4, -1e4),
    "sure by a shift": _sure(2, 1e4 + 1, 1e4),
    "sure of what is not": _sure(3, -1e4, 1e4),
    "unsure": lambda role, x: np.full_like(x, 1e4 if role == "student" else -1e4),
    "a sure student, an unsure teacher": lambda role, x: _sure(4, 1e4, -1e4)(role, x) if role == "student" else 0 * x,
    "an unsure student, a sure teacher": lambda role, x: 0 * x if role == "student" else _sure(5, 1e4, -1e4)(role, x),
    "any size": lambda role, x: x * 10.0 ** np.linspace(-30, 3, len(x)).reshape((-1,) + (1,) * (x.ndim - 1)),
    "excluded by the teacher": _excluded,
    "tied": lambda role, x: np.sign(x),
    "constant": lambda role, x: np.zeros_like(x),
}


@pytest.mark.parametrize("kind", LOGITS)
def test_logits_of_any_size_give_finite_gradients(subject, kind):
    assert_finite(run(subject, on_logits(draw(0), LOGITS[kind]), batch(), dtype=np.float32))


def test_a_class_that_both_networks_exclude_gives_finite_gradients(subject):
    """The loss itself is infinite where the label is such a class."""
    said = on_logits(draw(0), _excluded)
    for role in ("student", "peer"):
        for view in VIEWS:
            theirs, own = said["teacher"][view].logits, said[role][view]
            said[role][view] = dataclasses.replace(own, logits=np.where(theirs == -np.inf, -np.inf, own.logits))
    result = run(subject, said, batch(), dtype=np.float32)
    assert not np.isnan(result.value)
    assert_finite(result._replace(value=0.0))


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e3])
def test_features_of_any_size_give_finite_gradients(subject, size):
    said = on_rows(draw(0), lambda x: x if x.shape[-1] == CLASSES else size * x)
    assert_finite(run(subject, said, batch(), dtype=np.float32))


def test_a_single_row_gives_finite_gradients(subject):
    assert_finite(run(subject, draw(0), batch(where=np.arange(ROWS) == 4), dtype=np.float32))


def test_one_and_two_classes_and_a_batch_of_one_give_finite_gradients(subject):
    if reason("one class is enough", subject):
        with refused("one class is enough", subject):
            bound(subject, 1)
        shapes = ((1, 2),)
    else:
        shapes = ((3, 1), (1, 2))

    def both(arguments):
        return [
            evaluation(subject, classes=classes)(*each, np.int32(STEP))
            for (_, classes), each in zip(shapes, arguments, strict=True)
        ]

    arguments = [
        (
            *cast((*initial(subject, classes), classifier(classes), draw(0, rows, classes)), np.float32),
            batch(5, rows, classes),
        )
        for rows, classes in shapes
    ]
    with refused("batches may have any size", subject):
        for result in jax.jit(both, compiler_options=QUICK)(arguments):
            assert_finite(jax.device_get(result))


# --- wrappers ---

WRAPPERS = sorted(
    {type(part) for part in subjects().values() if isinstance(part, Wrapper)}, key=lambda cls: cls.__name__
)


@pytest.mark.parametrize("cls", WRAPPERS)
def test_a_wrapper_changes_every_member_of_an_ensemble(cls):
    """Members that are alike are one teacher, but where noise is drawn for each."""
    cls = functools.partial(cls, fixed=True) if cls is RandomTeacher else cls
    said = cast({role: views["main"] for role, views in draw(0).items()}, np.float32)
    members = np.repeat(said["teacher"].logits[:, None], 2, axis=1)

    def losses(student, teacher, rows):
        ctx = Context(student, teacher, rows, CLOCK.at(STEP), key=jax.random.key(3))
        pair = cls(inner=MultiTeacherKD(temperature=4.0)), cls(inner=KD(temperature=4.0))
        return [sum(group_losses(objective.terms(None, ctx)).values()) for objective in pair]

    teacher = dataclasses.replace(said["teacher"], taps={"members": members})
    found, wanted = jax.jit(losses, compiler_options=QUICK)(said["student"], teacher, batch())
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("cls", WRAPPERS)
def test_a_wrapper_refuses_what_reads_no_teacher(cls):
    with pytest.raises(
        ValueError, match=rf"{cls.__name__} changes the logits .* CrossEntropy reads none of the teacher"
    ):
        cls(inner=CrossEntropy())


# --- precision, and how often it is compiled ---


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(np.float16, marks=pytest.mark.slow)])
def test_half_types_are_computed_in_float32(subject, dtype):
    """As if the rounded numbers had come in float32; only the gradient by a half type is rounded again."""
    own = cast((*initial(subject), classifier()), np.float32)
    said, evaluate = cast(draw(0), dtype), evaluation(subject, train=not normalises(subject))
    result = jax.device_get(jax.jit(lambda said: evaluate(*own, said, batch(), STEP), compiler_options=QUICK)(said))
    wanted = run(subject, jax.tree.map(lambda x: x.astype(np.float32), said), batch(), dtype=np.float32)
    for term in result.terms.values():
        assert term.sum.dtype == np.float32
    np.testing.assert_allclose(result.value, wanted.value, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(result.params, wanted.params, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(cast(result.student, np.float32), wanted.student, rtol=1e-2, atol=1e-5)


def test_other_values_and_another_step_compile_nothing(subject):
    run(subject, draw(0), batch(), dtype=np.float32)
    with compilations() as seen:
        run(subject, draw(1), batch(6), dtype=np.float32, step=STEP + 7)
    assert not seen


# --- whatever else ---


@functools.cache
def anything():
    """Strategy: outputs within 1000 of 0, made of a dozen numbers so that many tie, and any masks and labels."""
    leaves, structure = jax.tree.flatten(draw(0))

    def said(numbers, seed):
        rng = np.random.default_rng(seed)
        return jax.tree.unflatten(structure, [rng.choice(numbers, leaf.shape) for leaf in leaves])

    def rows(labels, where, labelled):
        return batch(targets=targets(labels), where=where, labelled=labelled)

    numbers = arrays.arrays(np.float32, 12, elements=st.floats(-1e3, 1e3, width=32))
    labels = arrays.arrays(np.int32, ROWS, elements=st.integers(0, CLASSES - 1))
    masks = arrays.arrays(bool, ROWS)
    return st.tuples(st.builds(said, numbers, st.integers(0, 9)), st.builds(rows, labels, masks, masks))


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
)
@given(drawn=anything())
def test_anything_finite_gives_a_finite_loss_and_no_gradient_to_missing_rows(subject, drawn):
    said, rows = drawn
    result = run(subject, said, rows, dtype=np.float32)
    assert_finite(result)
    assert_zero(on_rows(result.student, lambda x: x[~rows.where]))
