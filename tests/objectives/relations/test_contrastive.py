"""CRD against a computation of its own: draws, constants and banks, step by step, on one device and on eight."""

import dataclasses
import functools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from kdjax.objectives import CRD, METHODS, CrossEntropy, bind, part_names
from kdjax.objectives.relations import banks
from kdjax.reduction import group_losses
from kdjax.training import Variables, init_state, make_runner, make_step
from kdjax.training.optimizers import SGD, build
from kdjax.types import Batch, Clock, Context, DataInfo, ModelOutput, Network
from tests.objectives.relations.test_banks import gathered

EXACT = {"rtol": 1e-9, "atol": 1e-12}


# --- steps ---

CLASSES, SIZE = 3, 40
CLASS_OF = np.random.default_rng(8).integers(0, CLASSES, SIZE)
DATA = DataInfo(CLASSES, SIZE, CLASS_OF)
LARGEST = np.bincount(CLASS_OF).max()
FORMS = {"jit 1": 1, "jit 8": 8, "jit 8 spread": 8, "pmap": 8, "shard_map": 8}
MANY = [form for form, devices in FORMS.items() if devices > 1]
SPREAD = ("jit 8 spread", "shard_map")
SMALL = {"dim": 4, "temperature": 0.3, "negatives": 9}
VARIANTS = {"crd": CRD(**SMALL), "relax shared": CRD(positive="relax", shared_negatives=True, **SMALL)}


def said(params, x):
    embedding = jnp.tanh(x @ params["v"])
    return ModelOutput(logits=embedding @ params["w"], embedding=embedding)


def network(width):
    def init(key):
        draw = lambda number, *shape: jax.random.normal(jax.random.fold_in(key, number), shape)
        return {"v": draw(0, 6, width), "w": draw(1, width, CLASSES)}, {}

    return Network(init, lambda params, state, x, **_: (said(params, x), state))


STUDENT, TEACHER = network(5), network(7)
OUTPUTS = tuple(said(net.init(jax.random.key(0))[0], jnp.ones((2, 6))) for net in (STUDENT, TEACHER))


def batch(number=0, junk=0.0):
    """16 of the 40 examples; of an uneven mask, with junk in what does not exist."""
    rng = np.random.default_rng(number)
    index = rng.permutation(SIZE)[:16].astype(np.int32)
    where = np.arange(16) < 13
    where[2:4] = False
    inputs = np.where(where[:, None], rng.standard_normal((16, 6)), junk)
    rows = Batch.of(inputs, CLASS_OF[index].astype(np.int32), index=np.where(where, index, index[0]), where=where)
    return jax.tree.map(np.asarray, rows)


def spread(form):
    """What says from how many bytes on a bank is spread: here, all are."""
    return mock.patch.object(banks, "SPREAD_BYTES", 0 if form == "jit 8 spread" else banks.SPREAD_BYTES)


def to64(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)


@functools.cache
def compiled(name, form):
    bound = bind(CrossEntropy() + 0.8 * VARIANTS[name], *OUTPUTS, DATA)
    optimizer = build(SGD(learning_rate=1.0, momentum=0.0), Clock(), bound)
    runner = make_runner("pmap" if form == "pmap" else "jit", jax.devices()[: FORMS[form]])
    state = to64(init_state(STUDENT, bound, optimizer, seed=1))
    variables = to64(Variables(*TEACHER.init(jax.random.key(7))))
    if form != "shard_map":
        step = make_step(STUDENT, TEACHER, bound, optimizer, axis=runner.axis)
        return runner, runner.compile(step, donate=False, state=state), state, variables
    # The banks of this one live spread over the devices.
    step = functools.partial(make_step(STUDENT, TEACHER, bound, optimizer, axis="data"))
    whole, rows = PartitionSpec(), PartitionSpec("data")
    specs = jax.tree.map(lambda _: whole, state)
    for bank in "student_bank", "teacher_bank":
        specs.state["objective"]["crd"][bank] = rows
    mapped = jax.shard_map(
        step, mesh=runner.mesh, in_specs=(specs, whole, rows), out_specs=(specs, whole), check_vma=False
    )
    return runner, jax.jit(mapped), state, variables


def steps(name, form="jit 1", batches=(0, 1), junk=0.0, start=None):
    """`(state, metrics)` after every step of SGD with learning rate 1."""
    with jax.enable_x64(True), spread(form):
        runner, step, state, variables = compiled(name, form)
        state = state if start is None else start
        results = []
        for number in batches:
            state, metrics = step(runner.place(state), runner.place(variables), runner.place_batch(batch(number, junk)))
            results.append(jax.device_get((state, metrics)))
        return results


def memory(state):
    return state.state["objective"]["crd"]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param(name, form, marks=[pytest.mark.slow] * (name != "crd" and form != "shard_map"))
        for name in VARIANTS
        for form in MANY
    ],
)
def test_devices_make_no_difference(name, form):
    """Values, gradients, banks, constants and draws of two steps, whole and spread banks."""
    for (state, metrics), (one, expected) in zip(steps(name, form), steps(name), strict=True):
        chex.assert_trees_all_close(metrics, expected, **EXACT)
        chex.assert_trees_all_close(state.params, one.params, **EXACT)
        chex.assert_trees_all_close(memory(state), memory(one), **EXACT)
        chex.assert_trees_all_equal_shapes_and_dtypes(state.state, one.state)


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_that_do_not_exist_may_hold_anything(name):
    """What nan would do in the network is the network's affair; of the objective, see below."""
    for (state, metrics), (clean, expected) in zip(steps(name, junk=1e30), steps(name), strict=True):
        chex.assert_trees_all_equal(metrics, expected)
        chex.assert_trees_all_equal((state.params, state.state), (clean.params, clean.state))


def test_only_rows_of_the_batch_are_written():
    before = jax.device_get(memory(compiled("crd", "jit 1")[2]))
    for number, (state, _) in enumerate(steps("crd")):
        after, rows = memory(state), batch(number)
        for bank in "student_bank", "teacher_bank":
            changed = np.flatnonzero(np.any(after[bank] != before[bank], axis=1))
            np.testing.assert_array_equal(changed, np.sort(rows.index[rows.where]))
            np.testing.assert_allclose(np.linalg.norm(after[bank][changed], axis=1), 1, rtol=1e-12)
        before = after


@pytest.mark.parametrize("form", MANY)
@pytest.mark.parametrize("name", VARIANTS)
def test_no_step_moves_a_bank(name, form):
    """The banks have 256 numbers, the batch's embeddings 64; of a spread bank the scores, 144, are moved too."""
    with jax.enable_x64(True), spread(form):
        runner, step, state, variables = compiled(name, form)
        arguments = runner.place(state), runner.place(variables), runner.place_batch(batch())
        moved = gathered(step.lower(*arguments).compile().as_text())
    assert 64 in moved and max(moved) <= (144 if form in SPREAD else 64), sorted(moved)


@pytest.mark.parametrize("form", MANY)
def test_large_banks_live_spread_over_devices(form):
    with jax.enable_x64(True), spread(form):
        runner, step, state, variables = compiled("crd", form)
        after = step(runner.place(state), runner.place(variables), runner.place_batch(batch()))[0]
    for name, leaf in memory(after).items():
        assert leaf.sharding.is_fully_replicated == (form not in SPREAD or not name.endswith("bank")), name


def test_what_is_too_large_for_every_device():
    shape = lambda *axes: jax.ShapeDtypeStruct(axes, jnp.float32)
    assert banks.spreads(shape(2**19, 128), 8) and not banks.spreads(shape(2**19 - 64, 128), 8)
    assert not banks.spreads(shape(2**19, 128), 1) and not banks.spreads(shape(2**19 + 4, 128), 8)


# --- against a computation of its own ---


def independent(name, number, params, before, key, frozen):
    """Loss and constants in NumPy, from the embeddings on, by the drawn rows."""
    rows = batch(number)
    objective, where = VARIANTS[name], rows.where
    table = banks.Candidates(*map(jnp.asarray, banks.candidates_by_class(CLASS_OF, SIZE)))
    bits = jax.random.fold_in(key, 1)  # of the second part of the sum
    kept = np.flatnonzero(where)
    index = jnp.asarray(rows.index)
    positive = np.asarray(banks.draw_alike(table, index, bits) if objective.positive == "relax" else index)
    allowed = np.ones((16, 9), bool)
    if objective.shared_negatives:
        shared, allowed = map(np.asarray, banks.draw_shared(table, index, bits, 9))
        negatives = np.broadcast_to(shared, (16, 9))
    else:
        negatives = np.asarray(banks.draw_negatives(table, index, bits, 9))
    total, constants = 0.0, []
    teacher = TEACHER.init(jax.random.key(7))[0]
    for side, other, weights in ("student", "teacher", params["student"]), ("teacher", "student", teacher):
        linear = params["objective"]["crd"][f"{side}_embed"]
        inputs = np.where(where[:, None], rows.inputs, 1.0)
        x = np.asarray(said(to64(weights), inputs).embedding) @ linear["kernel"] + linear["bias"]
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        bank = np.asarray(before[f"{other}_bank"])
        exp = lambda chosen, x=x, bank=bank: np.exp(np.einsum("bd,bkd->bk", x, bank[chosen]) / objective.temperature)
        matching, others = exp(positive[:, None]), exp(negatives)
        everything = np.concatenate([matching[kept].ravel(), others[kept][allowed[kept]]])
        z = np.mean(everything) * SIZE if frozen is None else np.exp(frozen[len(constants)])
        constants.append(np.log(z))
        for i in kept:
            noise = allowed[i].sum() / SIZE
            chance = matching[i, 0] / z
            total -= np.log(chance / (chance + noise + 1e-7))
            total -= np.sum(np.log(noise / (others[i][allowed[i]] / z + noise + 1e-7)))
    return total / len(kept), constants, negatives, allowed


@pytest.mark.parametrize("name", VARIANTS)
def test_the_loss_and_its_constants(name):
    """Constants of the first global batch, which the second uses too; negatives are of other classes."""
    with jax.enable_x64(True):
        state, frozen = compiled(name, "jit 1")[2], None
        for number, (after, metrics) in enumerate(steps(name)):
            key = jax.random.fold_in(jax.random.fold_in(state.keys["train"], number), 1)
            value, constants, negatives, allowed = independent(
                name, number, jax.device_get(state.params), memory(state), key, frozen
            )
            np.testing.assert_allclose(np.divide(*metrics["crd"]), value, **EXACT)
            np.testing.assert_allclose(memory(after)["log_normalizer"], constants, **EXACT)
            same = CLASS_OF[negatives] == CLASS_OF[batch(number).index][:, None]
            assert not np.any(same & allowed)
            frozen, state = memory(after)["log_normalizer"], jax.tree.map(jnp.asarray, after)
        assert frozen is not None and memory(after)["normalized"]


def test_every_step_draws_anew():
    with jax.enable_x64(True):
        runner, step, state, variables = compiled("crd", "jit 1")
        later = dataclasses.replace(state, step=jnp.int32(1))
        found = [
            step(runner.place(s), runner.place(variables), runner.place_batch(batch()))[1]["crd"]
            for s in (state, later)
        ]
        assert found[0][0] != found[1][0] and found[0][1] == found[1][1] == 11


# --- state ---


def test_it_goes_on_from_saved_arrays():
    first, second = steps("crd")
    saved = jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.array(x), first[0])
    (again,) = steps("crd", batches=(1,), start=saved)
    chex.assert_trees_all_equal(again[1], second[1])
    chex.assert_trees_all_equal((again[0].params, again[0].state), (second[0].params, second[0].state))


@functools.cache
def applied(objective, train, key, data):
    """A compiled loss with its terms, state and gradient by the objective's parameters, and these before."""
    bound = bind(objective, *OUTPUTS, DATA if data is None else data)
    params, before = bound.init(jax.random.key(1))

    def loss(params, before, student, teacher, rows):
        ctx = Context(student, teacher, rows, Clock().at(0), key=jax.random.key(3) if key else None)
        terms, after = bound.apply(params, before, ctx, train=train)
        return sum(group_losses(terms).values()), (terms["crd"], after)

    return jax.jit(jax.value_and_grad(loss, has_aux=True)), params, before


def apply(rows, name="crd", train=True, key=True, data=None, junk=0.0):
    """Of what two networks say of a batch, with junk where there is no row."""
    step, params, before = applied(VARIANTS[name], train, key, data)
    embeddings = [said(net.init(jax.random.key(7))[0], rows.inputs).embedding for net in (STUDENT, TEACHER)]
    outputs = [ModelOutput(embedding=jnp.where(rows.where[:, None], x, junk)) for x in embeddings]
    (value, (term, after)), gradient = step(params, before, *outputs, rows)
    return value, term, gradient, before["crd"], after["crd"]


def as32(rows):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32 if x.dtype == np.float64 else x.dtype), rows)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("junk", [np.nan, np.inf])
def test_what_does_not_exist_poisons_nothing(name, junk):
    """In loss, gradients, constants and banks, nor does where it points."""
    rows = as32(batch())
    elsewhere = dataclasses.replace(rows, index=jnp.where(rows.where, rows.index, -1 if np.isnan(junk) else 10**6))
    found, expected = apply(elsewhere, name, junk=junk), apply(rows, name)
    chex.assert_trees_all_equal(found, expected)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(found[2]))


def test_an_empty_batch_leaves_all_as_it_was():
    rows = dataclasses.replace(as32(batch()), where=jnp.zeros(16, bool))
    value, term, gradient, before, after = apply(rows, junk=np.nan)
    assert value == term.count == 0
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradient))
    chex.assert_trees_all_equal(after, before)
    assert not after["normalized"]


def test_evaluation_writes_nothing():
    value, _, _, before, after = apply(as32(batch()), train=False)
    assert value > 0
    chex.assert_trees_all_equal(after, before)


@pytest.mark.parametrize("place", [-1, SIZE, SIZE + 5, 10**6])
def test_an_index_that_is_not_in_the_data_is_nan_and_writes_nothing(place):
    """The bank has more rows than examples, which are nobody's."""
    rows = as32(batch())
    rows = dataclasses.replace(rows, index=rows.index.at[0].set(place))
    value, term, gradient, before, after = apply(rows)
    assert np.isnan(value) and term.count == 11
    written = np.flatnonzero(np.any(after["student_bank"] != before["student_bank"], axis=1))
    np.testing.assert_array_equal(written, np.sort(rows.index[1:][rows.where[1:]]))
    assert np.all(np.isfinite(after["log_normalizer"]))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_silent_embeddings_are_finite():
    """Of all-zero embeddings and a zero bias there is no direction."""
    rows = dataclasses.replace(as32(batch()), inputs=jnp.zeros((16, 6)))
    value, _, gradient, _, after = apply(rows)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((value, gradient, after)))


def test_without_labels_or_a_key():
    value, *_, after = apply(as32(batch()), key=False, data=DataInfo(CLASSES, SIZE))
    assert np.isfinite(value) and after["count"].max() == 1


def test_embeddings_are_trained_and_banks_are_not():
    bound = bind(CrossEntropy() + CRD(), *OUTPUTS, DATA)
    params, state = jax.eval_shape(bound.init, jax.random.key(0))
    assert {name: sorted(leaves) for name, leaves in params["crd"].items()} == {
        "student_embed": ["bias", "kernel"], "teacher_embed": ["bias", "kernel"],
    }  # fmt: skip
    assert params["crd"]["student_embed"]["kernel"].shape == (5, 128)
    assert params["crd"]["teacher_embed"]["kernel"].shape == (7, 128)
    assert state["crd"]["student_bank"].shape == state["crd"]["teacher_bank"].shape == (512, 128)
    assert all(jax.tree.leaves(bound.decay_mask(params)))


def test_two_banks_begin_apart():
    _, state = bind(CRD(dim=3), *OUTPUTS, DATA).init(jax.random.key(0))
    assert np.all(state["crd"]["student_bank"] != state["crd"]["teacher_bank"])


# --- how many negatives ---


def built(objective, data):
    return objective.build(*OUTPUTS, data, nnx.Rngs(0)).negatives


def test_there_are_as_many_negatives_as_the_largest_class_has_others():
    assert built(CRD(dim=2), DATA) == SIZE - LARGEST
    assert built(CRD(dim=2, negatives=5), DATA) == 5
    assert built(CRD(dim=2), DataInfo(CLASSES, SIZE)) == SIZE - 1
    assert built(CRD(dim=2, shared_negatives=True), DATA) == SIZE
    assert built(CRD(dim=2), DataInfo(2, 4, np.array([0, 1, -2, -2]))) == 1
    assert built(CRD(dim=2), DataInfo(10, 1437, np.arange(1437) % 10)) == 1437 - 144


@pytest.mark.parametrize(
    ("objective", "data", "message"),
    [
        (CRD(), DataInfo(CLASSES), "DataInfo says num_examples=0; give it their number"),
        (CRD(), DataInfo(1, 4, np.zeros(4, int)), "all examples are of one class"),
        (CRD(), DataInfo(2, 4, np.zeros(3, int)), r"labels has shape \(3,\) for 4 examples"),
        (CRD(negatives=0), DATA, "negatives=0; CRD needs at least 1"),
        (CRD(momentum=1.5), DATA, "CRD.momentum is 1.5; it must be from 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(objective, data, message):
    with pytest.raises(ValueError, match=message):
        bind(objective, *OUTPUTS, data)


def test_an_embedding_that_is_no_vector_is_refused():
    maps = ModelOutput(logits=jnp.ones((2, 3)), embedding=jnp.ones((2, 4, 4, 3)))
    with pytest.raises(
        ValueError, match=r"'crd' takes teacher.embedding of whole rows, \[B, D\].*\[2, 4, 4, 3\]; pool it"
    ):
        bind(CRD(), OUTPUTS[0], maps, DATA)


def test_the_published_setting():
    for name in "crd", "crd_shared":
        parts = part_names(METHODS[name].objective)
        assert parts["cross_entropy"].weight == 1.0 and parts["crd"].shared_negatives == (name == "crd_shared")
        crd = dataclasses.replace(parts["crd"], shared_negatives=False)
        assert crd == CRD(weight=0.8, negatives=16384, dim=128, temperature=0.07, momentum=0.5, positive="exact")
