"""Logits of a few tokens at a time: loss and gradients of a step are those of the whole logits, on any devices."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import losses
from kdjax.experiment import Experiment, Phase, networks
from kdjax.experiment.dry_run import of_large_vocabulary
from kdjax.experiment.program import Builder
from kdjax.models import from_apply, output_shapes
from kdjax.objectives import (
    AKL,
    JSD,
    KD,
    TVD,
    CrossEntropy,
    ForwardKL,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    Sum,
    SymmetricKL,
    TopK,
    bind,
)
from kdjax.objectives.tokens import chunked
from kdjax.schedules import Linear, steps
from kdjax.tasks.language import Language, LanguageNetwork
from kdjax.training import Variables, init_state, make_runner, make_step, runners
from kdjax.training.on_policy import judge_by
from kdjax.training.optimizers import SGD
from kdjax.types import Batch, Clock, DataInfo, ModelOutput

ROWS, LENGTH, WORDS, MORE = 8, 5, 11, 48  # words fewer and more than tokens
OBJECTIVE = Sum(objectives=(
    0.5 * CrossEntropy(), ForwardKL(temperature=2.0), 0.3 * ReverseKL(), 0.7 * JSD(beta=0.3, temperature=Linear(0.9, 2.0)),
    0.2 * SkewKL(alpha=0.2), 0.4 * SkewReverseKL(), 0.6 * SymmetricKL(alpha=0.4), 0.8 * TVD(), 0.9 * AKL(), 0.5 * TopK(k=3),
))  # fmt: skip


def decoder(width, seed, words):
    """Hidden states of a layer, and a head."""
    rng = np.random.default_rng(seed)
    params = {"layer": rng.standard_normal((4, width)), "head": rng.standard_normal((words, width))}

    def apply(params, x):
        states = jnp.tanh(x["x"] @ params["layer"])
        return ModelOutput(logits=states @ params["head"].T, features=(states[:, :, None],))

    network = from_apply(apply, params=jax.tree.map(jnp.asarray, params), name=f"decoder {width}")
    return network._replace(parts={"token_weights": lambda params, state: params["head"]})


def made_of(words=WORDS):
    rng = np.random.default_rng(2)
    elements = rng.random((ROWS, LENGTH)) < 0.7
    batch = Batch.of(
        {"x": rng.standard_normal((ROWS, LENGTH, 4))}, rng.integers(0, words, (ROWS, LENGTH)).astype(np.int32),
        elements=elements, labelled_elements=rng.random((ROWS, LENGTH)) < 0.6, where=np.arange(ROWS) != 3,
        labelled=np.arange(ROWS) != 5, index=np.arange(ROWS, dtype=np.int32),
    )  # fmt: skip
    return decoder(6, 0, words), decoder(7, 1, words), batch


def prepared(in_chunks, devices=1, kind="jit", words=WORDS, objective=OBJECTIVE):
    """A compiled step, and what it is called with."""
    student, teacher, batch = made_of(words)
    bound = bind(objective, output_shapes(student, batch.inputs), output_shapes(teacher, batch.inputs), DataInfo(words))
    runner, optimizer = make_runner(kind, jax.devices()[:devices]), optax.sgd(1.0)
    step = make_step(student, teacher, bound, optimizer, axis=runner.axis, in_chunks=in_chunks)
    state = init_state(student, bound, optimizer, seed=0)
    placed = runner.place(state), runner.place(Variables(*teacher.init(None))), runner.place_batch(batch)
    return runner.compile(step, state=placed[0]), placed


def stepped(*args, **kwargs):
    """Metrics of a step, and the gradient by the student."""
    step, (state, teacher, batch) = prepared(*args, **kwargs)
    before = jax.device_get(state.params["student"])
    after, metrics = step(state, teacher, batch)
    gradient = jax.tree.map(lambda a, b: a - b, before, jax.device_get(after.params["student"]))
    return {name: float(total / count) for name, (total, count) in metrics.items()}, gradient


@pytest.fixture(scope="module")
def whole():
    with jax.enable_x64(True):
        return {words: stepped(False, words=words) for words in (WORDS, MORE)}


@pytest.mark.parametrize(
    "devices, kind, words",
    [
        (1, "jit", WORDS), (4, "jit", WORDS), (2, "pmap", WORDS), (4, "fsdp", WORDS), (4, "jit", MORE), (2, "pmap", MORE),
        (4, "fsdp", MORE),
    ],
)  # fmt: skip
def test_a_step_is_that_of_whole_logits(whole, devices, kind, words):
    metrics, wanted = whole[words]
    with jax.enable_x64(True):
        found, gradient = stepped(True, devices, kind, words)
    assert {"top1", "agreement"} <= set(metrics) and not {"top1", "agreement"} & set(found)
    for name, value in found.items():
        assert value == pytest.approx(metrics[name], rel=1e-6 if "norm" in name else 1e-9), name
    for name, leaf in wanted.items():
        np.testing.assert_allclose(gradient[name], leaf, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("weights", [(0.5, 2.0), (0.0, 2.0), (0.5, 0.0), (0.0, 0.0)])
@pytest.mark.parametrize("devices, kind", [(1, "jit"), (4, "jit"), (2, "pmap")])
def test_labels_and_a_divergence_share_their_logits(weights, devices, kind, monkeypatch):
    calls, fused = [], losses.fused_linear_kd
    monkeypatch.setattr(losses, "fused_linear_kd", lambda *args, **kwargs: calls.append(1) or fused(*args, **kwargs))
    objective = Sum(objectives=(weights[0] * CrossEntropy(), weights[1] * ForwardKL(temperature=2.0)))
    with jax.enable_x64(True):
        (wanted, gradient), (found, ours) = (
            stepped(pieces, devices, kind, objective=objective) for pieces in (False, True)
        )
    assert len(calls) == 1
    for name, value in found.items():
        assert value == pytest.approx(wanted[name], rel=1e-6 if "norm" in name else 1e-9), name
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), ours, gradient)


def test_a_subclass_with_terms_of_its_own_keeps_them():
    class Doubled(CrossEntropy):
        def terms(self, module, ctx):
            term = super().terms(module, ctx)
            return dataclasses.replace(term, sum=2 * term.sum)

    with jax.enable_x64(True):
        found, plain = (stepped(True, objective=one + ForwardKL())[0] for one in (Doubled(), CrossEntropy()))
    assert found["doubled"] == pytest.approx(2 * plain["cross_entropy"], rel=1e-9)


@pytest.mark.parametrize("kind", [np.uint16, np.int8])
def test_labels_in_a_narrow_type_are_the_same(kind):
    student, teacher, batch = made_of()
    objective = bind(OBJECTIVE, *(output_shapes(one, batch.inputs) for one in (student, teacher)), DataInfo(WORDS))
    with jax.enable_x64(True):
        found = []
        for labels in (batch.targets, batch.targets.astype(kind)):
            step = jax.jit(make_step(student, teacher, objective, optax.sgd(1.0), in_chunks=True))
            state = init_state(student, objective, optax.sgd(1.0), seed=0)
            _, metrics = step(state, Variables(*teacher.init(None)), dataclasses.replace(batch, targets=labels))
            found.append(jax.device_get(metrics))
    assert found[0] == found[1]


def test_logits_are_never_there(whole):
    """In the program no array has the vocabulary beside all tokens, but in the dense one."""
    student, teacher, batch = made_of()
    objective = bind(ForwardKL(), *(output_shapes(one, batch.inputs) for one in (student, teacher)), DataInfo(WORDS))
    texts = []
    for in_chunks in (False, True):
        step = make_step(student, teacher, objective, optax.sgd(1.0), in_chunks=in_chunks)
        state = init_state(student, objective, optax.sgd(1.0), seed=0)
        texts.append(jax.jit(step).lower(state, Variables(*teacher.init(None)), batch).compile().as_text())
    assert f"[{ROWS},{LENGTH},{WORDS}]" in texts[0] and f"[{ROWS},{LENGTH},{WORDS}]" not in texts[1]


@pytest.mark.parametrize("devices, kind", [(1, "jit"), (4, "jit"), (2, "pmap")])
def test_a_teacher_of_which_few_tokens_are_kept(devices, kind):
    """The same step from ids and log-probabilities, at half of the positions in another order than the student has them."""
    objective = CrossEntropy() + 0.7 * ForwardKL() + 0.5 * TopK(k=3) + 0.2 * TopK(k=9, missing="renormalize")
    with jax.enable_x64(True):
        student, teacher, batch = made_of()
        logits = teacher.apply(*teacher.init(None), batch.inputs, train=False)[0].logits
        ids, logprobs = losses.topk_signal(logits, 4)
        batch = dataclasses.replace(batch, teacher=ModelOutput(taps={"topk_ids": ids, "topk_logprobs": logprobs}))
        shapes = output_shapes(student, batch.inputs), output_shapes(teacher, batch.inputs)
        bound, found = bind(objective, *shapes, DataInfo(WORDS)), []
        runner, optimizer = make_runner(kind, jax.devices()[:devices]), optax.sgd(1.0)
        for in_chunks in (False, True):
            step = make_step(student, None, bound, optimizer, axis=runner.axis, in_chunks=in_chunks, cached=True)
            state = runner.place(init_state(student, bound, optimizer, seed=0))
            compiled = runner.compile(step, state=state)
            state, metrics = compiled(state, None, runner.place_batch(batch))
            found.append((float(metrics["loss"][0]), jax.device_get(state.params["student"])))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-7)  # to the least probability of what is not kept
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), found[1][1], found[0][1])


def test_what_an_adaptive_share_goes_by_is_the_same():
    """And is had without whole logits."""
    student, teacher, batch = made_of()
    shapes = [output_shapes(network, batch.inputs) for network in (student, teacher)]
    bound, clock = bind(OBJECTIVE, *shapes, DataInfo(WORDS)), Clock(total_steps=10, steps_per_epoch=5)
    with jax.enable_x64(True):
        state, frozen = init_state(student, bound, optax.sgd(1.0), seed=0), Variables(*teacher.init(None))
        values, texts = [], []
        for pieces in (False, True):
            judge = judge_by(student, teacher, bound, batch, lambda x: x, clock, in_chunks=pieces)
            compiled = jax.jit(judge).lower(state, frozen).compile()
            values.append(float(compiled(state, frozen)))
            texts.append(compiled.as_text())
    assert values[1] == pytest.approx(values[0], rel=1e-9) and values[0] > 0
    assert f"[{ROWS},{LENGTH},{WORDS}]" in texts[0] and f"[{ROWS},{LENGTH},{WORDS}]" not in texts[1]


@pytest.mark.parametrize("kind", ["jit", "fsdp"])
def test_devices_share_a_large_vocabulary(kind, monkeypatch):
    """Each has its part of both heads and of their gradient. Where heads are spread none is ever whole; else the student's
    gradient alone is, since its parameters are."""
    monkeypatch.setattr(runners, "SPREAD_SIZE", MORE)
    objective = Sum(
        objectives=tuple(part for part in OBJECTIVE.parts if not isinstance(part, AKL | TopK))
    )  # which sort whole rows
    step, args = prepared(True, 4, kind, MORE, objective)
    moved = re.findall(r"= (.*) (all-gather|all-reduce|reduce-scatter)\(", step.lower(*args).compile().as_text())
    assert any(f"[{ROWS},{LENGTH},1,6]" in shape for shape, _ in moved), "states go from device to device"
    heads = [(shape.partition("{")[0], kind) for shape, kind in moved if f"[{MORE}," in shape]
    assert heads == ([(f"f32[{MORE},6]", "all-gather")] if kind == "jit" else [])


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_so_are_transformers(tied, monkeypatch):
    """Of rows of bytes with padding behind the last text, by either kind of head; what the student writes too."""
    small = LanguageNetwork(width=8, depth=1, heads=2, hidden=8, tied=tied)
    student = Phase(network=small, teacher="teacher", duration=steps(3), objective=CrossEntropy() + JSD(), on_policy=0.5,
                    optimizer=SGD(learning_rate=0.5))  # fmt: skip
    experiment = Experiment(name="large", data=Language(length=10, batch_size=8, eval_batch_size=8),
                            phases=(Phase(name="teacher", network=small), student))  # fmt: skip
    found = []
    for many in (32_768, 100):
        monkeypatch.setattr(chunked, "MANY", many)
        program = Builder(devices=jax.devices()[:2]).program(experiment, student)
        compiled, feeding = program.compiled, program.feeding
        assert program.networks.in_chunks == (many == 100)
        teacher = compiled.runner.place(Variables(*program.networks.teacher.init(jax.random.key(5))))
        state = compiled.fresh_state(0, 0)
        for _ in range(3):
            batch = compiled.runner.place_batch(feeding.pipeline(0)[int(state.step)])
            state, metrics = compiled.step(state, feeding.frozen(teacher), batch)
        found.append((float(metrics["loss"][0]), jax.device_get(state.params["student"])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found[0][1], found[1][1])


def test_the_size_of_the_vocabulary_decides_and_the_dry_run_says_so(monkeypatch):
    small = LanguageNetwork(width=8, depth=1, heads=2, hidden=8)
    experiment = Experiment(
        name="large", data=Language(length=10, batch_size=8, eval_batch_size=8),
        phases=(Phase(name="teacher", network=small, duration=steps(1)),
                Phase(network=small, teacher="teacher", duration=steps(1), objective=CrossEntropy() + ForwardKL())),
    )  # fmt: skip
    dataset = Builder(devices=jax.devices()[:1]).dataset(experiment.data)
    made = lambda objective: networks.make_networks(
        experiment, dataclasses.replace(experiment.student, objective=objective), dataset
    )
    few = made(ForwardKL())
    assert chunked.MANY == 32_768 and not few.in_chunks and not of_large_vocabulary(few)
    monkeypatch.setattr(chunked, "MANY", 100)
    both = made(CrossEntropy() + ForwardKL())
    assert both.in_chunks and of_large_vocabulary(both)["logits"].startswith("of a few tokens at a time")
    for objective, name in ((ForwardKL() + KD(), "kd"), (CrossEntropy(class_weights=(1.0,) * 260), "cross_entropy")):
        whole = made(objective)
        assert not whole.in_chunks and f"{name} takes them so" in of_large_vocabulary(whole)["logits"]
    kept = lambda objective, cache: (
        networks.make_networks(
            experiment, dataclasses.replace(experiment.student, objective=objective, teacher_cache=cache), dataset
        ).in_chunks
    )
    assert kept(CrossEntropy() + ForwardKL() + TopK(), "top8") and not kept(ForwardKL(), "float16")
    assert not kept(ForwardKL(temperature=2.0), "top8") and not kept(JSD(), "top8")
    assert JSD().in_chunks and not JSD(normalized=True).in_chunks
