"""Bad input gets one sentence that names the mend, and nothing is lost."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from kdjax.cli import main
from kdjax.data import DataError
from kdjax.experiment import ExperimentError
from kdjax.experiment.artifacts import evaluate_run
from kdjax.experiment.folder import run_place
from kdjax.experiment.program import Builder
from kdjax.experiment.run import run
from kdjax.json_files import read_json, write_json
from kdjax.objectives import DKD, KD, CrossEntropy, FitNet, SimKD
from kdjax.schedules import steps
from kdjax.tasks.classification import Classification, Classifier, Views
from kdjax.training.checkpoints import CheckpointError
from kdjax.training.loop import TrainingError
from kdjax.training.optimizers import SGD
from tests.experiment.conftest import small


@pytest.fixture
def copy(finished, tmp_path):
    """A finished run to damage."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def unfinished(copy):
    """A run whose student has checkpoints of steps 6 and 9, but no result."""
    for name in ("result.json", "network.json"):
        (copy / "student" / name).unlink()
    return copy


def contents(folder):
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


def test_an_existing_run_folder_is_refused_and_untouched(finished, builder):
    before = contents(finished)
    with pytest.raises(ExperimentError, match=r"exists; say --resume to go on with it, --overwrite to delete it"):
        run(small(), finished, builder=builder)
    with pytest.raises(ExperimentError, match="another configuration"):
        run(small(seed=3), finished, resume=True, builder=builder)
    with pytest.raises(ExperimentError, match="exclude each other"):
        run(small(), finished, resume=True, overwrite=True, builder=builder)
    assert contents(finished) == before


def test_what_is_of_the_machine_alone_may_change_and_numbers_be_of_numpy(finished, builder, tmp_path, capsys):
    elsewhere = dataclasses.replace(small(), workers=2, cache_dir=str(tmp_path))
    run(elsewhere, finished, resume=True, builder=builder)
    assert "another configuration" not in capsys.readouterr().err
    numbers = {"seed": np.int64(0), "log_every": np.int32(2)}
    run(dataclasses.replace(small(), **numbers), finished, resume=True, builder=builder)
    assert "workers=-1; it must be at least 1" in dataclasses.replace(small(), workers=-1).problems()[0]


def test_overwrite_deletes_runs_only(tmp_path, builder):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ExperimentError, match="is not a run of kdjax"):
        run(small(), tmp_path, overwrite=True, builder=builder)
    with pytest.raises(ExperimentError, match="no run to resume"):
        run(small(), tmp_path, resume=True, builder=builder)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_overwrite_starts_anew(copy, builder):
    before = json.loads((copy / "student/result.json").read_text())
    results = run(small(seed=5), copy, overwrite=True, builder=builder)
    assert results["student"]["seed"] == 5 and results["student"]["hash"] != before["hash"]


def test_overwrite_does_not_delete_the_teacher_it_needs(copy, builder):
    before = contents(copy)
    for weights in (copy, copy / "teacher"):
        with pytest.raises(ExperimentError, match=r"would delete .* that phase 'teacher' takes"):
            run(small().replace_phase("teacher", weights=str(weights)), copy, overwrite=True, builder=builder)
    assert contents(copy) == before


def test_overwrite_works_through_a_link(copy, tmp_path, builder):
    (tmp_path / "link").symlink_to(copy)
    run(small(), tmp_path / "link", overwrite=True, builder=builder)
    assert (tmp_path / "link").is_symlink() and (copy / "student/result.json").exists()


def test_other_data_under_the_same_name_are_refused(tmp_path, builder):
    """By resuming and evaluating; nothing is changed. A run that does not say which data it had is taken as it is."""
    rng = np.random.default_rng(0)
    pictures = {split: rng.integers(0, 255, (64, 8, 8, 1), np.uint8) for split in ("train", "test")}

    def save(**changed):
        arrays = {f"x_{split}": x for split, x in (pictures | changed).items()}
        np.savez(tmp_path / "set.npz", **arrays, y_train=np.arange(64) % 10, y_test=np.arange(64) % 10)

    save()
    experiment, folder = small(data={"name": str(tmp_path / "set.npz")}), tmp_path / "run"
    run(experiment, folder, builder=builder)
    run(experiment, folder, resume=True, builder=Builder(builder.data_dir, devices=builder.devices))
    before = contents(folder)
    for split in pictures:
        save(**{split: 255 - pictures[split]})
        what = rf"\({split}\) has other examples than when the run in .*run was started; put those back"
        with pytest.raises(ExperimentError, match=what):
            run(experiment, folder, resume=True, builder=Builder(builder.data_dir, devices=builder.devices))
        with pytest.raises(ExperimentError, match=what):
            evaluate_run(folder, builder.data_dir)
    assert contents(folder) == before
    (folder / "data.json").unlink()
    evaluate_run(folder, builder.data_dir)


def test_a_teacher_that_saw_other_inputs_is_told_of(finished, tmp_path, builder, capsys):
    other = small(length=1, data={"views": Views(crop_padding=1, mean=(0.3,))})
    run(other.replace_phase("teacher", weights=str(finished)), tmp_path / "run", builder=builder)
    assert "trained on other inputs than it sees here: data.views.mean was (), and is (0.3,)" in capsys.readouterr().err


def test_a_network_that_knows_the_classes_in_another_order_is_refused(copy, builder):
    path = copy / "teacher/network.json"
    facts = read_json(path, ExperimentError, "")
    assert facts["class_names"] == list("0123456789")
    write_json(path, facts | {"class_names": list("1023456789")})
    with pytest.raises(ExperimentError, match="in another order: number 0 is '1' to it and '0' in the data"):
        evaluate_run(copy, builder.data_dir)


def largest(folder):
    """The file that holds the values: damage there is silent unless somebody checks."""
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_bytes(path, where=0.5):
    raw = bytearray(path.read_bytes())
    begin = int(len(raw) * where)
    raw[begin : begin + 64] = bytes(255 - b for b in raw[begin : begin + 64])
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("damage", [flip_bytes, lambda p: p.write_bytes(p.read_bytes()[:100]), lambda p: p.unlink()])
def test_a_damaged_checkpoint_is_named_and_the_one_before_gone_on_from(damage, finished, unfinished, builder, capsys):
    last = unfinished / "student/checkpoints/last"
    damage(largest(last / "9"))
    run(small(), unfinished, resume=True, builder=builder)
    said = capsys.readouterr().err
    assert "last/9 is damaged" in said and "aside/last-9, and training goes on from step 6" in said
    results = [json.loads((folder / "student/result.json").read_text()) for folder in (unfinished, finished)]
    assert results[0]["hash"] == results[1]["hash"] and results[0]["last"] == results[1]["last"]


def test_a_half_written_checkpoint_is_not_taken_for_a_good_one(finished, unfinished, builder):
    last = unfinished / "student/checkpoints/last"
    (last / "9").rename(last / "9.orbax-checkpoint-tmp")
    results = run(small(), unfinished, resume=True, builder=builder)
    assert results["student"]["hash"] == json.loads((finished / "student/result.json").read_text())["hash"]


def test_a_damaged_network_is_refused(copy, builder):
    flip_bytes(largest(copy / "teacher/weights"))
    with pytest.raises(CheckpointError, match=r"network in .*teacher is damaged: weights/.*; train that phase again"):
        run(small(), copy, resume=True, builder=builder)


def test_a_checkpoint_of_another_architecture_is_refused(unfinished, builder):
    wider = small().replace_phase("student", network=Classifier(width=3))
    (unfinished / "experiment.json").unlink()
    from kdjax.experiment.serialization import save

    save(wider, unfinished / "experiment.json")
    with pytest.raises(CheckpointError, match=r"another architecture: .* there and .* here; use the configuration"):
        run(wider, unfinished, resume=True, builder=builder)


def test_a_teacher_of_another_architecture_is_refused(finished, tmp_path, builder):
    other = small().replace_phase("teacher", weights=str(finished), network=Classifier(width=5))
    with pytest.raises(CheckpointError, match="another architecture"):
        run(other, tmp_path / "run", builder=builder)


def test_a_teacher_with_other_classes_is_refused(copy, tmp_path, builder):
    path = copy / "teacher/network.json"
    write_json(path, read_json(path, ExperimentError, "") | {"num_classes": 100})
    experiment = small().replace_phase("teacher", weights=str(copy))
    with pytest.raises(ExperimentError, match=r"has 100 classes, the data set digits has 10"):
        run(experiment, tmp_path / "other", builder=builder)


def test_class_counts_of_teacher_and_student_must_agree():
    import jax

    from kdjax.objectives import bind
    from kdjax.types import DataInfo, ModelOutput

    def logits(classes):
        return ModelOutput(logits=jax.ShapeDtypeStruct((4, classes), "float32"))

    with pytest.raises(ValueError, match=r"teacher has 1000 classes and the student 100; they must agree"):
        bind(KD(), logits(100), logits(1000), DataInfo(100))


def test_class_counts_may_differ_where_logits_are_not_compared():
    import jax

    from kdjax.objectives import bind
    from kdjax.types import DataInfo, ModelOutput

    def output(classes):
        logits, features = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((4, classes), (4, 5, 5, 3)))
        return ModelOutput(logits=logits, features=(features,))

    assert bind(CrossEntropy() + FitNet(stage=0), output(3), output(1000), DataInfo(3)).needs_teacher


def test_a_run_without_its_teacher_is_not_evaluated(copy, builder):
    shutil.rmtree(copy / "teacher")
    with pytest.raises(
        ExperimentError, match=r"teacher has no network that has ended, and 'student' is evaluated beside it"
    ):
        evaluate_run(copy, builder.data_dir)


def test_a_name_that_is_too_long_is_no_run_folder(tmp_path):
    with pytest.raises(ExperimentError, match=r"cannot be a run folder \(File name too long\)"):
        run_place(tmp_path / ("a" * 300))


def test_a_resumed_run_keeps_its_teacher(finished, copy, tmp_path, builder):
    """A run whose teacher was trained again meanwhile must not go on as if nothing had happened."""
    experiment = small().replace_phase("teacher", weights=str(copy))
    run(experiment, tmp_path / "other", builder=builder)
    run(small(seed=9), copy, overwrite=True, builder=builder)
    with pytest.raises(ExperimentError, match="not the one this run began with"):
        evaluate_run(tmp_path / "other", builder.data_dir)
    with pytest.raises(ExperimentError, match="not the one this run began with"):
        run(experiment, tmp_path / "other", resume=True, builder=Builder(builder.data_dir, builder.devices))


def test_a_loss_that_is_not_finite_stops_with_the_mend(tmp_path, builder):
    explosive = small(length=9, student={}).replace_phase(
        "student", optimizer=SGD(learning_rate=1e30), duration=steps(9)
    )
    explosive = dataclasses.replace(explosive, checkpoint_every=steps(1), evaluate_every=steps(9))
    with pytest.raises(
        TrainingError, match=r"'student': .*not finite at step 2; lower the learning rate .*begins anew"
    ):
        run(explosive, tmp_path / "run", builder=builder)
    assert (tmp_path / "run/teacher/result.json").exists(), "the teacher that ended well is kept"
    assert not (tmp_path / "run/student/result.json").exists()
    rows = [json.loads(line) for line in (tmp_path / "run/student/metrics.jsonl").read_text().splitlines()]
    assert all(row["loss"] is not None for row in rows)
    checkpoints = tmp_path / "run/student/checkpoints"
    assert not list((checkpoints / "last").iterdir()), "that of the first step is past the overflow already"
    assert (checkpoints / "aside/last-1").exists()


@pytest.mark.parametrize(
    ("experiment", "sentence"),
    [
        (small(phases=()), "no phases"),
        (small(student={"start": "nowhere"}), r"takes its start from 'nowhere', not an earlier phase \(teacher\)"),
        (small().replace_phase("student", teacher=""), "no teacher, but its objective 'kd' reads one; set teacher"),
        (small().replace_phase("student", name="teacher", teacher=""), "Two phases are called 'teacher'"),
        (small().replace_phase("student", network=Classifier(name="resnet9")), "did you mean 'resnet"),
        (small().replace_phase("student", duration=steps(0)), "no step at all"),
        (small(CrossEntropy() + FitNet(stage=7)), r"stage=7, but the student network gives \d stages"),
        (small(data={"evaluate_on": "validation"}), "data.validation is 0; hold some examples out"),
        (small(data={"views": Views(mean=(0.5, 0.5, 0.5))}), "images have 1 channels, Views.mean has 3"),
        (small(log_every=0), "log_every=0; it must be at least 1"),
    ],
)
def test_an_experiment_that_cannot_be_says_why(experiment, sentence, tmp_path, builder):
    with pytest.raises(ExperimentError, match=sentence):
        run(experiment, tmp_path / "run", builder=builder)
    assert not (tmp_path / "run").exists(), "nothing is written before everything fits"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (Classification(name="diggits"), "digits"),
        (Classification(name="cifar100"), "kdjax data prepare cifar100"),
        (Classification(name="digits", validation=5000), "leaves nothing to train on"),
        (Classification(name="digits", labelled=3), "without a label"),
    ],
)
def test_data_that_is_not_there_says_why(data, sentence, tmp_path, builder):
    with pytest.raises(DataError, match=sentence):
        run(dataclasses.replace(small(), data=data), tmp_path / "run", builder=builder)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide_over_the_devices(data_dir, tmp_path):
    experiment = dataclasses.replace(small(), data=Classification(name="digits", batch_size=30, eval_batch_size=128))
    with pytest.raises(ExperimentError, match=r"batch_size=30 does not divide over 8 devices; use 24 or 32"):
        run(experiment, tmp_path / "run", builder=Builder(data_dir))


def test_two_methods_cannot_both_combine_gradients():
    from kdjax.objectives import part_names
    from kdjax.objectives.binding import Bound

    class Own(KD):
        combines = True

        def combine(self, gradients):
            return super().combine(gradients)

    with pytest.raises(ValueError, match="use one of them at a time"):
        _ = Bound(part_names(Own() + Own() + DKD()), {}).combine


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["distil"], "did you mean 'distill'"),
        (["distill"], "needs a config first"),
        (["distill", "nowhere.py"], "There is no config nowhere.py"),
        (["methods", "dkdd"], "did you mean 'dkd'"),
        (["evaluate", "nowhere"], "is not a run"),
        (["distill", "configs"], "There is no config configs"),
        (["data", "prepare", "cifar1000"], "cifar"),
    ],
)
def test_the_command_line_answers_in_one_sentence(argv, sentence, capsys):
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error and error.startswith("kdjax: error: ")


@pytest.mark.parametrize("field", ["teacher", "start"])
def test_a_student_with_something_behind_it_neither_teaches_nor_goes_on(field):
    first = small(CrossEntropy() + SimKD())
    again = dataclasses.replace(first.student, name="again", **{"teacher": "teacher", field: "student"})
    assert first.problems() == []
    (problem,) = dataclasses.replace(first, phases=(*first.phases, again)).problems()
    assert problem.startswith(
        f"Phase 'again' takes its {field} from 'student', whose network is deployed with its 'simkd'"
    )


# --- what is left behind, and files of others ---


def test_what_a_killed_run_or_a_system_leaves_behind_is_no_run(tmp_path, builder):
    folder = tmp_path / "run"
    for name in ("experiment.json.123-ab.tmp", "experiment.tmp", ".DS_Store", "Thumbs.db"):
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
    from kdjax.experiment.folder import open_run

    open_run(folder, small())
    assert (folder / "experiment.json").exists()


def test_what_is_overwritten_goes_as_a_whole_and_what_says_that_it_is_a_run_last(finished, copy, monkeypatch):
    from kdjax.experiment import folder as folders

    kept, moved = folders.Path.rename, []

    def killed(path, target):
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(path.name)
        return kept(path, target)

    monkeypatch.setattr(folders.Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        folders.open_run(copy, small(), overwrite=True)
    monkeypatch.undo()
    assert "experiment.json" not in moved and (copy / "experiment.json").exists()
    folders.open_run(copy, small(), overwrite=True)
    assert [path.name for path in copy.iterdir()] == ["experiment.json"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": "<script>alert(1)</script>"}, "seed is '<script>alert"),
        ({"parameters": "many"}, "parameters is 'many' and not int"),
        ({"last": {"step": 4, "student": {"top1": "<b>"}}}, "last.student.top1 is '<b>' and not"),
        ({"hash": 7}, "hash is 7 and not str"),
        ({"best": []}, r"best is \[\] and not"),
    ],
)
def test_a_result_of_another_type_is_refused(changed, said, copy, builder):
    path = copy / "student/result.json"
    write_json(path, read_json(path, ExperimentError, "") | changed)
    with pytest.raises(ExperimentError, match=rf"student/result\.json is damaged: {said}"):
        run(small(), copy, resume=True, builder=builder)


def test_networks_that_were_taken_from_each_other_are_no_circle(tmp_path):
    from kdjax.experiment.folder import find_network

    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "result.json", {"hash": "0", "from": str(tmp_path / other)})
    with pytest.raises(ExperimentError, match=r"took its network from .* which took it from there"):
        find_network(tmp_path / "a", "teacher")


def test_a_cache_folder_that_cannot_be_is_said_before_a_teacher_is_trained(tmp_path, builder):
    from kdjax.training.teacher_cache import CacheError

    (tmp_path / "file").touch()
    cached = small(student={"teacher_cache": "float32"}, cache_dir=str(tmp_path / "file/cache"))
    with pytest.raises(CacheError, match=r"cannot be kept in .*file/cache .*; name another folder with --cache-dir"):
        run(cached, tmp_path / "run", builder=builder)
    assert not (tmp_path / "run").exists()
