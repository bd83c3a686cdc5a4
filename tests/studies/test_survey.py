"""The survey of methods: what is kept of a teacher, the paper's loss, and verdicts on results whose answer is known."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.analysis.statistics import spread
from kdjax.cli import main
from kdjax.objectives import bind, method
from kdjax.studies.survey import GRID, METHODS, TUNED, compared, experiment, kept, mixed, students_of, verdict
from kdjax.types import Batch, Clock, Context, DataInfo, ModelOutput

RNG = np.random.default_rng(0)


def test_the_objective_is_the_papers():
    z, t = (jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32) for _ in range(2))
    labels = jnp.arange(6) % 4
    for alpha, temperature in ((0.3, 5.0), (1.0, 2.0)):
        bound = bind(mixed(alpha, temperature), ModelOutput(logits=z), ModelOutput(logits=t), DataInfo(4))
        ctx = Context(ModelOutput(logits=z), ModelOutput(logits=t), Batch.of(z, labels=labels), Clock().at(0))
        terms, _ = bound.apply({}, {}, ctx, train=True)
        value = sum(term.weight * term.sum / term.count for term in terms.values())
        p, q = jax.nn.softmax(t / temperature), jax.nn.log_softmax(z / temperature)
        want = alpha * temperature**2 * jnp.mean(jnp.sum(p * (jnp.log(p) - q), axis=-1))
        want += (1 - alpha) * jnp.mean(losses.cross_entropy(z, labels=labels))
        np.testing.assert_allclose(value, want, rtol=1e-5)


def test_only_logits_of_the_plain_view_are_kept():
    objectives = {name: method(name).objective for name in METHODS["full"]}
    assert {name for name, objective in objectives.items() if kept(objective)} == {
        "hard_label",
        "kd",
        "dkd",
        "dist",
        "lskd",
    }


def test_every_method_has_the_same_budget(tmp_path):
    base = experiment("default", tmp_path)
    made = students_of(base, "large", {name: method(name).objective for name in METHODS["default"]})
    budgets = {(e.student.duration, e.student.optimizer, e.data, e.phase("teacher")) for e in made.values()}
    assert len(budgets) == 1 and made["kd"].phase("teacher").network.width == 32
    assert not any(problem for e in made.values() for problem in e.problems())


def test_the_verdict_says_who_won():
    values = lambda mean: spread(mean + 0.0005 * RNG.normal(size=4))
    means = {"labels": 0.80, "kd": 0.82, "fitnet": 0.81, "at": 0.86, "rkd": 0.8, TUNED: 0.84}
    top1 = {"with": {n: values(m) for n, m in means.items()}, "without": {n: values(m - 0.1) for n, m in means.items()}}
    swept = {"small": values(0.81), "medium": values(0.82), "large": values(0.85)}
    found = compared(top1, swept)
    assert found["ranked"]["with"][:3] == ["at", TUNED, "kd"] and found["same_order"] > 0.9
    np.testing.assert_allclose(found["augmentation"]["at"]["mean"], 0.1, atol=2e-3)
    text = verdict(found, top1, "α=0.5, T=5", {"small": 0.85, "medium": 0.9, "large": 0.92}, swept, 300)
    assert f"at has the highest top-1 ({100 * top1['with']['at']['mean']:.2f} %)" in text
    assert f"is better than {TUNED}" in text and f"the best, at, is better than {TUNED} (" in text
    assert "clearly above fitnet, rkd of the 3 feature methods and clearly below at" in text
    assert "differs from that from the small one" in text
    alike = {"small": values(0.82), "medium": values(0.82), "large": values(0.82)}
    text = verdict(compared(top1, alike), top1, "", dict.fromkeys(alike, 0.9), alike, 300)
    assert "is not distinguishable from that" in text


@pytest.mark.slow  # three teachers and some twenty students, two minutes
def test_survey_from_the_command_line(tmp_path):
    assert main(["study", "survey", "--tiny", "--run", str(tmp_path / "study")]) == 0
    said = json.loads((tmp_path / "study/numbers.json").read_text())["numbers"]
    assert len(said["grid"]) == len(GRID["tiny"][0]) * len(GRID["tiny"][1]) and said["chosen"] in said["grid"]
    assert set(said["top1"]["with"]) - {TUNED} == set(METHODS["tiny"]) == set(said["top1"]["without"]) - {TUNED}
