"""A teacher whose outputs are in a file, written by whatever program."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from kdjax.cli import main
from kdjax.data import DataError
from kdjax.data.outputs import check_covered, read_outputs
from kdjax.experiment import ExperimentError, program
from kdjax.experiment.config import load_config
from kdjax.experiment.run import run
from kdjax.experiment.trained import load_trained
from kdjax.tasks.classification import Views
from kdjax.training import make_runner
from kdjax.training.loop import Stopped
from tests.experiment.test_resume import StopAt, outcome, rows


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "make_runner", lambda kind, devices=None: make_runner(kind, jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    return program.Builder(str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def live(builder, tmp_path_factory):
    """A run with its teacher, and the file of what that says of every training image."""
    folder = tmp_path_factory.mktemp("live")
    experiment = load_config("digits/smoke")("kd").tiny()
    run(experiment, folder / "run", builder=builder)
    train = builder.dataset(experiment.data).train
    said = load_trained(folder / "run", "teacher")(train.read(np.arange(len(train)))["inputs"]).logits
    np.savez(folder / "said.npz", logits=np.asarray(said))
    return folder, experiment


def test_it_is_the_live_run_and_resumes_bit_for_bit(live, builder, tmp_path):
    from kdjax.experiment.given_teacher import taught_by

    folder, experiment = live
    stored = taught_by(experiment, folder / "said.npz", builder)
    assert [phase.name for phase in stored.phases] == ["student"] and not stored.student.teacher
    found = run(stored, tmp_path / "run", builder=builder)["student"]
    wanted = json.loads((folder / "run/student/result.json").read_text())
    assert found["last"]["student"]["nll"] == pytest.approx(wanted["last"]["student"]["nll"], rel=1e-5)
    assert found["teacher_hash"] and "agreement" not in found["last"]["student"]
    with pytest.raises(Stopped):
        run(stored, tmp_path / "again", builder=builder, progress=StopAt(4))
    run(stored, tmp_path / "again", resume=True, builder=builder)
    assert outcome(tmp_path / "again") == outcome(tmp_path / "run") and rows(tmp_path / "again") == rows(
        tmp_path / "run"
    )


def test_another_file_than_a_phase_was_trained_with_is_refused(live, builder, tmp_path):
    from kdjax.experiment.given_teacher import taught_by

    folder, experiment = live
    said, file = np.load(folder / "said.npz")["logits"], tmp_path / "said.npz"
    np.savez(file, logits=said)
    run(taught_by(experiment, file, builder), tmp_path / "run", builder=builder)
    np.savez(file, logits=-said)
    again = program.Builder(builder.data_dir)
    with pytest.raises(ExperimentError, match=r"said\.npz is not what .*student was trained with \(hash"):
        run(taught_by(experiment, file, again), tmp_path / "run", resume=True, builder=again)
    np.savez(file, logits=said[:, None])
    with pytest.raises(
        ExperimentError, match=r"has logits \[1437, 1, 10\], and the student gives .* as many axes, \[N, C\]"
    ):
        run(taught_by(experiment, file, again), tmp_path / "rank", builder=program.Builder(builder.data_dir))
    assert not (tmp_path / "rank").exists()


def test_the_command_line_takes_the_file_for_a_teacher(live, builder, tmp_path, capsys):
    folder, _ = live
    command = ["distill", "digits/smoke", "--method", "dkd", "--tiny", "--data-dir", builder.data_dir]
    command += ["--teacher", str(folder / "said.npz"), "--run", str(tmp_path / "run")]
    assert main([*command, "--dry-run"]) == 0 and "Nothing is wrong" in capsys.readouterr().out
    assert main(command) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--data-dir", builder.data_dir]) == 0


@pytest.mark.parametrize("suffix", ["npz", "jsonl"])
def test_rows_go_by_their_index_and_what_is_missing_is_said(suffix, tmp_path):
    path = tmp_path / f"said.{suffix}"
    index, logits = np.array([3, 0, 2]), np.arange(6.0).reshape(3, 2)
    if suffix == "npz":
        np.savez(path, logits=logits, index=index)
    else:
        lines = [json.dumps({"index": int(i), "logits": row.tolist()}) for i, row in zip(index, logits, strict=True)]
        path.write_text("\n".join(lines) + "\n")
    found = read_outputs(path, 4)
    np.testing.assert_array_equal(found[[3, 0, 2]], logits)
    check_covered(found, np.array([0, 2, 3]), path)
    with pytest.raises(DataError, match="lacks 1 of the 4 examples to train on, the first is 1"):
        check_covered(found, np.arange(4), path)


def test_probabilities_have_the_precision_that_they_can(tmp_path):
    half = np.array([[0.0123, 0.9877]], np.float16)
    np.savez(tmp_path / "said.npz", probs=half)
    np.testing.assert_array_equal(read_outputs(tmp_path / "said.npz", 1), np.log(half.astype(np.float32)))
    np.savez(tmp_path / "said.npz", probs=np.array([[1e-50, 1.0]]))
    np.testing.assert_allclose(read_outputs(tmp_path / "said.npz", 1), [[np.log(1e-50), 0]], rtol=1e-6)


def test_probabilities_become_logits(tmp_path):
    np.savez(tmp_path / "said.npz", probs=np.array([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]]))
    np.testing.assert_allclose(
        np.exp(read_outputs(tmp_path / "said.npz", 2)), [[0.5, 0.5, 0], [0.1, 0.2, 0.7]], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({}, "nothing, and neither logits nor probs"),
        ({"y": np.zeros(3)}, "has y, and neither"),
        ({"logits": np.zeros((4, 2), int)}, "must be floats"),
        ({"logits": np.full((4, 2), np.nan)}, "is nan in row 0"),
        ({"probs": np.ones((4, 2))}, "do not add up to 1"),
        ({"logits": np.full((4, 2), 0.5)}, "add up to 1 in every row, as probabilities do; call them probs"),
        ({"logits": np.zeros((5, 2))}, "is of example 4, and there are 4"),
        ({"logits": np.zeros((2, 2)), "index": np.array([1, 1])}, "has example 1 twice"),
        ({"logits": np.zeros((2, 2)), "index": np.array([1.0, 2.0])}, "index of .* is float64"),
        ({"logits": np.array([[None, "a"]], object)}, "cannot be read"),
        ({"logits": np.array([["a", "b"]])}, "must be floats"),
        ({"logits": np.zeros((4, 2), complex)}, "is complex128"),
        ({"logits": np.array([[1.0, np.inf]])}, "is infinite in row 0"),
        ({"logits": np.zeros((0, 5))}, "is empty"),
        ({"logits": np.zeros((1, 2)), "index": np.array([-1])}, "is of example -1"),
    ],
)
def test_a_file_that_is_not_it_is_refused(arrays, said, tmp_path):
    np.savez(tmp_path / "said.npz", **arrays)
    with pytest.raises(DataError, match=said):
        read_outputs(tmp_path / "said.npz", 4)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"index": 1, "logits": [NaN, 1]}', "line 2 is no JSON"),
        ('{"index": 1, "logits": [1, "2"]}', "line 2 is not"),
        ('{"index": true, "logits": [1, 2]}', "line 2 is not"),
        ('{"index": 1, "logits": [1]}', "cannot be read"),
        ('{"index": 1, "probs": [0.5, 0.5]}', "both logits and probs"),
        ("[" * 5000, "line 2 is no JSON"),
    ],
)
def test_a_line_that_is_none_is_named(line, said, tmp_path):
    path = tmp_path / "said.jsonl"
    path.write_text(f'{{"index": 0, "logits": [1, 2]}}\r\n{line}\n')
    with pytest.raises(DataError, match=said) as error:
        read_outputs(path, 4)
    assert "\n" not in str(error.value)


def test_what_does_not_fit_is_said_before_anything_is_written(live, builder, tmp_path):
    folder, experiment = live
    student = dataclasses.replace(experiment.student, teacher="", teacher_outputs=str(folder / "said.npz"))
    stored = dataclasses.replace(experiment, phases=(student,))
    mixed = dataclasses.replace(stored.data, views=Views(mean=(0.3,), std=(0.38,), mixup=1.0))
    wrong = [
        (stored.replace_phase("student", teacher_outputs="none.npz"), DataError, "There is no file none.npz"),
        (stored.replace_phase("student", teacher_cache="float32"), ExperimentError, "instead of a teacher"),
        (dataclasses.replace(stored, data=mixed), ExperimentError, "is of single ones"),
    ]
    np.savez(tmp_path / "other.npz", logits=np.zeros((1437, 7)))
    wrong.append(
        (stored.replace_phase("student", teacher_outputs=str(tmp_path / "other.npz")), ExperimentError, "7 classes")
    )
    from kdjax.experiment.config import by_method

    wrong.append((by_method(stored, "fitnet"), ExperimentError, "teacher.features"))
    for one, error, said in wrong:
        with pytest.raises(error, match=said):
            run(one, tmp_path / "run", builder=builder)
        assert not (tmp_path / "run").exists()
