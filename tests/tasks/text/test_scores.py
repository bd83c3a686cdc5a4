"""F1 and Matthews' correlation against their definitions."""

import numpy as np
import pytest

from kdjax.tasks.text.scores import f1, matthews


def confusion(truth, said, classes):
    table = np.zeros((classes, classes))
    np.add.at(table, (truth, said), 1)
    return table


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_against_scikit_learn(classes):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(classes)
    truth = rng.integers(0, classes, 200)
    said = np.where(rng.random(200) < 0.6, truth, rng.integers(0, classes, 200))
    average = "binary" if classes == 2 else "macro"
    table = confusion(truth, said, classes)
    assert f1(table) == pytest.approx(metrics.f1_score(truth, said, average=average))
    assert matthews(table) == pytest.approx(metrics.matthews_corrcoef(truth, said))


def test_at_the_edges():
    right = np.diag([3.0, 4.0])
    assert f1(right) == matthews(right) == 1
    assert matthews(right[:, ::-1]) == -1 and f1(right[:, ::-1]) == 0
    always = np.array([[3.0, 0.0], [4.0, 0.0]])
    assert matthews(always) == f1(always) == 0
