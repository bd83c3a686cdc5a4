"""Chains, generations, several teachers, two students: schemes are phases, and what they train beside the student is kept."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from kdjax.experiment import ExperimentError, Phase
from kdjax.experiment.artifacts import evaluate_run
from kdjax.experiment.run import run
from kdjax.experiment.schemes import chain, generations
from kdjax.objectives import (
    CTKD,
    DHKD,
    DKD,
    DML,
    KD,
    TAID,
    ControlVariate,
    CrossEntropy,
    MultiTeacherKD,
    TfKDRegularizer,
)
from kdjax.schedules import steps
from kdjax.tasks.classification import Views
from kdjax.training.checkpoints import load_network
from kdjax.training.loop import Stopped
from kdjax.training.optimizers import DOT, SGD
from tests.experiment.conftest import net, small
from tests.experiment.test_resume import StopAt, outcome, rows

OPTIMIZER = SGD(learning_rate=0.05)


def phase(name, width=2, **fields):
    return Phase(name=name, network=net(width), duration=steps(2), optimizer=OPTIMIZER, labels="all", **fields)


def test_a_chain_names_the_one_before():
    phases = chain(phase("teacher"), phase("assistant"), phase("student"))
    assert [p.teacher for p in phases] == ["", "teacher", "assistant"]
    assert chain(phase("alone")) == (phase("alone"),)


def test_generations_begin_differently_and_teach_together():
    phases = generations(phase("first"), phase("again", objective=KD()), 2, ensemble=phase("student", objective=KD()))
    assert [p.name for p in phases] == ["first", "again1", "again2", "student"]
    assert [p.teacher for p in phases] == ["", "first", "again1", "again1+again2"]
    assert [p.seed_offset for p in phases] == [0, 1, 2, 0]


def test_generations_run_and_are_evaluated(tmp_path, builder):
    objective = CrossEntropy() + KD(temperature=1.0)
    phases = generations(
        phase("first"), phase("again", objective=objective), 2, ensemble=phase("student", objective=objective)
    )
    results = run(small(phases=phases), tmp_path / "run", builder=builder)
    assert len({result["hash"] for result in results.values()}) == 4
    assert results["student"]["teacher_hash"] == "+".join(results[name]["hash"] for name in ("again1", "again2"))
    assert results["again2"]["teacher_hash"] == results["again1"]["hash"]
    evaluated = evaluate_run(tmp_path / "run", builder.data_dir)
    assert evaluated["student"]["top1"] == results["student"]["last"]["student"]["top1"]
    assert evaluated["student"]["agreement"] == pytest.approx(results["student"]["last"]["student"]["agreement"])


def test_two_teachers_of_one_seed_differ_by_their_offset(tmp_path, builder):
    phases = (
        phase("a", 3, seed_offset=1), phase("b", 3, seed_offset=2), phase("c", 2),
        phase("student", objective=MultiTeacherKD(weights=(0.7, 0.2, 0.1)), teacher="a+b+c"),
    )  # fmt: skip
    results = run(small(phases=phases), tmp_path / "run", builder=builder)
    assert results["a"]["hash"] != results["b"]["hash"]
    assert np.isfinite(results["student"]["last"]["teacher"]["nll"])


def test_wrong_weights_and_unknown_teachers_are_said(builder):
    phases = (phase("a"), phase("student", objective=MultiTeacherKD(weights=(0.5, 0.5)), teacher="a"))
    experiment = small(phases=phases)
    with pytest.raises(ExperimentError, match="2 weights and 1 teachers; give one a teacher"):
        builder.program(experiment, experiment.student)
    experiment = small(phases=(phase("a"), phase("student", objective=KD(), teacher="a+zzz")))
    assert "from 'zzz', not an earlier phase (a)" in experiment.problems()[0]


def test_mixed_inputs_need_an_objective_that_takes_their_labels():
    """In a phase that is taught as in one that is not."""
    for mixed in ({"views": Views(mixup=1.0)}, {"views": Views(cutmix=1.0)}):
        assert small(data=mixed).problems() == small(KD(), data=mixed).problems() == []
        assert "'dkd' of phase 'student' reads labels, which are not mixed" in small(DKD(), data=mixed).problems()[0]
        alone = (phase("a", objective=TfKDRegularizer()), phase("student", objective=KD(), teacher="a"))
        assert "of phase 'a' reads labels, which are not mixed" in small(phases=alone, data=mixed).problems()[0]
        apart = small(DKD(), data=mixed).replace_phase("student", mix=False)
        assert apart.problems() == []


TRAINED = {
    "heads": CrossEntropy() + DHKD(align=True) + CTKD() + 0.5 * TAID(),
    "mutual": CrossEntropy() + DML(),
    "control variate": CrossEntropy() + ControlVariate(strength=0.5, unbiased=True),
    "two momenta": CrossEntropy() + KD(),
}


def with_parts(name):
    """An experiment whose student trains more than itself; the teacher has its size."""
    changes = {"optimizer": DOT(learning_rate=0.05, weight_decay=5e-4)} if name == "two momenta" else {}
    experiment = small(TRAINED[name], length=7).replace_phase("teacher", network=net(2))
    return experiment.replace_phase("student", **changes)


# The others are parts of the same kind: an objective's own module, a second state.
QUICK = ("mutual", "two momenta")


@pytest.fixture(
    scope="module", params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TRAINED]
)
def whole(request, tmp_path_factory, builder):
    folder = tmp_path_factory.mktemp("whole") / "run"
    experiment = with_parts(request.param)
    results = run(experiment, folder, builder=builder)
    return request.param, experiment, folder, results["student"]


def test_what_is_trained_beside_the_student_resumes_bit_for_bit(whole, tmp_path, builder):
    _, experiment, folder, _ = whole
    with pytest.raises(Stopped):
        run(experiment, tmp_path / "run", builder=builder, progress=StopAt(4))
    run(experiment, tmp_path / "run", resume=True, builder=builder)
    assert outcome(tmp_path / "run") == outcome(folder)
    assert rows(tmp_path / "run") == rows(folder)


def test_what_is_trained_beside_the_student_is_counted_and_not_deployed(whole, builder):
    name, experiment, folder, result = whole
    program = builder.program(experiment, experiment.student)
    network, _ = load_network(folder / "student", program.compiled.network_template())
    size = sum(leaf.size for leaf in jax.tree.leaves(network.params))
    classes, width = 10, 8  # of the digits, and of the embedding of a network of width 2
    head = (width * 200 + 200) + 2 * 200 + (200 * classes + classes)
    assert result["parameters"] == size
    assert result["extra_parameters"] == {"heads": head + 1, "mutual": size}.get(name, 0)


def test_a_peer_is_logged_beside_the_student(whole):
    name, _, folder, _ = whole
    logged = [json.loads(line) for line in (folder / "student/metrics.jsonl").read_text().splitlines()]
    assert any("peer_loss" in row for row in logged) == (name == "mutual")


def test_seeds_differ_in_everything_trained(builder):
    experiment = dataclasses.replace(with_parts("heads"))
    program = builder.program(experiment, experiment.student)
    first, second = (program.compiled.fresh_state(seed, 0).params["objective"] for seed in (0, 1))
    assert np.any(first["dhkd"]["hidden"]["kernel"] != second["dhkd"]["hidden"]["kernel"])
