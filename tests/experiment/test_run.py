"""What an experiment promises beyond finishing: honest labels, phases, equal runners, evaluation of what was kept."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

from kdjax.experiment import Phase
from kdjax.experiment.artifacts import evaluate_run
from kdjax.experiment.program import Builder
from kdjax.experiment.run import run
from kdjax.experiment.trained import load_trained
from kdjax.objectives import DKD, KD, SP, CrossEntropy, FitNet
from kdjax.schedules import steps
from kdjax.tasks.classification import Classifier
from kdjax.training import runners
from kdjax.training.checkpoints import load_network
from kdjax.training.optimizers import SGD
from tests.experiment.conftest import net, small

SEMI = {"data": {"labelled": 100}, "length": 6}


class Tampered(Builder):
    """A builder whose unlabelled training examples carry wrong labels."""

    def dataset(self, task):
        dataset = super().dataset(task)
        source = dataset.train
        labels = np.where(dataset.labelled, source.labels, (source.labels + 1) % 10).astype(np.int32)
        info = dataclasses.replace(dataset.info, labels=labels)
        return dataclasses.replace(dataset, train=dataclasses.replace(source, labels=labels), info=info)


@pytest.fixture(scope="module")
def hashes(tmp_path_factory, builder):
    """A function: what a student comes to with the labels as they are, and tampered with; of one teacher."""
    folder = tmp_path_factory.mktemp("semi")
    run(small(CrossEntropy(), **SEMI, phases=small().phases[:1]), folder / "teacher", builder=builder)
    tampered = Tampered(builder.data_dir, builder.devices)

    def both(objective, place, **student):
        experiment = small(objective, **SEMI, student=student)
        taught = experiment.replace_phase("teacher", weights=str(folder / "teacher"))
        return [
            run(taught, place / name, builder=one)["student"]["hash"]
            for name, one in (("as is", builder), ("tampered", tampered))
        ]

    return both


@pytest.mark.parametrize("objective", [CrossEntropy() + KD() + DKD(unlabelled="teacher"), CrossEntropy()])
def test_labels_that_may_not_be_used_have_no_influence(objective, tmp_path, hashes):
    """Semi-supervised distillation is honest only if hidden labels could be anything."""
    as_is, tampered = hashes(objective, tmp_path)
    assert as_is == tampered


def test_tampering_would_show(tmp_path, hashes):
    """The same check with all labels in use: it must notice."""
    as_is, tampered = hashes(CrossEntropy(), tmp_path, labels="all")
    assert as_is != tampered


def test_untaught_networks_visit_labelled_examples_only(builder):
    experiment = small(CrossEntropy(), **SEMI)
    images = builder.dataset(experiment.data)
    rows = builder.program(experiment, experiment.student).feeding.rows
    assert len(rows) == 100 and images.labelled[rows].all()
    taught = small(**SEMI)
    assert len(builder.program(taught, taught.student).feeding.rows) == len(images.train_index)
    counts = np.bincount(images.train.labels[rows])
    assert counts.min() == counts.max() == 10


def test_epochs_are_the_same_length_for_every_method(builder):
    """Otherwise a baseline that sees the labelled examples only would be trained for a fraction of the steps."""
    from kdjax.schedules import epochs

    lengths = set()
    for objective in (CrossEntropy(), KD()):
        experiment = small(objective, data={"labelled": 100}).replace_phase("student", duration=epochs(2))
        lengths.add(builder.program(experiment, experiment.student).compiled.clock.total_steps)
    assert lengths == {2 * -(-1437 // 32)}


def test_held_out_examples_are_never_trained_on(builder):
    experiment = small(data={"validation": 200, "labelled": 100, "evaluate_on": "validation"})
    images = builder.dataset(experiment.data)
    assert len(images.held_index) == 200 and not set(images.held_index) & set(images.train_index)
    assert not images.labelled[images.held_index].any()


def test_chain_of_phases(tmp_path, builder):
    """A warm-up on labels, whose weights the student begins with; then a grandchild taught by the student."""
    base = small(length=3)
    sgd = SGD(learning_rate=0.05)
    warm_up = Phase(name="warm-up", network=net(2), duration=steps(2), optimizer=sgd)
    student = dataclasses.replace(base.student, start="warm-up", optimizer=sgd, ema_decay=0.9)
    grandchild = dataclasses.replace(base.student, name="grandchild", teacher="student", objective=KD() + SP())
    experiment = dataclasses.replace(base, phases=(base.phases[0], warm_up, student, grandchild))
    results = run(experiment, tmp_path / "run", builder=builder)
    assert results["grandchild"]["teacher_hash"] == results["student"]["hash"]
    assert results["student"]["teacher_hash"] == results["teacher"]["hash"]

    frozen = experiment.replace_phase("student", optimizer=SGD(learning_rate=0.0), ema_decay=0.0)
    frozen = dataclasses.replace(frozen, phases=frozen.phases[:3])
    again = run(frozen, tmp_path / "frozen", builder=builder)
    assert results["warm-up"]["hash"] == again["warm-up"]["hash"]
    template = builder.program(frozen, warm_up).compiled.network_template()
    first, second = (load_network(tmp_path / "frozen" / name, template)[0].params for name in ("warm-up", "student"))
    chex.assert_trees_all_equal(first, second)


def test_the_best_and_the_last_are_both_recorded(tmp_path, builder):
    """A learning rate that grows ruins what was learnt: the best evaluation is not the last."""
    from kdjax.schedules import Linear

    ruin = SGD(learning_rate=Linear(start=0.05, end=3.0))
    experiment = small(CrossEntropy(), length=12).replace_phase("student", optimizer=ruin, keep="best")
    result = run(experiment, tmp_path / "run", builder=builder)["student"]
    assert result["last"]["step"] == 12
    found = evaluate_run(tmp_path / "run", builder.data_dir)["student"]
    assert found["top1"] == pytest.approx(result["best"]["student"]["top1"])
    assert result["best"]["student"]["top1"] >= result["last"]["student"]["top1"]


def test_evaluation_reads_what_was_kept(tmp_path, builder):
    results = run(small(student={"ema_decay": 0.5}), tmp_path / "run", builder=builder)
    found = evaluate_run(tmp_path / "run", builder.data_dir)
    for phase, result in results.items():
        for name in ("top1", "nll", "ece"):
            assert found[phase][name] == pytest.approx(result["last"]["student"][name], rel=1e-5)


@pytest.mark.slow  # tests/training compares their steps
def test_jit_and_pmap_on_eight_devices_agree(tmp_path, data_dir, builder):
    """Whole runs differ by rounding, which grows; a few steps of a gentle optimizer keep it small."""
    experiment = small(KD() + CrossEntropy() + SP(), length=3, data={"labelled": 300})
    results = {}
    for name, runner, devices in (("one", "jit", 1), ("jit", "jit", 8), ("pmap", "pmap", 8)):
        one = builder if devices == 1 else Builder(data_dir, devices=jax.devices()[:devices])
        results[name] = run(dataclasses.replace(experiment, runner=runner), tmp_path / name, builder=one)["student"]
    for name in ("jit", "pmap"):
        for metric in ("nll", "teacher_kl", "ece"):
            wanted = results["one"]["last"]["student"][metric]
            assert results[name]["last"]["student"][metric] == pytest.approx(wanted, rel=2e-4), (name, metric)


def test_tiny_shrinks_any_config(tmp_path, builder):
    assert (
        dataclasses.replace(small(), data=dataclasses.replace(small().data, batch_size=48))
        .replace_phase("student", microbatches=3)
        .tiny()
        .problems()
        == []
    )  # batches of 32
    experiment = small(length=9000).tiny()
    results = run(experiment, tmp_path / "run", builder=builder)
    assert results["student"]["steps"] == 6


def test_what_a_run_leaves(finished):
    place = finished / "student"
    assert {p.name for p in place.iterdir()} >= {
        "checkpoints",
        "metrics.jsonl",
        "network.json",
        "result.json",
        "tensorboard",
    }
    assert list((place / "tensorboard").iterdir())
    result = json.loads((place / "result.json").read_text())
    assert result["teacher_hash"] and result["examples_per_s"] > 0 and result["parameters"] > 0
    steps_kept = sorted(int(p.name) for p in (place / "checkpoints/last").iterdir())
    assert steps_kept == [6, 9]


def test_checkpoints_hold_no_teacher(finished):
    meta = json.loads((finished / "student/checkpoints/last/9/meta/metadata").read_text())
    assert meta["teacher"] == json.loads((finished / "teacher/result.json").read_text())["hash"]
    assert all(name.split("/")[0] in {"step", "params", "state", "opt_state", "ema", "keys"} for name in meta["shapes"])
    assert not any("teacher" in name for name in meta["shapes"])


def test_a_trained_network_is_used_as_a_function(finished, builder):
    result = json.loads((finished / "student/result.json").read_text())
    images = builder.dataset(small().data)
    predict = jax.jit(load_trained(finished, data_dir=builder.data_dir))
    predicted = np.argmax(predict(images.held.images).logits, axis=-1)
    assert np.mean(predicted == images.held.labels) == pytest.approx(result["last"]["student"]["top1"])
    assert load_trained(finished, "teacher", builder.data_dir).network.name == "SmallCNN (depth=2, convs_per_stage=1)"


def test_evaluation_may_be_cut_short(builder):
    rows = builder.dataset(small(data={"eval_examples": 50}).data).held_index
    assert len(rows) == len(set(rows)) == 50 and rows[0] == 0 and rows[-1] == 359


@pytest.mark.slow  # test_config.py has what a config says when tiny, tests/data how such a set is read
def test_a_config_of_a_stock_set_runs_tiny(tmp_path):
    """CIFAR-100 as TFDS has it, with made-up images: name, shapes and classes are the real ones."""
    import tensorflow_datasets as tfds

    from kdjax.experiment.config import load_config

    experiment = load_config("configs/cifar100/resnet32x4_resnet8x4.py")("kd").tiny()
    experiment = experiment.replace_phase("teacher", network=Classifier(name="resnet8x4", width=4))
    with tfds.testing.mock_data(num_examples=64):
        one = Builder(str(tmp_path / "data"), devices=jax.devices()[:1])
        results = run(experiment, tmp_path / "run", builder=one)
    assert results["student"]["steps"] == 6 and results["student"]["last"]["student"]["nll"] > 0


@pytest.mark.slow  # three phases are compiled for four devices
def test_fsdp_spreads_what_earlier_phases_of_the_run_left(tmp_path, data_dir, monkeypatch):
    """The teacher, and what the student's first objective trained; arrays of these sizes are spread otherwise not at all."""
    monkeypatch.setattr(runners, "SPREAD_SIZE", 8)
    base = small(CrossEntropy() + FitNet(stage=1), length=2, runner="fsdp")
    before = dataclasses.replace(base.student, name="before", objective=FitNet(stage=1))
    last = dataclasses.replace(base.student, start="before", ema_decay=0.5)
    whole = dataclasses.replace(base, phases=(*base.phases[:-1], before, last))
    builder = Builder(data_dir, devices=jax.devices()[:4])
    results = run(whole, tmp_path / "run", builder=builder)
    assert run(whole, tmp_path / "run", resume=True, builder=builder)["student"] == results["student"]
