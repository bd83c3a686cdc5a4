"""What a run used: counted, measured, and said only where it is known."""

import jax
import pytest

from kdjax.experiment.accounting import account, costs, in_words, readable, step_arguments
from kdjax.experiment.run import run
from kdjax.json_files import read_json
from kdjax.schedules import steps
from kdjax.training.devices import peak_of
from tests.experiment.conftest import small


def test_flops_of_teacher_and_student_add_up(builder):
    experiment = small()
    cost = costs(builder.program(experiment, experiment.student))
    teacher = costs(builder.program(experiment, experiment.phase("teacher")))
    assert teacher.teacher == 0 and 0 < cost.teacher < cost.step
    # A step is a forward pass and about twice that backward, so a teacher's own step is about three of its passes.
    assert 2.0 < teacher.step / cost.teacher < 4.0
    assert cost.teacher_share == cost.teacher / cost.step


def test_what_the_step_takes_is_what_the_run_gives_it(builder):
    program = builder.program(small(), small().student)
    state, frozen, batch = step_arguments(program)
    given = program.compiled.fresh_state(0, 0)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), given)
    first = next(iter(program.feeding.pipeline(0).iterate(0)))
    assert jax.tree.map(lambda x: x.shape, batch) == jax.tree.map(lambda x: x.shape, first)
    assert frozen[1].shape == program.feeding.frozen(None)[1].shape == (len(program.dataset.train), 64)


def test_rates_are_arithmetic(builder):
    program = builder.program(small(), small().student)
    used = account(program, timed_steps=10, seconds=2.0, input_seconds=0.5)
    assert used["flops_per_s"] == pytest.approx(5 * used["flops_per_step"])
    assert used["input_share"] == 0.25 and used["peak_share"] is None, "the peak of a CPU is not in the table"
    empty = account(program, timed_steps=0, seconds=0.0, input_seconds=0.0)
    assert empty["flops_per_s"] is None and empty["input_share"] is None


def test_a_run_says_what_it_used(finished):
    results = {phase: read_json(finished / phase / "result.json", ValueError, "") for phase in ("teacher", "student")}
    for result in results.values():
        assert result["flops_per_s"] > 0 and 0 <= result["input_share"] <= 1
    assert results["student"]["teacher_share"] > 0 == results["teacher"]["teacher_share"]


def test_peaks_are_found_by_name():
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12 and peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("TPU v5 lite") == 197e12 and peak_of("TPU v5") == 459e12
    assert peak_of("cpu") is None


def test_in_words():
    used = {
        "flops_per_s": 3.21e14,
        "peak_share": 0.325,
        "teacher_share": 0.68,
        "input_share": 0.004,
        "device_bytes": 3 * 2**30,
    }
    assert in_words(used) == (
        "321 TFLOP/s, 32 % of the peak in bfloat16, 68 % of the FLOPs in the teacher, 0 % of the host's time for batches, "
        "3 GiB at most on a device"
    )
    assert in_words({}) == ""
    assert readable(1536) == "1.5 KiB" and readable(12) == "12 B" and readable(2.5e9, "FLOP/s", 1000) == "2.5 GFLOP/s"


def test_a_profile_is_written_where_it_is_asked_for(builder, tmp_path):
    rarely = {"evaluate_every": steps(14), "checkpoint_every": steps(14)}  # of evaluations much would be written
    run(small(length=14, **rarely), tmp_path / "run", builder=builder, profile=True)
    assert list((tmp_path / "run/student/profile").rglob("*.xplane.pb"))
