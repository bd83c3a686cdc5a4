"""What distilling a transformer costs beside what it must cost: ratios measured within one run, and whether outcomes agree.

    python scripts/benchmark_text.py --json text.json        # a decoder of width 256 teaches one of 128, and so do encoders

Rows: a step by cross-entropy and forward KL (decoders) or KD (encoders) by the teacher's forward pass and the step of the student
by labels alone; of decoders with logits whole, and a few tokens at a time, as they are for a vocabulary beyond 32,768. Tokens and
weights are random. The last row is of the texts and the student of configs/text/docstrings.py: the steps of so many batches
whose rows are as long as their texts need, by those of whole rows. Programs are compiled and warmed up, then take turns in
rounds. Use an otherwise idle machine.
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

from kdjax.experiment.config import load_config
from kdjax.experiment.program import Builder
from kdjax.models import output_shapes
from kdjax.models.transformers import SIZES, Head, transformer
from kdjax.models.transformers.sizes import llama, resized
from kdjax.objectives import KD, CrossEntropy, ForwardKL, Objective, bind
from kdjax.reduction import group_losses
from kdjax.training import Variables, init_state, make_runner, make_step
from kdjax.types import Batch, Clock, Context, DataInfo, Network

TOLERANCE = 1e-3  # of losses, relative
CLASSES = 8


@dataclasses.dataclass(frozen=True)
class Setting:
    """A teacher and a student of half its width and depth, the texts, and the rounds in which programs take turns."""

    width: int = 256
    depth: int = 4
    vocabulary: int = 8192
    batch_size: int = 8
    length: int = 128
    rounds: int = 10


def decoder(setting: Setting, halves: int) -> Network:
    """Like Llama, a power of two smaller than the teacher."""
    width, depth = setting.width >> halves, max(1, setting.depth >> halves)
    heads = max(1, width // 64)
    return transformer(llama(width, depth, heads, heads, 3 * width, vocabulary=setting.vocabulary), Head(kind="tokens"))


def encoder(setting: Setting, halves: int) -> Network:
    """Like BERT, likewise."""
    a = resized(SIZES["bert_tiny"], width=setting.width >> halves, depth=max(1, setting.depth >> halves))
    none = dict.fromkeys(
        ("dropout", "attention_dropout", "classifier_dropout"), 0.0
    )  # so that outcomes can be compared
    a = dataclasses.replace(a, vocabulary=setting.vocabulary, length=setting.length, **none)
    return transformer(a, Head(kind="classes", classes=CLASSES))


def tokens(setting: Setting, classes: int = 0) -> Batch:
    """Rows of random tokens without padding, with a class each, or the next token."""
    rng = np.random.default_rng(0)
    shape = setting.batch_size, setting.length
    ids = rng.integers(1, setting.vocabulary, shape).astype(np.int32)
    if classes:
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones(shape, np.int32),
            "token_type_ids": np.zeros(shape, np.int32),
        }
        return Batch.of(inputs, rng.integers(0, classes, shape[0]).astype(np.int32))
    places = np.broadcast_to(np.arange(setting.length, dtype=np.int32), shape)
    inputs = {"input_ids": ids, "segment_ids": np.ones(shape, np.int32), "position_ids": places}
    return Batch.of(inputs, np.roll(ids, -1, axis=1), elements=np.ones(shape, bool))


def step_row(
    title: str, networks: tuple[Network, Network], taught: Objective, batch: Batch, classes: int, rounds: int, in_chunks: bool
) -> timing.Row:  # fmt: skip
    """One step by its parts."""
    student, teacher = networks
    runner, clock = make_runner("jit", jax.devices()[:1]), Clock(total_steps=1000, steps_per_epoch=10)
    batch = runner.place_batch(batch)
    shapes = tuple(output_shapes(network, batch.inputs) for network in networks)
    frozen = runner.place(Variables(*jax.jit(teacher.init)(jax.random.key(1))))

    def step_of(objective: Objective, network: Network | None):
        bound = bind(objective, *shapes, DataInfo(classes, 1000))
        step = make_step(student, network, bound, optax.sgd(1e-4), clock=clock, in_chunks=in_chunks)
        state = jax.jit(lambda: init_state(student, bound, optax.sgd(1e-4), seed=0))
        return bound, runner.compile(step), lambda: runner.place(state())

    bound, step, begun = step_of(taught, teacher)
    _, alone, begun_alone = step_of(CrossEntropy(), None)
    say = jax.jit(lambda v, x: teacher.apply(v.params, v.state, x, train=False)[0])
    state = begun()

    def apart(params, kept, frozen):
        mine = student.apply(params, kept, batch.inputs, train=True)[0]
        context = Context(mine, say(frozen, batch.inputs), batch, clock.at(0), key=jax.random.key(0))
        terms, _ = bound.apply(state.params["objective"], state.state["objective"], context, train=True)
        return sum(group_losses(terms).values())

    wanted = float(jax.jit(apart)(state.params["student"], state.state["student"], frozen))
    error = abs(float(last_loss(step(begun(), frozen, batch)[1])) / wanted - 1)
    seconds = timing.turns(
        [
            stepping("taught", step, begun(), frozen, batch),
            timing.Subject("teacher", lambda: say(frozen, batch.inputs)),
            stepping("alone", alone, begun_alone(), None, batch),
        ],
        rounds,
    )
    milliseconds = lambda *names: " + ".join(f"{1e3 * np.median(seconds[name]):.3g} ms" for name in names)
    return timing.of_samples(
        f"{title}: step ÷ (teacher forward + student step)", seconds["taught"] / (seconds["teacher"] + seconds["alone"]),
        most=1.05, note=f"{milliseconds('taught')}; {milliseconds('teacher', 'alone')}",
        check=f"loss {error:.1e} from that of the outputs apart", correct=error <= TOLERANCE,
    )  # fmt: skip


def table(setting: Setting, kind: str) -> list[timing.Row]:
    """The rows of one kind of networks."""
    if kind == "encoders":
        networks, taught = (encoder(setting, 1), encoder(setting, 0)), CrossEntropy() + KD(temperature=2.0)
        return [step_row("encoders", networks, taught, tokens(setting, CLASSES), CLASSES, setting.rounds, False)]
    networks, taught = (decoder(setting, 1), decoder(setting, 0)), CrossEntropy() + ForwardKL()
    return [step_row(f"decoders, logits {how}", networks, taught, tokens(setting), setting.vocabulary, setting.rounds, pieces)
            for how, pieces in (("whole", False), ("in pieces", True))]  # fmt: skip


def bucket_rows(setting: Setting, batches: int = 60, buckets: tuple[int, ...] = (16, 32)) -> list[timing.Row]:
    """Steps of the first batches of a pass, with and without lengths of their own."""
    base = load_config("text/docstrings")("kd")
    subjects, share = [], 0.0
    for name, widths in (("whole", ()), ("buckets", buckets)):
        data = dataclasses.replace(base.data, buckets=widths)
        experiment = dataclasses.replace(base, data=data, steps_per_dispatch=1)
        program = Builder(devices=jax.devices()[:1]).program(experiment, experiment.student)
        compiled, pipeline = program.compiled, program.feeding.pipeline(0)
        init = jax.jit(program.networks.teacher.init)
        frozen = program.feeding.frozen(compiled.runner.place(Variables(*init(jax.random.key(1)))))
        placed = [compiled.runner.place_batch(pipeline[i]) for i in range(batches)]
        if widths:  # whole rows lie on the device
            share = np.mean([batch.inputs["input_ids"].shape[1] for batch in placed]) / data.length
        subjects.append(timing.Subject(name, one_pass(compiled, frozen, placed), units=batches))
    seconds = timing.turns(subjects, setting.rounds)
    return [timing.of_samples(
        f"encoders, rows of {', '.join(map(str, buckets))} and {base.data.length} tokens ÷ rows of {base.data.length}",
        seconds["buckets"] / seconds["whole"], note=f"{share:.0%} of the tokens",
    )]  # fmt: skip


def one_pass(compiled, frozen: Variables, placed: list[Batch]):
    """Steps of some batches, one after the other, from where the last pass ended."""
    kept = [compiled.fresh_state(0, 0)]

    def steps():
        state, metrics = kept.pop(), None
        for batch in placed:
            state, metrics = compiled.step(state, frozen, batch)
        kept.append(state)
        return metrics

    return steps


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    helps = {"width": "of the teacher", "depth": "its blocks", "vocabulary": "kinds of tokens", "batch_size": "rows",
             "length": "tokens of each", "rounds": "at most"}  # fmt: skip
    for name, what in helps.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=at_least(1), default=getattr(Setting(), name), help=what
        )
    parser.add_argument("--json", type=new_file, help="also write facts and rows here")
    parser.add_argument("--batches", type=at_least(1), default=60, help="steps of the last row")
    sizes = vars(parser.parse_args(arguments))
    path, batches = sizes.pop("json"), sizes.pop("batches")
    setting = Setting(**sizes)
    found = timing.facts(**dataclasses.asdict(setting))
    print(
        f"{timing.in_words(found)}; {setting.depth} blocks of width {setting.width} teach half of both, "
        f"{setting.vocabulary:,} kinds of tokens, {setting.batch_size} rows of {setting.length}, at most {setting.rounds} "
        "rounds\n",
        flush=True,
    )
    kinds = {kind: functools.partial(table, setting, kind) for kind in ("decoders", "encoders")}
    kinds["buckets"] = functools.partial(bucket_rows, setting, batches)
    rows = timing.run_rows(kinds, functools.partial(print, flush=True))
    timing.write(path, found, rows)
    return timing.status(rows)


if __name__ == "__main__":
    sys.exit(main())
