"""Names, weights, problems in words, and binding to two networks' shapes."""

import dataclasses
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax.objectives import DKD, KD, SP, CrossEntropy, FitNet, LogitMSE, Objective, Sum, bind, check, part_names
from kdjax.objectives.base import snake_case
from kdjax.reduction import per_example
from kdjax.schedules import Constant, WarmUp, epochs, steps
from kdjax.types import Batch, Clock, Context, DataInfo, ModelOutput

DATA = DataInfo(num_classes=5, num_examples=100)
CLOCK = Clock(total_steps=100, steps_per_epoch=10)
KEY = jax.random.key(0)


def output(classes=5, width=3, stages=2, rows=4):
    features = tuple(
        jnp.asarray(np.random.default_rng(width + stage).standard_normal((rows, 4, 4, width)), jnp.float32)
        for stage in range(stages)
    )
    return ModelOutput(logits=jnp.ones((rows, classes)), features=features)


STUDENT, TEACHER = output(width=2), output(width=3)


def context(student=STUDENT, teacher=TEACHER, step=0, **options):
    batch = Batch.of(jnp.zeros((4, 1)), jnp.arange(4))
    return Context(student=student, teacher=teacher, batch=batch, progress=CLOCK.at(step), **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoTerms(Objective):
    """Two terms, a module with state and a key."""

    reads: ClassVar = ("student.features",)
    trains: ClassVar = "a counter"

    def build(self, student, teacher, data, rngs):
        return Counter(data.num_examples, rngs)

    def terms(self, module, ctx):
        count = module.count()
        rows = module.linear(ctx.student.features[0].mean((1, 2)))
        return {"rows": per_example(rows.sum(-1), ctx.batch.where), "count": per_example(count * jnp.ones(4))}


class Counter(nnx.Module):
    def __init__(self, size, rngs):
        self.linear = nnx.Linear(2, size, rngs=rngs)
        self.calls = nnx.BatchStat(jnp.zeros(()))

    def count(self):
        self.calls[...] = self.calls[...] + 1.0
        return self.calls[...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class First(KD):
    combines = True

    def combine(self, gradients):
        return gradients["distill"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Second(First):
    def combine(self, gradients):
        return gradients["task"]


# --- names ---


def test_parts_are_named_in_order_of_writing():
    objective = FitNet(stage=0) + CrossEntropy() + 2.0 * FitNet(stage=1) + KD() + FitNet(stage=0) + TwoTerms()
    assert list(part_names(objective)) == ["fitnet", "cross_entropy", "fitnet_2", "kd", "fitnet_3", "two_terms"]
    assert part_names(objective)["fitnet_2"] == FitNet(stage=1, weight=2.0)
    assert part_names(KD()) == {"kd": KD()}


def test_names_are_words_of_the_class():
    names = (
        "CrossEntropy",
        "KD",
        "DKD",
        "SP",
        "FitNet",
        "LogitMSE",
        "HardLabel",
        "KDSVD",
        "ReviewKD",
        "AffinityKD",
        "AT2",
    )
    assert [snake_case(name) for name in names] == [
        "cross_entropy", "kd", "dkd", "sp", "fitnet", "logit_mse", "hard_label", "kdsvd", "reviewkd", "affinity_kd", "at2",
    ]  # fmt: skip


# --- adding and weighing ---


def weights(objective, step=0):
    """Weight of every part at a step."""
    bound = bind(objective, STUDENT, TEACHER, DATA)
    params, state = bound.init(KEY)
    terms, _ = bound.apply(params, state, context(step=step), train=True)
    return {name: float(term.weight) for name, term in terms.items()}


def test_objectives_add_and_weigh():
    inner = CrossEntropy() + 3.0 * KD()
    assert weights(inner) == {"cross_entropy": 1.0, "kd": 3.0}
    assert weights(2.0 * inner + LogitMSE() * 0.5) == {"cross_entropy": 2.0, "kd": 6.0, "logit_mse": 0.5}
    assert weights(2 * (inner + inner)) == {"cross_entropy": 2, "kd": 6, "cross_entropy_2": 2, "kd_2": 6}
    assert weights(Sum(objectives=(KD(weight=3.0), SP()), weight=2.0)) == {"kd": 6.0, "sp": 2.0}
    assert weights(0.0 * KD()) == {"kd": 0.0}


def test_schedules_weigh_and_multiply_with_numbers():
    warm = WarmUp(length=epochs(2))
    for objective in (8.0 * (warm * KD()), warm * (8.0 * KD()), (8.0 * warm) * KD(), KD() * warm * 8.0):
        assert [weights(objective, step)["kd"] for step in (0, 10, 20, 50)] == [0.0, 4.0, 8.0, 8.0]
    both = 2.0 * (CrossEntropy() + WarmUp(length=steps(4)) * (warm * KD()))
    np.testing.assert_allclose([weights(both, step)["kd"] for step in (0, 2, 10, 20)], [0, 0.1, 1, 2], rtol=1e-6)
    assert weights(both, 2)["cross_entropy"] == 2.0
    assert weights(Constant(0.5) * KD())["kd"] == 0.5


def test_only_objectives_add():
    for other in (1, "kd", None):
        with pytest.raises(TypeError):
            KD() + other


def test_objectives_are_compared_by_value():
    def make():
        return 0.1 * CrossEntropy() + 0.9 * (WarmUp(length=epochs(20)) * DKD(temperature=2.0)) + FitNet(stage=1)

    assert make() == make() and hash(make()) == hash(make()) and make() is not make()
    assert 2.0 * KD() == KD() * 2.0 == KD(weight=2.0)
    different = [make(), KD(), KD(temperature=1.0), 2.0 * KD(), DKD(), CrossEntropy() + KD(), KD() + CrossEntropy()]
    assert len(set(different)) == len(different)
    with pytest.raises(dataclasses.FrozenInstanceError):
        KD().temperature = 1.0


def test_objectives_print_as_they_are_written():
    objective = 0.5 * CrossEntropy() + KD(temperature=WarmUp(value=4.0))
    names = {kind.__name__: kind for kind in (Sum, CrossEntropy, KD, WarmUp, type(epochs(1)))}
    assert eval(repr(objective), names) == objective


# --- binding ---


def test_every_part_has_parameters_and_state_of_its_own():
    bound = bind(CrossEntropy() + FitNet(stage=0) + KD() + FitNet(stage=0) + TwoTerms(), STUDENT, TEACHER, DATA)
    params, state = bound.init(KEY)
    assert list(params) == list(state) == ["fitnet", "fitnet_2", "two_terms"]
    assert params["two_terms"]["linear"]["kernel"].shape == (2, 100)
    chex.assert_trees_all_equal(bound.init(KEY), (params, state))
    first, second = (params[name]["conv"]["kernel"] for name in ("fitnet", "fitnet_2"))
    assert first.shape == (1, 1, 2, 3) and np.all(first != second), "two projectors begin alike"
    assert np.all(bound.init(jax.random.key(1))[0]["fitnet"]["conv"]["kernel"] != first)


def test_terms_and_state():
    bound = bind(2.0 * TwoTerms() + CrossEntropy() + FitNet(stage=0), STUDENT, TEACHER, DATA)
    params, state = bound.init(KEY)
    terms, after = bound.apply(params, state, context(key=KEY), train=True)
    assert list(terms) == ["two_terms/rows", "two_terms/count", "cross_entropy", "fitnet"]
    assert {name: term.group for name, term in terms.items()} == {
        "two_terms/rows": "distill", "two_terms/count": "distill", "cross_entropy": "task", "fitnet": "distill",
    }  # fmt: skip
    assert terms["two_terms/rows"].weight == terms["two_terms/count"].weight == 2.0
    assert terms["two_terms/count"].sum == 4.0 and terms["cross_entropy"].count == 4.0
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert after["two_terms"]["calls"] == 1.0
    assert np.all(after["fitnet"]["norm"]["var"] != state["fitnet"]["norm"]["var"])
    _, again = bound.apply(params, after, context(key=KEY), train=True)
    assert again["two_terms"]["calls"] == 2.0
    _, untouched = bound.apply(params, state, context(key=KEY), train=False)
    chex.assert_trees_all_equal(untouched, state)


def test_every_part_has_a_key_of_its_own():
    seen = []

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Keyed(Objective):
        reads: ClassVar = ()

        def terms(self, module, ctx):
            seen.append(None if ctx.key is None else tuple(jax.random.key_data(ctx.key).tolist()))
            return per_example(jnp.zeros(4))

    bound = bind(Keyed() + Keyed(), STUDENT, None, DATA)
    bound.apply({}, {}, context(key=KEY), train=True)
    bound.apply({}, {}, context(key=KEY), train=True)
    bound.apply({}, {}, context(), train=True)
    assert seen[0] != seen[1] and seen[:2] == seen[2:4] and seen[4:] == [None, None]


def test_the_decay_mask_has_the_structure_of_the_parameters():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Undecayed(FitNet):
        decays: ClassVar = False

    bound = bind(FitNet(stage=0) + Undecayed(stage=0), STUDENT, TEACHER, DATA)
    params, _ = bound.init(KEY)
    mask = bound.decay_mask(params)
    chex.assert_trees_all_equal_structs(mask, params)
    assert set(jax.tree.leaves(mask["fitnet"])) == {True} and set(jax.tree.leaves(mask["undecayed"])) == {False}


def test_whether_a_teacher_is_needed():
    assert bind(CrossEntropy() + KD(), STUDENT, TEACHER, DATA).needs_teacher
    assert not bind(CrossEntropy(), STUDENT, None, DATA).needs_teacher


def test_combining_gradients():
    assert bind(CrossEntropy() + KD(), STUDENT, TEACHER, DATA).combine is None
    assert bind(CrossEntropy() + First(), STUDENT, TEACHER, DATA).combine({"task": 1, "distill": 2}) == 2
    both = bind(First() + CrossEntropy() + Second(), STUDENT, TEACHER, DATA)
    with pytest.raises(ValueError, match=r"First and Second: each combines .* in its own way; use one"):
        both.combine  # noqa: B018  a property


def test_the_usual_combination_is_the_sum():
    gradients = {"task": {"w": jnp.ones(2)}, "distill": {"w": jnp.full(2, 3.0)}}
    np.testing.assert_array_equal(KD().combine(gradients)["w"], 4.0)


def test_binding_computes_nothing():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Huge(Objective):
        reads: ClassVar = ()

        def build(self, student, teacher, data, rngs):
            return nnx.Linear(1_000_000, 1_000_000, rngs=rngs)

    bound = bind(Huge(), jax.eval_shape(lambda: STUDENT), None, DATA)
    assert list(bound.modules) == ["huge"]


# --- problems in words ---


@pytest.mark.parametrize(
    ("objective", "student", "teacher", "problems"),
    [
        (CrossEntropy() + KD() + FitNet(stage=0), STUDENT, TEACHER, []),
        (CrossEntropy(), STUDENT, None, []),
        (CrossEntropy(), ModelOutput(logits=jnp.ones((4, 5))), output(classes=9), []),
        (KD(), STUDENT, None, ["Objective 'kd' reads teacher.logits, but there is no teacher; give the phase one."]),
        (
            KD(), STUDENT, output(classes=9),
            ["The teacher has 9 classes and the student 5; they must agree: set the student's number of classes"],
        ),
        (
            KD(), ModelOutput(), ModelOutput(),
            [
                "Objective 'kd' reads student.logits, which the student network does not give; return them",
                "Objective 'kd' reads teacher.logits, which the teacher network does not give; return them",
            ],
        ),
        (
            KD() + FitNet(stage=0) + FitNet(stage=0), output(stages=0), TEACHER,
            [
                "Objective 'fitnet' reads student.features, which the student network does not give; return them in a "
                "ModelOutput, or pass output= to the adapter",
                "Objective 'fitnet_2' reads student.features",
            ],
        ),
    ],
)  # fmt: skip
def test_problems_are_said_in_words(objective, student, teacher, problems):
    found = check(objective, student, teacher)
    assert len(found) == len(problems)
    for sentence, beginning in zip(found, problems, strict=True):
        assert sentence.startswith(beginning) and sentence.endswith(".")
    if problems:
        with pytest.raises(ValueError) as caught:
            bind(objective, student, teacher, DATA)
        assert str(caught.value) == found[0]
    else:
        bind(objective, student, teacher, DATA)


@pytest.mark.parametrize("method", [FitNet, SP])
@pytest.mark.parametrize("stage", [2, -3])
def test_a_stage_that_is_not_there_is_refused(method, stage):
    with pytest.raises(
        ValueError, match=rf"stage={stage}, but the student network gives 2 stages of features \(0 to 1\)"
    ):
        bind(method(stage=stage), STUDENT, output(stages=3), DATA)
    with pytest.raises(ValueError, match="the teacher network gives 1 stages"):
        bind(method(stage=1), STUDENT, output(stages=1), DATA)


def test_an_objective_without_a_loss_says_so():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine(Objective):
        pass

    with pytest.raises(TypeError, match=r"Mine does not say its loss; define terms\(module, ctx\)"):
        bind(Mine(), STUDENT, TEACHER, DATA).apply({}, {}, context(), train=True)
