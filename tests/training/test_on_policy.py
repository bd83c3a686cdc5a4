"""A share of written steps that adapts: it grows by what is held out, and what was written is learned from again."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.experiment import Experiment, ExperimentError, Phase
from kdjax.experiment.program import Builder
from kdjax.experiment.run import run
from kdjax.objectives import METHODS
from kdjax.schedules import Adaptive, percent, steps
from kdjax.tasks.language import Language, LanguageNetwork
from kdjax.training import TrainState, Variables
from kdjax.training.loop import Stopped
from kdjax.training.on_policy import WRITING, grown, on_policy, writing_state
from kdjax.training.optimizers import SGD
from kdjax.types import Batch, Clock
from tests.experiment.test_resume import StopAt, outcome

ROWS, LENGTH, TOTAL = 4, 3, 60
LOSSES = np.array([2.0, 1.5, 2.05, 2.15, 2.2, 2.26, 1.0, 3.0])  # what is held out, each time


def steps_of(share, rows=ROWS):
    """Metrics of every step, and the first column of the inputs that it saw: the data's are -1, what is written its step."""
    clock = Clock(total_steps=TOTAL, steps_per_epoch=10)

    def step(state, frozen, batch):
        seen = batch.inputs["x"][:, 0], batch.target("labels")[:, 0], batch.labelled
        return TrainState(state.step + 1, state.params, dict(state.state), None, None, state.keys), {"seen": seen}

    def writes(network, params, state, batch, key, beside):
        made = lambda x: jnp.full_like(x, params["now"])
        return Batch({"x": made(batch.inputs["x"])}, {"labels": made(batch.targets["labels"])}, batch.index, batch.where,
                     jnp.zeros_like(batch.labelled), batch.elements)  # fmt: skip

    step.axis = None
    judge = lambda state, frozen: jnp.asarray(LOSSES, jnp.float32)[jnp.minimum(state.step // 6, len(LOSSES) - 1)]
    learning = on_policy(step, None, writes, share, clock, judge=judge)
    plain = np.full((rows, LENGTH), -1, np.int32)
    batch = Batch.of({"x": plain}, {"labels": plain}, elements=np.ones((rows, LENGTH), bool), index=np.arange(rows))
    shapes = {"inputs": {"x": plain}, "targets": {"labels": plain}, "elements": batch.elements}
    keys = {"train": jax.random.key(3)}
    state = {"student": {}, "objective": {}, WRITING: writing_state(share, shapes)}

    def one(carried, _):
        number, state = carried
        given = TrainState(number, {"student": {"now": number}}, state, None, None, keys)
        after, metrics = learning(given, None, batch)
        return (after.step, after.state), metrics

    (_, state), found = jax.jit(lambda: jax.lax.scan(one, (jnp.int32(0), state), length=TOTAL))()
    return jax.device_get(found), jax.device_get(state[WRITING])


def test_the_share_grows_where_what_is_held_out_gets_no_better():
    found, writing = steps_of(Adaptive(start=0.2, every=percent(10), replay=10))
    # The first loss, 2.0, is what it goes by, until 2.15 is 0.1 above; then 2.26, then 3.0, which it stays at.
    wanted = np.repeat([0.2, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5], 6)
    np.testing.assert_allclose(found["on_policy_share"][0], wanted, rtol=1e-6)
    assert writing["reference"] == 3.0
    full = {"share": jnp.float32(0.95), "reference": jnp.float32(1.0)}
    assert grown(full, jnp.float32(2.0), Adaptive())["share"] == 1


def test_what_was_written_is_learned_from_again_and_the_more_the_later():
    share = Adaptive(start=1.0, every=steps(100), replay=10)
    found, writing = steps_of(share)
    inputs, labels, labelled = found["seen"]
    now = np.arange(TOTAL)[:, None]
    assert np.all(found["on_policy"][0] == 1) and not labelled.any()  # the first step has nothing to take again
    np.testing.assert_array_equal(inputs, labels)
    fresh = np.all(inputs == now, axis=1)
    assert fresh[0] and 0.3 < fresh.mean() < 0.7 and fresh[:20].mean() > fresh[-20:].mean()
    written = np.flatnonzero(fresh)
    for number in np.flatnonzero(~fresh):
        kept = np.repeat(written[written < number], ROWS)[-10:]
        assert set(inputs[number]) <= set(kept), number
    assert len(np.unique(inputs[~fresh][-1])) > 1, "rows are drawn one by one"
    assert writing["count"] == fresh.sum() * ROWS
    np.testing.assert_array_equal(np.unique(writing["kept"]["inputs"]["x"]), np.unique(np.repeat(written, ROWS)[-10:]))


def test_without_a_share_all_is_of_the_data():
    found, writing = steps_of(Adaptive(grows=0.0))
    assert np.all(found["seen"][0] == -1) and found["seen"][2].all()
    assert not np.any(found["on_policy"][0]) and writing["count"] == 0


def decoders(count, **changes):
    """An experiment whose student is a small decoder of DistiLLM, for so many steps."""
    small = LanguageNetwork(width=8, depth=1, heads=2, hidden=8)
    optimizer = SGD(learning_rate=0.5)
    student = Phase(network=small, teacher="teacher", duration=steps(count), objective=METHODS["distillm"].objective,
                    on_policy=Adaptive(start=1.0, replay=24), optimizer=optimizer)  # fmt: skip
    teacher = Phase(name="teacher", network=small, duration=steps(2), optimizer=optimizer)
    data = Language(length=10, batch_size=8, eval_batch_size=8, validation=2, eval_examples=8)
    return Experiment(name="spread", data=data, phases=(teacher, student), **changes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_a_decoder_does_so_alike_on_any_devices(kind):
    experiment = decoders(8)
    student = experiment.student
    found = []
    for devices, runner in ((1, "jit"), (4, kind)):
        builder = Builder(devices=jax.devices()[:devices])
        program = builder.program(dataclasses.replace(experiment, runner=runner), student)
        compiled, feeding = program.compiled, program.feeding
        teacher = compiled.runner.place(Variables(*program.networks.teacher.init(jax.random.key(5))))
        state, rows = compiled.fresh_state(0, 0), []
        for _ in range(6):
            batch = compiled.runner.place_batch(feeding.pipeline(0)[int(state.step)])
            state, metrics = compiled.step(state, feeding.frozen(teacher), batch)
            rows.append({name: float(total / max(count, 1)) for name, (total, count) in metrics.items()})
        found.append((rows, jax.device_get(state.state[WRITING])))
    for ours, theirs in zip(found[0][0], found[1][0], strict=True):
        for name, value in ours.items():
            assert theirs[name] == pytest.approx(value, rel=2e-5, abs=1e-6), name
    assert np.isfinite(found[0][1]["reference"]) and found[0][1]["count"] > 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found[0][1], found[1][1])
    without = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, validation=0))
    with pytest.raises(ExperimentError, match="and there are none; set data"):
        builder.program(without, student)


@pytest.mark.slow
def test_what_was_written_is_there_when_a_run_resumes(tmp_path):
    every = {"evaluate_every": steps(4), "checkpoint_every": steps(4), "log_every": 1}
    experiment, builder = decoders(10, **every), Builder(devices=jax.devices()[:1])
    run(experiment, tmp_path / "whole", builder=builder)
    with pytest.raises(Stopped):
        run(experiment, tmp_path / "parts", builder=builder, progress=StopAt(6))
    run(experiment, tmp_path / "parts", builder=builder, resume=True)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
