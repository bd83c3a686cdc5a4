"""Optimizers against torch's own trajectories, optax, and formulas."""

import dataclasses
import json
import math
import pathlib
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax.objectives import CrossEntropy, FitNet, bind
from kdjax.schedules import Cosine, Steps, WarmUp, epochs
from kdjax.training.optimizers import SGD, AdamW, Optimizer, build, counted_to
from kdjax.types import Clock, DataInfo, ModelOutput
from tests.training.trajectory import Listed, student_only, trajectory

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
OUTPUT = ModelOutput(logits=jnp.zeros((2, 5)), features=(jnp.zeros((2, 4, 4, 3)),))
LABELS_ONLY = bind(CrossEntropy(), OUTPUT, None, DataInfo(5))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Undecayed(FitNet):
    """A projector that is exempt from weight decay."""

    decays: ClassVar = False


def torch_cases():
    return json.loads((GOLDEN / "manifest_optim.json").read_text())["methods"]["optim"]["cases"]


def follow_torch(name, dtype, tolerance, **options):
    """Runs SGD on a recorded trajectory and compares the weights after every step."""
    case = torch_cases()[name]
    hyper, advice = case["hyper"], case["tol_advice"]
    with np.load(GOLDEN / "optim.npz") as stored:
        start, gradients = (stored[f"{name}/in/{key}"].astype(dtype) for key in ("w0", "grads"))
        expected = stored[f"{name}/out/w.f64"]
    options = {"learning_rate": Listed(tuple(hyper["lr"]))} | options
    clock = options.pop("clock", Clock())
    sgd = SGD(momentum=hyper["momentum"], weight_decay=hyper["weight_decay"], nesterov=hyper["nesterov"], **options)
    seen = trajectory(
        sgd,
        student_only(jnp.asarray(start)),
        [student_only(jnp.asarray(g)) for g in gradients],
        clock=clock,
        objective=LABELS_ONLY,
    )
    found = np.stack([weights["student"]["w"] for weights in seen])
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=advice[tolerance[0]], atol=advice[tolerance[1]])


@pytest.mark.parametrize("name", torch_cases())
def test_sgd_is_torchs_in_float64(name):
    """Momentum, coupled decay, one of them Nesterov; the learning rate drops twice while the buffer is warm."""
    with jax.enable_x64(True):
        follow_torch(name, np.float64, ("f64_rtol", "f64_atol"))


def as_steps(rates):
    """`(first rate, factor, steps)` of rates that drop by one factor, None of others."""
    drops = tuple(i for i in range(1, len(rates)) if rates[i] != rates[i - 1])
    factors = {round(rates[i] / rates[i - 1], 9) for i in drops}
    return (rates[0], factors.pop(), drops) if len(factors) == 1 else None


def forms_of(rates):
    """The ways in which a schedule says these rates: all of the list, steps, and epochs where these end at the steps."""
    yield "listed", {}
    if found := as_steps(rates):
        first, factor, drops = found
        yield "steps", {"learning_rate": Steps(first, factor, drops, "steps")}
        length = math.gcd(*drops)
        epoch_ends = tuple(drop // length for drop in drops)
        clock = Clock(total_steps=len(rates), steps_per_epoch=length)
        yield "epochs", {"learning_rate": Steps(first, factor, epoch_ends), "clock": clock}


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        pytest.param(name, rate, id=f"{form}-{name}")
        for name, case in torch_cases().items()
        for form, rate in forms_of(case["hyper"]["lr"])
    ],
)
def test_sgd_is_torchs_in_float32(name, rate):
    follow_torch(name, np.float32, ("f32_rtol_out", "f32_atol_out"), **rate)


def test_both_forms_of_momentum_are_recorded():
    assert {case["hyper"]["nesterov"] for case in torch_cases().values()} == {False, True}
    assert any(as_steps(case["hyper"]["lr"]) for case in torch_cases().values())


def test_plain_sgd():
    (after,) = trajectory(
        SGD(learning_rate=0.5, momentum=0.0),
        student_only(jnp.ones(2)),
        [student_only(jnp.ones(2))],
        objective=LABELS_ONLY,
    )
    np.testing.assert_array_equal(after["student"]["w"], 0.5)


def test_a_drop_of_the_learning_rate_acts_at_once():
    """The buffer holds gradients, not steps: once the rate is 0 nothing moves, whatever has gathered."""
    optimizer = SGD(learning_rate=Listed((1.0, 1.0, 0.0)), momentum=0.9)
    first, second, third = trajectory(
        optimizer, student_only(jnp.zeros(1)), [student_only(jnp.ones(1))] * 3, objective=LABELS_ONLY
    )
    np.testing.assert_allclose([first["student"]["w"][0], second["student"]["w"][0]], [-1.0, -2.9], rtol=1e-6)
    assert third["student"]["w"] == second["student"]["w"]


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_a_schedule_is_read_at_the_step_that_is_taken(kind):
    """A warm-up from 0 leaves the first step without effect; a cosine ends a phase of four steps near its floor."""
    clock = Clock(total_steps=4, steps_per_epoch=2)
    gradients = [student_only(jnp.ones(1))] * 4

    def moves(rate):
        seen = trajectory(
            kind(learning_rate=rate), student_only(jnp.zeros(1)), gradients, clock=clock, objective=LABELS_ONLY
        )
        return np.abs(np.diff([0.0, *(weights["student"]["w"][0] for weights in seen)]))

    constant = moves(0.1)
    np.testing.assert_allclose(moves(Cosine(0.1)) / constant, 0.5 * (1 + np.cos(np.pi * np.arange(4) / 4)), rtol=1e-5)
    np.testing.assert_allclose(moves(0.1 * WarmUp(length=epochs(1))) / constant, [0, 0.5, 1, 1], rtol=1e-5)


def weights_of_all_kinds(bound):
    student = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0), "conv": jnp.full((1, 1, 2, 2), 3.0)}
    return {
        "student": student,
        "objective": jax.tree.map(lambda x: jnp.full(x.shape, 3.0), bound.init(jax.random.key(0))[0]),
    }


@pytest.mark.parametrize("kind", [SGD, AdamW])
@pytest.mark.parametrize("vectors", [True, False])
def test_weight_decay_reaches_what_it_should(kind, vectors):
    """With zero gradients only decay moves: 3 becomes 3 (1 - 0.5 * 0.1)."""
    bound = bind(CrossEntropy() + FitNet(stage=0) + Undecayed(stage=0), OUTPUT, OUTPUT, DataInfo(5))
    weights = weights_of_all_kinds(bound)
    optimizer = kind(learning_rate=0.5, weight_decay=0.1, decay_vectors=vectors)
    (after,) = trajectory(optimizer, weights, [jax.tree.map(jnp.zeros_like, weights)], objective=bound)
    decayed, kept = 3.0 * 0.95, 3.0
    vector = decayed if vectors else kept
    for name, wanted in (("kernel", decayed), ("conv", decayed), ("bias", vector)):
        np.testing.assert_allclose(after["student"][name], wanted, rtol=1e-6)
    np.testing.assert_allclose(after["objective"]["fitnet"]["conv"]["kernel"], decayed, rtol=1e-6)
    for path in (("conv", "bias"), ("norm", "scale"), ("norm", "bias")):
        np.testing.assert_allclose(after["objective"]["fitnet"][path[0]][path[1]], vector, rtol=1e-6)
    for leaf in jax.tree.leaves(after["objective"]["undecayed"]):
        np.testing.assert_array_equal(leaf, kept)


def test_no_decay_by_default():
    weights = student_only(jnp.ones((2, 2)))
    for optimizer in (SGD(learning_rate=1.0), AdamW(learning_rate=1.0)):
        (after,) = trajectory(optimizer, weights, [jax.tree.map(jnp.zeros_like, weights)], objective=LABELS_ONLY)
        np.testing.assert_array_equal(after["student"]["w"], 1.0)


def test_clipping_is_by_the_norm_of_the_whole_gradient():
    """Student and objective together, before decay and momentum; a smaller gradient is left as it is."""
    weights = {"student": {"w": jnp.zeros(1)}, "objective": {"x": {"w": jnp.zeros((1, 1))}}}
    gradient = {"student": {"w": jnp.full(1, 3.0)}, "objective": {"x": {"w": jnp.full((1, 1), 4.0)}}}
    bound = dataclasses.replace(LABELS_ONLY, parts={"x": CrossEntropy()})
    sgd = SGD(learning_rate=1.0, momentum=0.0, clip=1.0)
    (after,) = trajectory(sgd, weights, [gradient], objective=bound)
    np.testing.assert_allclose((after["student"]["w"][0], after["objective"]["x"]["w"][0, 0]), (-0.6, -0.8), rtol=1e-6)
    (after,) = trajectory(dataclasses.replace(sgd, clip=5.1), weights, [gradient], objective=bound)
    np.testing.assert_array_equal(after["student"]["w"], -3.0)
    weights = jax.tree.map(lambda w: w + 100.0, weights)
    (after,) = trajectory(dataclasses.replace(sgd, weight_decay=0.5), weights, [gradient], objective=bound)
    np.testing.assert_allclose(after["student"]["w"], 100 - 50 - 0.6, rtol=1e-6)


def test_adamw_is_optaxs_and_the_formula():
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal(5), rng.standard_normal((6, 5))
    rate, decay, b1, b2, eps = 0.01, 0.2, 0.8, 0.95, 1e-3
    with jax.enable_x64(True):
        optimizer = AdamW(learning_rate=rate, weight_decay=decay, b1=b1, b2=b2, eps=eps)
        seen = trajectory(
            optimizer,
            student_only(jnp.asarray(start)),
            [student_only(jnp.asarray(g)) for g in gradients],
            objective=LABELS_ONLY,
        )
        reference = optax.adamw(rate, b1, b2, eps, weight_decay=decay)
        weights, state = jnp.asarray(start), reference.init(jnp.asarray(start))
        w, m, v = start.copy(), np.zeros(5), np.zeros(5)
        for t, (gradient, found) in enumerate(zip(gradients, seen, strict=True), 1):
            updates, state = reference.update(jnp.asarray(gradient), state, weights)
            weights = optax.apply_updates(weights, updates)
            m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
            w = w - rate * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + decay * w)
            for expected in (weights, w):
                np.testing.assert_allclose(found["student"]["w"], expected, rtol=1e-12)


def test_optimizers_are_data():
    assert SGD() == SGD(momentum=0.9) and hash(SGD()) == hash(SGD()) and SGD() != SGD(nesterov=True)
    assert eval(repr(AdamW(learning_rate=0.1)), {"AdamW": AdamW}) == AdamW(learning_rate=0.1)


def test_an_optimizer_without_an_update_says_so():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine(Optimizer):
        pass

    with pytest.raises(TypeError, match="Mine does not say its update"):
        build(Mine(), Clock(), LABELS_ONLY)


def test_vectors_of_layers_that_are_stacked_are_left_alone_too():
    params = {"blocks": {"kernel": jnp.ones((2, 3, 3)), "bias": jnp.ones((2, 3)), "scale": jnp.ones((2, 3))}}
    # Tokens, positions and tables of biases of transformers, as their released recipes leave them.
    apart = dict.fromkeys(("class_token", "distillation_token", "positions", "biases"), jnp.ones((1, 4, 3)))
    params["blocks"] |= apart
    decaying = AdamW(learning_rate=0.1, weight_decay=0.5, decay_vectors=False)
    transformation = build(decaying, Clock(), LABELS_ONLY)
    params = {"student": params, "objective": {}}
    updates, _ = transformation.update(jax.tree.map(jnp.zeros_like, params), transformation.init(params), params)
    moved = {name: bool(jnp.any(x)) for name, x in updates["student"]["blocks"].items()}
    assert moved == {"kernel": True, "bias": False, "scale": False, **dict.fromkeys(apart, False)}


def test_schedules_are_moved_to_a_step_and_nothing_else_is():
    params = {"student": {"w": jnp.ones(3)}, "objective": {}}
    for core in (
        optax.adamw(optax.linear_schedule(1.0, 0.0, 10)),
        optax.chain(optax.clip(1.0), optax.sgd(lambda n: 1.0 / n)),
    ):
        state = core.init(params)
        for _ in range(2):
            _, state = core.update(params, state, params)
        moved = counted_to(state, 7)
        counts = [x.count for x in jax.tree.leaves(moved, is_leaf=is_schedule) if is_schedule(x)]
        assert counts == [7] and counts[0].dtype == jnp.int32
        adam = lambda state: [x for x in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(x)]
        chex.assert_trees_all_equal(adam(moved), adam(state))


def is_schedule(node):
    return isinstance(node, optax.ScaleByScheduleState)


def is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)
