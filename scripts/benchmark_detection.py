"""What distilling a detector costs beside what it must cost: ratios measured within one run, and whether outcomes agree.

    python scripts/benchmark_detection.py --json detection.json       # gfl_small, 16 channels in the stem teach 8
    python scripts/benchmark_detection.py --teacher gfl_r50 --student gfl_r18 --size 320 --batch-size 2 --classes 80

Rows: a step of localization distillation by the teacher's forward pass and the step of the student by its objects alone; the
share of that step that assignment and losses take (value and gradient by the networks' outputs, without networks); the share
of an evaluation step that decoding and non-maximum suppression take, at their dearest: every score counts and nothing is
suppressed, so that there are as many rounds as detections are allowed. Pictures, boxes and weights are random. Programs are
compiled and warmed up, then take turns in rounds. Needs jax, flax, optax and chex; use an otherwise idle machine.
"""

import argparse
import dataclasses
import functools
import sys

import jax
import numpy as np
import optax
from benchmarking import timing
from benchmarking.options import at_least, new_file
from benchmarking.pair import last_loss, stepping

from kdjax.models import output_shapes
from kdjax.models.detectors import DetectorOutput
from kdjax.objectives import LD, GFLLoss, bind
from kdjax.reduction import group_losses
from kdjax.tasks.detection import Detection, Detector
from kdjax.tasks.detection.networks import make_detector
from kdjax.training import Variables, init_state, make_runner, make_step
from kdjax.types import Batch, Clock, Context, DataInfo

TAUGHT = GFLLoss() + LD() + LD(region="valuable")
SURE = 5.0  # added to class logits, so that every score is above the threshold
TOLERANCE = 1e-3  # of losses, relative, and of boxes in pixels


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is benchmarked: networks of `kdjax.tasks.detection.Detector`, sizes, and the rounds in which programs take turns."""

    teacher: Detector = Detector(width=16)
    student: Detector = Detector(width=8)
    batch_size: int = 16
    size: int = 96
    classes: int = 5
    objects: int = 5
    rounds: int = 10


def drawn(setting: Setting) -> Batch:
    """Noise, and up to `objects` boxes a picture, of a sixth to two thirds of its side."""
    rng = np.random.default_rng(0)
    shape = setting.batch_size, setting.objects
    sides = setting.size * rng.uniform(1 / 6, 2 / 3, (*shape, 2))
    corners = rng.uniform(0, 1, (*shape, 2)) * (setting.size - sides)
    labels = rng.integers(0, setting.classes, shape)
    labels[:, 1:][rng.uniform(size=shape)[:, 1:] < 0.5] = -1
    images = rng.normal(size=(setting.batch_size, setting.size, setting.size, 3))
    boxes = np.concatenate([corners, corners + sides], axis=-1).astype(np.float32)
    return Batch.of(images.astype(np.float32), {"boxes": boxes, "labels": labels.astype(np.int32)})


def in_parts(setting: Setting) -> list[timing.Row]:
    """The table: a distillation step and an evaluation step by their parts."""
    runner = make_runner("jit", jax.devices()[:1])
    clock = Clock(total_steps=1000, steps_per_epoch=10, batch_size=setting.batch_size)
    batch = runner.place_batch(drawn(setting))
    student, teacher = (make_detector(one, setting.classes, 3) for one in (setting.student, setting.teacher))
    shapes = tuple(output_shapes(network, batch.inputs) for network in (student, teacher))
    frozen = runner.place(Variables(*jax.jit(teacher.init)(jax.random.key(1))))

    def step_of(objective, network):
        bound = bind(objective, *shapes, DataInfo(setting.classes, 1000, targets=("labels", "boxes")))
        compiled = runner.compile(make_step(student, network, bound, optax.sgd(1e-4), clock=clock))
        state = jax.jit(lambda: init_state(student, bound, optax.sgd(1e-4), seed=0))
        return bound, compiled, lambda: runner.place(state())

    bound, taught, begun = step_of(TAUGHT, teacher)
    state = begun()
    own = Variables(state.params["student"], state.state["student"])
    _, alone, begun_alone = step_of(GFLLoss(), None)
    say = jax.jit(lambda v, x: teacher.apply(v.params, v.state, x, train=False)[0])
    trained = jax.jit(lambda v, x: student.apply(v.params, v.state, x, train=True)[0])

    def loss(mine: DetectorOutput, theirs: DetectorOutput, batch: Batch):
        context = Context(mine, theirs, batch, clock.at(0), key=jax.random.key(0))
        terms, _ = bound.apply(state.params["objective"], state.state["objective"], context, train=True)
        return sum(group_losses(terms).values())

    outputs = trained(own, batch.inputs), say(frozen, batch.inputs)
    objective = jax.jit(jax.value_and_grad(loss))
    apart, whole = float(objective(*outputs, batch)[0]), float(last_loss(taught(begun(), frozen, batch)[1]))
    error = abs(apart / whole - 1)

    task, sizes = Detection(iou_threshold=1.0), np.full((setting.batch_size, 2), setting.size, np.int32)
    find = lambda output: task.detected(dataclasses.replace(output, logits=output.logits + SURE), sizes)

    def judge(held: Variables, inputs: jax.Array):
        output, _ = student.apply(held.params, held.state, inputs, train=False)
        return output, find(output)

    suppress, evaluate = jax.jit(find), jax.jit(judge)
    said, found = evaluate(own, batch.inputs)
    found, again = jax.device_get((found, suppress(said)))
    scores = float(np.max(np.abs(found.scores - again.scores)))

    seconds = timing.turns(
        [
            stepping("taught", taught, begun(), frozen, batch),
            timing.Subject("teacher", lambda: say(frozen, batch.inputs)),
            stepping("alone", alone, begun_alone(), None, batch),
            timing.Subject("objective", lambda: objective(*outputs, batch)),
            timing.Subject("suppress", lambda: suppress(said)),
            timing.Subject("evaluate", lambda: evaluate(own, batch.inputs)),
        ],
        setting.rounds,
    )
    milliseconds = lambda *names: " + ".join(f"{1e3 * np.median(seconds[name]):.3g} ms" for name in names)
    right = {"check": f"loss {error:.1e} from that of the outputs apart", "correct": error <= TOLERANCE}
    kept = f"{np.mean(found.labels >= 0) * found.labels.shape[1]:.0f} detections a picture"
    return [
        timing.of_samples("step ÷ (teacher forward + student step)", seconds["taught"] / (seconds["teacher"] + seconds["alone"]),
                          most=1.05, note=f"{milliseconds('taught')}; {milliseconds('teacher', 'alone')}", **right),
        timing.of_samples("assignment and losses, share of the step", seconds["objective"] / seconds["taught"], most=0.1,
                          note=milliseconds("objective"), **right),
        timing.of_samples("decoding and suppression, share of an evaluation step", seconds["suppress"] / seconds["evaluate"],
                          most=0.1, note=f"{milliseconds('suppress')} of {milliseconds('evaluate')}; {kept}",
                          check=f"scores {scores:.1e} from those of the step", correct=scores <= TOLERANCE),
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Setting()
    for who in ("teacher", "student"):
        parser.add_argument(f"--{who}", default="gfl_small", metavar="NETWORK", help="a detector of GFL")
        parser.add_argument(
            f"--{who}-width", type=at_least(1), help="of its stem; its own if not given, 8 of a small student"
        )
    for name, what in (("batch_size", "pictures"), ("size", "of a picture, in pixels"), ("classes", "of objects"),
                       ("objects", "of a picture, at most"), ("rounds", "at most")):  # fmt: skip
        parser.add_argument(f"--{name.replace('_', '-')}", type=at_least(1), default=getattr(default, name), help=what)
    parser.add_argument("--json", type=new_file, help="also write facts and rows here")
    sizes = vars(parser.parse_args(arguments))
    path = sizes.pop("json")
    for who in ("teacher", "student"):
        name, width = sizes[who], sizes.pop(f"{who}_width")
        usual = getattr(default, who)
        sizes[who] = Detector(name=name, width=width) if width else usual if name == usual.name else Detector(name=name)
    setting = Setting(**sizes)
    said = lambda network: f"{network.name} (width {network.width})" if network.width else network.name
    found = timing.facts(**dataclasses.asdict(setting))
    print(
        f"{timing.in_words(found)}; {said(setting.teacher)} teaches {said(setting.student)}, {setting.classes} classes, "
        f"{setting.size} × {setting.size} pixels, batch {setting.batch_size}, at most {setting.rounds} rounds\n",
        flush=True,
    )
    rows = timing.run_rows({"detection": functools.partial(in_parts, setting)}, functools.partial(print, flush=True))
    timing.write(path, found, rows)
    return timing.status(rows)


if __name__ == "__main__":
    sys.exit(main())
