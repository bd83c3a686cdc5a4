"""Values that change as training goes on: weights, temperatures, learning rates.

A schedule is a frozen dataclass, so that it can be compared, printed and saved as data; called with a `Progress` it
gives a traced scalar, so that it never causes a recompilation. Schedules multiply: `8.0 * WarmUp(length=epochs(20))`.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from kdjax.types import Array, Progress

Unit = Literal["steps", "epochs", "examples", "percent"]

# `Progress` is exact at whole steps, examples and epochs; at other points float32 can fall short of them by about this.
SLACK = 1e-4


@dataclasses.dataclass(frozen=True)
class Duration:
    """A length of training, in the unit that suits."""

    amount: float = 0.0
    """how long, in `unit`"""
    unit: Unit = "epochs"
    """steps: optimizer steps. epochs: passes over the phase's examples. examples: images seen. percent: of the phase"""

    def __post_init__(self):
        if self.unit not in ("steps", "epochs", "examples", "percent"):
            raise ValueError(f"Duration.unit is {self.unit!r}; use steps, epochs, examples or percent.")
        if not self.amount >= 0:
            raise ValueError(f"Duration.amount is {self.amount}; a length cannot be negative.")

    def steps(self, steps_per_epoch: int, batch_size: int, total_steps: int | None = None) -> int:
        """This length in whole optimizer steps, rounded to the nearest."""
        if self.unit == "percent":
            if total_steps is None:
                raise ValueError("A phase cannot last a percentage of itself; give steps, epochs or examples.")
            return round(self.amount / 100 * total_steps)
        scale = {"steps": 1, "epochs": steps_per_epoch, "examples": 1 / batch_size}[self.unit]
        return round(self.amount * scale)

    def __str__(self):
        return f"{self.amount:g} {self.unit}"


def steps(amount: float) -> Duration:
    return Duration(amount, "steps")


def epochs(amount: float) -> Duration:
    return Duration(amount, "epochs")


def examples(amount: float) -> Duration:
    return Duration(amount, "examples")


def percent(amount: float) -> Duration:
    return Duration(amount, "percent")


def position(progress: Progress, unit: Unit) -> Array:
    """How far training has come, in `unit`."""
    if unit == "percent":
        return 100.0 * progress.fraction
    return {"steps": progress.step, "epochs": progress.epoch, "examples": progress.examples}[unit]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Base of all schedules: a function of progress."""

    def __call__(self, progress: Progress) -> Array:
        raise TypeError(f"{type(self).__name__} does not say its value; define __call__(progress).")

    def __mul__(self, other: "float | Schedule") -> "Product":
        if isinstance(other, int | float):
            return Product(self, Constant(float(other)))
        return Product(self, other) if isinstance(other, Schedule) else NotImplemented

    __rmul__ = __mul__


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """The same value throughout."""

    value: float = 1.0
    """the value"""

    def __call__(self, progress):
        return jnp.asarray(self.value, jnp.float32)

    def __str__(self):
        return f"{self.value:g}"


@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """A straight line from `start` to `end`, flat before and after."""

    start: float = 0.0
    """value at first"""
    end: float = 1.0
    """value at last"""
    length: Duration = Duration(100.0, "percent")
    """how long the change takes"""
    delay: Duration = Duration(0.0, "steps")
    """how long before it begins"""

    def __call__(self, progress):
        return self.start + (self.end - self.start) * _done(progress, self.length, self.delay)

    def __str__(self):
        return f"line {self.start:g} to {self.end:g} over {self.length}"


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from `start` to `end`, flat before and after; the usual learning-rate decay with `end=0`."""

    start: float = 1.0
    """value at first"""
    end: float = 0.0
    """value at last"""
    length: Duration = Duration(100.0, "percent")
    """how long the change takes"""
    delay: Duration = Duration(0.0, "steps")
    """how long before it begins"""
    staircase: bool = False
    """change once a unit and count from 1, as the curriculum-temperature code does"""

    def __call__(self, progress):
        done = _done(progress, self.length, self.delay, self.staircase)
        return self.end + (self.start - self.end) * 0.5 * (1 + jnp.cos(jnp.pi * done))

    def __str__(self):
        return f"cosine {self.start:g} to {self.end:g} over {self.length}"


@dataclasses.dataclass(frozen=True)
class WarmUp(Schedule):
    """From 0 to `value` in a straight line, then flat. Multiply another schedule by it to warm that one up."""

    value: float = 1.0
    """value once warm"""
    length: Duration = Duration(20.0, "epochs")
    """how long the warm-up takes"""
    staircase: bool = False
    """rise once a unit and count from 1, as the DKD and RLD code does: min(epoch / length, 1) with epoch = 1, 2, ..."""

    def __call__(self, progress):
        return self.value * _share(_elapsed(progress, self.length.unit, self.staircase), self.length.amount)

    def __str__(self):
        return f"warm-up to {self.value:g} over {self.length}"


@dataclasses.dataclass(frozen=True)
class Steps(Schedule):
    """`value`, multiplied by `factor` at each boundary: the step decay of the CIFAR and ImageNet protocols."""

    value: float = 0.05
    """value at first"""
    factor: float = 0.1
    """what every boundary multiplies it by"""
    boundaries: tuple[float, ...] = (150.0, 180.0, 210.0)
    """when, in `unit`"""
    unit: Unit = "epochs"
    """unit of the boundaries"""

    def __call__(self, progress):
        passed = sum(_reached(progress, self.unit, boundary).astype(jnp.float32) for boundary in self.boundaries)
        return self.value * jnp.power(self.factor, jnp.asarray(passed, jnp.float32))

    def __str__(self):
        return f"{self.value:g}, ×{self.factor:g} at {', '.join(f'{b:g}' for b in self.boundaries)} {self.unit}"


@dataclasses.dataclass(frozen=True)
class Product(Schedule):
    """Two schedules multiplied, such as a warm-up and a decay."""

    first: Schedule = Constant(1.0)
    """one factor"""
    second: Schedule = Constant(1.0)
    """the other factor"""

    def __call__(self, progress):
        return self.first(progress) * self.second(progress)

    def __str__(self):
        return f"({self.first}) × {self.second}"


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """A share that grows whenever a loss on held-out examples is no better: DistiLLM's of steps with what the student wrote. It
    is no function of progress, and so no `Schedule`; `kdjax.training.on_policy` carries it."""

    start: float = 0.0
    """share at first"""
    grows: float = 0.1
    """how much larger it is each time, up to 1"""
    tolerance: float = 0.1
    """how much above the loss that it last grew at (at first, that before training) the loss must be"""
    every: Duration = Duration(5.0, "percent")
    """how often that is looked at; once in each of 20 epochs in the published setting"""
    replay: int = 1000
    """how many written examples are kept, to be learned from again"""

    def __str__(self):
        return f"from {self.start:g} by {self.grows:g}"


def value_at(value: float | Schedule, progress: Progress) -> Array | float:
    """A hyperparameter now: a schedule's value, or the number itself."""
    return value(progress) if isinstance(value, Schedule) else value


def multiply(first: float | Schedule, second: float | Schedule) -> float | Schedule:
    """Product of two hyperparameters; stays a plain number where both are."""
    if isinstance(first, Schedule):
        return first if second == 1.0 else first * second
    if isinstance(second, Schedule):
        return second if first == 1.0 else second * first
    return first * second


def _elapsed(progress: Progress, unit: Unit, staircase: bool) -> Array:
    """How far training has come; on a staircase the number of the unit that has begun, from 1."""
    where = position(progress, unit)
    return jnp.floor(where + (SLACK if unit == "percent" else 0.0)) + 1 if staircase else where


def _done(progress: Progress, length: Duration, delay: Duration, staircase: bool = False) -> Array:
    """Share of `length` that has passed since `delay`."""
    if length.unit != delay.unit and delay.amount:
        raise ValueError(f"length is in {length.unit}, delay in {delay.unit}; use one unit for both.")
    return _share(_elapsed(progress, length.unit, staircase) - delay.amount, length.amount)


def _share(elapsed: Array, length: float) -> Array:
    """Share of `length` that has passed, 0 to 1; no length at all has passed from the first step on."""
    return jnp.clip(elapsed / length, 0.0, 1.0) if length else (elapsed >= 0).astype(jnp.float32)


def _reached(progress: Progress, unit: Unit, boundary: float) -> Array:
    whole = unit != "percent" and float(boundary).is_integer()
    return position(progress, unit) >= (boundary if whole else boundary - SLACK)


__all__ = [
    "Adaptive", "Constant", "Cosine", "Duration", "Linear", "Product", "Schedule", "Steps", "Unit", "WarmUp",
    "epochs", "examples", "multiply", "percent", "position", "steps", "value_at",
]  # fmt: skip
