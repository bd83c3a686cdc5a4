"""The benchmarks run, and notice when what they time computes something else. Times themselves are not tested."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import benchmark
import benchmark_detection
import benchmark_generation
import benchmark_peers
import benchmark_text
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarking import comparison, fused, pair, timing

from kdjax.types import ModelOutput

SCRIPTS = Path(__file__).parents[1] / "scripts"

TINY = pair.Setting("resnet8", "resnet8", classes=5, size=8, batch_size=8, rounds=1, width=2)
HEADS = fused.Heads(width=16, tokens=512, rows=(64, 256), chunk=16, dtype="float32", flat_from=4096)


@pytest.fixture(scope="module")
def small():
    return pair.Pair(TINY)


@pytest.fixture(scope="module")
def ours():
    return comparison.kdjax_peer(pair.Pair(TINY, augment=False))


def run(path, *rows):
    """The script at a tiny size: (exit status, JSON)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "SMALL", HEADS)
        status = benchmark.main(["--rows", *rows, *f"--teacher resnet8 --student resnet8 --classes 5 --size 8 --batch-size 8 "
                                 f"--width 2 --rounds 1 --json {path}".split()])  # fmt: skip
    return status, json.loads(path.read_text())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return run(tmp_path_factory.mktemp("benchmark") / "found.json", "step", "resident", "fused")


def measured_and_right(status, found, unmeasured=()):
    """The rows by name, after a look at each."""
    rows = {row["name"]: row for row in found["rows"]}
    assert [row["note"] for row in rows.values() if row["failed"]] == []
    assert [(name, row["check"]) for name, row in rows.items() if row["correct"] is False] == []
    assert status == 0
    assert {name for name, row in rows.items() if row["value"] is None} == set(unmeasured)
    free = ("input stall", "temporaries of fused")  # may be 0
    assert all(row["value"] > 0 for name, row in rows.items() if row["value"] is not None and not name.startswith(free))
    assert all(row["check"] for row in rows.values() if row["correct"])
    return rows


NO_PEAK = "share of the device's peak in bfloat16"


def test_rows_are_measured_and_right(written):
    rows = measured_and_right(*written, {NO_PEAK})
    assert sum(bool(row["correct"]) for row in rows.values()) == 2 + 1 + 4
    for begin in ("step ÷", "step with the teacher's outputs kept", "images on the device", "FLOPs of a step",
                  "fused jsd ÷ dense, 256 rows", "temporaries of dense jsd"):  # fmt: skip
        assert any(name.startswith(begin) for name in rows), begin


@pytest.mark.slow
def test_all_other_rows_are_measured_and_right(tmp_path):
    others = [row for row in benchmark.ROWS if row not in ("step", "resident", "fused")]
    rows = measured_and_right(*run(tmp_path / "found.json", *others), {"images a second, large batch"})
    assert sum(bool(row["correct"]) for row in rows.values()) == 3 + 1 + 1 + 1 + 2 + 3
    for begin in ("teacher frozen in int8", "step in bfloat16", "steps in one dispatch", "input stall",
                  "5 replicas, vmapped", "weak scaling to 8 devices"):  # fmt: skip
        assert any(name.startswith(begin) for name in rows), begin


def test_pictures_of_a_detector_hold_their_boxes():
    setting = benchmark_detection.Setting(batch_size=64, size=40, classes=3, objects=6)
    batch = benchmark_detection.drawn(setting)
    boxes, there = batch.targets["boxes"], batch.labels >= 0
    assert (
        batch.inputs.shape == (64, 40, 40, 3)
        and set(np.asarray(batch.labels).ravel()) == {-1, 0, 1, 2}
        and there[:, 0].all()
    )
    assert boxes.min() >= 0 and boxes.max() <= 40 and (boxes[..., 2:] - boxes[..., :2]).min() > 6


@pytest.mark.slow  # two detectors and what they learn are compiled, whole and in parts
def test_rows_of_a_detector_are_measured_and_right(tmp_path):
    path = tmp_path / "found.json"
    tiny = "--teacher-width 4 --student-width 4 --size 32 --batch-size 2 --rounds 1"
    status = benchmark_detection.main(f"{tiny} --json {path}".split())
    rows = measured_and_right(status, json.loads(path.read_text()))
    assert len(rows) == 3 and all(row["correct"] for row in rows.values())


@pytest.mark.slow  # six steps of transformers
def test_rows_of_texts_are_measured_and_right(tmp_path):
    path = tmp_path / "found.json"
    tiny = "--width 64 --depth 2 --vocabulary 512 --length 8 --batch-size 2 --rounds 1 --batches 6"
    status = benchmark_text.main(f"{tiny} --json {path}".split())
    *rows, buckets = measured_and_right(status, json.loads(path.read_text())).values()
    assert len(rows) == 3 and all(row["correct"] for row in rows)
    assert buckets["value"] > 0 and buckets["note"].endswith("% of the tokens")


def test_rows_of_a_decoder_are_measured_and_right(tmp_path):
    """Those of transformers where it is installed."""
    path = tmp_path / "found.json"
    tiny = "--width 64 --depth 1 --vocabulary 40 --batch-size 2 --prompt 3 --count 4 --rounds 1"
    assert benchmark_generation.main(f"{tiny} --json {path}".split()) == 0
    write, loop, theirs = json.loads(path.read_text())["rows"]
    assert write["value"] > 0 and loop["correct"] and loop["value"] > 0
    assert theirs["correct"] or theirs["note"] == "transformers or torch is not installed"


def test_facts_say_what_was_measured(written):
    facts = written[1]["facts"]
    assert facts["versions"]["jax"] == jax.__version__ and facts["platform"] == "cpu" and facts["devices"] == 8
    assert facts["batch_size"] == 8 and facts["teacher"] == "resnet8" and facts["seconds"] > 0


def test_another_teacher_is_noticed(small):
    """The check of the step: the same with the outputs of a teacher whose logits are a tenth larger."""
    taught = small.forward(small.variables, small.inputs)
    live = pair.outcome(*small.live(small.state(), small.variables, small.batch))

    def beside(logits):
        kept = dataclasses.replace(small.batch, teacher=ModelOutput(logits=logits))
        return pair.compare(pair.outcome(*small.cached(small.state(), None, kept)), live, small.state())

    assert beside(taught).within(TINY.tolerance)
    assert not beside(1.1 * taught).within(TINY.tolerance)


@pytest.mark.parametrize("spoil", [lambda x: x + 1e-3, lambda x: x * jnp.nan], ids=["shifted", "nan"])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_other_values_are_noticed(small, part, spoil):
    """In parameters, in BatchNorm's statistics and in the optimizer's state."""
    before = small.state()
    wanted = pair.outcome(*small.live(small.state(), small.variables, small.batch))
    trees, loss = wanted
    found = tuple(jax.tree.map(spoil, tree) if i == part else tree for i, tree in enumerate(trees)), loss
    assert pair.compare(wanted, wanted, before).within(0)
    assert not pair.compare(found, wanted, before).within(TINY.tolerance)


def test_a_step_that_changes_nothing_is_noticed(small):
    before = small.state()
    idle = pair.outcome(before, {"loss": (jnp.ones(()), jnp.ones(()))})
    assert not pair.compare(idle, idle, before).within(1.0)


def test_other_gradients_of_the_fused_loss_are_noticed():
    gradients = np.ones((3, 4), np.float32), np.ones((4, 5), np.float32)
    wanted = np.float32(2.0), gradients
    assert fused.agreement(wanted, wanted, "float32")[0]
    assert not fused.agreement((np.float32(2.001), gradients), wanted, "float32")[0]
    assert not fused.agreement((np.float32(2.0), (gradients[0], 1.001 * gradients[1])), wanted, "float32")[0]
    assert not fused.agreement((np.float32(2.0), (gradients[0] * np.nan, gradients[1])), wanted, "float32")[0]


@pytest.mark.parametrize(("grown", "flat"), [(0, True), (192 * (3 * 16 + 16) * 4, True), (192 * 512 * 4, False)])
def test_memory_that_grows_with_rows_is_noticed(grown, flat):
    memory = {64: {"fused": 10_000, "dense": 10**6}, 256: {"fused": 10_000 + grown, "dense": 4 * 10**6}}
    assert fused.flatness("jsd", HEADS, memory).met is flat


def test_a_row_that_breaks_says_why_and_the_rest_goes_on():
    def broken():
        raise MemoryError("no room for 3 | 4 arrays\nand more")

    shown = []
    rows = timing.run_rows({"first": broken, "second": lambda: [timing.Row("second", 2.0)]}, shown.append)
    assert [(row.name, row.failed) for row in rows] == [("first", True), ("second", False)]
    assert (
        "failed" in shown[1]
        and "MemoryError: no room for 3 \\| 4 arrays" in shown[1]
        and shown[2].startswith("| second |")
    )
    assert timing.status(rows) == 1 and timing.status(rows[1:]) == 0


def test_a_wrong_outcome_is_shown_and_fails():
    row = timing.Row("fast", 0.5, check="loss 1.0", correct=False)
    assert "**wrong**: loss 1.0" in timing.line(row) and timing.status([row]) == 1
    missed = timing.of_samples("slow", [2.0, 2.0], most=1.05)
    assert "**missed**" in timing.line(missed) and timing.status([missed]) == 0


@pytest.mark.parametrize(("limit", "met"), [({"most": 2.0}, True), ({"most": 1.9}, False), ({"least": 2.1}, False),
                                            ({"least": 2.0}, True), ({}, None)])  # fmt: skip
def test_rows_are_judged_by_the_median(limit, met):
    row = timing.of_samples("ratio", [1.0, 2.0, 9.0], **limit)
    assert (row.value, row.quartiles, row.met) == (2.0, (1.5, 5.5), met)


def test_subjects_take_turns():
    order = []
    subjects = [timing.Subject(name, lambda name=name: order.append(name), wait=lambda _: None) for name in "abc"]
    found = timing.turns(subjects, 4, least=0)
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 4, "b": 4, "c": 4}
    assert "".join(order) == "aabbcc" + "abc" + "bca" + "cab" + "abc"  # twice before, for compilation and for its speed


def test_rounds_end_when_the_time_is_up():
    subject = timing.Subject("a", lambda: None, wait=lambda _: None)
    assert len(timing.turns([subject], 50, budget=0)["a"]) == 3


def test_time_is_of_one_step():
    slept = timing.Subject("four", lambda: None, units=4, wait=lambda _: None)
    clock = iter([0.0, 8.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing.time, "perf_counter", lambda: next(clock))
        assert slept.seconds(2) == 1.0


def test_operations_are_those_of_the_layers():
    """By hand for resnet8 of width 2 on 8 × 8 pixels, 5 classes: stem, three stages of a block, classifier."""
    stage = lambda side, before, width: side**2 * (9 * before * width + 9 * width * width)
    shortcuts = 16 * 2 * 4 + 4 * 4 * 8
    wanted = 64 * 27 * 2 + stage(8, 2, 2) + stage(4, 2, 4) + stage(2, 4, 8) + shortcuts + 8 * 5
    assert comparison.operations(TINY.network("resnet8"), 8) == wanted


def lying(ours, **changes):
    return dataclasses.replace(ours, name="other", **changes)


@pytest.mark.parametrize(
    ("changes", "right"),
    [
        ({}, True),
        ({"parameters": (1, 2)}, False),
        ({"operations": (1, 2)}, False),
        ({"losses": "other"}, False),
        ({"losses": "rising"}, False),
        ({"losses": "nan"}, False),
    ],
    ids=str,
)
def test_a_peer_that_is_not_the_same_is_noticed(ours, changes, right):
    images, labels = (np.asarray(x) for x in (jnp.ones((8, 8, 8, 3)), np.arange(8, dtype=np.int32) % 5))
    true = ours.losses(images, labels, comparison.CHECKED)
    assert true[-1] < true[0]
    losses = {"other": [1.01 * loss for loss in true], "rising": [true[0]] * len(true), "nan": [np.nan] * len(true)}
    if "losses" in changes:
        given = losses[changes["losses"]]
        changes = {"losses": lambda *_: given}
    assert comparison.same(lying(ours, **changes), ours, images, labels, 1e-3)[0] is right


def test_a_peer_is_timed_beside_kdjax(ours):
    small = pair.Pair(TINY, augment=False)
    batches = [(batch.inputs, batch.labels) for batch in map(small.host_batch, range(2))]
    (row,) = benchmark_peers.row_of("copy", small, ours, batches, lambda kind, _: lying(ours))
    assert row.value > 0 and row.correct and "images/s" in row.note


def test_what_is_not_installed_is_not_measured(monkeypatch, ours, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    path = tmp_path / "peers.json"
    status = benchmark_peers.main(f"--teacher resnet8 --student resnet8 --width 2 --size 8 --batch-size 4 --steps 1 "
                                  f"--json {path}".split())  # fmt: skip
    rows = json.loads(path.read_text())["rows"]
    assert status == 0 and len(rows) == len(benchmark_peers.NEEDS)
    assert all(row["value"] is None and row["note"].endswith("not installed") for row in rows)


@pytest.mark.parametrize("kind", ["torch", "torchdistill", "keras"])
def test_a_peer_trains_the_same_networks(kind, ours):
    for package in benchmark_peers.NEEDS[kind]:
        if importlib.util.find_spec(package) is None:  # importing keras here would choose its backend
            pytest.skip(f"{package} is not installed")
    small = pair.Pair(TINY, augment=False)
    batches = [(batch.inputs, batch.labels) for batch in map(small.host_batch, range(2))]
    with jax.numpy_rank_promotion("allow"):  # Keras' layers need it
        (row,) = benchmark_peers.row_of(kind, small, ours, batches)
    assert row.correct, row.check
    assert row.value > 0


def test_the_benchmark_needs_the_core_alone():
    """No library beyond jax, flax, optax and chex is loaded, but rich, by flax."""
    heavy = {"orbax", "tensorflow", "tensorflow_datasets", "grain", "array_record", "tyro", "tensorboardX", "matplotlib",
             "torch", "keras"}  # fmt: skip
    modules = (
        "benchmark, benchmark_detection, benchmark_generation, benchmark_peers, benchmark_objectives, benchmark_text"
    )
    code = f"import sys, {modules}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SCRIPTS, check=True)
    assert not heavy & set(done.stdout.split())
