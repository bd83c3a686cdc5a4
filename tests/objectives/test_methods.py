"""Every method of the catalogue binds, trains and is explained."""

import dataclasses
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from kdjax import objectives
from kdjax.models import from_nnx
from kdjax.models.detectors import DetectorOutput
from kdjax.models.zoo.normalization import BatchNorm
from kdjax.objectives import METHODS, ByReference, Objective, Sum, bind, catalogue, method, part_names, reads_teacher
from kdjax.schedules import Linear, Schedule, steps
from kdjax.training import Variables, init_state, make_runner, make_step
from kdjax.training.mutual import join, make_mutual_step
from kdjax.training.optimizers import SGD, build
from kdjax.types import Clock, DataInfo, ModelOutput, MultiView
from tests.training.toy import CLASSES, shapes, toy_batch

# Detectors have networks and targets of their own: tests/objectives/detection.
CLASSIFYING = [name for name, entry in METHODS.items() if entry.family not in ("detection", "text")]
EVERY = sorted(
    (
        cls for cls in vars(objectives).values()
        if isinstance(cls, type) and issubclass(cls, Objective) and cls is not ByReference  # it stands for others
    ),
    key=lambda cls: cls.__name__,
)  # fmt: skip


class ThreeStages(nnx.Module):
    """As many stages as the published weights' settings read, with BatchNorm."""

    def __init__(self, width, rngs):
        self.width = width
        self.conv1 = nnx.Conv(2, width, (3, 3), rngs=rngs)
        self.norm = BatchNorm(width, rngs=rngs)
        self.conv2 = nnx.Conv(width, width, (1, 1), strides=2, rngs=rngs)
        self.classifier = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, x):
        first = jnp.tanh(self.norm(self.conv1(x)))
        second = jnp.tanh(self.conv2(first))
        embedding = second.mean((1, 2))
        return ModelOutput(
            logits=self.classifier(embedding), features=(first, first, second), preactivations=(first, first, second),
            embedding=embedding,
        )  # fmt: skip

    def classify(self, embedding):
        return self.classifier(embedding)

    def norms(self):
        return ((self.norm.scale[...], self.norm.bias[...]),) * 2 + ((jnp.ones(self.width), jnp.zeros(self.width)),)


@functools.cache
def network(width):
    return from_nnx(lambda rngs: ThreeStages(width, rngs), parts=("classify", "norms"))


@functools.cache
def said(width):
    return shapes(network(width), rows=len(toy_batch().labels))


@functools.cache
def variables_of(width):
    return jax.device_get(Variables(*network(width).init(jax.random.key(7))))


def two_views(inputs, index, epoch, key):
    return MultiView({"main": inputs, "strong": 0.8 * inputs + 0.1})


@functools.cache
def four_steps(name):
    """Parameters before and after, and the metrics of four steps on one batch, some of it missing or unlabelled."""
    objective = METHODS[name].objective
    needs_teacher = reads_teacher(objective.parts)
    alike = any("teacher.gradient" in part.reads for part in objective.parts)
    width = 3 if alike else 4
    student, teacher = network(3), network(width)
    batch = toy_batch()
    labels, rows = batch.labels, len(batch.labels)
    batch = dataclasses.replace(batch, targets={"labels": labels, "multi_hot": np.eye(CLASSES, dtype=np.int32)[labels]})
    both = said(3), said(width) if needs_teacher else None
    data = DataInfo(CLASSES, 64, targets=("labels", "multi_hot"), labels=np.resize(labels, 64))
    bound = bind(objective, *both, data)
    clock = Clock(total_steps=4, steps_per_epoch=2, batch_size=rows)
    optimizer = build(SGD(learning_rate=1e-3, momentum=0.0), clock, bound)
    runner = make_runner("jit", jax.devices()[:1])
    variables = runner.place(variables_of(width)) if needs_teacher else None
    statistics = variables.state if bound.teacher_mode == "train" else None
    state = init_state(student, bound, optimizer, seed=0, teacher_state=statistics)
    step = make_step(student, teacher if needs_teacher else None, bound, optimizer, clock=clock, views=two_views)
    if bound.needs_peer:
        state = join(state, init_state(student, bound, optimizer, seed=1))
        step = make_mutual_step(step, bound.peer_order)
    before = jax.tree.map(np.array, state.params)
    step = runner.compile(step)
    state, metrics = runner.place(state), []
    for _ in range(4):
        state, seen = step(state, variables, runner.place_batch(batch))
        metrics.append(jax.device_get(seen))
    return before, jax.device_get((state.params, state.state)), metrics


@pytest.mark.parametrize("name", CLASSIFYING)
def test_every_method_trains(name):
    before, (params, state), metrics = four_steps(name)
    for leaf in jax.tree.leaves((params, state, metrics)):
        assert np.all(np.isfinite(leaf))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, params)
    assert moved["student"]["conv1"]["kernel"] > 0
    parts = part_names(METHODS[name].objective)
    trained = {key for key, leaves in moved["objective"].items() if jax.tree.leaves(leaves)}
    assert trained | ({"dml"} if "peer" in moved else set()) == {key for key, part in parts.items() if part.trains}
    for own in moved["objective"].values():
        assert name == "ctkd" or max(jax.tree.leaves(own), default=1) > 0  # below the last digit of a temperature
    assert metrics[0]["gradient_norm"][0] > 1e-4


def has_schedule(name):
    return any(isinstance(part.weight, Schedule) for part in METHODS[name].objective.parts)


# The target of TAID moves away from the student, so its cross-entropy may rise.
@pytest.mark.parametrize("name", [name for name in CLASSIFYING if not has_schedule(name) and name != "taid"])
def test_every_method_of_constant_weight_lowers_its_loss(name):
    metrics = four_steps(name)[2]
    assert metrics[3]["loss"][0] < metrics[0]["loss"][0]


def test_the_warm_up_of_dkd_acts():
    """Staircase over 20 epochs of two steps: the weight is 1/20, 1/20, 2/20, 2/20."""
    metrics = four_steps("dkd")[2]
    for seen, weight in zip(metrics, (0.05, 0.05, 0.1, 0.1), strict=True):
        means = {part: seen[part][0] / seen[part][1] for part in ("cross_entropy", "dkd")}
        np.testing.assert_allclose(seen["loss"][0], means["cross_entropy"] + weight * means["dkd"], rtol=1e-5)


@pytest.mark.parametrize("cls", EVERY, ids=lambda cls: cls.__name__)
def test_every_objective_is_explained_and_is_data(cls):
    doc = vars(cls).get("__doc__") or ""
    assert doc.strip() and not doc.startswith(f"{cls.__name__}("), "the docstring is the one dataclasses makes up"
    assert dataclasses.is_dataclass(cls) and cls() == cls() and hash(cls()) == hash(cls())
    assert cls().group in ("task", "distill")
    if cls not in (Objective, Sum):
        assert cls.__module__.startswith("kdjax.objectives.")
        assert (cls().formula and cls().paper is None) or cls().paper.year
        for read in cls().reads:
            role, _, field = read.partition(".")
            said = {f.name for kind in (ModelOutput, DetectorOutput) for f in dataclasses.fields(kind)}
            known = role in ("student", "teacher", "peer") and field in said
            assert known or read in ("labels", "multi_hot", "boxes", "written", "drawn", "teacher.gradient")


def test_every_objective_is_in_the_catalogue():
    used = {type(part) for entry in METHODS.values() for part in entry.objective.parts}
    used |= {type(part) for entry in METHODS.values() if entry.before for part in entry.before.parts}
    used |= {type(part.inner) for entry in METHODS.values() for part in entry.objective.parts if hasattr(part, "inner")}
    of_ones_own = {objectives.AuxiliaryLoss, objectives.OnHead}  # for networks that have such a loss, or head
    assert used == set(EVERY) - {Objective, Sum} - of_ones_own


def test_published_weights():
    assert method("kd").objective.parts == (
        objectives.CrossEntropy(weight=0.1), objectives.KD(weight=0.9, temperature=4.0),
    )  # fmt: skip
    assert [part.weight for part in method("fitnet").objective.parts] == [1.0, 100.0]
    assert [part.weight for part in method("sp").objective.parts] == [1.0, 3000.0]


def test_rows_of_the_catalogue():
    rows = catalogue.rows()
    assert [row[0] for row in rows] == list(METHODS)
    assert all(len(row) == len(catalogue.HEADINGS) and row[2] and row[3] and row[5] and row[6] for row in rows)
    by_name = {row[0]: row for row in rows}
    assert by_name["kd"][1:6] == (
        "Hinton, Vinyals, Dean, NIPS workshop 2015", "logit", "labels, student logits, teacher logits", "–",
        "0.1 * cross_entropy + 0.9 * kd(temperature=4.0)",
    )  # fmt: skip
    assert by_name["labels"][1] == "" and by_name["labels"][3] == "labels, student logits"
    assert by_name["uda_kd"][1] == "Ruffy, Chahal, arXiv 2019", "the method's own paper, not KD's"
    assert by_name["rc"][1] == "Sun et al., ICCV 2025", "the part that is more than cross-entropy and KD"


def test_what_is_trained_is_counted_for_the_usual_pair():
    by_name = {row[0]: row[4] for row in catalogue.rows()}
    assert by_name["fitnet"] == f"a convolutional projector ({128 * 128 + 128 + 2 * 128:,})"
    assert by_name["ctkd"] == "a temperature (1)"
    assert by_name["uskd"] == f"a weak head ({128 * 100 + 100:,})"
    assert by_name["dhkd"] == f"a second head ({256 * 200 + 200 + 2 * 200 + 200 * 100 + 100:,})"
    assert by_name["kd"] == by_name["taid"] == "–" and by_name["dml"] == "a second student"


def test_the_catalogue_as_a_table():
    lines = catalogue.markdown().splitlines()
    assert len(lines) == len(METHODS) + 2
    assert {line.count("|") for line in lines} == {len(catalogue.HEADINGS) + 1}
    assert lines[2].startswith("| `labels` |  | labels | labels, student logits | – | `cross_entropy` | no teacher")


def test_an_objective_as_a_person_would_write_it():
    objective = (
        0.5 * objectives.CrossEntropy() + objectives.Standardize(inner=objectives.DKD(beta=2.0)) + objectives.KD()
    )
    wrapped = "standardize(inner=dkd(alpha=1.0, beta=2.0, temperature=4.0))"
    assert catalogue.written(objective) == f"0.5 * cross_entropy + {wrapped} + kd(temperature=4.0)"
    scheduled = Linear(0.0, 1.0, steps(5)) * objectives.KD(temperature=Linear(1.0, 2.0, steps(9)), view="strong")
    assert catalogue.written(scheduled) == (
        "(line 0 to 1 over 5 steps) * kd(temperature=line 1 to 2 over 9 steps, view=strong)"
    )


def console():
    return Console(file=io.StringIO(), width=400, color_system=None)


def test_the_catalogue_on_a_terminal():
    out = console()
    catalogue.show_methods(out)
    text = out.file.getvalue()
    for name, entry in METHODS.items():
        assert any(line.startswith(f"{name} ") and line.rstrip().endswith(entry.summary) for line in text.splitlines())
        assert catalogue.written(entry.objective) in " ".join(text.split()) and catalogue.source(entry) in text


@pytest.mark.parametrize("name", METHODS)
def test_every_method_explains_itself(name):
    out = console()
    catalogue.show_method(name, out)
    text = out.file.getvalue()
    entry = METHODS[name]
    assert text.startswith(f"{name}: {entry.summary}")
    assert (entry.setting or "no published setting") in text
    for part_name, part in part_names(entry.objective).items():
        assert f"× {part_name}" in text
        assert type(part).__doc__.splitlines()[0] in text and part.formula in text
        assert part.paper is None or part.paper.title in text
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            shown = catalogue.written(value) if isinstance(value, Objective) else value
            assert field.name == "weight" or f"  {field.name} = {shown}" in text
            if isinstance(value, Objective):
                assert value.formula in text and type(value).__doc__.splitlines()[0] in text


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"Unknown method 'fitnets'; did you mean 'fitnet'\?"):
        method("fitnets")
    with pytest.raises(ValueError, match=r"Unknown method 'zzz'; known: labels, label_smoothing, .*, tid\."):
        method("zzz")
    assert method("sp") is METHODS["sp"]
