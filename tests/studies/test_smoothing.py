"""Label smoothing of the teacher: what is measured, where the answer is known, and the command in its tiny form."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import analysis
from kdjax.analysis.statistics import paired_gain
from kdjax.cli import main
from kdjax.studies.smoothing import geometry, measured, verdict

RNG = np.random.default_rng(0)


def test_the_scatter_of_gaussians_is_their_variance():
    """Classes of one variance in each of D directions about means whose distances are known: D variance / mean square."""
    labels = np.repeat(np.arange(4), 2000)
    means = 3 * np.eye(4)
    x = means[labels] + 0.5 * RNG.normal(size=(8000, 4))
    found = analysis.within_class_scatter(jnp.asarray(x), jnp.asarray(labels), 4)
    np.testing.assert_allclose(found, 4 * 0.25 / (9 * 3 / 4), rtol=0.05)
    np.testing.assert_allclose(
        analysis.within_class_scatter(jnp.asarray(7 * x + 2), jnp.asarray(labels), 4), found, rtol=1e-4
    )
    assert analysis.within_class_scatter(jnp.asarray(means[labels]), jnp.asarray(labels), 4) < 1e-12
    with pytest.raises(ValueError, match=r"give \[N, D\] and \[N\]"):
        analysis.within_class_scatter(jnp.asarray(x), jnp.asarray(labels[:-1]), 4)


def test_a_teacher_that_knows_classes_only_has_erased_the_rest():
    labels = np.repeat(np.arange(3), 50)
    same = 4.0 * np.eye(3)[labels]
    only = geometry(same, same, labels)
    varied = geometry(same + RNG.normal(size=same.shape), same + RNG.normal(size=same.shape), labels)
    assert only["one_less_s"] < 1e-6 < varied["one_less_s"] and only["scatter"] < 1e-6 < varied["scatter"]
    assert only["top1"] == 1 and varied["one_less_s_label"] < varied["one_less_s"]


def test_students_are_measured_against_their_own_teacher():
    labels = RNG.integers(0, 3, 60)
    teachers = {
        f"{kind}-{k}": RNG.normal(size=(60, 3)).astype(np.float32) for kind in ("hard", "smooth") for k in range(2)
    }
    students = {f"from {name.split('-')[0]}, T = 1-{name[-1]}": logits for name, logits in teachers.items()}
    found = measured(students | {"from hard labels-0": teachers["hard-0"], "from hard labels-1": teachers["hard-1"]},
                     teachers, labels, 2)  # fmt: skip
    assert found["from hard, T = 1"]["agreement"] == [1, 1] == found["from smooth, T = 1"]["agreement"]
    assert "agreement" not in found["from hard labels"] and len(found["from hard labels"]["top1"]) == 2


@pytest.mark.parametrize(
    ("difference", "p", "start"),
    [
        (-0.01, 0.01, "Incompatible at T = 1"),
        (0.01, 0.01, "Not incompatible"),
        (-0.01, 0.5, "No incompatibility is shown"),
    ],
)
def test_the_verdict_is_the_numbers(difference, p, start):
    gain = paired_gain([difference + e for e in (-0.001, 0, 0.001)], [0, 0, 0])
    shape = {name: gain for name in ("top1", "one_less_s", "scatter")}
    nll = paired_gain([0.07 - difference + e for e in (-0.001, 0, 0.001)], [0, 0, 0])
    text = verdict({"T = 1": {"top1": gain, "nll": nll}}, {"T = 1": p}, shape, paired_gain([0.8, 0.9], [0.9, 1.0]))
    assert f"their NLL is higher at T = 1 ({0.07 - difference:+.3f} ± 0.002)" in text
    assert (
        text.startswith(start)
        and f"{100 * difference:+.1f}" in text
        and "by labels: -10.0 ± 0.0 points at T = 1" in text
    )
    assert ("a loss of 1.2 points is left open" in text) == (p > 0.05) and ("3 pairs" in text)


@pytest.mark.slow  # six kinds of networks are compiled, a minute or two
def test_from_the_command_line(tmp_path):
    assert main(["study", "smoothing", "--tiny", "--run", str(tmp_path / "study")]) == 0
    found = json.loads((tmp_path / "study/numbers.json").read_text())["numbers"]
    assert set(found["students"]) == {
        "from hard labels",
        "from smooth labels",
        "from hard, T = 1",
        "from smooth, T = 1",
    }
    assert set(found["teachers"]) == {"hard", "smooth"}
