"""Phases that go before: what an objective trained is taken on, and a method of two phases has the budget of one."""

import dataclasses
import re
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax.experiment import ExperimentError, Phase
from kdjax.experiment.compare import check_alike, compare
from kdjax.experiment.schemes import student_phases, with_method
from kdjax.experiment.warm_start import warm_start
from kdjax.models.weights.beginning import begun, flat
from kdjax.objectives import METHODS, CrossEntropy, FitNet, Method, Objective, bind
from kdjax.reduction import per_example
from kdjax.schedules import epochs, steps
from kdjax.tasks.classification import Classifier
from kdjax.training import Variables, init_state
from kdjax.training.optimizers import SGD, build
from kdjax.types import Clock, DataInfo
from tests.experiment.conftest import small
from tests.training.toy import CLASSES, shapes, toy

STUDENT, TEACHER = toy(3), toy(4)


class Coder(nnx.Module):
    def __init__(self, width, rngs):
        self.paraphraser = nnx.Linear(width, 3, rngs=rngs)
        self.own = nnx.Linear(3, 2, rngs=rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ready(Objective):
    """Trains a paraphraser of the teacher's embedding."""

    reads: ClassVar = ("teacher.embedding",)

    def build(self, student, teacher, data, rngs):
        return Coder(teacher.embedding.shape[-1], rngs)

    def terms(self, module, ctx):
        return per_example(jnp.mean(module.paraphraser(ctx.teacher.embedding), -1), ctx.batch.where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uses(Ready):
    """Takes it."""

    carries: ClassVar = ("paraphraser",)


def state_of(objective, seed):
    bound = bind(objective, shapes(STUDENT), shapes(TEACHER), DataInfo(CLASSES))
    return init_state(STUDENT, bound, build(SGD(), Clock(), bound), seed=seed), bound


def objective_of(state):
    return Variables(state.params["objective"], state.state["objective"])


def test_a_part_of_the_same_name_goes_on_with_its_statistics():
    before, _ = state_of(FitNet(stage=0), 0)
    fresh, bound = state_of(CrossEntropy() + FitNet(stage=0), 1)
    moved = jax.tree.map(lambda x: x + 1, objective_of(before))
    after = warm_start(fresh, bound, moved, "student")
    jax.tree.map(np.testing.assert_array_equal, objective_of(after), moved)
    assert after.params["student"] is fresh.params["student"]


def test_where_nothing_came_before_the_state_is_left_as_it_is():
    fresh, bound = state_of(CrossEntropy() + FitNet(stage=0), 1)
    assert warm_start(fresh, bound, None, "student") is fresh


def test_a_part_of_other_shapes_begins_anew():
    before, _ = state_of(FitNet(stage=1), 0)
    fresh, bound = state_of(FitNet(stage=0), 1)
    after = warm_start(fresh, bound, objective_of(before), "student")
    jax.tree.map(np.testing.assert_array_equal, objective_of(after), objective_of(fresh))


def test_a_submodule_is_taken_from_whichever_part_trained_it():
    before, _ = state_of(Ready(), 0)
    fresh, bound = state_of(CrossEntropy() + Uses(), 1)
    after = warm_start(fresh, bound, objective_of(before), "student").params["objective"]["uses"]
    jax.tree.map(
        np.testing.assert_array_equal, after["paraphraser"], before.params["objective"]["ready"]["paraphraser"]
    )
    jax.tree.map(np.testing.assert_array_equal, after["own"], fresh.params["objective"]["uses"]["own"])


def test_what_is_not_there_is_said():
    fresh, bound = state_of(Uses(), 1)
    for earlier in (None, objective_of(state_of(FitNet(stage=0), 0)[0])):
        with pytest.raises(
            ExperimentError, match="'uses' of phase 'student' takes its paraphraser from the phase it starts"
        ):
            warm_start(fresh, bound, earlier, "student")


@pytest.fixture
def two_phases(monkeypatch):
    monkeypatch.setitem(METHODS, "staged", Method(CrossEntropy(), "feature", "", before=FitNet(stage=1)))


def test_a_method_of_two_phases_has_the_budget_of_one(two_phases):
    student = Phase(name="student", network=Classifier(), duration=epochs(270))
    before, last = student_phases("staged", student)
    assert (before.name, before.duration, before.objective) == ("student-before", epochs(30), FitNet(stage=1))
    assert (last.name, last.start, last.duration) == ("student", "student-before", epochs(240))
    assert student_phases("kd", student) == (dataclasses.replace(student, objective=METHODS["kd"].objective),)


def test_it_can_be_compared_and_exchanged(two_phases, builder):
    plain = small(length=9)
    staged = with_method(plain, "staged")
    assert [p.name for p in staged.phases] == ["teacher", "student-before", "student"]
    assert [p.name for p in staged.lineage] == ["student-before", "student"]
    assert staged.problems() == []
    check_alike({"kd": plain, "staged": staged})
    again = with_method(staged, "kd")
    assert [p.name for p in again.phases] == ["teacher", "student"] and again.student.duration == steps(9)
    longer = staged.replace_phase("student", duration=steps(9))
    with pytest.raises(ExperimentError, match="would not be fair"):
        check_alike({"kd": plain, "staged": longer})


def test_an_earlier_phase_that_does_not_fit_is_refused_before_anything_is_trained(monkeypatch, builder, tmp_path):
    monkeypatch.setitem(METHODS, "staged", Method(CrossEntropy(), "feature", "", before=FitNet(stage=9)))
    staged = with_method(small(length=9), "staged")
    with pytest.raises(ExperimentError, match="stage"):
        compare({"staged": staged}, (0,), tmp_path / "run", builder=builder)
    assert not (tmp_path / "run").exists()


def test_weights_of_a_file_are_an_argument_of_the_program_that_makes_the_state(builder):
    """As its constants they would be written into it, and some 2 GB of them cannot be compiled."""
    compiled = builder.program(small(), small().student).compiled
    student = compiled.networks.student
    path, shape = next(
        (p, x) for p, x in flat(jax.eval_shape(student.init, jax.random.key(0))[0]).items() if x.ndim == 4
    )
    weights = {f"params/{path}": np.random.default_rng(3).normal(size=shape.shape).astype(np.float32)}
    networks = dataclasses.replace(compiled.networks, student=begun(student, weights))
    begins = dataclasses.replace(compiled, networks=networks)
    made = begins.fresh_state(0, 0).params["student"]
    np.testing.assert_array_equal(flat(made)[path], weights[f"params/{path}"])
    constant = rf"constant dense<.*tensor<{'x'.join(map(str, shape.shape))}xf32>"
    as_argument, as_constant = (
        begins._fresh.lower((np.int64(0), np.int64(0)), None, None, given).as_text() for given in (weights, {})
    )
    assert re.search(constant, as_constant) and not re.search(constant, as_argument)
    other = flat(compiled.fresh_state(0, 0).params["student"])
    assert all(np.array_equal(value, other[name]) for name, value in flat(made).items() if name != path)
    # What was trained from there begins with its own, as `Trained.as_network` has it.
    trained = jax.tree.map(lambda x: x + 1, student.init(jax.random.key(0)))
    again = begun(student, weights)._replace(init=lambda key: trained)
    begins = dataclasses.replace(compiled, networks=dataclasses.replace(networks, student=again))
    jax.tree.map(np.testing.assert_array_equal, begins.fresh_state(0, 0).params["student"], trained[0])
