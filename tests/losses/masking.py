"""Rows that are masked out, checked for any loss of a batch."""

import jax
import numpy as np

from tests.losses.computing import computing_in


def check_masked_rows(share, student, teacher, kept, junk, **tolerance):
    """Whatever stands in the rows that are not kept: value and gradient of the batch without them, and none by them.

    Args:
      share: `(student, teacher, where=None) -> scalar`, what is differentiated.
      student, teacher: features or logits, rows first.
      kept: bool `[rows]`.
      junk: what to put in the other rows, one after the other.

    Returns:
      The gradient by the rows that are kept.
    """
    with computing_in("f64") as real:
        step = jax.jit(jax.value_and_grad(lambda s, t, where: share(s, t, where=where)))
        value, expected = jax.jit(jax.value_and_grad(share))(real(student[kept]), real(teacher[kept]))
        for filling in junk:
            filled = student.copy(), teacher.copy()
            for rows in filled:
                rows[~kept] = filling
            found, gradient = step(*map(real, filled), kept)
            np.testing.assert_allclose(found, value, **tolerance)
            np.testing.assert_allclose(gradient[kept], expected, **tolerance)
            np.testing.assert_array_equal(gradient[~kept], 0)
        nothing, gradient = step(real(student), real(teacher), np.zeros(len(student), bool))
        assert nothing == 0
        np.testing.assert_array_equal(gradient, 0)
    return expected
