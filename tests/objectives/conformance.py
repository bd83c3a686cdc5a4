"""What every objective is put through: the subjects, batches for them, and the rules that some are known to break.

A new objective enters by being in the catalogue. Where a rule does not hold for it, a line in `EXCEPTIONS` says which and
why; a line that is not true fails too. Parts of methods that differ in numbers alone are one subject; weights are left out.

The gradients are those that the step uses, of the sum of `group_losses`: by all that the student says, and by the
objective's own parameters.
"""

import contextlib
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax.models.functional import functionalise
from kdjax.models.zoo.normalization import BatchNorm
from kdjax.objectives import METHODS, Bound, Objective, SemCKD, bind
from kdjax.objectives.base import snake_case
from kdjax.objectives.logits.wrappers import Wrapper
from kdjax.reduction import group_losses
from kdjax.types import Batch, Clock, Context, DataInfo, ModelOutput

# No other axis of the outputs below is as long as there are classes: that is how the classes of a head are found.
ROWS, CLASSES, DEVICES = 16, 7, 8
VIEWS, EXAMPLES = ("main", "strong"), 200
CLOCK = Clock(total_steps=80, steps_per_epoch=2, batch_size=ROWS)
STEP = 31  # late enough for every ramp to have begun
# Uneven: the second of eight devices has no row, others have one or two.
WHERE = np.array([1, 1, 0, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0, 1, 0], bool)
LABELLED = np.array([1, 0, 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1], bool)
# Less code optimisation: the programs are small and run a few times.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

# --- the rules that do not hold, by the class of the objective (or of the one it wraps), or by the name of the subject ---

EXCEPTIONS: dict[str, dict[str, str]] = {
    "has a loss": {
        "ControlVariate": "it corrects the gradient instead; tests/training/test_step.py has what it corrects to",
    },
    "the order of the classes does not matter": {
        "RandomTeacher": "its noise is drawn class by class, in order",
    },
    "a shift of all logits of a row changes nothing": {
        "LogitMSE": "it compares the logits themselves",
        "CLKD": "it compares the logits' directions, and takes no softmax",
        "DHKD": "its head learns the teacher's logits themselves",
        "RC": "the label's logit is raised by the largest one, which is no difference of logits",
        "SRRL": "it compares the logits themselves",
        "LabelRevision": "it compares the logits themselves where the teacher is right",
        "BinaryCrossEntropy": "a sigmoid sees a shift",
        "BernoulliKD": "a sigmoid sees a shift",
    },
    "a student that equals its teacher has nothing to learn": {
        "HardLabel": "a cross-entropy with the teacher's choice, which asks for certainty",
        "NKD": "a sum of cross-entropies; the one of the label asks for certainty",
        "WSLD": "a cross-entropy: the teacher's entropy is left, without a gradient",
        "TAID": "a cross-entropy: the teacher's entropy is left, without a gradient",
        "TTM": "only the teacher is softened",
        "RLD": "where the teacher is wrong, its certainty is asked of the label",
        "LabelRevision": "has a cross-entropy with the label",
        "LoCa": "the teacher is corrected by the label where it is wrong",
        "Swap": "the teacher is corrected by the label where it is wrong",
        "RandomTeacher": "does not look at the teacher",
        "FitNet": "a projector, untrained at first, stands between the two",
        "DHKD": "a head, untrained at first, stands between the two",
        "VID": "a module, untrained at first, stands between the two",
        "AB": "a module, untrained at first, stands between the two",
        "MGD": "a module, untrained at first, stands between the two",
        "CWD": "a module, untrained at first, stands between the two",
        "FSP": "a module, untrained at first, stands between the two",
        "KDSVD": "a module, untrained at first, stands between the two",
        "FT": "a module, untrained at first, stands between the two",
        "WeightedFeatures": "a module, untrained at first, stands between the two",
        "OFD": "a module, untrained at first, stands between the two",
        "ReviewKD": "a module, untrained at first, stands between the two",
        "SemCKD": "a module, untrained at first, stands between the two",
        "SRRL": "a module, untrained at first, stands between the two",
        "SimKD": "a module, untrained at first, stands between the two",
        "ICKD": "a module, untrained at first, stands between the two",
        "CC": "a module, untrained at first, stands between the two",
        "CRD": "a module, untrained at first, stands between the two",
        "Paraphrase": "it trains a paraphraser of the teacher's features",
        "SRD": "a projector, untrained at first, stands between the two, and the loss is a logarithm",
        "NST": "the number of channels enters its means",
    },
    "every element counts by itself": {
        "RandomTeacher": "its noise is drawn for each row, in the order of its elements",
    },
    "the order of the rows does not matter": {
        "CC": "it compares each example with the next one of the batch",
        "SemCKD": "its attention has a weight for each place in the batch",
    },
    "batches may have any size": {
        "SemCKD": "its attention has a weight for each place in the batch",
    },
    "one class is enough": {
        "CRD": "it contrasts examples with those of other classes",
    },
    "rows stay on their device": {
        **{
            name: "compares all pairs of examples"
            for name in ("MLLD", "SP", "RKD", "PKT", "CC", "KernelCC", "AffinityKD", "SemCKD")
        },
        "CRD": "every device writes all rows of the batch into its bank",
    },
}

# Whose float64 is not exact, and why.
ROUNDED = {"RandomTeacher": "its noise is drawn in float32, and a compiler may change the last digit"}


def exact(subject: str) -> dict[str, float]:
    """Tolerances for two ways to compute the same in float64."""
    rounded = any(type(part).__name__ in ROUNDED for part in chain(subjects()[subject]))
    return {"rtol": 1e-6, "atol": 1e-7} if rounded else {"rtol": 1e-9, "atol": 1e-12}


def reason(rule: str, subject: str) -> str | None:
    """Why a rule does not hold for a subject, or None."""
    declared = EXCEPTIONS.get(rule, {})
    names = [subject, *(cls.__name__ for part in chain(subjects()[subject]) for cls in type(part).__mro__)]
    return next((declared[name] for name in names if name in declared), None)


@contextlib.contextmanager
def expected(rule: str, subject: str):
    """Assertions of a rule: they must hold, or fail where the table says so."""
    if reason(rule, subject) is None:
        yield
        return
    with pytest.raises(AssertionError):
        yield


@contextlib.contextmanager
def refused(rule: str, subject: str):
    """What an objective refuses in words where the table says so."""
    if reason(rule, subject) is None:
        yield
        return
    with pytest.raises(ValueError):
        yield


# --- subjects ---

# It has a projector for each pair of stages: two are enough to have an attention.
FEWER_STAGES = {"student_stages": (-1,), "teacher_stages": (-2, -1)}


def title(objective: Objective) -> str:
    """`standardize-mlld`: the class, what it wraps, and its switches where they are not as usual."""
    words = [snake_case(type(objective).__name__)]
    for field in dataclasses.fields(objective):
        value = getattr(objective, field.name)
        if isinstance(value, Objective):
            words.append(title(value))
        elif isinstance(value, bool | str) and value != field.default:
            words.append(f"{field.name}={value}")
    return "-".join(words)


def chain(objective: Objective) -> list[Objective]:
    """An objective and those that it wraps."""
    inner = [getattr(objective, field.name) for field in dataclasses.fields(objective)]
    return [objective, *(part for value in inner if isinstance(value, Objective) for part in chain(value))]


@functools.cache
def subjects() -> dict[str, Objective]:
    """Every part of every method, by name; but those of detectors and of texts, which have tests of their own."""
    found = {}
    for entry in (entry for entry in METHODS.values() if entry.family not in ("detection", "text")):
        for part in (*entry.objective.parts, *(entry.before.parts if entry.before else ())):
            smaller = FEWER_STAGES if isinstance(part, SemCKD) else {}
            found.setdefault(title(part), dataclasses.replace(part, weight=1.0, **smaller))
    return found


def with_a_loss() -> list[str]:
    return [name for name in subjects() if reason("has a loss", name) is None]


def marked() -> list:
    """Those with a loss as parameters of tests. With the long tests run a class with its switches the other way, and what wraps a
    loss as another does."""
    seen, params = set(), []
    for name in with_a_loss():
        kind = type(subjects()[name])
        slow = "=" in name or (issubclass(kind, Wrapper) and kind in seen)
        seen.add(kind)
        params.append(pytest.param(name, marks=[pytest.mark.slow] * slow))
    return params


def without_dropout(module: nnx.Module) -> nnx.Module:
    """What it draws differs from device to device."""
    for _, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Dropout):
            node.rate = 0.0
    return module


def info(classes: int) -> DataInfo:
    labels = np.arange(EXAMPLES, dtype=np.int32) % classes
    return DataInfo(classes, EXAMPLES, targets=("labels", "multi_hot"), labels=labels)


@functools.cache
def bound(subject: str, classes: int = CLASSES) -> Bound:
    shapes = {role: said["main"] for role, said in cast(draw(0, ROWS, classes), np.float32).items()}
    student, teacher, data = shapes["student"], shapes["teacher"], info(classes)
    whole = bind(subjects()[subject], student, teacher, data)
    modules = {
        name: functionalise(
            lambda rngs, part=whole.parts[name]: without_dropout(part.build(student, teacher, data, rngs))
        )
        for name in whole.modules
    }
    return dataclasses.replace(whole, modules=modules)


@functools.cache
def normalises(subject: str) -> bool:
    """Whether a module of its own takes the statistics of the batch, rows that are missing included."""
    part, said = subjects()[subject], draw(0, 2)
    module = nnx.eval_shape(
        lambda: part.build(said["student"]["main"], said["teacher"]["main"], info(CLASSES), nnx.Rngs(0))
    )
    return any(isinstance(node, BatchNorm) for _, node in nnx.iter_graph(module))


@functools.cache
def initial(subject: str, classes: int = CLASSES):
    """`(params, state)` as NumPy arrays."""
    return jax.tree.map(np.asarray, bound(subject, classes).init(jax.random.key(1)))


# --- what is said, and of what ---


def draw(seed: int, rows: int = ROWS, classes: int = CLASSES) -> dict[str, dict[str, ModelOutput]]:
    """What student, teacher and peer say about every view, in float64; the teacher is wider, and has two members."""
    rng = np.random.default_rng(seed)
    return {
        role: {view: _output(rng, rows, classes, width, role == "teacher") for view in VIEWS}
        for role, width in {"student": 3, "teacher": 4, "peer": 3}.items()
    }


def _output(rng, rows, classes, width, members):
    def normal(*shape):
        return rng.standard_normal((rows, *shape))

    maps = [(4, 4, width), (4, 4, width), (2, 2, 2 * width)]
    return ModelOutput(
        logits=3 * normal(classes),
        features=tuple(normal(*shape) for shape in maps),
        preactivations=tuple(normal(*shape) for shape in maps),
        embedding=normal(2 * width),
        taps={"members": 3 * normal(2, classes)} if members else {},
    )


def classifier(classes: int = CLASSES) -> np.ndarray:
    """The frozen teacher's last layer, `[K, C]`: the part that objectives may call."""
    return np.random.default_rng(4).standard_normal((8, classes))


def norms() -> list[tuple[np.ndarray, np.ndarray]]:
    """Scale and bias of the teacher's normalisations before each activation, of either sign."""
    rng = np.random.default_rng(6)
    return [tuple(rng.standard_normal((2, width))) for width in (4, 4, 8)]


def batch(seed: int = 5, rows: int = ROWS, classes: int = CLASSES, **changes) -> Batch:
    """Some rows are missing, some may not show their label; the teacher that `draw(0)` makes is right about half of them."""
    rng = np.random.default_rng(seed)
    said = np.argmax(draw(0, rows, classes)["teacher"]["main"].logits, axis=-1)
    labels = np.where(rng.random(rows) < 0.4, said, rng.integers(0, classes, rows)).astype(np.int32)
    index = np.arange(100, 100 + rows, dtype=np.int32)
    whole = Batch({}, targets(labels, classes), index=index, where=WHERE[:rows], labelled=LABELLED[:rows])
    return dataclasses.replace(whole, **changes)


def targets(labels: np.ndarray, classes: int = CLASSES) -> dict[str, np.ndarray]:
    """Class indices, and as multi-hot targets the class and the one after the next."""
    hot = labels[..., None] == np.arange(classes)
    return {"labels": labels, "multi_hot": (hot | np.roll(hot, 2, axis=-1)).astype(np.int32)}


def cast(tree, dtype):
    """The floating-point leaves in another type."""
    return jax.tree.map(lambda x: x.astype(dtype) if np.issubdtype(np.asarray(x).dtype, np.floating) else x, tree)


def on_logits(said, change):
    """`said` with `change(role, logits)` in place of all logits, `[..., C]`."""
    return {
        role: {
            view: dataclasses.replace(
                output,
                logits=change(role, output.logits),
                taps={name: change(role, tap) for name, tap in output.taps.items()},
            )
            for view, output in views.items()
        }
        for role, views in said.items()
    }


def on_rows(tree, change):
    """Every array of `said` or of a batch with its rows changed."""
    return jax.tree.map(change, tree)


# --- the loss and its gradients ---


class Result(NamedTuple):
    """Of one batch.

    Attributes:
      value: this device's share of the loss.
      student: its gradient by what the student says, by view.
      params: by the objective's own parameters.
      frozen: by what teacher and peer say.
      state: the objective's new state.
      terms: its terms.
    """

    value: Any
    student: Any
    params: Any
    frozen: Any
    state: Any
    terms: Any


def evaluation(subject: str, *, train: bool = True, axis: str | None = None, classes: int = CLASSES):
    """`(params, state, classifier, said, batch, step) -> Result`, to be compiled or called as it is."""
    objective = bound(subject, classes)

    def loss(student, params, frozen, state, kernel, batch, step):
        def teacher_call(part, *arrays):
            if part == "norms":
                return tuple((jnp.asarray(scale), jnp.asarray(bias)) for scale, bias in norms())
            (x,) = arrays
            return jnp.mean(x, axis=tuple(range(1, x.ndim - 1))) @ kernel

        contexts = {
            view: Context(
                student=student[view], teacher=frozen["teacher"][view], peer=frozen["peer"][view], batch=batch,
                progress=CLOCK.at(step), key=jax.random.key(3), axis=axis, teacher_call=teacher_call,
            )
            for view in VIEWS
        }  # fmt: skip
        ctx = dataclasses.replace(contexts["main"], views={"strong": contexts["strong"]})
        terms, state = objective.apply(params, state, ctx, train=train)
        return sum(group_losses(terms, axis).values()), (state, terms)

    def evaluate(params, state, kernel, said, batch, step):
        frozen = {role: said[role] for role in ("teacher", "peer")}
        (value, (new_state, terms)), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(
            said["student"], params, frozen, state, kernel, batch, step
        )
        return Result(value, *gradients, new_state, terms)

    return evaluate


@functools.cache
def compiled(subject: str, train: bool):
    return jax.jit(evaluation(subject, train=train), compiler_options=QUICK)


def run(subject: str, said, batch: Batch, *, dtype=np.float64, step: int = STEP, train: bool | None = None, **others):
    """The result in NumPy arrays, of one compiled function for each subject and type.

    `others` are parameters, state or the teacher's classifier, in place of the usual ones. Modules that take the statistics
    of a batch are not training unless asked to: examples are by themselves then.
    """
    train = not normalises(subject) if train is None else train
    usual = dict(zip(("params", "state", "kernel"), (*initial(subject), classifier()), strict=True))
    with jax.enable_x64(dtype == np.float64):
        arguments = cast((*(usual | others).values(), said), dtype)
        return jax.device_get(compiled(subject, train)(*arguments, batch, np.int32(step)))
