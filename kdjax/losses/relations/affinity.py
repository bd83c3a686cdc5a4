"""Relation-based distillation as three choices: how two examples are compared, the matrix rescaled, two matrices compared.

`AFFINITIES`, `NORMALIZATIONS` and `LOSSES` hold the choices by name; an entry of one's own is known to `affinity_kd` and
`affinity_grid` from then on.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdjax.losses import checks
from kdjax.losses.relations import pairs
from kdjax.losses.relations.affinity_parts import (
    AFFINITIES,
    DISTRIBUTIONS,
    LOSSES,
    LOWEST,
    NORMALIZATIONS,
    Entries,
    Parameters,
    Relation,
)

__all__ = ["affinity_grid", "affinity_kd"]

Array = jax.Array


def affinity_kd(
    student_features: ArrayLike,
    teacher_features: ArrayLike,
    *,
    affinity: str = "cosine",
    normalization: str = "none",
    loss: str = "smooth_l1",
    drop_diagonal: bool = False,
    sigma: ArrayLike = 1.0,
    constant: ArrayLike = 1.0,
    degree: int = 2,
    gamma: ArrayLike = 0.4,
    order: int = 2,
    temperature: ArrayLike = 1.0,
    epsilon: float = 1e-7,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Array:
    r"""Pulls the matrix of how alike the student finds the examples of a batch towards the teacher's.

    $$\ell_i = \frac{1}{B} \sum_j d\left( N(A_s)_{ij}, N(A_t)_{ij} \right), \qquad A_{ij} = a(f_i, f_j)$$

    The affinity $a$:

    - "dot": $f_i \cdot f_j$; "poly": $(f_i \cdot f_j + c)^d$, with `constant` and `degree`;
    - "cosine": the dot product of the features over their norms plus `epsilon`;
    - "l2", "sq_l2": $\lVert f_i - f_j \rVert$ and its square, at least 1e-6 and 1e-12 between two examples;
    - "gaussian": $\exp(-\lVert f_i - f_j \rVert^2 / 2 \sigma^2)$;
    - "gaussian_taylor": $e^{-2 \gamma} \sum_{p \le P} (2 \gamma \cos)^p / p!$ with `gamma` and `order` P, the series of
      $\exp(-\gamma \lVert \cdot \rVert^2)$ between features of length 1;
    - "angle": of three examples, the cosine of the angle at $i$ between $j$ and $k$; a row has all pairs (j, k).

    The normalisation $N$: "none"; "row_l2", rows over their norm; "frobenius", the matrix over its; "mean", over the mean of
    its positive entries; "zscore", the matrix less its mean over its deviation; "row_softmax" at `temperature`; "row_sum",
    rows over their sum, after adding 1 to what lies between -1 and 1 and subtracting the row's least value from what has no
    lower bound.

    The loss $d$: "mse", "l1", "smooth_l1" (half the square up to 1, then linear), "kl" (of rows that are distributions, so
    after "row_softmax" or "row_sum", where `epsilon` is added to both under the logarithm), and "cosine", which is one minus
    the cosine of the two rows rather than a mean over columns.

    Args:
      student_features: `[B, ...]`, flattened to a vector an example.
      teacher_features: `[B, ...]`, a constant. Only the first axis must be alike in both.
      affinity, normalization, loss: as above.
      drop_diagonal: leave out an example beside itself; with "angle", triples that are not three examples.
      sigma, constant, gamma, temperature: see above; a number, a traced scalar, or one value for each row held here.
      degree, order: see above; Python integers.
      epsilon: see above; PKT's 1e-7. 0 gives the plain cosine and divergence.
      where: `[B]`, bool or 0/1. A False row is as if it were not in the batch, whatever it holds, nan included: it is left out of
        columns, norms, means and counts, and its own value is 0.
      axis_name: the mapped axis under pmap or shard_map, over which the batch is spread; every example is then compared
        with all examples of the global batch. None where the arrays hold the whole batch, as under jit.

    Returns:
      `[B]` for the rows held here, with B in the formula the global count of rows that are kept. The mean over the kept rows
      of all devices is the mean over the matrix. Rows or matrices without length, deviation, positive entries or sum are
      left at, or become, 0, and send back no gradient.

    Raises:
      TypeError: features are not floating point, or `degree` or `order` no integer.
      ValueError: the numbers of examples differ, a choice has no such name, "kl" is asked of rows that are no distributions,
        or a parameter is out of range or does not broadcast.

    Named methods are choices: `sp` is dot, row_l2, mse; `rkd_distance` is l2, mean, smooth_l1; `rkd_angle` is angle, none,
    smooth_l1; `pkt` is cosine, row_sum, kl; `cc` is gaussian_taylor, none, mse.

    Paper: Li, Maki, "Towards a Unified View of Affinity-Based Knowledge Distillation", 2022, arXiv 2209.15555, for the
    three modules. The lists here cover the published instances; which entries the paper has, and which it finds best, is
    not verified.

    >>> student, teacher = jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> affinity_kd(student, teacher, affinity="dot", loss="mse")
    Array([0.5, 0.5], dtype=float32)
    """
    measure = _choice(AFFINITIES, affinity, "affinity")
    rescale = _choice(NORMALIZATIONS, normalization, "normalization")
    compare = _choice(LOSSES, loss, "loss")
    p = Parameters(sigma, constant, degree, gamma, order, temperature, epsilon)
    relations = []
    given = student_features, teacher_features
    for features, said in zip(checks.features_pair(*given), given, strict=True):
        paired = pairs.pair_up(features, where, axis_name, said)
        matrix = measure(paired, p)
        entries = _entries(paired, matrix.ndim == 3, drop_diagonal, LOWEST.get(affinity))
        relation = rescale(jnp.reshape(matrix, (matrix.shape[0], -1)), entries, p)
        relations.append(relation if isinstance(relation, Relation) else Relation(relation))
    return compare(*relations, entries)


def affinity_grid() -> Iterator[dict[str, str]]:
    """Every combination of affinity, normalisation and loss that has a meaning, as keyword arguments of `affinity_kd`.

    Args:
      None.

    Returns:
      An iterator over dicts of "affinity", "normalization" and "loss". "kl" comes only with the normalisations that make
      distributions.

    Raises:
      Nothing.

    >>> {"affinity": "dot", "normalization": "row_l2", "loss": "mse"} in affinity_grid()
    True
    """
    for affinity in AFFINITIES:
        for normalization in NORMALIZATIONS:
            for loss in LOSSES:
                if loss != "kl" or normalization in DISTRIBUTIONS:
                    yield {"affinity": affinity, "normalization": normalization, "loss": loss}


def _entries(x: pairs.Pairs, of_three: bool, drop_diagonal: bool, lowest: float | None) -> Entries:
    kept = x.kept & ~x.itself if drop_diagonal else x.kept
    if of_three:
        kept = kept[:, :, None] & kept[:, None, :]
        if drop_diagonal:
            kept = kept & ~jnp.eye(kept.shape[1], dtype=bool)[None]
    return Entries(jnp.reshape(kept, (kept.shape[0], -1)), x.axis_name, lowest)


def _choice(registry: dict, name: str, what: str) -> Callable:
    if name not in registry:
        raise ValueError(f"{what} is {name!r}; it must be one of {', '.join(registry)}.")
    return registry[name]
