"""Memory banks, one row for every training example, and the choice of rows to compare an example with.

Pure functions; a bank is an array `[rows, D]` that the caller keeps. In one training step: scores are read from the bank as
it was, and at the end the rows of the batch are written, once.

A bank is whole on every device, or its rows are spread over devices: those of a mapped axis (`sharded=True`), or under
`jit` those of the mesh in whose context it is traced, as `kdjax.training.Runner` does it, for banks that are too large to be
kept on each (`spreads`). Then embeddings, candidates and scores move between devices, never rows.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from kdjax.losses.relations.contrastive import candidate_scores, unit_rows
from kdjax.reduction import gather_rows
from kdjax.types import Array, Axis

# A bank has a multiple of this many rows, so that it can be spread over any such number of devices.
ROWS = 512
# Bytes from which on a bank is spread over the devices instead of being kept on each.
SPREAD_BYTES = 256 * 2**20
# Rounds of the keyed permutation. An element stays where it is with a chance of 2^-12, from a start that is random too.
ROUNDS = 12


# --- reading and writing ---


def new_bank(key: Array, num_examples: int, width: int) -> Array:
    """Uniform numbers within ±1/sqrt(width / 3), so that rows have a length of about 1; the last rows are nobody's."""
    bound = (width / 3) ** -0.5
    return jax.random.uniform(key, (-(-num_examples // ROWS) * ROWS, width), minval=-bound, maxval=bound)


def spreads(bank: Array | jax.ShapeDtypeStruct, devices: int) -> bool:
    """Whether an array of this shape is to be spread over so many devices by its rows."""
    large = bank.ndim == 2 and bank.size * bank.dtype.itemsize >= SPREAD_BYTES
    return devices > 1 and large and bank.shape[0] % devices == 0


def spread_over(bank: Array) -> str | None:
    """The axis of the mesh, in whose context this is traced, over which the bank is spread; None if it is not."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.axis_names[0] if len(mesh.axis_names) == 1 and spreads(bank, mesh.size) else None


def score(embeddings: Array, bank: Array, candidates: Array, *, axis: Axis = None, sharded: bool = False) -> Array:
    """Inner products with the rows of the bank that are called candidates, where these live.

    Args:
      embeddings: `[B, D]` of the rows of the batch that are held here.
      bank: `[rows, D]`, a constant; with `sharded`, this device's rows.
      candidates: `[B, K]` rows of the whole bank, or `[K]` for all examples.
      axis: the mapped axis.
      sharded: whether the bank's rows are spread over `axis`; under `jit` it is seen from the mesh, see above.

    Returns:
      `[B, K]`. Differentiable by the embeddings. Of a sharded bank: 0 for a candidate that no device has.
    """
    if not sharded:
        over = spread_over(bank) if axis is None else None
        if over is None:
            return candidate_scores(embeddings, bank, candidates)
        rows = PartitionSpec(over)
        return jax.shard_map(
            functools.partial(score, axis=over, sharded=True),
            in_specs=(rows, rows, rows if candidates.ndim == 2 else PartitionSpec()),
            out_specs=rows,
        )(embeddings, bank, candidates)
    local = _local(candidates if candidates.ndim == 1 else gather_rows(candidates, axis), bank, axis)
    mine = local < bank.shape[0]
    scores = candidate_scores(gather_rows(embeddings, axis), bank, local)
    # One device alone has a term other than 0 for each score, so that the sum is exact.
    scores = jnp.where(mine if mine.ndim == 2 else mine[None], scores, 0)
    return lax.psum_scatter(scores, axis, scatter_dimension=0, tiled=True)


def update(
    bank: Array,
    index: Array,
    embeddings: Array,
    *,
    momentum: float,
    where: Array | None = None,
    axis: Axis = None,
    sharded: bool = False,
) -> Array:
    """Mixes the batch's embeddings into their rows, `momentum * old + (1 - momentum) * new`, and makes these unit vectors.

    Args:
      bank: `[rows, D]`; with `sharded`, this device's rows.
      index: `[B]` row of each example. No two of the global batch may be alike: which one is kept is not defined.
      embeddings: `[B, D]`, constants.
      momentum: share of the old row.
      where: `[B]` bool; False rows, and those whose index is out of range, write nothing.
      axis: the mapped axis over which the batch is spread; every device then writes the rows of all.
      sharded: whether the bank's rows are spread over `axis`.

    Returns:
      The new bank; the same on every device, unless sharded.
    """
    bank, index, embeddings = (lax.stop_gradient(jnp.asarray(x)) for x in (bank, index, embeddings))
    where = jnp.ones(index.shape, bool) if where is None else where
    over = spread_over(bank) if axis is None else None
    if over is not None:

        def part(bank, index, embeddings, where):
            return update(bank, index, embeddings, momentum=momentum, where=where, axis=over, sharded=True)

        rows = PartitionSpec(over)
        return jax.shard_map(part, in_specs=(rows,) * 4, out_specs=rows)(bank, index, embeddings, where)
    index, embeddings, where = (gather_rows(x, axis) for x in (index, embeddings, where))
    local = _local(index, bank, axis if sharded else None)
    # A negative index would count from the end: what is not to be written goes past it, and is dropped.
    local = jnp.where(where, local, bank.shape[0])
    old = jnp.take(bank, local, axis=0, mode="clip")
    new = unit_rows(momentum * old + (1 - momentum) * embeddings.astype(bank.dtype))
    return bank.at[local].set(new, mode="drop")


def _local(index: Array, bank: Array, axis: Axis) -> Array:
    """Rows of the whole bank as rows of this device's part; past its end where they are others'."""
    rows = bank.shape[0]
    index = index - (0 if axis is None else lax.axis_index(axis) * rows)
    return jnp.where((index >= 0) & (index < rows), index, rows)


# --- choosing rows ---


class Candidates(NamedTuple):
    """Who may be drawn for whom, as three tables.

    Attributes:
      order: `[M]` int32, the examples that may be drawn, sorted by class.
      start, count: `[N]` int32: places in `order` of the examples of the same class as each example, itself among them.
    """

    order: Array
    start: Array
    count: Array


def candidates_by_class(labels, num_examples: int) -> Candidates:
    """The tables of a data set, in NumPy.

    Args:
      labels: `[num_examples]` integers, or None. -1 stands for an unknown class, which is taken to be of its own: None is
        -1 for all. What is below -1 is never drawn (examples that are not trained on).
      num_examples: N.
    """
    labels = np.full(num_examples, -1) if labels is None else np.asarray(labels)
    if labels.shape != (num_examples,):
        raise ValueError(f"labels has shape {labels.shape} for {num_examples} examples; give the class of each.")
    order = np.argsort(labels, kind="stable")
    order = order[np.count_nonzero(labels < -1) :]
    place = np.zeros(num_examples, np.int32)
    place[order] = np.arange(len(order))
    ordered = labels[order]
    first, last = (np.searchsorted(ordered, labels, side=side) for side in ("left", "right"))
    start = np.where(labels < 0, place, first)
    count = np.where(labels < 0, labels == -1, last - first)
    return Candidates(*(table.astype(np.int32) for table in (order, start, count)))


def words(key: Array, index: Array) -> Array:
    """Random bits for each example, which depend on the key and its own index alone: `[B]` to `[B, 2 + 2 * ROUNDS]`.

    Threefry keys only: others draw different numbers under `vmap` where the batch is another.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    return jax.vmap(lambda k: jax.random.bits(k, (2 + 2 * ROUNDS,)))(keys)


def draw(bits: Array, size: Array, number: int) -> Array:
    """`number` different integers below `size` for each row, in an order keyed by its bits.

    They are the images of a run of neighbours, from a random start, under a permutation that costs a few operations an
    element on any domain: rounds of reflections `x -> k - x`, each pair of which is swapped or not by a hash bit
    (swap-or-not shuffle; Hoang, Morris, Rogaway, CRYPTO 2012).

    Args:
      bits: `[..., 2 + 2 * ROUNDS]` uint32 of each row.
      size: `[...]`, at least `number`.
      number: how many.

    Returns:
      `[..., number]` int32.
    """
    size = size.astype(jnp.uint32)[..., None]
    reflections = bits[..., :ROUNDS] % size
    x = jnp.arange(number, dtype=jnp.uint32)
    x = jnp.reshape(x, (1,) * (size.ndim - 1) + (number,)) + bits[..., -1:] % size
    x = jnp.where(x >= size, x - size, x)
    for i in range(ROUNDS):
        k = reflections[..., i : i + 1]
        partner = jnp.where(k >= x, k - x, k + (size - x))
        hashed = (jnp.maximum(x, partner) ^ bits[..., ROUNDS + i : ROUNDS + i + 1]) * jnp.uint32(0x9E3779B1)
        hashed = (hashed ^ (hashed >> 15)) * jnp.uint32(0x85EBCA6B)
        x = jnp.where(hashed >> 31 == 1, partner, x)
    return x.astype(jnp.int32)


def draw_negatives(table: Candidates, index: Array, key: Array, number: int) -> Array:
    """`[B, number]` different examples of other classes for each example, by a key folded with its index alone."""
    start, count = table.start[index], table.count[index]
    places = draw(words(key, index), table.order.shape[0] - count, number)
    return table.order[jnp.where(places >= start[:, None], places + count[:, None], places)]


def draw_shared(table: Candidates, index: Array, key: Array, number: int) -> tuple[Array, Array]:
    """`[number]` different examples for the whole batch, and `[B, number]`, True where one is not of an example's class."""
    size = jnp.int32(table.order.shape[0])
    places = draw(jax.random.bits(key, (2 + 2 * ROUNDS,)), size, number)
    start, count = table.start[index][:, None], table.count[index][:, None]
    return table.order[places], (places[None] < start) | (places[None] >= start + count)


def draw_alike(table: Candidates, index: Array, key: Array) -> Array:
    """`[B]` an example of the same class for each, itself not excepted; itself where there is none that may be drawn."""
    start, count = table.start[index], table.count[index]
    # The word that `draw` leaves alone.
    turn = words(key, index)[:, 2 * ROUNDS] % jnp.maximum(count, 1).astype(jnp.uint32)
    return jnp.where(count > 0, table.order[start + turn.astype(jnp.int32)], index)
