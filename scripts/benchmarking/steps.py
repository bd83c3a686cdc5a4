"""What the teacher costs in a step, and what is left of that where it is kept, frozen or computes in a shorter type."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarking.pair import Pair, compare, outcome, stepping
from benchmarking.timing import Row, Subject, figure, for_accelerators, of_samples, turns
from kdjax.models import Freezer
from kdjax.training import Variables, devices
from kdjax.types import ModelOutput

# Largest mean change of a logit, as a share of their standard deviation, before a frozen teacher is called wrong.
FROZEN_ERROR = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.3}
# Its time beside that of the teacher as it is, at most.
FROZEN_TIME = {"float32": 1 / 1.05, "bfloat16": 1 / 1.6, "int8": None}


def teaching(pair: Pair) -> list[Row]:
    """The step by its parts, and with the teacher's outputs at hand: times and what comes out."""
    taught = pair.forward(pair.variables, pair.inputs)
    kept = dataclasses.replace(pair.batch, teacher=ModelOutput(logits=taught))
    wanted = outcome(*pair.cached(pair.state(), None, kept))
    together = compare(outcome(*pair.live(pair.state(), pair.variables, pair.batch)), wanted, pair.state())
    seconds = turns(
        [
            stepping("step", pair.live, pair.state(), pair.variables, pair.batch),
            Subject("teacher", lambda: pair.forward(pair.variables, pair.inputs)),
            stepping("student", pair.alone, pair.state(objective="labels"), None, pair.batch),
            stepping("cached", pair.cached, pair.state(), None, kept),
        ],
        pair.setting.rounds,
    )
    step, teacher, student, cached = (seconds[name] for name in ("step", "teacher", "student", "cached"))
    right = {"check": str(together), "correct": together.within(pair.setting.tolerance)}
    milliseconds = lambda x: f"{1e3 * np.median(x):.3g} ms"
    return [
        of_samples("step ÷ (teacher forward + student step)", step / (teacher + student), most=1.05, **right,
                   note=f"{milliseconds(step)}; {milliseconds(teacher)} + {milliseconds(student)}"),
        of_samples("step with the teacher's outputs kept ÷ student step", cached / student, most=1.05, **right,
                   note=f"{milliseconds(cached)}, {np.median(step / cached):.2f} times as fast as with the teacher"),
        *throughput(pair, step, teacher),
    ]  # fmt: skip


def throughput(pair: Pair, step: np.ndarray, teacher: np.ndarray) -> list[Row]:
    """Images and FLOPs a second of steps that took so long, and the teacher's share in time and FLOPs."""
    size, kind = pair.setting.batch_size, jax.devices()[0].device_kind
    whole = flops(pair.live, pair.state(), pair.variables, pair.batch)
    of_teacher = flops(pair.forward, pair.variables, pair.inputs)
    rows = [
        of_samples("images a second, step by step", size / step, unit="images/s", note=f"batch {size}"),
        Row("FLOPs of a step", whole / 1e9, unit="GFLOP", note=f"of these {of_teacher / whole:.1%} in the teacher"),
        of_samples("FLOPs a second", whole / step / 1e12, unit="TFLOP/s"),
        of_samples("teacher's share of the step's time", teacher / step),
    ]
    peak = devices.peak_of(kind)
    if peak:
        rows.append(of_samples("share of the device's peak in bfloat16", whole / step / peak,
                               note=f"{peak / 1e12:.0f} TFLOP/s"))  # fmt: skip
    else:
        rows.append(Row("share of the device's peak in bfloat16", note=f"no peak is known of {kind!r}"))
    return rows


def flops(compiled: Any, *arguments: Any) -> float:
    """As XLA counts them before it optimises."""
    counted = devices.flops(compiled, *arguments)
    if not counted:
        raise RuntimeError("XLA counts no FLOPs on this backend.")
    return counted


def frozen(pair: Pair) -> list[Row]:
    """A frozen teacher's forward pass beside that of the float32 one as it is."""
    plain = pair.setting.network(pair.setting.teacher, "float32")
    forward = jax.jit(lambda v, x: plain.apply(v.params, v.state, x, train=False)[0].logits)
    given = pair.variables
    spread = float(jnp.std(forward(given, pair.inputs)))
    subjects, reports = [Subject("plain", lambda: forward(given, pair.inputs))], {}
    for precision, most in FROZEN_ERROR.items():
        freezer = Freezer(plain, pair.inputs, (given.params, given.state), precision=precision, parts=())
        reports[precision] = freezer.compare(given.params, given.state, pair.inputs), most
        variables = pair.runner.place(Variables(*freezer.convert(given.params, given.state)))
        subjects.append(_forward(precision, freezer.network, variables, pair.inputs))
    seconds = turns(subjects, pair.setting.rounds)
    rows = []
    for precision, (report, most) in reports.items():
        error = report.mean_change / spread
        said = (f"logits change by {error:.1e} of their spread (at most {report.largest_change / spread:.1e}), "
                f"{report.agreement:.0%} of {report.examples} predictions agree")  # fmt: skip
        row = of_samples(f"teacher frozen in {precision} ÷ as it is in float32", seconds[precision] / seconds["plain"],
                         most=FROZEN_TIME[precision], check=said, correct=error <= most,
                         note=f"{report.folded} normalisations folded, {report.bytes_before / 1e6:.3g} MB now "
                              f"{report.bytes_after / 1e6:.3g} MB")  # fmt: skip
        rows.append(row if precision == "float32" else for_accelerators(row))
    return rows


def _forward(name: str, network: Any, variables: Variables, inputs: Any) -> Subject:
    run = jax.jit(lambda v, x: network.apply(v.params, v.state, x, train=False)[0].logits)
    return Subject(name, lambda: run(variables, inputs))


def precision(pair: Pair) -> list[Row]:
    """The whole step with both networks in bfloat16 beside float32."""
    made = {pair.setting.precision: pair.live}
    for kind in {"float32", "bfloat16"} - set(made):
        student, teacher = (pair.setting.network(name, kind) for name in (pair.setting.student, pair.setting.teacher))
        made[kind] = pair.runner.compile(pair.step(student=student, teacher=teacher))
    outcomes = {kind: outcome(*step(pair.state(), pair.variables, pair.batch)) for kind, step in made.items()}
    difference = compare(outcomes["bfloat16"], outcomes["float32"], pair.state())
    seconds = turns(
        [stepping(kind, step, pair.state(), pair.variables, pair.batch) for kind, step in made.items()],
        pair.setting.rounds,
    )
    ratios = seconds["bfloat16"] / seconds["float32"]
    # A gradient in bfloat16 has some percent of noise; the loss has less.
    right = difference.loss <= 0.05 and difference.update <= 0.3
    return [of_samples("step in bfloat16 ÷ in float32", ratios, check=str(difference), correct=right)]


def large_batch(pair: Pair) -> list[Row]:
    """Images a second where a batch fills the device."""
    if not pair.setting.large:
        return [Row("images a second, large batch", note="measured on accelerators")]
    wide = Pair(dataclasses.replace(pair.setting, batch_size=16 * pair.setting.batch_size))
    subject = stepping("step", wide.live, wide.state(), wide.variables, wide.batch)
    step = turns([subject], pair.setting.rounds)["step"]
    whole, peak = (
        flops(wide.live, wide.state(), wide.variables, wide.batch),
        devices.peak_of(jax.devices()[0].device_kind),
    )
    share = f", {np.median(whole / step / peak):.1%} of the peak" if peak else ""
    of_h100 = (
        {"least": 60_000}
        if "H100" in jax.devices()[0].device_kind
        and pair.setting
        == dataclasses.replace(
            pair.setting, teacher="resnet32x4", student="resnet8x4", size=32, precision="bfloat16", width=None
        )
        else {}
    )
    note = f"batch {wide.setting.batch_size}, {figure(np.median(whole / step) / 1e12, 'TFLOP/s')}{share}"
    return [of_samples("images a second, large batch", wide.setting.batch_size / step, unit="images/s", note=note,
                       **of_h100)]  # fmt: skip
