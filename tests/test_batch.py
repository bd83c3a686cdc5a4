"""`Batch`: masks of rows and of elements, told apart by name and never by what happens to broadcast; targets by name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import losses
from kdjax.models import from_apply, output_shapes
from kdjax.objectives import KD, PKT, CrossEntropy, ForwardKL, bind
from kdjax.reduction import per_example
from kdjax.training import Variables, init_state, make_runner, make_step
from kdjax.types import Batch, DataInfo, ModelOutput

SIZE = 8  # rows, and tokens: a mask of the one fits the other
REAL = np.arange(SIZE)[None] < np.array([8, 3, 1, 5, 0, 2, 8, 4])[:, None]
ROWS = np.array([1, 1, 0, 1, 1, 1, 0, 1], bool)


def test_a_mask_of_rows_never_lands_on_the_tokens():
    batch = Batch.of(jnp.zeros((SIZE, SIZE)), where=ROWS)
    np.testing.assert_array_equal(batch.mask((SIZE, SIZE)), np.broadcast_to(ROWS[:, None], (SIZE, SIZE)))
    term = per_example(jnp.arange(SIZE * SIZE, dtype=jnp.float32).reshape(SIZE, SIZE), batch)
    assert term.count == SIZE * ROWS.sum() and term.sum == np.arange(SIZE * SIZE).reshape(SIZE, SIZE)[ROWS].sum()


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32])
def test_a_mask_that_is_given_needs_no_other_program(dtype):
    """Than where all count, or where a runner has placed the batch: its type is the same."""
    inputs = jnp.zeros((SIZE, SIZE))
    given = Batch.of(inputs, where=ROWS.astype(dtype), labelled=ROWS.astype(dtype), elements=REAL.astype(dtype))
    whole = dataclasses.replace(Batch.of(inputs), elements=jnp.ones((SIZE, SIZE), bool))
    assert jax.tree.map(jax.typeof, given) == jax.tree.map(jax.typeof, whole)


def test_masks_of_rows_and_elements_are_joined():
    prompt = np.arange(SIZE)[None] < np.ones(SIZE, int)[:, None]
    labelled = np.arange(SIZE) != 3
    batch = Batch.of(
        jnp.zeros(SIZE), where=ROWS, labelled=labelled, elements=REAL.astype(float), labelled_elements=~prompt
    )
    np.testing.assert_array_equal(batch.mask((SIZE,)), ROWS)
    np.testing.assert_array_equal(batch.mask((SIZE,), labelled=True), ROWS & labelled)
    np.testing.assert_array_equal(batch.mask((SIZE, SIZE)), ROWS[:, None] & REAL)
    wanted = (ROWS & labelled)[:, None] & REAL & ~prompt
    np.testing.assert_array_equal(batch.mask((SIZE, SIZE), labelled=True), wanted)
    np.testing.assert_array_equal(batch.mask((SIZE, SIZE, 2)), np.repeat((ROWS[:, None] & REAL)[..., None], 2, -1))


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        ({"where": REAL}, r"where is a mask of rows, \[8\], and has the shape \[8, 8\]; .* is elements="),
        ({"labelled": REAL}, r"labelled is a mask of rows.* is labelled_elements="),
        ({"where": np.ones(7)}, r"where is a mask of rows, \[8\], and has the shape \[7\]\."),
        ({"elements": ROWS}, r"elements is a mask of elements, \[8, L\].*a mask of rows is where= or labelled="),
        ({"elements": np.ones((4, 8))}, r"elements is a mask of elements, \[8, L\]"),
    ],
)
def test_a_mask_of_another_kind_is_refused(masks, said):
    with pytest.raises(ValueError, match=said):
        Batch.of(jnp.zeros((SIZE, SIZE)), **masks)


@pytest.mark.parametrize("index", [3, np.arange(7), np.arange(SIZE)[:, None], np.arange(SIZE, dtype=np.float32)])
def test_positions_that_are_none_are_refused(index):
    with pytest.raises(ValueError, match=r"index is .*; give the position of each row in its data set, integers \[8\]"):
        Batch.of(jnp.zeros((SIZE, SIZE)), index=index)


def test_values_of_other_elements_are_refused():
    batch = Batch.of(jnp.zeros(SIZE), elements=REAL)
    for shape in ((SIZE, 5), (SIZE, 4, SIZE)):
        with pytest.raises(ValueError, match=r"elements is a mask \[8, 8\], and values .* are of other elements"):
            batch.mask(shape)
    with pytest.raises(ValueError, match=r"Values \[5\] are not of the 8 rows"):
        batch.mask((5,))


def test_targets_are_found_by_name():
    labels = jnp.arange(SIZE)
    for batch in (Batch.of({}, labels), Batch.of({}, labels=labels)):
        np.testing.assert_array_equal(batch.labels, labels)
    np.testing.assert_array_equal(Batch.of({}, {"labels": labels, "boxes": jnp.zeros((SIZE, 4))}).labels, labels)
    assert Batch.of(jnp.zeros((SIZE, 2))).targets is None
    with pytest.raises(ValueError, match="has no labels, and they are read; its targets are: none"):
        _ = Batch.of(jnp.zeros((SIZE, 2))).labels
    with pytest.raises(ValueError, match="its targets are: boxes"):
        _ = Batch.of({}, {"boxes": jnp.zeros((SIZE, 4))}).labels
    with pytest.raises(ValueError, match="the same argument"):
        Batch.of({}, labels, labels=labels)


@pytest.mark.parametrize("form", [("jit", 1), ("jit", 8), ("pmap", 8)])
def test_any_sum_of_objectives_trains_with_padding_on_any_devices(form):
    """Tokens as inputs in a dict, losses of tokens and one of rows: the means are over the tokens that count, globally."""
    kind, devices = form
    rng = np.random.default_rng(0)
    inputs = {"input_ids": rng.integers(0, 11, (SIZE, SIZE)), "attention_mask": REAL}
    labels = np.where(REAL, rng.integers(0, 11, (SIZE, SIZE)), -100).astype(np.int32)

    def speak(table, x):
        logits = table[x["input_ids"]]
        mean = jnp.sum(jnp.where(x["attention_mask"][..., None], logits, 0), axis=1)
        return ModelOutput(logits=logits, embedding=mean)

    student = from_apply(speak, init=lambda key: jax.random.normal(key, (11, 11)))
    teacher = from_apply(speak, jax.random.normal(jax.random.key(9), (11, 11)))
    objective = CrossEntropy() + ForwardKL() + 2.0 * KD(temperature=2.0) + PKT()
    bound = bind(objective, output_shapes(student, inputs), output_shapes(teacher, inputs), DataInfo(11))
    runner, optimizer = make_runner(kind, jax.devices()[:devices]), optax.sgd(0.1)
    step = runner.compile(make_step(student, teacher, bound, optimizer, axis=runner.axis), donate=False)
    state = runner.place(init_state(student, bound, optimizer, seed=0))
    frozen = runner.place(Variables(*teacher.init(None)))
    batch = Batch.of(inputs, labels, where=ROWS, elements=REAL)
    _, metrics = step(state, frozen, runner.place_batch(batch))
    counted = ROWS[:, None] & REAL
    table, wise = np.asarray(state.params["student"]), np.asarray(frozen.params)
    ours, theirs = table[inputs["input_ids"]][counted], wise[inputs["input_ids"]][counted]
    wanted = {
        "cross_entropy": losses.cross_entropy(ours, labels[counted]).mean(),
        "forward_kl": losses.lm_kd(ours[None], theirs[None]),
        "kd": losses.kd(ours, theirs, temperature=2.0).mean(),
        "top1": np.mean(ours.argmax(-1) == labels[counted]),
        "agreement": np.mean(ours.argmax(-1) == theirs.argmax(-1)),
    }
    for name, value in wanted.items():
        total, count = metrics[name]
        assert count == counted.sum(), name
        np.testing.assert_allclose(total / count, value, rtol=1e-5, err_msg=name)
    assert metrics["pkt"][1] == ROWS.sum(), "one value a row"


def one_step(inputs, targets, classes, **options):
    """The metrics of one step of KD."""
    student = from_apply(lambda params, x: x["main"] @ params, init=lambda key: jax.random.normal(key, (4, classes)))
    teacher = from_apply(lambda params, x: x["main"] @ params, jnp.ones((4, classes)))
    bound = bind(KD(), output_shapes(student, inputs), output_shapes(teacher, inputs), DataInfo(classes))
    step = jax.jit(make_step(student, teacher, bound, optax.sgd(0.1), **options))
    state = init_state(student, bound, optax.sgd(0.1), seed=0)
    return step(state, Variables(*teacher.init(None)), Batch.of(inputs, targets))[1]


@pytest.mark.parametrize("rows", [6, 8])
def test_multi_hot_targets_have_no_top1_also_where_there_are_as_many_rows_as_classes(rows):
    """And a dict of inputs is one view, whatever its keys."""
    rng = np.random.default_rng(0)
    inputs = {"main": rng.standard_normal((rows, 4)).astype(np.float32), "unread": np.zeros(rows)}
    metrics = one_step(inputs, rng.integers(0, 2, (rows, 6)), 6)
    assert {"loss", "kd", "agreement"} <= set(metrics) and "top1" not in metrics
    assert "top1" in one_step(inputs, rng.integers(0, 6, rows), 6)


def test_who_keeps_something_of_every_example_refuses_a_batch_without_positions():
    """And nobody else: what only has to tell the rows apart numbers them, over all devices."""
    from kdjax.objectives import CRD, MGD, RandomTeacher
    from kdjax.tasks.classification.views import Views

    said = r"by the example's position in its data set, and this batch does not say it; pass Batch.of\(\.\.\., index=positions\)"
    x = jnp.arange(SIZE * 4.0).reshape(SIZE, 4)
    network = from_apply(
        lambda w, x: ModelOutput(logits=x @ w, embedding=x @ w, features=((x @ w)[:, None, None],)), jnp.ones((4, 3))
    )
    shapes = output_shapes(network, x)

    def step(objective, batch, **options):
        bound = bind(objective, shapes, shapes, DataInfo(3, num_examples=SIZE, labels=np.arange(SIZE) % 3))
        made = make_step(network, network, bound, optax.sgd(0.1), **options)
        state = init_state(network, bound, optax.sgd(0.1), seed=0)
        return jax.eval_shape(made, state, Variables(*network.init(None)), batch)

    known, unknown = Batch.of(x, index=np.arange(SIZE)), Batch.of(x)
    crd, fixed = CRD(negatives=2, dim=2), RandomTeacher(fixed=True)
    images = lambda x, index, *key: Views(crop_padding=1).train(jnp.ones((SIZE, 4, 4, 3), jnp.uint8), index, *key)[
        :, 0, :, 0
    ]
    for objective, options in ((crd, {}), (fixed, {}), (KD(), {"mix": 1.0}), (KD(), {"views": images})):
        step(objective, known, **options)
        with pytest.raises(ValueError, match=said):
            step(objective, unknown, **options)
    for objective in (RandomTeacher(), MGD()):
        step(objective, unknown)
    np.testing.assert_array_equal(unknown.numbers(), np.arange(SIZE))
    rows = jax.pmap(lambda x: Batch.of(x).numbers("data"), "data")(x.reshape(8, -1, 4))
    np.testing.assert_array_equal(np.ravel(rows), np.arange(SIZE))


def test_labels_are_not_asked_for_where_none_are_read():
    x = jnp.ones((SIZE, 4))
    network = from_apply(lambda w, x: x @ w, jnp.ones((4, 3)))
    bound = bind(KD(), output_shapes(network, x), output_shapes(network, x), DataInfo(3))
    step = make_step(network, network, bound, optax.sgd(0.1))
    state = init_state(network, bound, optax.sgd(0.1), seed=0)
    _, metrics = jax.eval_shape(step, state, Variables(*network.init(None)), Batch.of(x))
    assert set(metrics) == {"loss", "kd", "agreement", "gradient_norm", "finite"}
