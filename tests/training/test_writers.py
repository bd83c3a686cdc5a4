"""The metrics file: rows, resuming, and what a crash leaves behind."""

import json
import math
import struct

import numpy as np
import pytest

from kdjax.training.checkpoints import CheckpointError
from kdjax.training.progress import Heard, Lines
from kdjax.training.writers import MetricWriter, read_metrics


def points(folder):
    """`(tag, step, value)` of everything in the TensorBoard files of a folder."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((folder / "tensorboard").glob("events*")):
        raw, at = path.read_bytes(), 0
        while at < len(raw):
            (size,) = struct.unpack("<Q", raw[at : at + 8])
            event = Event.FromString(raw[at + 12 : at + 12 + size])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            at += size + 16
    return found


def write(folder, steps, resume_at=None, **values):
    writer = MetricWriter(folder, resume_at)
    for step in steps:
        writer.write(step, "train", {"loss": step / 4} | values)
    writer.close()


def test_rows_are_kept_in_order(tmp_path):
    writer = MetricWriter(tmp_path / "phase" / "0")
    writer.write(10, "train", {"loss": 0.5, "top1": 0.25})
    writer.write(10, "eval", {"top1": 0.75})
    writer.write(20, "train", {"loss": 1e-30})
    writer.close()
    assert read_metrics(tmp_path / "phase" / "0" / "metrics.jsonl") == [
        {"step": 10, "kind": "train", "loss": 0.5, "top1": 0.25},
        {"step": 10, "kind": "eval", "top1": 0.75},
        {"step": 20, "kind": "train", "loss": 1e-30},
    ]


def test_rows_can_be_read_while_training(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(1, "train", {"loss": 0.5})
    assert [row["step"] for row in read_metrics(writer.path)] == [1]
    writer.close()


def test_numbers_come_back_bit_for_bit(tmp_path):
    value = float(np.nextafter(0.1, 1))
    write(tmp_path, [1], other=value)
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["other"] == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_null(tmp_path, value):
    """JSON has no nan: other readers would stop there."""
    write(tmp_path, [1], loss=value, top1=0.5)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert line == '{"step": 1, "kind": "train", "loss": null, "top1": 0.5, "checksum": "195f83bf"}'
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["loss"] is None


def test_a_new_run_starts_an_empty_file(tmp_path):
    write(tmp_path, [1, 2])
    MetricWriter(tmp_path).close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_resuming_cuts_what_came_after_the_checkpoint(tmp_path):
    """Rows of the checkpoint's own step stay; the file then reads as if the run had never stopped."""
    write(tmp_path, range(1, 8))
    write(tmp_path, range(5, 9), resume_at=4)
    resumed = (tmp_path / "metrics.jsonl").read_text()
    write(tmp_path / "unbroken", range(1, 9))
    assert resumed == (tmp_path / "unbroken" / "metrics.jsonl").read_text()


def test_the_curves_of_a_killed_run_have_no_holes_and_no_doubles(tmp_path):
    """Its last points never reached a file, and those after the checkpoint did."""
    write(tmp_path, range(1, 8), top1=math.nan)
    events = points(tmp_path)
    assert len(events) == 14
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    (tmp_path / "tensorboard/notes.txt").touch()
    write(tmp_path, range(5, 8), resume_at=4, top1=math.nan)
    assert str(points(tmp_path)) == str(events)
    assert (tmp_path / "tensorboard/notes.txt").exists()


def test_resuming_without_a_file(tmp_path):
    write(tmp_path, [5], resume_at=4)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [5]


@pytest.mark.parametrize("missing", [1, 2, 10, 30])
def test_a_torn_last_line_is_left_out_and_mended_on_resuming(tmp_path, missing):
    write(tmp_path, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-missing])
    whole = 3 if missing == 1 else 2  # only the line break is gone
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3][:whole]
    if whole == 2:
        with pytest.raises(CheckpointError, match=r"Line 3 of .* is not as it was written"):
            read_metrics(path, ended=True)
    write(tmp_path, [4], resume_at=3)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [*range(1, whole + 1), 4]


def test_no_file_has_no_rows(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_nothing_is_left_beside_the_file(tmp_path):
    write(tmp_path, [1])
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}
    assert any((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize(
    "damage",
    ['{"step": 2, "kind"', "\0" * 30, '{"step": "2", "kind": "train"}', '{"step": 2, "loss": 1}', "[]",
     '{"step": 2, "kind": "train", "loss": NaN}', "[" * 9999],
)  # fmt: skip
def test_a_damaged_row_that_others_follow_is_named_and_at_the_end_left_out(damage, tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = '{"step": 1, "kind": "train", "loss": 0.5}'
    path.write_text(f"{good}\n{damage}\n{good}\n")
    with pytest.raises(CheckpointError, match=r"Line 2 of .*metrics\.jsonl is not as it was written; delete that line"):
        read_metrics(path)
    path.write_text(f"{good}\n{damage}")
    assert read_metrics(path) == [{"step": 1, "kind": "train", "loss": 0.5}]


def test_every_flipped_bit_is_found(tmp_path):
    """In a row others follow and in the last one; where it is the line break that changed, no number has."""
    write(tmp_path, [1, 2], top1=0.25)
    path = tmp_path / "metrics.jsonl"
    whole, rows = path.read_bytes(), read_metrics(path)
    for at in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
            try:
                assert read_metrics(path) == rows, f"byte {at}, bit {bit}"
            except CheckpointError as error:
                assert f"Line {1 + (at > whole.index(10))} of {path} is not as it was written" in str(error)


class Gone:
    """A pipe that somebody has closed."""

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self):
        pass


def test_a_closed_pipe_ends_the_lines_and_not_the_training(capsys):
    shown = Heard(Lines(seconds=0.0, file=Gone()))
    shown.start("student", 0, 9, 4, "images")
    for step in range(1, 9):
        shown.advance(step)
        shown.show({"loss": 0.5}, 3.0)
    shown.finish()
    said = capsys.readouterr().err
    assert said == "kdjax: progress cannot be shown any more (Broken pipe); the run goes on.\n"
