"""Studies run through, in their tiny form, and say what their numbers say."""

import html
import json
import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.cli import main
from kdjax.experiment import ExperimentError
from kdjax.studies import STUDIES, run_study
from kdjax.studies.limits import TEMPERATURES, cosines, regularisers
from kdjax.studies.variance import data, loss, solution


def test_kd_is_its_limits_where_they_are():
    """Chen, 2021, derived: logit matching as T grows, hard labels at that temperature as it falls."""
    for classes in (10, 100):
        found = cosines(256, classes)
        assert found["matching"][1000.0] > 0.9999 and found["hard"][0.1] > 0.98
        assert list(found["matching"].values()) == sorted(found["matching"].values())
        assert list(found["hard"].values()) == sorted(found["hard"].values(), reverse=True)
        assert set(found["matching"]) == set(TEMPERATURES)
    assert all(0 < part["relative_size"] < 0.2 for part in regularisers(256).values())


def test_the_solution_of_the_regression_is_one():
    import jax

    with jax.enable_x64(True):
        inputs, labels = data(60)
        best, left = solution(inputs, labels)
        assert inputs.dtype == jnp.float64 and left < 1e-8
        rng = np.random.default_rng(0)
        for _ in range(3):
            assert loss(best, inputs, labels) < loss(best + 1e-3 * rng.normal(size=best.shape), inputs, labels)


def test_variance_from_the_command_line(tmp_path, capsys):
    assert main(["study", "variance", "--tiny", "--run", str(tmp_path / "study")]) == 0
    said = json.loads((tmp_path / "study/numbers.json").read_text())
    assert said["verdict"] in (tmp_path / "study/index.html").read_text().replace("&#x27;", "'")
    assert said["numbers"]["identity_gap_linear"] < 1e-12 < 1e-3 < said["numbers"]["identity_gap_two_layers"]
    perfect = said["numbers"]["noise"]["perfect"]
    np.testing.assert_allclose([perfect["best"], perfect["explained"]], 1.0, rtol=1e-9)
    assert "variance: For a linear network" in " ".join(capsys.readouterr().out.split())
    assert main(["study", "variance", "--tiny", "--run", str(tmp_path / "study")]) == 1
    assert "holds a study" in capsys.readouterr().err
    before = (tmp_path / "study/numbers.json").read_bytes()
    assert main(["study", "variance", "--resume", "--run", str(tmp_path / "study")]) == 1
    assert "holds a study of the size 'tiny', and 'default' is another" in capsys.readouterr().err
    assert (tmp_path / "study/numbers.json").read_bytes() == before


def test_what_is_no_study_is_refused(tmp_path):
    with pytest.raises(ExperimentError, match="there are affinity, entropy, fidelity, limits, properties"):
        run_study("limit", tmp_path / "x")
    assert sorted(STUDIES) == list(STUDIES) and len(STUDIES) == 10 and not (tmp_path / "x").exists()


def test_every_study_has_its_page_and_is_spoken_of():
    """At the default size, whose verdict is that of its numbers."""
    root = pathlib.Path(__file__).parents[2]
    for name in STUDIES:
        place = root / "configs/studies" / name
        numbers, page = json.loads((place / "numbers.json").read_text()), (place / "index.html").read_text()
        assert numbers["study"] == name and numbers["size"] == "default" and html.escape(numbers["verdict"]) in page
        assert not re.findall(r'(?:src|href)="(?!data:)', page), "it needs no other file"
        for text in ("README.md", "configs/README.md"):
            assert f"studies/{name}/index.html" in (root / text).read_text()


@pytest.mark.slow  # eleven objectives are compiled, a minute
def test_limits_from_the_command_line(tmp_path):
    assert main(["study", "limits", "--tiny", "--run", str(tmp_path / "study")]) == 0
    said = json.loads((tmp_path / "study/numbers.json").read_text())
    assert {"kd T=0.1", "kd T=1000", "logit_mse", "hard_label", "labels"} <= set(said["numbers"]["students"])
