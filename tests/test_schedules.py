"""Schedules by value at the start, the middle, the end and beyond, in every unit, and at exactly the right step."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import schedules
from kdjax.schedules import (
    Constant,
    Cosine,
    Duration,
    Linear,
    Product,
    Schedule,
    Steps,
    WarmUp,
    epochs,
    examples,
    multiply,
    percent,
    position,
    steps,
    value_at,
)
from kdjax.types import Clock
from tests.tracing import traced_once

CLOCK = Clock(total_steps=100, steps_per_epoch=10, batch_size=32)
# The CIFAR-100 protocol at batch size 128: 391 steps an epoch, 240 epochs.
CIFAR = Clock(total_steps=240 * 391, steps_per_epoch=391, batch_size=128)

EVERY = [
    Constant(0.3),
    Linear(1.0, 3.0, epochs(4), epochs(2)),
    Cosine(0.1, 0.02, percent(80), percent(10)),
    WarmUp(2.0, steps(8)),
    WarmUp(length=epochs(20), staircase=True),
    Steps(0.05, 0.1, (150.0, 180.0, 210.0)),
    Product(WarmUp(), Cosine()),
]


def curve(schedule, at, clock=CLOCK):
    """Values at some steps, from one compiled function of the step."""
    compiled = traced_once(lambda step: schedule(clock.at(step)))
    values = [compiled(jnp.int32(step)) for step in at]
    assert {value.dtype for value in values} == {jnp.dtype("float32")}
    return np.array(values)


VALUES = {
    "constant": (Constant(0.3), {0: 0.3, 50: 0.3, 100: 0.3, 200: 0.3}),
    "linear": (Linear(), {0: 0.0, 25: 0.25, 50: 0.5, 100: 1.0, 130: 1.0}),
    "linear, delayed": (Linear(1.0, 3.0, epochs(4), epochs(2)), {0: 1, 20: 1, 30: 1.5, 40: 2, 60: 3, 61: 3, 100: 3}),
    "linear, falling": (Linear(5.0, -1.0, steps(6)), {0: 5, 1: 4, 3: 2, 6: -1, 7: -1}),
    "linear, at once": (Linear(1.0, 3.0, steps(0)), {0: 3, 1: 3}),
    "linear, at once after a delay": (Linear(1.0, 3.0, steps(0), steps(5)), {0: 1, 4: 1, 5: 3, 6: 3}),
    "cosine": (Cosine(0.1), {0: 0.1, 25: 0.05 * (1 + math.sqrt(0.5)), 50: 0.05, 100: 0.0, 150: 0.0}),
    "cosine, rising and delayed": (Cosine(1.0, 4.0, percent(60), percent(20)), {0: 1, 20: 1, 50: 2.5, 80: 4, 100: 4}),
    "warm-up": (WarmUp(2.0, steps(8)), {0: 0, 1: 0.25, 4: 1, 8: 2, 9: 2, 100: 2}),
    "warm-up of no length": (WarmUp(2.0, epochs(0)), {0: 2, 1: 2}),
    "staircase": (WarmUp(2.0, epochs(4), staircase=True), {0: 0.5, 9: 0.5, 10: 1, 19: 1, 29: 1.5, 30: 2, 31: 2, 90: 2}),
    "staircase in percent": (WarmUp(length=percent(50), staircase=True), {0: 0.02, 4: 0.1, 5: 0.12, 23: 0.48, 49: 1}),
    "steps": (Steps(8.0, 0.5, (3.0, 7.0)), {0: 8, 29: 8, 30: 4, 69: 4, 70: 2, 100: 2, 1000: 2}),
    "steps in examples": (Steps(8.0, 0.5, (64.0,), "examples"), {1: 8, 2: 4}),
    "steps within an epoch": (Steps(8.0, 0.5, (2.3,)), {22: 8, 23: 4}),
    "steps in percent": (Steps(8.0, 0.5, (5.0, 23.0, 46.0), "percent"), {4: 8, 5: 4, 22: 4, 23: 2, 45: 2, 46: 1}),
    "steps to nothing": (Steps(8.0, 0.0, (1.0,)), {0: 8, 9: 8, 10: 0}),
    "steps without boundaries": (Steps(8.0, 0.5, ()), {0: 8, 100: 8}),
    "product": (Product(WarmUp(1.0, steps(10)), Cosine(2.0)), {0: 0, 5: 0.5 * (1 + math.cos(math.pi / 20)), 50: 1}),
}


@pytest.mark.parametrize("name", VALUES)
def test_values(name):
    schedule, wanted = VALUES[name]
    np.testing.assert_allclose(curve(schedule, wanted), list(wanted.values()), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("unit", [steps(20), epochs(2), examples(640), percent(20)])
@pytest.mark.parametrize("kind", [Linear, Cosine])
def test_a_length_means_the_same_in_every_unit(kind, unit):
    delay = Duration(unit.amount / 2, unit.unit)
    found = curve(kind(3.0, 1.0, unit, delay), [0, 10, 15, 20, 30, 31])
    middle = {Linear: 2.5, Cosine: 2 + math.sqrt(0.5)}[kind]
    np.testing.assert_allclose(found, [3, 3, middle, 2, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("unit", ["steps", "epochs", "examples", "percent"])
def test_boundaries_and_warm_up_in_every_unit(unit):
    one = {"steps": 1, "epochs": 0.1, "examples": 32, "percent": 1}[unit]
    np.testing.assert_allclose(curve(Steps(8.0, 0.5, (30 * one, 60 * one), unit), [29, 30, 59, 60]), [8, 4, 4, 2])
    np.testing.assert_allclose(curve(WarmUp(4.0, Duration(40 * one, unit)), [0, 10, 40, 50]), [0, 1, 4, 4], rtol=1e-6)


def test_staircase_is_the_benchmark_codes_warm_up():
    """`min(epoch / 20, 1)`, where the epoch is counted from 1 and constant within an epoch."""
    schedule = WarmUp(length=epochs(20), staircase=True)
    for epoch in (1, 2, 7, 19, 20, 21, 240):
        first, last = 391 * (epoch - 1), 391 * epoch - 1
        np.testing.assert_allclose(curve(schedule, [first, last], CIFAR), min(epoch / 20, 1), rtol=1e-6)


@pytest.mark.parametrize("steps_per_epoch", [1, 41, 61, 98, 109, 391, 468, 5004, 10_009, 40_036])
def test_steps_change_at_exactly_the_boundary(steps_per_epoch):
    """Not a step off, though XLA multiplies by a rounded 1 / 61 where a program divides by 61."""
    clock = Clock(total_steps=240 * steps_per_epoch, steps_per_epoch=steps_per_epoch, batch_size=128)
    at = [steps_per_epoch * epoch + off for epoch in (150, 180, 210) for off in (-1, 0)]
    found = curve(Steps(0.05, 0.1, (150.0, 180.0, 210.0)), at, clock)
    np.testing.assert_allclose(found, 0.05 * 0.1 ** np.array([0, 1, 1, 2, 2, 3]), rtol=2e-6)


def test_whole_epochs_are_exact():
    for steps_per_epoch in (41, 61, 391, 468, 40_036):
        clock = Clock(steps_per_epoch=steps_per_epoch)
        at = jax.jit(jax.vmap(lambda step, clock=clock: (clock.at(step).epoch, clock.pass_index(step))))
        whole = np.arange(0, 401, dtype=np.int32)
        epoch, index = at(whole * steps_per_epoch)
        np.testing.assert_array_equal(epoch, whole)
        np.testing.assert_array_equal(index, whole)
        epoch, index = at(whole[1:] * steps_per_epoch - 1)
        assert np.all(np.asarray(epoch) < whole[1:])
        np.testing.assert_array_equal(index, whole[1:] - 1)


def test_ten_million_steps():
    clock = Clock(total_steps=20_000_000, steps_per_epoch=391, batch_size=100)
    step = 25_000 * 391
    progress = jax.jit(clock.at)(jnp.int32(10_000_000))
    assert progress.step == 1e7 and progress.fraction == 0.5 and progress.examples == 1e9
    np.testing.assert_allclose(progress.epoch, 1e7 / 391, rtol=1e-7)
    assert clock.pass_index(10_000_000) == 10_000_000 // 391
    around = [step - 1, step, step + 1]
    np.testing.assert_array_equal(curve(Steps(1.0, 0.5, (25_000.0,)), around, clock), [1, 0.5, 0.5])
    np.testing.assert_array_equal(curve(Steps(1.0, 0.5, (step,), "steps"), around, clock), [1, 0.5, 0.5])
    np.testing.assert_array_equal(curve(Steps(1.0, 0.5, (100.0 * step,), "examples"), around, clock), [1, 0.5, 0.5])
    staircase = WarmUp(length=epochs(30_000), staircase=True)
    wanted = np.array([25_000, 25_001, 25_001]) / 30_000
    np.testing.assert_allclose(curve(staircase, around, clock), wanted, rtol=1e-6)


def test_the_fraction_ends_at_one():
    assert CLOCK.at(0).fraction == 0 and CLOCK.at(101).fraction == 1
    assert Clock(total_steps=0).at(5).fraction == 1


def test_a_pass_may_be_shorter_than_an_epoch():
    """Where only the labelled examples are visited, views change every pass while schedules count epochs."""
    clock = Clock(total_steps=100, steps_per_epoch=10, steps_per_pass=3)
    assert [int(clock.pass_index(step)) for step in (0, 2, 3, 10)] == [0, 0, 1, 3]
    assert clock.at(10).epoch == 1


def test_position_in_every_unit():
    found = {unit: float(position(CLOCK.at(25), unit)) for unit in ("steps", "epochs", "examples", "percent")}
    assert found == {"steps": 25.0, "epochs": 2.5, "examples": 800.0, "percent": 25.0}


@pytest.mark.parametrize(
    ("length", "wanted"),
    [
        (steps(7), 7),
        (steps(6.6), 7),
        (epochs(3), 1173),
        (epochs(0.5), 196),  # 195.5
        (epochs(0.001), 0),
        (examples(50_000), 391),  # 390.6
        (examples(128), 1),
        (examples(60), 0),
        (percent(100), 93_840),
        (percent(0.01), 9),  # 9.4
        (Duration(), 0),
    ],
    ids=str,
)
def test_durations_in_steps(length, wanted):
    found = length.steps(steps_per_epoch=391, batch_size=128, total_steps=93_840)
    assert (found, type(found)) == (wanted, int)


def test_durations_need_no_total_unless_a_percentage():
    assert epochs(2).steps(10, 32) == 20
    with pytest.raises(ValueError, match="cannot last a percentage of itself; give steps, epochs or examples"):
        percent(10).steps(10, 32)


def test_a_duration_says_itself():
    assert [str(d) for d in (steps(5), epochs(2.5), examples(64), percent(10))] == [
        "5 steps", "2.5 epochs", "64 examples", "10 percent",
    ]  # fmt: skip
    assert epochs(20) == Duration(20, "epochs") and hash(epochs(20)) == hash(Duration(20, "epochs"))
    assert epochs(20) != steps(20)


def test_impossible_durations_are_refused():
    with pytest.raises(ValueError, match="'days'; use steps, epochs, examples or percent"):
        Duration(1, "days")
    for amount in (-1.0, math.nan):
        with pytest.raises(ValueError, match="cannot be negative"):
            Duration(amount)


@pytest.mark.parametrize("kind", [Linear, Cosine])
def test_a_delay_in_another_unit_is_refused(kind):
    schedule = kind(length=epochs(5), delay=steps(100))
    with pytest.raises(ValueError, match="length is in epochs, delay in steps; use one unit for both"):
        schedule(CLOCK.at(0))


def test_a_schedule_without_a_value_says_so():
    class Mine(Schedule):
        pass

    with pytest.raises(TypeError, match="Mine does not say its value"):
        Mine()(CLOCK.at(0))


@pytest.mark.parametrize("schedule", EVERY, ids=lambda s: type(s).__name__)
def test_hashable_equal_and_printable(schedule):
    """What is printed makes the same schedule again, which hashes alike."""
    again = eval(repr(schedule), vars(schedules).copy())
    assert again == schedule and hash(again) == hash(schedule) and again is not schedule
    assert len({schedule, again}) == 1


def test_other_values_are_other_schedules():
    assert len(set(EVERY)) == len(EVERY)
    assert Steps(boundaries=(1.0,)) != Steps(boundaries=(2.0,)) and Linear() != Cosine()


@pytest.mark.parametrize("schedule", EVERY, ids=lambda s: type(s).__name__)
def test_a_new_step_never_compiles_anew(schedule):
    compiled = traced_once(lambda progress: value_at(schedule, progress))
    values = {float(compiled(CIFAR.at(step))) for step in (0, 1, 391, 150 * 391, 240 * 391)}
    assert len(values) > 1 or isinstance(schedule, Constant)


def test_schedules_multiply_in_any_order():
    warm = WarmUp(1.0, steps(10))
    for product in (8.0 * warm, warm * 8.0, 8 * warm, multiply(8.0, warm), multiply(warm, 8.0)):
        np.testing.assert_allclose(curve(product, [0, 5, 10]), [0, 4, 8])
    np.testing.assert_allclose(curve(warm * Cosine(2.0), [0, 5, 100]), curve(Cosine(2.0) * warm, [0, 5, 100]))
    np.testing.assert_allclose(curve(warm * warm * warm, [5]), 0.125)
    with pytest.raises(TypeError):
        warm * "2"


def test_numbers_stay_numbers_and_one_changes_nothing():
    warm = WarmUp()
    assert multiply(2.0, 3.0) == 6.0
    assert multiply(1.0, warm) is warm and multiply(warm, 1.0) is warm
    assert value_at(0.5, CLOCK.at(3)) == 0.5
