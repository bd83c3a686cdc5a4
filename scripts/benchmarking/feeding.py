"""How batches reach the step: several in one dispatch, images on the device, and batches put together while it computes."""

import dataclasses
import importlib.util
import itertools

import jax
import numpy as np

from benchmarking.pair import EXAMPLES, Pair, compare, last_loss, outcome, stepping
from benchmarking.timing import Row, Subject, of_samples, turns
from kdjax.data import Pipeline, Source
from kdjax.training.feed import ahead, from_resident, grouped, laid_flat, scanned


def in_one_dispatch(pair: Pair) -> list[Row]:
    """Several steps as one program beside the same steps one by one."""
    count = 2 if jax.default_backend() == "cpu" else 8
    numbered = [pair.host_batch(k) for k in range(count)]
    (_, stacked), *_ = grouped(numbered, [count])
    placed = pair.runner.place_batch(stacked, stacked=True)
    steps = pair.runner.compile(scanned(pair.step()), stacked=True)
    state = pair.state()
    for batch in numbered:
        state, metrics = pair.live(state, pair.variables, pair.runner.place_batch(batch))
    difference = compare(outcome(*steps(pair.state(), pair.variables, placed)), outcome(state, metrics), pair.state())
    seconds = turns(
        [
            stepping("single", pair.live, pair.state(), pair.variables, pair.batch),
            stepping("scanned", steps, pair.state(), pair.variables, placed, units=count),
        ],
        pair.setting.rounds,
    )
    note = f"{count} steps in one dispatch, {pair.setting.batch_size / np.median(seconds['scanned']):,.0f} images/s"
    if jax.default_backend() == "cpu":
        note += "; off on CPU, where loops around convolutions are slow"
    # Rounding grows from step to step.
    right = difference.within(count * pair.setting.tolerance)
    return [of_samples("steps in one dispatch ÷ one by one", seconds["scanned"] / seconds["single"],
                       check=str(difference), correct=right, note=note)]  # fmt: skip


def resident(pair: Pair) -> list[Row]:
    """A step that looks its images up on the device beside one that is handed them, both fed from the host."""
    images = jax.device_put(laid_flat(pair.images), pair.runner.replicated)
    looking = pair.runner.compile(from_resident(pair.step(), pair.images))
    bare = dataclasses.replace(pair.host_batch(), inputs=None)
    found = outcome(*looking(pair.state(), (pair.variables, images), pair.runner.place_batch(bare)))
    wanted = outcome(*pair.live(pair.state(), pair.variables, pair.batch))
    difference = compare(found, wanted, pair.state())
    seconds = turns(
        [
            _handing("handed", pair, pair.live, pair.variables, pair.host_batch()),
            _handing("resident", pair, looking, (pair.variables, images), bare),
        ],
        pair.setting.rounds,
    )
    return [of_samples("images on the device ÷ handed over with each batch", seconds["resident"] / seconds["handed"],
                       check=str(difference), correct=difference.within(pair.setting.tolerance))]  # fmt: skip


def _handing(name: str, pair: Pair, compiled, frozen, batch) -> Subject:
    """A step whose batch comes from the host each time."""
    kept = [pair.state()]

    def call():
        kept[0], metrics = compiled(kept[0], frozen, pair.runner.place_batch(batch))
        return kept[0], metrics

    return Subject(name, call)


def stall(pair: Pair) -> list[Row]:
    """The share of a run's time by which batches from the pipeline make it longer than one batch that is there already."""
    count = 8 if jax.default_backend() == "cpu" else 100
    classes = tuple(str(number) for number in range(pair.setting.classes))
    source = Source("random", "train", pair.labels, pair.setting.classes, classes, pair.images)
    pipeline = Pipeline(source, np.arange(EXAMPLES), batch_size=pair.setting.batch_size, data_seed=0)
    background = importlib.util.find_spec("grain") is not None
    batches = pipeline.iterate if background else lambda: (pipeline[k] for k in itertools.count())

    def same(batch, numbers):
        return all(np.array_equal(batch.inputs[i], pair.images[k]) for i, k in enumerate(numbers))

    first, *_ = ahead(itertools.islice(batches(), 3), pair.runner.place_batch)
    right = same(jax.device_get(first), pipeline[0].index) and len(set(pipeline[0].index.tolist())) > 1
    kept = {name: [pair.state()] for name in ("fed", "placed")}

    def run(name, given):
        for batch in given:
            kept[name][0], metrics = pair.live(kept[name][0], pair.variables, batch)
        return kept[name][0], last_loss(metrics)

    feed = ahead(batches(), pair.runner.place_batch)  # one for the whole run, as in training
    seconds = turns(
        [
            Subject("fed", lambda: run("fed", itertools.islice(feed, count)), units=count),
            Subject("placed", lambda: run("placed", [pair.batch] * count), units=count),
        ],
        pair.setting.rounds,
    )
    how = "read ahead by grain" if background else "put together between steps, since grain is not installed"
    row = of_samples("input stall, share of the step", 1 - seconds["placed"] / seconds["fed"], most=0.02,
                     check="the first batch holds the images of its indices", correct=right,
                     note=f"{count} steps a turn, uint8 images {how}")  # fmt: skip
    return [row]
