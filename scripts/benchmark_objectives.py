"""What each method costs beside KD: time of a training step of resnet32x4 teaching resnet8x4, as a ratio to KD's in one run.

    python scripts/benchmark_objectives.py                       # every method, 100 classes
    python scripts/benchmark_objectives.py --classes 1000 --batch-size 64 --rounds 20 --methods kd dkd rld dist

Every method's whole step (teacher and student forward, objective, backward, SGD) is compiled and warmed up; then the methods
take turns, a step each a round, and each step is divided by KD's of the same round, so that what slows the machine slows both.
Printed: median ratio with its quartiles, and the objective alone (its value and gradient by the networks' outputs, without any
network) as a share of KD's step. Use an otherwise idle machine.
"""

import argparse
import dataclasses
import gc
import json
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmarking.options import at_least, new_file

from kdjax.models import from_nnx, output_shapes, zoo
from kdjax.objectives import METHODS, bind, method
from kdjax.objectives.catalogue import reads
from kdjax.reduction import group_losses
from kdjax.training import Variables, init_state, make_runner, make_step
from kdjax.training.mutual import join, make_mutual_step
from kdjax.types import Batch, Clock, Context, DataInfo, ModelOutput, MultiView

REFERENCE = "kd"
# Methods of networks that choose one class.
CLASSIFIERS = [name for name, entry in METHODS.items() if "multi_hot" not in reads(entry.objective)]
CLOCK = Clock(total_steps=1000, steps_per_epoch=10, batch_size=64)


@dataclasses.dataclass
class Subject:
    """A method ready to be timed: its compiled step with all it needs, and its objective alone."""

    name: str
    step: object
    state: object
    teacher: Variables | None
    alone: object
    outputs: tuple

    def run(self, batch) -> float:
        began = time.perf_counter()
        self.state, metrics = self.step(self.state, self.teacher, batch)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - began

    def run_alone(self, batch) -> float:
        began = time.perf_counter()
        jax.block_until_ready(self.alone(*self.outputs, batch))
        return time.perf_counter() - began


def two_views(inputs, index, epoch, key):
    return MultiView({"main": inputs, "strong": inputs[:, :, ::-1]})


def prepare(name: str, classes: int, batch: Batch, runner) -> Subject:
    """Compiles a method's step. Where it needs a teacher of the student's kind, it has one."""
    objective = method(name).objective
    build = lambda network: from_nnx(
        lambda rngs: zoo.build(network, num_classes=classes, in_channels=3, rngs=rngs), parts=("classify", "norms")
    )
    student = build("resnet8x4")
    alike = any("teacher.gradient" in part.reads for part in objective.parts)
    teacher = build("resnet8x4" if alike else "resnet32x4")
    inputs = jax.ShapeDtypeStruct(batch.inputs.shape, np.float32)
    shapes = output_shapes(student, inputs), output_shapes(teacher, inputs)
    bound = bind(objective, *shapes, DataInfo(classes, 50_000, labels=np.arange(50_000, dtype=np.int32) % classes))
    optimizer = optax.sgd(1e-4, momentum=0.9)
    step = make_step(student, teacher if bound.needs_teacher else None, bound, optimizer, clock=CLOCK, views=two_views)
    variables = Variables(*teacher.init(jax.random.key(1)))
    state = init_state(student, bound, optimizer, seed=0, teacher_state=variables.state)
    if bound.needs_peer:
        step = make_mutual_step(step, bound.peer_order)
        state = join(state, init_state(student, bound, optimizer, seed=1))
    call = lambda part, *arrays: teacher.parts[part](variables.params, variables.state, *arrays)
    own = bound.init(jax.random.key(2))

    def loss(student_said, teacher_said, batch):
        ctx = Context(student_said, teacher_said, batch, CLOCK.at(0), peer=teacher_said, key=jax.random.key(0),
                      teacher_call=call)  # fmt: skip
        terms, _ = bound.apply(*own, dataclasses.replace(ctx, views={"strong": ctx}), train=True)
        return sum(group_losses(terms).values(), start=jnp.zeros(()))

    read = {read.partition(".")[2] for part in objective.parts for read in part.reads}

    def draw(shapes: ModelOutput, seed: int):
        rng = np.random.default_rng(seed)
        fields = read & {"logits", "features", "preactivations", "embedding"}
        used = ModelOutput(**{field: getattr(shapes, field) for field in fields})
        return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), used)

    alone = jax.jit(jax.value_and_grad(loss))
    outputs = draw(shapes[0], 0), draw(shapes[1], 1)
    return Subject(
        name,
        runner.compile(step),
        runner.place(state),
        runner.place(variables) if bound.needs_teacher else None,
        alone,
        outputs,
    )


def measure(names: list[str], classes: int, batch_size: int, rounds: int, at_once: int) -> list[dict]:
    """A row a method. Methods are timed in groups that fit into memory, the reference in each."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch_size, 32, 32, 3)).astype(np.float32)
    runner = make_runner("jit", jax.devices()[:1])
    batch = runner.place_batch(Batch.of(images, rng.integers(0, classes, batch_size).astype(np.int32)))
    reference = prepare(REFERENCE, classes, batch, runner)
    others = [name for name in names if name != REFERENCE]
    rows = []
    for begin in range(0, max(len(others), 1), at_once):
        subjects = [reference, *(prepare(name, classes, batch, runner) for name in others[begin : begin + at_once])]
        for subject in subjects:
            for _ in range(2):
                subject.run(batch), subject.run_alone(batch)
        steps = np.array([[subject.run(batch) for subject in subjects] for _ in range(rounds)])
        alone = np.array([[subject.run_alone(batch) for subject in subjects] for _ in range(rounds)])
        ratios = steps / steps[:, :1]
        for i, subject in enumerate(subjects):
            if i == 0 and begin:
                continue
            low, middle, high = np.quantile(ratios[:, i], (0.25, 0.5, 0.75))
            share = np.median(alone[:, i]) / np.median(steps[:, 0])
            rows.append({"method": subject.name, "ratio": middle, "quartiles": [low, high],
                         "step_ms": 1e3 * np.median(steps[:, i]), "alone_share": share})  # fmt: skip
            row = rows[-1]
            print(f"| `{row['method']}` | {row['ratio']:.3f} | {low:.3f} to {high:.3f} | {row['step_ms']:.1f} "
                  f"| {100 * row['alone_share']:.2f} % |", flush=True)  # fmt: skip
        del subjects
        gc.collect()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=CLASSIFIERS, choices=CLASSIFIERS, metavar="NAME")
    parser.add_argument("--classes", type=at_least(2), default=100)
    parser.add_argument("--batch-size", type=at_least(1), default=64)
    parser.add_argument("--rounds", type=at_least(2), default=15)
    parser.add_argument("--at-once", type=at_least(1), default=8, help="methods timed in turn")
    parser.add_argument("--json", type=new_file, help="also write the rows here")
    options = parser.parse_args()
    device = jax.devices()[0]
    facts = f"{device.device_kind} ({device.platform}, {platform.machine()}), jax {jax.__version__}"
    print(f"{facts}; batch {options.batch_size}, {options.classes} classes, {options.rounds} rounds\n")
    print("| method | step / KD step | quartiles | ms | objective alone / KD step |\n| --- | --- | --- | --- | --- |")
    rows = measure(options.methods, options.classes, options.batch_size, options.rounds, options.at_once)
    if options.json:
        options.json.write_text(json.dumps({"device": facts, "rows": rows, "batch_size": options.batch_size,
                                            "classes": options.classes}, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
