"""Tokens are counted over the whole step, however it is spread over devices and pieces; so are those that the student writes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax.experiment import Experiment, Phase
from kdjax.experiment.program import Builder
from kdjax.models import from_apply, in_microbatches, output_shapes
from kdjax.objectives import JSD, CrossEntropy, ForwardKL, MiniLLM, bind
from kdjax.schedules import steps
from kdjax.tasks.language import Language, LanguageNetwork
from kdjax.training import Variables, init_state, make_runner, make_step
from kdjax.training.optimizers import SGD
from kdjax.types import Batch, DataInfo
from tests.golden_cases import cases
from tests.losses.computing import DTYPES, computing_in

QUICK = ("jsd_b0.5_T0.9", "ce_global")
SPREAD = [(1, "jit", 1), (1, "jit", 3), (6, "jit", 1), (2, "pmap", 1), (2, "pmap", 3)]  # devices, runner, pieces


def one_step(case, dtype, devices, kind, pieces):
    """Loss and gradient by the student's head, of all micro-batches as one step: `G` times `B` rows."""
    flat = lambda name: case.inputs[name].reshape(-1, *case.inputs[name].shape[2:])
    labels = flat("labels")
    hidden = {name: jnp.asarray(flat(f"{name}_hidden"), dtype) for name in ("student", "teacher")}
    network = lambda name: from_apply(
        lambda head, x: x[name] @ head.T, params=jnp.asarray(case.inputs[f"{name}_head"], dtype), name=name
    )
    student, teacher, rows = network("student"), network("teacher"), len(labels)
    batch = Batch.of(
        hidden, np.maximum(labels, 0), elements=labels != -100, index=np.arange(rows, dtype=np.int32)
    )  # fmt: skip
    objective = (
        CrossEntropy() if not case.hyper else JSD(beta=case.hyper["beta"], temperature=case.hyper["temperature"])
    )
    classes = DataInfo(len(case.inputs["student_head"]))
    bound = bind(objective, output_shapes(student, hidden), output_shapes(teacher, hidden), classes)
    runner, optimizer = make_runner(kind, jax.devices()[:devices]), optax.sgd(1.0)
    step = make_step(*(in_microbatches(one, pieces) for one in (student, teacher)), bound, optimizer, axis=runner.axis)
    state = init_state(student, bound, optimizer, seed=0)
    before = np.asarray(jax.tree.leaves(state.params["student"])[0])
    after, metrics = runner.compile(step)(
        runner.place(state), runner.place(Variables(*teacher.init(None))), runner.place_batch(batch)
    )
    return np.asarray(metrics["loss"][0], dtype), before - np.asarray(jax.tree.leaves(after.params["student"])[0])


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=() if c.id in QUICK else pytest.mark.slow, id=c.id) for c in cases("lmkd_accum")],
)
def test_a_step_divides_by_the_tokens_of_all_its_pieces(case):
    """One piece has no token that counts; a mean of the pieces' means is another number."""
    with computing_in("f64"):
        for devices, kind, pieces in SPREAD if case.id == QUICK[0] else SPREAD[-1:]:
            loss, gradient = one_step(case, DTYPES["f64"], devices, kind, pieces)
            case.check(loss, "out", "loss", "f64")
            case.check(gradient, "grad", "student_head", "f64")
    if "naive_mean" in case.outputs["f64"]:
        assert abs(case.outputs["f64"]["naive_mean"] - case.outputs["f64"]["loss"]) > 1e-4


@pytest.mark.parametrize("kind", ["jit", pytest.param("pmap", marks=pytest.mark.slow)])
def test_what_a_student_writes_and_learns_does_not_depend_on_the_devices(kind):
    """Draws are keyed by the number of the example."""
    small = LanguageNetwork(width=8, depth=1, heads=2, hidden=8)
    student = Phase(network=small, teacher="teacher", duration=steps(2), objective=ForwardKL(), on_policy=1.0,
                    optimizer=SGD(learning_rate=0.5))  # fmt: skip
    experiment = Experiment(name="spread", data=Language(length=10, batch_size=8, eval_batch_size=8),
                            phases=(Phase(name="teacher", network=small), student))  # fmt: skip
    found = []
    for devices, runner in ((1, "jit"), (8, kind)):
        builder = Builder(devices=jax.devices()[:devices])
        program = builder.program(dataclasses.replace(experiment, runner=runner), student)
        compiled, feeding = program.compiled, program.feeding
        teacher = compiled.runner.place(Variables(*program.networks.teacher.init(jax.random.key(5))))
        state = compiled.fresh_state(0, 0)
        for _ in range(2):
            batch = compiled.runner.place_batch(feeding.pipeline(0)[int(state.step)])
            state, metrics = compiled.step(state, feeding.frozen(teacher), batch)
        found.append({name: float(total / max(count, 1)) for name, (total, count) in metrics.items()})
    assert found[0]["on_policy"] == 1 and found[0]["forward_kl"] > 0
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=2e-5, abs=1e-7), name


@pytest.mark.slow
def test_a_policy_knows_how_likely_what_was_written_was():
    """Drawn from the student alone every token weighs 1, and white advantages add up to nothing; from a mixture they do not."""
    small = LanguageNetwork(width=8, depth=1, heads=2, hidden=8)
    found = []
    for share in (0.0, 0.5):
        student = Phase(network=small, teacher="teacher", duration=steps(2), objective=MiniLLM(), on_policy=1.0,
                        teacher_writes=share, optimizer=SGD(learning_rate=0.5))  # fmt: skip
        experiment = Experiment(name="policy", data=Language(length=10, batch_size=8, eval_batch_size=8),
                                phases=(Phase(name="teacher", network=small), student))  # fmt: skip
        program = Builder(devices=jax.devices()[:1]).program(experiment, student)
        compiled = program.compiled
        params, kept = program.networks.teacher.init(jax.random.key(5))
        teacher = compiled.runner.place(Variables(jax.tree.map(lambda x: 20 * x, params), kept))
        batch = compiled.runner.place_batch(program.feeding.pipeline(0)[0])
        _, metrics = compiled.step(compiled.fresh_state(0, 0), program.feeding.frozen(teacher), batch)
        found.append({name: float(total / max(count, 1)) for name, (total, count) in metrics.items()})
    assert found[0]["minillm/policy"] == pytest.approx(0, abs=1e-5)
    assert abs(found[1]["minillm/policy"]) > 1e-2
    assert all(row["minillm/step"] > 0 and row["minillm/labels"] == row["minillm/data"] == 0 for row in found)
