"""Memory banks: what is written, what is drawn, and that devices make no difference, whole or spread over them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kdjax.objectives.relations import banks
from tests.losses.computing import draw

WHOLE, ROWS = PartitionSpec(), PartitionSpec("data")
BANK = draw(1, 64, 5, scale=0.5)
EMBEDDINGS = np.float32(draw(2, 16, 5) / np.linalg.norm(draw(2, 16, 5), axis=1, keepdims=True))
INDEX = np.random.default_rng(3).permutation(64)[:16].astype(np.int32)
KEPT = np.random.default_rng(4).random(16) < 0.7
KEPT[2:4] = False  # the second of eight devices has no row
CANDIDATES = np.random.default_rng(5).integers(0, 64, (16, 7)).astype(np.int32)
LABELS = np.array([3, 0, 0, 1, 3, 3, 0, 5, 3, 1] * 4)


def mesh():
    return Mesh(np.asarray(jax.devices()), ("data",), axis_types=(AxisType.Auto,))


def over_devices(function, in_specs, out_specs):
    return jax.jit(jax.shard_map(function, mesh=mesh(), in_specs=in_specs, out_specs=out_specs, check_vma=False))


def split(array):
    return array.reshape(8, 2, *array.shape[1:])


# --- writing ---


def expected_rows(momentum):
    rows = momentum * np.float64(BANK[INDEX]) + (1 - momentum) * np.float64(EMBEDDINGS)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 1.0])
def test_rows_are_mixed_and_made_unit_vectors(momentum):
    after = banks.update(BANK, INDEX, EMBEDDINGS, momentum=momentum)
    np.testing.assert_allclose(after[INDEX], expected_rows(momentum), rtol=1e-5, atol=1e-7)
    others = np.setdiff1d(np.arange(64), INDEX)
    np.testing.assert_array_equal(after[others], BANK[others])


@pytest.mark.parametrize("place", [-1, 0, 5, 64, 10**6])
def test_padding_writes_nothing_wherever_it_points_and_whatever_it_holds(place):
    index, embeddings = INDEX.copy(), EMBEDDINGS.copy()
    index[~KEPT], embeddings[~KEPT] = place, np.nan
    after = banks.update(BANK, index, embeddings, momentum=0.5, where=KEPT)
    np.testing.assert_array_equal(after, banks.update(BANK, INDEX[KEPT], EMBEDDINGS[KEPT], momentum=0.5))
    changed = np.any(np.asarray(after) != BANK, axis=1)
    np.testing.assert_array_equal(np.flatnonzero(changed), np.sort(INDEX[KEPT]))


@pytest.mark.parametrize("place", [-1, -64, 64, 10**6])
def test_an_index_out_of_range_writes_nothing(place):
    index = np.where(KEPT, INDEX, place).astype(np.int32)
    after = banks.update(BANK, index, EMBEDDINGS, momentum=0.5)
    np.testing.assert_array_equal(after, banks.update(BANK, INDEX[KEPT], EMBEDDINGS[KEPT], momentum=0.5))


def test_opposites_cancel_to_a_zero_row_and_no_gradient_passes():
    after = banks.update(jnp.eye(64, 5), jnp.arange(2), -jnp.eye(2, 5), momentum=0.5)
    np.testing.assert_array_equal(after[:2], 0)
    gradient = jax.grad(lambda e: banks.update(BANK, INDEX, e, momentum=0.5).sum())(EMBEDDINGS)
    np.testing.assert_array_equal(gradient, 0)


@functools.cache
def updated():
    return jax.jit(lambda b, i, e, w: banks.update(b, i, e, momentum=0.5, where=w))(BANK, INDEX, EMBEDDINGS, KEPT)


def test_eight_devices_write_the_bits_of_one():
    write = lambda b, i, e, w: banks.update(b, i, e, momentum=0.5, where=w, axis="data")
    after = jax.pmap(write, axis_name="data", in_axes=(None, 0, 0, 0))(BANK, *map(split, (INDEX, EMBEDDINGS, KEPT)))
    for held in after:
        np.testing.assert_array_equal(held, updated())


def test_a_bank_spread_over_devices_is_written_where_its_rows_are():
    write = lambda b, i, e, w: banks.update(b, i, e, momentum=0.5, where=w, axis="data", sharded=True)
    after = over_devices(write, ROWS, ROWS)(BANK, INDEX, EMBEDDINGS, KEPT)
    np.testing.assert_array_equal(after, updated())


# --- reading ---


@pytest.mark.parametrize("candidates", [CANDIDATES, CANDIDATES[0], CANDIDATES[:, :1]], ids=["each", "shared", "one"])
def test_a_bank_spread_over_devices_is_scored_where_its_rows_are(candidates):
    weights = draw(6, 16, candidates.shape[-1])

    def step(score):
        """Scores, and the gradient of this device's share of their weighted sum."""

        def share(embeddings, bank, rows, weights):
            scores = score(embeddings, bank, rows)
            return jnp.sum(weights * scores), scores

        return jax.grad(share, has_aux=True)

    gradient, scores = jax.jit(step(banks.score))(EMBEDDINGS, BANK, candidates, weights)
    shards = step(functools.partial(banks.score, axis="data", sharded=True))
    of_candidates = ROWS if candidates.ndim == 2 else WHOLE
    spread = over_devices(shards, (ROWS, ROWS, of_candidates, ROWS), ROWS)
    spread_gradient, spread_scores = spread(EMBEDDINGS, BANK, candidates, weights)
    np.testing.assert_allclose(spread_scores, scores, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(spread_gradient, gradient, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores, np.sum(EMBEDDINGS[:, None] * BANK[candidates], axis=-1), rtol=1e-5, atol=1e-6)


def gathered(text):
    """Numbers of elements of everything that a compiled program all-gathers or all-reduces."""
    shapes = re.findall(r"= \(?([a-z0-9]+\[[\d,]*\][^=]*?)\)? (?:all-gather|all-reduce)(?:-start)?\(", text)
    sizes = re.findall(r"[a-z0-9]+\[([\d,]*)\]", " ".join(shapes))
    return [int(np.prod([int(n) for n in size.split(",") if n])) for size in sizes]


def test_what_is_found_in_a_compiled_program():
    whole = over_devices(lambda x: jax.lax.all_gather(x, "data", tiled=True), ROWS, WHOLE)
    assert gathered(whole.lower(jnp.ones((64, 5))).compile().as_text()) == [320]


@pytest.mark.parametrize("shared", [False, True])
def test_no_device_sees_the_whole_of_a_bank_that_is_spread(shared):
    """Nor does a step over a whole bank move it: a large bank, of which little is read."""
    bank, candidates = jnp.ones((4096, 5)), CANDIDATES[0] if shared else CANDIDATES

    def step(axis, sharded):
        def run(embeddings, bank, rows, index, where):
            loss = lambda e: jnp.sum(banks.score(e, bank, rows, axis=axis, sharded=sharded) ** 2)
            gradient = jax.grad(loss)(embeddings)
            after = banks.update(bank, index, embeddings, momentum=0.5, where=where, axis=axis, sharded=sharded)
            return gradient, after

        return run

    of_candidates = WHOLE if shared else ROWS
    arguments = EMBEDDINGS, bank, candidates, INDEX, KEPT
    spread = over_devices(step("data", True), (ROWS, ROWS, of_candidates, ROWS, ROWS), (ROWS, ROWS))
    sharding = [NamedSharding(mesh(), spec) for spec in (ROWS, WHOLE, of_candidates, ROWS, ROWS)]
    whole = jax.jit(step(None, False), in_shardings=sharding, out_shardings=(sharding[0], sharding[1]))
    for program in spread, whole:
        moved = gathered(program.lower(*arguments).compile().as_text())
        assert moved and max(moved) <= EMBEDDINGS.size + 16 * 7, moved


# --- drawing ---


def tables(labels, num_examples=None):
    found = banks.candidates_by_class(labels, len(labels) if num_examples is None else num_examples)
    return banks.Candidates(*map(jnp.asarray, found))


def negatives(labels, number, key=0, index=None, num_examples=None):
    table = tables(labels, num_examples)
    index = jnp.arange(len(table.start)) if index is None else index
    return np.asarray(jax.jit(banks.draw_negatives, static_argnums=3)(table, index, jax.random.key(key), number))


@pytest.mark.parametrize("number", [1, 9, 24])
def test_negatives_are_of_other_classes_and_all_different(number):
    """40 examples, of which the largest class has 16."""
    for key in range(3):
        drawn = negatives(LABELS, number, key)
        assert drawn.shape == (40, number) and drawn.min() >= 0 and drawn.max() < 40
        assert not np.any(LABELS[drawn] == LABELS[:, None])
        assert all(len(set(row)) == number for row in drawn)
    if number == 24:
        for row in drawn[LABELS == 3]:
            np.testing.assert_array_equal(np.sort(row), np.flatnonzero(LABELS != 3))


def test_without_labels_negatives_are_all_others():
    drawn = negatives(None, 12, num_examples=13)
    for i, row in enumerate(drawn):
        np.testing.assert_array_equal(np.sort(row), np.delete(np.arange(13), i))


def test_unknown_classes_and_examples_that_are_not_trained_on():
    labels = np.array([0, 0, -1, 1, -1, -2, 1, 0, -2, 2])
    drawn = [set(np.concatenate([negatives(labels, 5, key)[i] for key in range(30)])) for i in range(10)]
    others = set(range(10)) - {5, 8}
    for i, label in enumerate(labels):
        if label != -2:
            assert drawn[i] == others - (set(np.flatnonzero(labels == label)) if label >= 0 else {i})


def test_draws_are_even():
    """Each of the 36 others as often as any, by two steps out of three thousand; and not in their order."""
    count, number = 3000, 12
    table, index = tables(LABELS), jnp.array([3])
    keys = jax.vmap(jax.random.key)(jnp.arange(count))
    drawn = np.asarray(jax.jit(jax.vmap(lambda k: banks.draw_negatives(table, index, k, number)))(keys))[:, 0]
    allowed = np.flatnonzero(LABELS != 1)
    seen = np.bincount(drawn.ravel(), minlength=40)[allowed]
    chance = number / len(allowed)
    assert seen.sum() == count * number
    assert np.abs(seen / count - chance).max() < 4.5 * np.sqrt(chance * (1 - chance) / count)
    together = np.zeros((40, 40))
    for row in drawn:
        together[np.ix_(row, row)] += 1
    pairs = together[np.ix_(allowed, allowed)][~np.eye(len(allowed), dtype=bool)] / count
    chance = number * (number - 1) / (len(allowed) * (len(allowed) - 1))
    assert np.abs(pairs - chance).max() < 5.5 * np.sqrt(chance * (1 - chance) / count)


def test_a_draw_depends_on_the_key_and_the_example_alone():
    index = INDEX[:8] % 40
    drawn = negatives(LABELS, 9, index=index)
    np.testing.assert_array_equal(negatives(LABELS, 9, index=index[::-1].copy()), drawn[::-1])
    np.testing.assert_array_equal(negatives(LABELS, 9)[index], drawn)
    assert np.all(np.any(negatives(LABELS, 9, key=1, index=index) != drawn, axis=1))
    alone = jax.pmap(lambda i: banks.draw_negatives(tables(LABELS), i, jax.random.key(0), 9))(index[:, None])
    np.testing.assert_array_equal(alone[:, 0], drawn)


def test_shared_draws_leave_out_each_examples_class():
    for labels in LABELS, np.full(40, -1):
        table, index = tables(labels), jnp.arange(40)
        rows, allowed = jax.jit(banks.draw_shared, static_argnums=3)(table, index, jax.random.key(2), 15)
        assert len(set(np.asarray(rows))) == 15
        same = labels[np.asarray(rows)][None] == labels[:, None] if labels[0] >= 0 else rows[None] == index[:, None]
        np.testing.assert_array_equal(allowed, ~same)
        again, _ = banks.draw_shared(table, index[:3], jax.random.key(3), 15)
        assert np.any(rows != again)


def test_matches_are_of_the_same_class():
    table, index = tables(LABELS), jnp.arange(40)
    keys = jax.vmap(jax.random.key)(jnp.arange(300))
    drawn = np.asarray(jax.jit(jax.vmap(lambda k: banks.draw_alike(table, index, k)))(keys))
    np.testing.assert_array_equal(LABELS[drawn], np.broadcast_to(LABELS, drawn.shape))
    assert set(drawn[:, 0]) == set(np.flatnonzero(LABELS == 3))
    np.testing.assert_array_equal(banks.draw_alike(tables(None, 5), jnp.arange(5), jax.random.key(0)), np.arange(5))
    np.testing.assert_array_equal(banks.draw_alike(tables([-2, 0]), jnp.arange(2), jax.random.key(0)), [0, 1])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_full_draw_is_a_permutation(size):
    bits = jax.random.bits(jax.random.key(1), (5, 2 + 2 * banks.ROUNDS))
    drawn = banks.draw(bits, jnp.full(5, size), size)
    np.testing.assert_array_equal(np.sort(drawn, axis=1), np.broadcast_to(np.arange(size), (5, size)))
    assert size < 1000 or len({tuple(row) for row in np.asarray(drawn)}) == 5


def test_a_new_bank():
    bank = banks.new_bank(jax.random.key(0), 1437, 128)
    assert bank.shape == (1536, 128), "a multiple of 512 rows"
    bound = 1 / np.sqrt(128 / 3)
    assert np.abs(bank).max() <= bound and np.abs(bank).max() > 0.999 * bound and abs(np.mean(bank)) < 1e-3
    assert abs(np.mean(np.linalg.norm(bank, axis=1)) - 1) < 1e-2
    assert banks.new_bank(jax.random.key(0), 512, 2).shape == (512, 2)


def test_labels_must_be_those_of_all_examples():
    with pytest.raises(ValueError, match=r"labels has shape \(40,\) for 50 examples"):
        banks.candidates_by_class(LABELS, 50)
