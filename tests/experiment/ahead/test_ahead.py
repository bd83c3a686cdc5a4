"""The step as a slice's compiler makes it: its structure on eight virtual devices, and libtpu's own word where it is there."""

import collections
import dataclasses
import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax import command_line
from kdjax.cli import main
from kdjax.experiment import Experiment, Phase
from kdjax.experiment.accounting import step_arguments
from kdjax.experiment.ahead import slices
from kdjax.experiment.ahead.compiling import compile_ahead, faults, memory_of
from kdjax.experiment.ahead.hlo import parse
from kdjax.experiment.ahead.products import asked
from kdjax.experiment.ahead.reading import read
from kdjax.experiment.ahead.showing import figures, in_full, in_short
from kdjax.experiment.dry_run import inspect_experiment
from kdjax.experiment.program import Builder
from kdjax.experiment.spec import ExperimentError
from kdjax.objectives import DKD, KD, CrossEntropy
from kdjax.schedules import steps
from kdjax.tasks.given import GivenNetwork, given_data
from kdjax.training.devices import CHIPS, Chip, chip_of
from kdjax.training.optimizers import SGD
from kdjax.types import ModelOutput

ROOT = Path(__file__).parents[3]
WIDTH = 128  # its kernels are just large enough to be spread by fsdp


class Dense(nnx.Module):
    def __init__(self, width, *, rngs):
        self.first, self.second = nnx.Linear(32, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)
        self.classifier = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x):
        hidden = nnx.relu(self.first(x))
        x = nnx.relu(self.second(hidden))
        return ModelOutput(logits=self.classifier(x), features=(hidden[:, None, None], x[:, None, None]), embedding=x)


def experiment(objective=0.5 * CrossEntropy() + 0.5 * KD() + DKD(), **fields) -> Experiment:
    """Dense networks, per-example objectives."""
    arrays = np.zeros((64, 32), np.float32), np.arange(64) % 10
    network = GivenNetwork(name="dense", network=lambda rngs: Dense(WIDTH, rngs=rngs))
    phases = (
        Phase(name="teacher", network=network, duration=steps(4)),
        Phase(
            name="student", network=network, objective=objective, teacher="teacher", duration=steps(4),
            optimizer=SGD(momentum=0.9), ema_decay=0.9,
        ),
    )  # fmt: skip
    data = given_data(arrays, arrays, batch_size=32, eval_batch_size=64)
    return Experiment(**{"name": "dense", "data": data, "phases": phases} | fields)


@pytest.fixture(scope="module", params=["jit", "fsdp"])
def compiled(request):
    found = experiment(runner=request.param)
    program = Builder().program(found, found.student)
    return program, compile_ahead(program)


def parameter_bytes(program) -> int:
    return 4 * sum(leaf.size for leaf in jax.tree.leaves(program.compiled.state_template().params))


def test_structure_of_the_step(compiled):
    """All of the state is given up, and no gradient reaches the teacher."""
    program, ahead = compiled
    reading, state = ahead.reading, program.compiled.state_template()
    assert reading.aliased == len(jax.tree.leaves(state)) and not reading.not_aliased
    assert not reading.differentiated and not reading.callbacks and not ahead.faults
    assert reading.devices == 8 and reading.flops["teacher forward"] == reading.flops["student forward"]
    assert reading.flops["student forward"] == 2 * 4 * (32 * WIDTH + WIDTH * WIDTH + WIDTH * 10), "4 rows a device"


def test_collectives_of_the_step(compiled):
    program, ahead = compiled
    sent, whole = {c.kind: c for c in ahead.reading.collectives}, parameter_bytes(program)
    if not program.compiled.runner.fsdp:
        # One for all gradients, one for the metrics' sums and counts. Per-example objectives gather nothing.
        assert set(sent) == {"all-reduce"} and sent["all-reduce"].count <= 2
        assert whole <= sent["all-reduce"].bytes <= whole + 256
    else:
        assert sent["all-gather"].bytes > 0 and sent["all-reduce"].largest < whole, (
            "kernels are put together where used"
        )


def test_fsdp_holds_a_part_of_what_jit_holds(compiled):
    program, ahead = compiled
    state, spread = program.compiled.state_template(), WIDTH * WIDTH * 4
    large = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.float32 and leaf.size >= WIDTH * WIDTH]
    whole = sum(leaf.size * 4 for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.float32)
    held = ahead.memory["aliased"]
    kept = whole - len(large) * spread * 7 / 8 if program.compiled.runner.fsdp else whole
    assert kept <= held <= kept + 64, "of kernels as large as that an eighth, of the rest all"


def test_what_is_said_of_it(compiled):
    _, ahead = compiled
    known = dataclasses.replace(ahead, chip=Chip(1e12, 2.0**20, 1e9, 1e9, 1e6), batch_size=32)
    cycles = dataclasses.replace(known.reading, cycles={"student forward": 500.0, "optimizer": 500.0})
    known = dataclasses.replace(known, reading=cycles)
    times = known.times()
    assert times["estimated cycles"] == 1e-3 and times["FLOPs"] == pytest.approx(sum(cycles.flops.values()) / 1e12)
    assert known.step_time == times["estimated cycles"] + times["interconnect"]
    short = in_short(known)
    assert short["estimated cycles"] == "0.001 million: student forward 50 %, optimizer 50 %"
    assert f"{32 / known.step_time:,.0f} examples/s" in short["estimated speed"] and "not measured" in str(short)
    full = in_full(known, "dense")
    assert "| student forward | 500 | 50.0 % |" in full and "Nothing is wrong." in full
    assert figures(known)["needed"] == ahead.memory["arguments"] + ahead.memory["outputs"] - ahead.memory["aliased"] + (
        ahead.memory["temporaries"] + ahead.memory["code"]
    )
    assert "estimated speed" not in in_short(ahead), "of a CPU nothing is known"


@pytest.mark.parametrize("compiled", ["jit"], indirect=True)
def test_each_fault_is_said(compiled):
    program, ahead = compiled

    def said(products=(), phase=program.phase, chip=None, **changes):
        reading = dataclasses.replace(ahead.reading, **changes)
        return faults(dataclasses.replace(ahead, reading=reading, chip=chip), phase, products)

    assert said() == []
    assert "1 arrays of the state keep their memory beside the new state's, such as state.step" in said(
        not_aliased=("state.step",)
    )[0]  # fmt: skip
    assert said(aliased=0) == ["No array of the state gives its memory to the new state."]
    assert "differentiated, at jit(f)/transpose" in said(differentiated=("jit(f)/transpose(jvp(teacher))/mul",))[0]
    assert "waits for the host, at jit(f)/log" in said(callbacks=("jit(f)/log",))[0]
    assert "which has 1 KiB" in said(chip=Chip(1.0, 1024.0))[0] and said(chip=Chip(1.0, 2.0**30)) == []
    products = tuple(asked(program.compiled.step.trace(*arguments(program)).jaxpr.jaxpr))
    assert said(products) == [], "float32 was asked for"
    (sentence,) = said(products, dataclasses.replace(program.phase, precision="bfloat16"))
    # 3 forward, and twice that backward but for the inputs of the first
    assert sentence.startswith("8 products are in float32 where bfloat16 was asked for, such as")


def arguments(program):
    from kdjax.experiment.accounting import step_arguments

    return step_arguments(program)


def test_a_step_in_bfloat16_asks_for_no_product_in_float32():
    found = experiment().replace_phase("student", precision="bfloat16", teacher_precision="bfloat16")
    program = Builder().program(found, found.student)
    products = [p for p in asked(program.compiled.step.trace(*arguments(program)).jaxpr.jaxpr) if p.part != "objective"]
    assert len(products) == 3 + 3 + 5 and {p.kinds[:2] for p in products} == {("bfloat16", "bfloat16")}


def test_a_step_that_keeps_its_state_or_calls_the_host_is_told_apart():
    """As XLA writes it: what is aliased, and a call back."""

    def step(state, batch):
        jax.debug.callback(lambda x: None, batch)
        return state * 2 + batch

    read_of = lambda **how: read(parse(jax.jit(step, **how).lower(jnp.ones(8), jnp.ones(8)).compile().as_text()))
    kept, given_up = read_of(), read_of(donate_argnums=0)
    assert kept.not_aliased == ("state",) and given_up.not_aliased == () and given_up.aliased == 1
    assert len(kept.callbacks) == 1


def test_several_steps_in_one_dispatch_cost_as_much_a_step():
    found = experiment(steps_per_dispatch=2)
    several = compile_ahead(Builder().program(found, found.student))
    assert several.dispatched == 2 and not several.faults
    assert several.reading.flops["student backward"] == 2 * 4 * (32 * WIDTH + 2 * WIDTH * WIDTH + 2 * WIDTH * 10)


def test_a_step_under_pmap_is_refused():
    found = experiment(runner="pmap")
    with pytest.raises(ExperimentError, match="use jit or fsdp"):
        compile_ahead(Builder().program(found, found.student))


def test_a_dry_run_says_it_in_short_of_the_last_phase():
    found = experiment(KD())
    teacher, student = inspect_experiment(found, Builder(), "v9:2x2")
    assert not teacher.problems and "compiled for" not in teacher.numbers
    assert student.numbers["compiled for"] == "v9:2x2, 8 × cpu, which is not here" and not student.problems
    assert student.numbers["state aliased"] == "22 of 22 arrays"


# --- which devices ---


@pytest.fixture
def set_up(monkeypatch):
    """A process as `--for` makes it."""
    for name, value in command_line.DESCRIBED.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("name", ["v5e", "v9:2x2", "v5e:0x2", "v5e:2 x2", "h100:2x2", "v5e:4", "h100:0", ""])
def test_a_name_that_is_no_slice_is_refused(name):
    with pytest.raises(ExperimentError, match="is no slice of devices; say one such as v5e:16x16"):
        slices.parsed(name)


def test_a_compiler_that_is_not_installed_is_named(monkeypatch, set_up):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExperimentError, match=r"needs libtpu; run pip install 'kdjax\[compile\]'"):
        slices.described("v6e:2x2")
    with pytest.raises(ExperimentError, match="needs JAX's CUDA plugin"):
        slices.described("h100:8")


def test_the_process_must_be_set_up(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("JAX_PLATFORMS", "")
    with pytest.raises(ExperimentError, match="JAX_PLATFORMS=cpu before jax is imported"):
        slices.described("v6e:2x2")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert slices.parsed("v5p:8x8x8") == ("v5p", (8, 8, 8)) and slices.parsed("h100:8") == ("h100", (8,))


def test_where_jax_is_loaded_another_process_is_set_up(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    code = "import os, sys; sys.exit(7 if os.environ['TPU_SKIP_MDS_QUERY'] == '1' and sys.argv[1] == '--for=v5e:2x2' else 1)"
    assert command_line.for_described(["--for=v5e:2x2"], [sys.executable, "-c", code]) == 7
    assert command_line.for_described(["--forward"], ["no such program"]) is None
    assert "JAX_PLATFORMS" not in os.environ


def test_a_slice_is_for_a_dry_run(set_up, capsys):
    assert main(["distill", "digits/smoke", "--for", "v5e:2x2"]) == 1
    assert "--for v5e:2x2 is for a dry run, which trains nothing; say --dry-run too." in capsys.readouterr().err


def test_chips_are_found_by_name():
    assert chip_of("TPU7x").flops == 2307e12 / 2 and chip_of("TPU v5p") is CHIPS["TPU v5"] and chip_of("cpu") is None
    for name, chip in CHIPS.items():
        if (
            chip.clock
        ):  # matrix units of 128 x 128, or of 256 x 256, a multiplication and an addition each in every cycle
            units = chip.flops / chip.clock / (2 * 128**2)
            assert abs(units - round(units)) < 0.02 * units and round(units) in (4, 8, 16), name


@pytest.mark.parametrize(("method", "views"), [("simkd", 1), ("mlld", 2)])
def test_the_stand_ins_have_what_methods_ask_for(method, views):
    """A classifier of the last map's mean, and a second view; they are traced only."""
    found = runpy.run_path(str(ROOT / "scripts/compiling/dense.py"))["experiment"](method)
    builder = Builder()
    builder.dataset(found.data, stand_in=True)
    program = builder.program(found, found.student)
    traced = program.compiled.step.trace(*step_arguments(program))
    parts = collections.Counter(product.part for product in asked(traced.jaxpr.jaxpr))
    assert parts["student forward"] == parts["teacher forward"] == 4 * views


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
@pytest.mark.parametrize("runner", ["jit", "fsdp"])
def test_a_step_for_a_tpu(runner):
    """In a process of its own, as the command line does it."""
    command = [sys.executable, "scripts/compile_ahead.py", "digits/smoke", "--for", "v5e:2x2", "--runner", runner]
    command += ["--phases.student.precision", "bfloat16", "--phases.student.teacher-precision", "bfloat16"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "4 × TPU v5 lite, 64 examples a step, 16 steps in one dispatch" in done.stdout
    assert "state aliased: 77 of 77 arrays" in done.stdout and "Nothing is wrong." in done.stdout
    assert "| student backward |" in done.stdout and "callbacks: none" in done.stdout
    if runner == "jit":
        assert "all-gather" not in done.stdout


def test_memory_is_of_one_device():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    made = jax.jit(lambda x: x + 1, donate_argnums=0).lower(jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=rows))
    memory = memory_of(made.compile())
    assert memory["arguments"] == memory["outputs"] == memory["aliased"] == 64 * 16 * 4 / 8
