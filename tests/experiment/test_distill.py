"""kdjax.distill: one's own networks and arrays by one call, with all that a run has."""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import kdjax
from kdjax.data import DataError
from kdjax.experiment import ExperimentError, program
from kdjax.experiment.distill import _stored
from kdjax.experiment.folder import find_network
from kdjax.experiment.serialization import problems
from kdjax.experiment.spec import Experiment, Phase
from kdjax.json_files import read_json
from kdjax.models import from_linen, from_nnx, to_nnx
from kdjax.objectives import DKD, KD, CrossEntropy
from kdjax.schedules import epochs, steps
from kdjax.tasks import Model, Task
from kdjax.training import make_runner
from kdjax.training.loop import Stopped
from kdjax.training.optimizers import SGD
from tests.experiment.test_resume import StopAt, outcome, rows


class MLP(nnx.Module):
    def __init__(self, width, rngs):
        self.hidden, self.norm = nnx.Linear(6, width, rngs=rngs), nnx.BatchNorm(width, rngs=rngs)
        self.out = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.norm(self.hidden(x))))


RNG = np.random.default_rng(0)
X = RNG.normal(size=(96, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 0)
DATA = (X[:64], Y[:64]), (X[64:], Y[64:])
SMALL = {"duration": steps(6), "batch_size": 16, "evaluate_every": steps(3), "checkpoint_every": steps(3)}


class Counts(nnx.Module):
    def __init__(self, rngs):
        self.out, self.count = nnx.Linear(6, 3, rngs=rngs), nnx.Param(jnp.arange(3))

    def __call__(self, x):
        return self.out(x) + self.count[...].sum()


def student(rngs):
    return MLP(4, rngs)


def noisy(key, x):
    return x + 0.1 * jax.random.normal(key, x.shape)


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "make_runner", lambda kind, devices=None: make_runner(kind, jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def teacher():
    return MLP(16, nnx.Rngs(7))


@pytest.fixture(scope="module")
def ran(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("distill") / "run"
    return kdjax.distill(student, teacher, DATA, "kd", folder=folder, augment=noisy, teacher_cache="", **SMALL)


def test_it_trains_evaluates_and_can_be_used(ran, teacher):
    last = ran["student"]["last"]["student"]
    assert set(last) >= {"top1", "nll", "ece", "agreement"} and ran["student"]["network"] == "student"
    logits = from_nnx(teacher).apply(*from_nnx(teacher).init(None), X[64:], train=False)[0].logits
    right = np.mean(np.argmax(logits, -1) == Y[64:])
    assert ran["teacher"]["last"]["student"]["top1"] == pytest.approx(right)
    predicted = np.argmax(ran.trained()(X[64:]).logits, -1)
    assert np.mean(predicted == Y[64:]) == pytest.approx(last["top1"])


def test_without_labels_a_student_is_judged_by_its_teacher(teacher, tmp_path):
    data = (X[:64], None), (X[64:], None)
    options = {"num_classes": 3, "folder": tmp_path / "run", **SMALL}
    results = kdjax.distill(student, teacher, data, KD(), **options)
    last = results["student"]["last"]["student"]
    said, taught = (
        results.trained()(X[64:]).logits,
        from_nnx(teacher).apply(*from_nnx(teacher).init(None), X[64:], train=False)[0],
    )
    assert set(last) == {"agreement", "teacher_kl"} and results["teacher"]["last"]["student"] == {}
    assert last["agreement"] == pytest.approx(np.mean(np.argmax(said, -1) == np.argmax(taught.logits, -1)))
    assert "agreement %" in str(results) and "top-1" not in str(results)
    refused = {
        "learns from targets called 'labels', and the data has none": (data, teacher, "kd", {}),
        "no labels, and there is no teacher": (data, None, KD(), {}),
        "give num_classes": (data, teacher, KD(), {"num_classes": None}),
    }
    for said, (given, whose, objective, changed) in refused.items():
        with pytest.raises((ExperimentError, DataError), match=said):
            kdjax.distill(student, whose, given, objective, **{**options, "folder": tmp_path / "other", **changed})
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("train", "held", "said"),
    [
        (X.tolist(), X.tolist(), "hold single numbers, as lists do; give arrays"),
        (np.array([None] * 96), X, "train, hold object; give arrays of numbers"),
        (
            {"a": X, "b": X},
            {"a": X},
            "are {'a': 'float32', 'b': 'float32'} to train on and {'a': 'float32'} to evaluate",
        ),
        (X, X.astype(int), "are float32 to train on and int32 to evaluate; give them alike"),
    ],
)
def test_arrays_of_odd_kinds_are_refused(train, held, said):
    with pytest.raises(DataError, match=said):
        kdjax.distill(student, None, ((train, Y), (held, Y)), "labels")


def test_a_trained_network_goes_back_to_a_module(ran):
    trained = ran.trained()
    module = to_nnx(student, trained.variables.params, trained.variables.state)
    np.testing.assert_allclose(module(X[:5]), trained(X[:5]).logits, rtol=1e-6)
    assert isinstance(module, MLP) and np.any(np.asarray(module.norm.mean[...]) != 0)
    with pytest.raises(ValueError, match=r"hidden/bias is .* in the variables and .* in the model"):
        to_nnx(lambda rngs: MLP(5, rngs), trained.variables.params, trained.variables.state)


def test_a_saved_network_is_loaded_with_what_it_was_handed_over_with(ran):
    with pytest.raises(ExperimentError, match="was handed over by a program"):
        kdjax.load_trained(ran.folder)
    loaded = kdjax.load_trained(ran.folder, network=student)
    np.testing.assert_array_equal(loaded(X[:5]).logits, ran.trained()(X[:5]).logits)


@pytest.mark.parametrize("step", [3, 4])
def test_stopped_and_resumed_it_is_the_same_bit_for_bit(step, ran, teacher, tmp_path):
    folder = tmp_path / "run"
    call = lambda **options: kdjax.distill(
        student, teacher, DATA, "kd", folder=folder, augment=noisy, **SMALL, **options
    )
    with pytest.raises(Stopped):
        call(progress=StopAt(step))
    call(resume=True)
    assert outcome(folder) == outcome(ran.folder) and rows(folder) == rows(ran.folder)


def test_what_is_not_the_same_is_not_gone_on_with(ran, teacher):
    def again(student=student, teacher=teacher, data=DATA, **options):
        options = {"augment": noisy, "resume": True, **SMALL, **options}
        return kdjax.distill(student, teacher, data, "kd", folder=ran.folder, **options)

    (x, y), held = DATA
    with pytest.raises(ExperimentError, match=r"data.fingerprint"):
        again(data=((x, y[::-1].copy()), held))
    with pytest.raises(ExperimentError, match=r"data.augmented: True != False"):
        again(augment=None)
    with pytest.raises(ExperimentError, match="'MLP' that was handed over is not the one this run began with"):
        again(teacher=MLP(16, nnx.Rngs(8)))
    assert again()["student"] == read_json(ran.folder / "student/result.json", ExperimentError, "")


def test_linen_modules_any_pytree_and_what_was_trained_before(ran, tmp_path):
    class Two(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return nn.Dense(3)(jnp.concatenate([inputs["a"], inputs["b"]], axis=-1))

    data = tuple(({"a": x[:, :2], "b": x[:, 2:]}, y) for x, y in DATA)
    sample = jax.tree.map(lambda a: a[:2], data[0][0])
    big = from_linen(Two(), sample, variables=Two().init(jax.random.key(1), sample))
    found = kdjax.distill(Two(), big, data, CrossEntropy() + KD(), folder=tmp_path / "a", **SMALL)
    assert found["student"]["steps"] == 6 and found["student"]["teacher_hash"] == found["teacher"]["hash"]
    # What a run trained teaches another: as it is at hand, and by its folder.
    at_hand = kdjax.distill(Two(), found.trained(), data, "kd", folder=tmp_path / "b", **SMALL)
    assert at_hand["teacher"]["hash"] == found["student"]["hash"]


def test_preprocessing_is_part_of_the_network_and_asked_for_when_it_is_missing(tmp_path):
    images = tuple(((255 * RNG.random((len(x), 6))).astype(np.uint8), y) for x, y in DATA)
    scaled = lambda inputs: inputs.astype(jnp.float32) / 255
    found = kdjax.distill(student, None, images, "labels", preprocess=scaled, folder=tmp_path / "run", **SMALL)
    wanted = found.trained()(images[0][0][:3]).logits
    with pytest.raises(ExperimentError, match="behind a preprocess=, which is not at hand"):
        kdjax.load_trained(tmp_path / "run", network=student)
    loaded = kdjax.load_trained(tmp_path / "run", network=student, preprocess=scaled)
    np.testing.assert_array_equal(loaded(images[0][0][:3]).logits, wanted)


def test_what_the_teacher_says_of_arrays_is_kept(teacher, tmp_path, monkeypatch):
    """Their views are the examples themselves, behind a `preprocess`; another one is another view."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shifted = lambda by: lambda x: x + by
    hashes, found, losses = {}, {}, {}
    for name, by, cache in (
        ("live", 0.5, ""),
        ("kept", 0.5, "float32"),
        ("again", 0.5, "float32"),
        ("other", 0.1, "float32"),
    ):
        results = kdjax.distill(student, teacher, DATA, KD(), folder=tmp_path / name, preprocess=shifted(by),
                                teacher_cache=cache, **SMALL)  # fmt: skip
        hashes[name], found[name] = (
            results["student"]["hash"],
            (results["student"]["teacher_cache"] or {}).get("computed"),
        )
        losses[name] = results["student"]["last"]["student"]["nll"]
    assert hashes["kept"] == hashes["again"] != hashes["other"]
    np.testing.assert_allclose(losses["live"], losses["kept"], rtol=1e-4)  # said in batches of another size
    assert found == {"live": None, "kept": 64, "again": 0, "other": 64}
    with pytest.raises(ExperimentError, match="and no view comes twice; leave out it or teacher_cache"):
        kdjax.distill(
            student, teacher, DATA, KD(), folder=tmp_path / "x", augment=noisy, teacher_cache="float32", **SMALL
        )


def test_a_bound_linen_module_teaches_with_its_variables_and_labels_may_have_an_axis(tmp_path):
    """Of one, as those of Keras have."""
    truth = RNG.normal(size=(6, 3)).astype(np.float32)
    labels = (X @ truth).argmax(axis=1)[:, None]
    bound = nn.Dense(3).bind({"params": {"kernel": 5 * truth, "bias": np.zeros(3, np.float32)}})
    data = (X[:64], labels[:64]), (X[64:], labels[64:])
    results = kdjax.distill(student, bound, data, "kd", folder=tmp_path / "run", **SMALL)
    assert results["student"]["last"]["teacher"]["top1"] == 1.0


def test_a_run_teaches_by_its_student_whatever_its_folders_are_called_and_how_old_they_are(tmp_path):
    """Architecture and weights of one phase."""
    run = tmp_path / "run"
    kdjax.distill(student, MLP(16, nnx.Rngs(3)), DATA, "kd", folder=run, **SMALL)
    assert find_network(run, "") == run / "student"
    os.utime(run / "teacher")
    assert find_network(run, "") == run / "student"
    model, place = _stored(run, Task(), None)
    assert place == run / "student" and model.name == "student"
    assert _stored(run / "teacher", Task(), None)[1] == run / "teacher"


def test_a_teacher_may_have_integers_among_its_parameters(tmp_path):
    found = kdjax.distill(student, Counts(nnx.Rngs(0)), DATA, "kd", folder=tmp_path / "run", **SMALL)
    assert np.isfinite(found["student"]["last"]["student"]["nll"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Odd(Task):
    extra: Any = 3
    window: tuple[int, str] = (1, "x")
    sides: tuple = (1, 2)
    heat: float = None
    arrays: Any = dataclasses.field(metadata={"saved": False})


def test_fields_of_a_task_of_ones_own_are_its_own():
    made = Experiment(data=Odd(name="odd", arrays=X), phases=(Phase(network=Model(name="a")),))
    assert problems(made) == []
    assert problems(dataclasses.replace(made, on_nan="Skip"))[0].startswith("experiment.on_nan: 'Skip' is not one of")
    assert "experiment.seed: expected a int" in problems(dataclasses.replace(made, seed=0.5))[0]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"data": ((X, Y[:5]), DATA[1])}, DataError, "given, train, have 5 and 96 rows"),
        ({"data": ((X, Y.astype(float)), DATA[1])}, DataError, "are float64; give classes as integers"),
        ({"num_classes": 2}, DataError, "Label 2 of given, train, at .*, is not among the 2 classes"),
        ({"data": (X, Y)}, ExperimentError, r"data is a tuple; give \(\(inputs, labels\)"),
        ({"objective": "kdd"}, ExperimentError, "did you mean"),
        ({"objective": "dkd", "teacher": None}, ExperimentError, "has no teacher"),
        ({"student": 3}, ExperimentError, "give an NNX module or its constructor"),
        ({"student": lambda rngs: nnx.Linear(6, 5, rngs=rngs)}, ExperimentError, "The teacher has 3 classes and the student 5"),
        ({"student": lambda rngs: nnx.Linear(6, 2, rngs=rngs), "objective": CrossEntropy()}, ExperimentError,
         "The student gives 2 logits and the data has 3 classes"),
        ({"teacher": student}, ExperimentError, "'student' is to teach as it is, and is a constructor without weights"),
        ({"teacher": nn.Dense(3)}, ExperimentError, "'Dense' is to teach as it is, and is a Linen module without weights"),
        ({"data": ((X[:64], np.eye(3, dtype=int)[Y[:64]]), DATA[1])}, DataError, r"rows of 0 and a 1, \[64, 3\]; give classes"),
        ({"data": ((np.where(np.arange(64)[:, None] == 5, np.nan, X[:64]), Y[:64]), DATA[1])}, DataError,
         "inputs of given, train, are not finite in row 5"),
        ({"keep": "Last"}, ExperimentError, r"phases\.1\.keep: 'Last' is not one of 'last', 'best'"),
        ({"labels": "ALL"}, ExperimentError, "labels: 'ALL' is not one of"),
        ({"objective": DKD(unlabelled="Skip")}, ExperimentError, "unlabelled: 'Skip' is not one of"),
        ({"teacher_cache": "top0"}, ExperimentError, "kept as float32, float16 or topK"),
        ({"optimizer": optax.adam(1e-3)}, ExperimentError, "optimizer is GradientTransformation.*give one of kdjax.training"),
        ({"optimizer": SGD}, ExperimentError, "optimizer is <class"),
        ({"optimizer": SGD(learning_rate="0.1")}, ExperimentError, "learning_rate: expected a float, found '0.1'"),
        ({"optimizer": SGD(learning_rate=jnp.float32(0.1))}, ExperimentError, r"learning_rate: expected a float, found Array"),
        ({"duration": 3}, ExperimentError, "duration: expected a Duration, found 3"),
        ({"evaluate_every": 5}, ExperimentError, "evaluate_every: expected a Duration, found 5"),
        ({"objective": KD}, ExperimentError, "objective is <class.*give a method's name or an Objective"),
        ({"seed": "a"}, ExperimentError, "seed: expected a int, found 'a'"),
        ({"seed": -1}, ExperimentError, "seed=-1 is negative"),
        ({"student": Counts}, ExperimentError, r"student/count is int32, of which there is no gradient"),
        ({"duraton": epochs(1)}, ExperimentError, "unexpected keyword argument 'duraton'"),
        ({"objective": "crd_shared"}, ExperimentError, "reads student.embedding, which the student network does not give"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(changes, error, said, teacher, tmp_path):
    options = {"student": student, "teacher": teacher, "data": DATA, "objective": "kd"} | SMALL | changes
    with pytest.raises(error, match=said):
        kdjax.distill(**options, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
